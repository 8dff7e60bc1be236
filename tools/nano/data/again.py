"""Replies as the model itself sounds, for train.lm to hear itself: `python -m tools.nano.data.again WORK [--count 700]`.

True codes behind the voice's prompt -> flow -> vocoder -> tokenizers; every second one with a little room and noise. Writes `WORK/again.pkl`:
text, style, codes.
"""
from __future__ import annotations

import argparse
import os
import pickle
import random

import numpy as np
import torch

from .. import features, modules
from ..train import flow as train_flow, trainer, vocoder as train_vocoder
from . import more, synth, tokenise


def load(work):
    if not os.path.exists(f"{work}/again.pkl"):
        return []
    with open(f"{work}/again.pkl", "rb") as f:
        return pickle.load(f)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--count", type=int, default=700)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(8)
    rng, noise_rng = random.Random(8), np.random.default_rng(8)
    with open(f"{args.work}/tokens.pkl", "rb") as f:
        replies = [d for d in pickle.load(f) if d["split"] == "reply" and d["voice"] == synth.TARGET and d["style"] != "sing"]
    shorts = [d for d in replies if len(d["codes"]) <= 75]
    prompts = {style: max((d for d in shorts if d["style"] == style), key=lambda d: len(d["codes"])) for style in ("neutral", "happy")}
    vector = train_flow.speaker_encoder(args.work)
    replies = [d for d in replies + more.load(args.work, "replies") if 20 <= len(d["codes"]) <= 220 and d["style"] != "sing"]
    load_net = lambda net, name: (net.load_state_dict(trainer.weights(args.work, name)), net.eval())[1]
    flow, hift = load_net(modules.Flow(**train_flow.SHAPE), "flow"), load_net(modules.HiFT(**train_vocoder.SHAPE), "vocoder")
    tokeniser, out = tokenise.Tokeniser(args.work), []
    for d in rng.sample(replies, min(args.count, len(replies))):
        prompt = prompts["happy" if d["style"] == "happy" else "neutral"]
        token, said = torch.tensor(d["codes"])[None], torch.from_numpy(prompt["mel22"].astype(np.float32)).T[None]
        z = torch.randn(1, 80, said.shape[1] + flow.frames(token.shape[1]))
        mel = flow(token, torch.tensor(prompt["codes"])[None], said, vector(prompt)[None], z, steps=train_flow.SERVED_STEPS)
        wave = features.resample(hift(mel, torch.zeros(1, 9, 1), torch.randn(1, 9, mel.shape[2] * 256))[0], 22050, 16000)
        if len(out) % 2:
            wave = torch.from_numpy(features.augment(wave.numpy(), noise_rng, 0.5, 20, 40)[0])
        out.append(dict(text=d["text"], kind="reply", style=d["style"], codes=tokeniser.wave(wave)))
        if len(out) % 50 == 0:
            print(f"again {len(out)}/{args.count}", flush=True)
    with open(f"{args.work}/again.pkl", "wb") as f:
        pickle.dump(out, f)


if __name__ == "__main__":
    main()
