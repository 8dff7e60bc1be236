"""Where the word errors of the speaking path come from: `python -m tools.nano.judge.ablate WORK [--count 60] [--how domain,open,phones] [--model models/nano]`.

The sentences of all fixed replies and `count` held-out ones, spoken by the synthesiser; then its mel through the vocoder alone; its codes through flow and vocoder
behind Clara's recording, as the engine serves them; the same with the flow's prior mu; and, with `--model`, the whole path in the C++ runtime. Each judged by tools.nano.judge.sphinx.
"""
from __future__ import annotations

import argparse
import os
import random

import numpy as np
import torch

from .. import features, modules
from ..data import domain, prepare, synth, tokenise
from ..train import flow as train_flow, trainer, vocoder as train_vocoder
from . import sphinx
from .runtime import at16, say


def texts_of(count):
    """-> (the sentences of all fixed replies, `count` held-out ones of the open intents)."""
    fixed, rng, held = domain.pieces_of(domain.fixed_replies()), random.Random(77), []
    while len(held) < count:
        style, text = domain.spoken_reply(rng)
        if style != "sing" and domain.held_out(text) and text not in domain.fixed_replies() and text not in held:
            held.append(text)
    return fixed, held


class Stages:
    """Codes -> mel -> wave behind Clara's recording, with the trained weights of `stages`; the others are None."""

    def __init__(self, work, stages=("flow", "vocoder")):
        load = lambda net, name: (net.load_state_dict(trainer.weights(work, name)), net.eval())[1] if name in stages else None
        self.flow, self.hift = load(modules.Flow(**train_flow.SHAPE), "flow"), load(modules.HiFT(**train_vocoder.SHAPE), "vocoder")
        self.tokeniser = tokenise.Tokeniser(work)
        prompt = train_flow.served_prompts(work)[synth.TARGET]
        self.prompt, self.vector, self.said = prompt["codes"], prompt["vector"][None], torch.from_numpy(prompt["mel22"]).T[None]

    @torch.no_grad()
    def sound(self, mel):
        wave = self.hift(mel, torch.zeros(1, 9, 1), torch.randn(1, 9, mel.shape[2] * 256))[0]
        return features.resample(wave, 22050, 16000).numpy()

    def copy(self, wave, rate):
        wave22 = features.resample(torch.from_numpy(wave), rate, 22050)
        return self.sound(features.vocoder_mel(wave22[None] * (0.6 / max(0.05, float(wave22.abs().max())))))

    @torch.no_grad()
    def mel(self, codes, prior=False):
        token, prompt = torch.tensor(codes)[None], torch.tensor(self.prompt)[None]
        frames = self.flow.frames(token.shape[1])
        if prior:
            return self.flow.mu(torch.cat([prompt, token], 1), len(self.prompt), self.said.shape[1], frames)[:, :, self.said.shape[1]:]
        return self.flow(token, prompt, self.said, self.vector, torch.randn(1, 80, self.said.shape[1] + frames), steps=train_flow.SERVED_STEPS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--how", default="domain,phones")
    parser.add_argument("--model")
    parser.add_argument("--parlando", default=os.environ.get("PARLANDO", "build/bin/parlando"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    fixed, held = texts_of(args.count)
    jobs = [dict(text=t, style="neutral", kind="reply", engine="festival", voice=synth.TARGET, split="reply") for t in fixed + held]
    records, audio = synth.speak(jobs)
    texts = [r["text"] for r in records]
    first = [i for i, t in enumerate(texts) if t in set(fixed)]
    rest = [i for i in range(len(texts)) if i not in set(first)]
    waves = [(audio[r["at"]:r["at"] + r["samples"]].astype(np.float32) / 32768, r["rate"]) for r in records]
    stages = Stages(args.work)
    os.makedirs(f"{args.work}/eval", exist_ok=True)
    judge = sphinx.Judge(f"{args.work}/eval")
    spoken = [features.resample(torch.from_numpy(w), rate, 16000) for w, rate in waves]
    codes = [stages.tokeniser.wave(w) for w in spoken]
    whole = lambda: (at16(w) for w in say(args, [dict(text=t, speaker="Clara") for t in texts])[0])
    for name, make in (("the synthesiser itself", lambda: (w.numpy() for w in spoken)), ("vocoder alone", lambda: (stages.copy(*w) for w in waves)),
                       ("true codes, flow and vocoder", lambda: (stages.sound(stages.mel(c)) for c in codes)),
                       ("true codes, prior and vocoder", lambda: (stages.sound(stages.mel(c, True)) for c in codes)), ("the whole path", args.model and whole)):
        made = list(make()) if make else []
        if not made:
            continue
        for how in args.how.split(","):
            heard = [h.split() for h in judge.hear(made, texts, how)[1]]
            wants = [judge.phones(t) if how == "phones" else prepare.words(t) for t in texts]
            parts = [sphinx.rate([heard[i] for i in rows], [wants[i] for i in rows]) for rows in (range(len(texts)), first, rest)]
            print(f"{name}, {how}: all {parts[0]:.3f}, fixed {parts[1]:.3f}, held out {parts[2]:.3f}", flush=True)


if __name__ == "__main__":
    main()
