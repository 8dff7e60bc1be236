"""Trains the language model that speaks: `python -m tools.nano.train.tts WORK [--minutes 100]`.

Starts from the chat model of train.lm (same tokenizer, dimensions and prompts) and practises one task: text + voice prompt -> codes.
Most of the practice is the target voice, most of that the texts of tools.nano.data.more. Loss on the codes only. Some of the codes that the model looks
back on are replaced by chance, so that it holds on to the text when it has chosen a wrong one itself. Where there are a flow and a vocoder, the judge hears it on
the way (`--judge`) and chooses the weights.
"""
from __future__ import annotations

import argparse
import json
import os
import random

import torch
import torch.nn.functional as F

from .. import modules
from ..data import domain, synth
from . import lm as train_lm, trainer


def forget(ids, labels, audio, share=0.1):
    """Replaces codes of the answer by codes of the same codebook, in every second row."""
    answer = torch.nn.functional.pad(labels != -100, (1, 0)) & (ids >= audio)
    chosen = answer & (torch.rand(ids.shape) < share) & (torch.arange(len(ids))[:, None] % 2 == 0)
    linguistic = ids < audio + 1024
    other = torch.where(linguistic, audio + torch.randint(256, ids.shape), audio + 1024 + torch.randint(512, ids.shape))
    return torch.where(chosen, other, ids)


@torch.no_grad()
def evaluate(net, data):
    """Held-out replies in the target voice: nats per code, and the share of codes that the model ranks first."""
    net.eval()
    loss = right = total = 0
    for d in data.reply_tests[:80]:
        ids, out = data.speak(d, (data.prompts["Clara"], "Clara"))
        logits, want = net(torch.tensor([ids + out[:-1]]))[0, len(ids) - 1:], torch.tensor(out)
        loss += float(F.cross_entropy(logits, want, reduction="sum"))
        right += int((logits.argmax(1) == want).sum())
        total += len(out)
    net.train()
    return dict(nats_per_code=loss / total, first_choice=right / total)


def say(data, net, text):
    """Codes of a sentence in Clara's voice as the engine serves it: the most likely ones, and no more than twice as many as anybody needs."""
    ids, out = data.speak(dict(text=text, style="neutral", voice=synth.TARGET, codes=[]), (data.prompts["Clara"], "Clara"))
    codes = [c - data.tok.audio for c in net.greedy(ids, 60 + 5 * len(text), stops=out)]
    return [c for c in codes if c >= 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--judge", type=int, default=4, help="how often the judge listens; 0: the last weights are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(17)
    data = train_lm.Data(args.work, rng)
    torch.manual_seed(3)
    config = json.load(open(f"{args.work}/state/lm_config.json"))
    net = modules.Step1(**config)
    if not os.path.exists(f"{args.work}/state/tts.pt"):
        net.load_state_dict(torch.load(f"{args.work}/state/lm.pt", weights_only=False)["nets"]["net"])
    run = trainer.Run(args.work, "tts", dict(net=net), args.minutes, args.rate, warmup=150, floor=1e-5, power=0.9, decay=0.02)
    rng.seed(run.steps + 1)
    print(f"tts: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, target voice {len(data.slt)} + {len(data.more)}, other voices {len(data.others)}", flush=True)
    # Mixed sentences most of all: in them every word is as frequent as every other.
    first = domain.pieces_of(domain.first_heard())
    fixed, rest = ([d for d in data.more if bool(d.get("fixed")) == is_fixed] for is_fixed in (True, False))
    fixed += [d for d in fixed if d["text"] in first]
    sources = [data.others, data.slt, [d for d in rest if not d["voiced"]], [d for d in rest if d["voiced"]], fixed]
    weights = [w if s else 0 for w, s in zip([8, 6, 18, 38, 30], sources)]
    net.train()
    from ..judge import during      # which needs this module

    ear = during.Ear(args.work, "tts", codes=lambda net, text: say(data, net, text)) if args.judge else None
    if ear and run.steps == 0 and os.path.exists(run.path):      # a finished model is the start, and what to beat
        run.judge(ear, net)
    evaluated = heard = run.fraction
    while run.begin_step():
        source = rng.choices(sources, weights)[0]
        window = sorted(rng.choices(source, k=120), key=lambda d: len(d["codes"]))
        k = rng.randrange(-11, 120)     # past both ends, or the shortest and the longest would hardly ever come
        ids, labels = train_lm.rows_of([data.speak(d) for d in window[max(0, k):k + 12]])
        keep = labels != -100
        loss = F.cross_entropy(net.lm_head(net.hidden(forget(ids, labels, data.tok.audio)[:, :-1], dropout=0.08)[keep]), labels[keep])
        run.step(loss, dict(speak=loss))
        if run.fraction - evaluated > 0.1:
            evaluated = run.fraction
            figures = evaluate(net, data)
            print("evaluation", {k: round(v, 3) for k, v in figures.items()}, flush=True)
            run.note(figures)
        if ear and run.fraction - heard > 0.999 / args.judge:
            heard = run.fraction
            run.judge(ear, net)
    if ear:
        run.judge(ear, net)
    figures = evaluate(net, data)
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
