"""Trains the CAM++ speaker encoder: `python -m tools.nano.train.speaker WORK [--minutes 8]`. Additive-margin softmax over the voices."""
from __future__ import annotations

import argparse
import collections

import torch
import torch.nn.functional as F
from torch import nn

from .. import modules
from . import trainer

SHAPE = dict(init=16, growth=4, factor=2, head=8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=8)
    args = parser.parse_args()
    data = [d for d in trainer.load_features(args.work, {"reply"}) if len(d["speaker"]) > 60]
    counts = collections.Counter(d["voice"] for d in data)
    voices = sorted(v for v, n in counts.items() if n >= 2)
    by_voice = {v: [d["speaker"] for d in data if d["voice"] == v] for v in voices}
    torch.manual_seed(4)
    net, head = modules.CamPlus(**SHAPE), nn.Linear(192, len(voices), bias=False)
    run = trainer.Run(args.work, "speaker", dict(net=net, head=head), args.minutes, 2e-3, warmup=100, clip=5.0)
    print(f"speaker: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, {len(voices)} voices", flush=True)
    net.train()
    while run.begin_step():
        frames = run.random.randint(80, 160)
        labels = [run.random.randrange(len(voices)) for _ in range(24)]
        rows = []
        for label in labels:
            f = run.random.choice(by_voice[voices[label]])
            f = f if len(f) >= frames else f.repeat(-(-frames // len(f)), 0)
            at = run.random.randint(0, len(f) - frames)
            rows.append(f[at:at + frames])
        x = trainer.pad(rows)
        x = x - x.mean(1, keepdim=True)
        e = F.normalize(net(x), dim=1)
        cosine = e @ F.normalize(head.weight, dim=1).T
        y = torch.tensor(labels)
        loss = F.cross_entropy(24 * (cosine - 0.15 * F.one_hot(y, len(voices))), y)
        run.step(loss, dict(loss=loss, accuracy=(cosine.argmax(1) == y).float().mean()))
    net.eval()
    with torch.no_grad():
        def vector(f):
            x = torch.from_numpy(f.astype("float32"))[None]
            return F.normalize(net(x - x.mean(1, keepdim=True)), dim=1)[0]
        rich = [v for v in voices if len(by_voice[v]) >= 4][:40]
        a, b = torch.stack([vector(by_voice[v][0]) for v in rich]), torch.stack([vector(by_voice[v][1]) for v in rich])
        cosine = a @ b.T
        off = cosine[~torch.eye(len(rich), dtype=torch.bool)]
        figures = dict(same=cosine.diagonal().mean().item(), other=off.mean().item(), retrieval=(cosine.argmax(1) == torch.arange(len(rich))).float().mean().item())
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
