"""Trains one speech encoder: `python -m tools.nano.train.encoders {linguistic|semantic} WORK [--minutes 30]`.

Linguistic: streaming windows exactly as served; loss = phone CTC + 0.5 · frame phones. Semantic: codebook after the last block on
L2-normalised vectors; loss = character CTC + 0.5 · frame phones + 0.5 · commitment. The heads are dropped afterwards.
"""
from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .. import modules
from ..data import prepare
from . import trainer

LINGUISTIC = dict(width=160, heads=4, hidden=448, blocks=3)
SEMANTIC = dict(width=144, heads=4, blocks=3, codes=512)


class LinguisticTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = modules.SanmEncoder(**LINGUISTIC)
        self.ctc = nn.Linear(LINGUISTIC["width"], len(prepare.PHONES) + 1)
        self.frame = nn.Linear(LINGUISTIC["width"], len(prepare.PHONES) + 1)
        self.register_buffer("shift", torch.zeros(560))
        self.register_buffer("rescale", torch.ones(560))

    def forward(self, feats, lengths, dropout=0.08):
        # The official graph multiplies by sqrt(width); a unit-variance input is tamed by the layer norm in front of layer 0.
        h = self.net((feats + self.shift) * self.rescale, lengths, dropout)
        return h, self.ctc(h), self.frame(h)


class SemanticTask(nn.Module):
    def __init__(self):
        super().__init__()
        w = SEMANTIC["width"]
        self.net = modules.S3Encoder(**SEMANTIC)
        self.after = modules.S3Block(w, SEMANTIC["heads"])
        self.ctc, self.frame = nn.Linear(w, len(prepare.CHARS) + 1), nn.Linear(w, len(prepare.PHONES) + 1)
        self.register_buffer("mass", torch.zeros(SEMANTIC["codes"]))
        self.register_buffer("total", torch.zeros(SEMANTIC["codes"], w))
        self.register_buffer("on", torch.zeros(()))

    def forward(self, mel, lengths, dropout=0.08):
        hidden, valid = self.net(mel, lengths, dropout)
        commitment = hidden.new_zeros(())
        h = F.normalize(hidden, dim=-1)
        if self.on > 0:
            _, ids = self.net.quantise(hidden)
            code = self.net.embed[ids]
            commitment = ((h - code.detach()) ** 2).sum(-1)[valid].mean()
            if self.training:
                self.update(h.detach()[valid], ids[valid])
            h = h + (code - h).detach()
        h = h * SEMANTIC["width"] ** 0.5
        return h, self.ctc(self.after(h, valid[:, None, None], dropout)), self.frame(h), commitment, valid

    @torch.no_grad()
    def update(self, vectors, ids):
        """Exponential moving average of the codebook; a code that died takes a random vector."""
        count = torch.bincount(ids, minlength=len(self.mass)).float()
        self.mass.mul_(0.99).add_(count, alpha=0.01)
        self.total.mul_(0.99).index_add_(0, ids, vectors * 0.01)
        dead = self.mass < 0.02
        if dead.any():
            pick = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
            self.total[dead], self.mass[dead] = pick * 0.2, 0.2
        self.net.embed.copy_(self.total / self.mass[:, None])

    @torch.no_grad()
    def start(self, vectors):
        centres = k_means(vectors, len(self.mass), 8)
        self.net.embed.copy_(centres)
        self.mass.fill_(1.0)
        self.total.copy_(centres)
        self.on.fill_(1.0)


def k_means(x: torch.Tensor, count: int, rounds: int, seed: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = x[torch.randperm(len(x), generator=g)[:count]].clone()
    for _ in range(rounds):
        ids = torch.cat([((centres ** 2).sum(1) - 2 * part @ centres.T).argmin(1) for part in x.split(8192)])
        total = torch.zeros_like(centres).index_add_(0, ids, x)
        mass = torch.bincount(ids, minlength=count)
        centres = torch.where(mass[:, None] > 0, total / mass.clamp(min=1)[:, None], x[torch.randint(len(x), (count,), generator=g)])
    return centres


def batch_of(task, items, train, rng):
    if task == "linguistic":
        x = trainer.pad([d["ling"] for d in items])
        lengths = torch.tensor([len(d["ling"]) for d in items])
        rows = lengths
    else:
        x = trainer.pad([d["mel"].T for d in items]).transpose(1, 2).contiguous()
        lengths = torch.tensor([d["mel"].shape[1] for d in items])
        rows = ((lengths - 1) // 2) // 2 + 1
    if train:      # SpecAugment: one band, one short span
        for i in range(len(items)):
            if task == "linguistic":
                view, n = x[i].view(x.shape[1], 7, 80), int(lengths[i])
                fill = float(view[:n].mean())
                w = rng.randint(0, 14); o = rng.randint(0, 80 - w); view[:n, :, o:o + w] = fill
                w = rng.randint(0, 3); o = rng.randint(0, max(0, n - w)); view[o:o + w] = fill
            else:
                n = int(lengths[i])
                w = rng.randint(0, 22); o = rng.randint(0, 128 - w); x[i, o:o + w] = -1.0
                w = rng.randint(0, 16); o = rng.randint(0, max(0, n - w)); x[i, :, o:o + w] = -1.0
    key, frames = ("phones", "ling_frames") if task == "linguistic" else ("chars", "mel_frames")
    labels = torch.full((len(items), int(rows.max())), -100)
    for i, d in enumerate(items):
        if frames in d:
            labels[i, :len(d[frames])] = torch.from_numpy(d[frames].astype(np.int64))[:labels.shape[1]]
    target = torch.tensor([t for d in items for t in d[key]])
    return x, lengths, rows, target, torch.tensor([len(d[key]) for d in items]), labels


@torch.no_grad()
def evaluate(task, net, sets, rng):
    net.eval()
    figures = {}
    for name, items in sets.items():
        wrong = total = hit = seen = 0
        for i in range(0, len(items), 20):
            part = items[i:i + 20]
            x, lengths, rows, _, _, labels = batch_of(task, part, False, rng)
            out = net(x, lengths, 0.0)
            ctc, frame = out[1], out[2]
            for d, row, n in zip(part, ctc.argmax(-1), rows):
                path = [int(t) for t in row[:n]]
                text = [t for t, before in zip(path, [0] + path) if t and t != before]
                want = d["phones" if task == "linguistic" else "chars"]
                wrong, total = wrong + trainer.edit_distance(text, want), total + len(want)
            keep = labels >= 0
            hit, seen = hit + int((frame.argmax(-1)[:, :labels.shape[1]][keep] == labels[keep]).sum()), seen + int(keep.sum())
        figures[name + "_error"], figures[name + "_frame_accuracy"] = wrong / total, hit / max(1, seen)
    net.train()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["linguistic", "semantic"])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=30)
    args = parser.parse_args()
    data = [d for d in trainer.load_features(args.work) if len(d["ling"]) > 2]
    for d in data:
        for k in ("mel22", "wave22", "f0", "speaker", "mel" if args.task == "linguistic" else "ling"):
            d.pop(k, None)
    train = [d for d in data if d["split"] in ("train", "reply") and d["style"] != "sing"]
    sets = {s: [d for d in data if d["split"] == s] for s in ("test", "unseen")}
    torch.manual_seed(1)
    net = LinguisticTask() if args.task == "linguistic" else SemanticTask()
    if args.task == "linguistic":
        sample = np.concatenate([d["ling"].astype(np.float32) for d in train[:2000]])
        net.shift.copy_(torch.from_numpy(-sample.mean(0)))
        net.rescale.copy_(torch.from_numpy(1 / (sample.std(0) + 1e-3)))
    run = trainer.Run(args.work, args.task, dict(net=net), args.minutes, 1.5e-3, warmup=400, clip=2.0)
    print(f"{args.task}: {sum(p.numel() for p in net.net.parameters()) / 1e6:.2f} M parameters, {len(train)} utterances", flush=True)
    size = (lambda d: len(d["ling"])) if args.task == "linguistic" else (lambda d: d["mel"].shape[1])
    batches = trainer.bucketed(train, size, 600 if args.task == "linguistic" else 3600, run.random)
    evaluated = run.fraction
    net.train()
    while run.begin_step():
        if args.task == "semantic" and net.on == 0 and run.fraction > 0.2:
            net.eval()
            with torch.no_grad():
                rows = []
                for i in range(0, 1500, 25):
                    x, lengths, *_ = batch_of(args.task, run.random.sample(train, 25), False, run.random)
                    hidden, valid = net.net(x, lengths)
                    rows.append(F.normalize(hidden, dim=-1)[valid])
            net.start(torch.cat(rows)[:24000])
            net.train()
        x, lengths, rows, target, target_lengths, labels = batch_of(args.task, next(batches), True, run.random)
        out = net(x, lengths)
        ctc = F.ctc_loss(F.log_softmax(out[1], -1).transpose(0, 1), target, rows, target_lengths, zero_infinity=True)
        keep = labels >= 0
        frame = F.cross_entropy(out[2][:, :labels.shape[1]][keep], labels[keep]) if keep.any() else ctc.new_zeros(())
        commitment = out[3] if args.task == "semantic" else ctc.new_zeros(())
        run.step(ctc + 0.5 * frame + 0.5 * commitment, dict(ctc=ctc, frame=frame, commitment=commitment))
        if run.fraction - evaluated > 0.25:
            evaluated = run.fraction
            figures = evaluate(args.task, net, sets, run.random)
            print("evaluation", {k: round(v, 3) for k, v in figures.items()}, flush=True)
            run.note(figures)
    figures = evaluate(args.task, net, sets, run.random)
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
