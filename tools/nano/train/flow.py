"""Trains tokens -> mel: `python -m tools.nano.train.flow WORK [--minutes 50]`. Conditional flow matching on raw log-mel plus an L1 prior
on mu; speaker vector from the speaker encoder; the prompt is another utterance of the voice (in the same style where that moves the pitch), a random prefix of the same one or nothing; condition
dropped with probability 0.2. `--start-from STATE` takes what fits from an earlier state; blocks that it lacks begin as identities."""
from __future__ import annotations

import argparse
import math
import os
import pickle

import torch
import torch.nn.functional as F

from .. import modules
from ..data import domain, more, synth
from . import trainer, speaker as train_speaker

SHAPE = dict(vocab_size=1536, input_size=96, width=128, heads=4, hidden=384, blocks=3, rate=125 / 3,
             estimator=dict(channels=(96, 96), blocks=1, mid_blocks=2, heads=4, head_dim=32), cfg_rate=0.0)


STEPS = 5      # of the solver when it is served: the judge hears no difference from the official ten (36.8 and 35.5 % on the same speech)
FIXED_MORE = 6      # further times that a fixed reply comes up
PITCHED = ("happy", "sing")


def voice_of(d):
    """A voice in a style of its own pitch counts as another voice."""
    return d["voice"] + (d["style"] if d["style"] in PITCHED else "")


def speaker_encoder(work):
    """-> function that gives an utterance its speaker vector, once."""
    net = modules.CamPlus(**train_speaker.SHAPE)
    net.load_state_dict(torch.load(f"{work}/state/speaker.pt", weights_only=False)["nets"]["net"])
    net.eval()

    @torch.no_grad()
    def vector(d):
        if "vector" not in d:
            x = torch.from_numpy(d.pop("speaker").astype("float32"))[None]
            d["vector"] = net(x - x.mean(1, keepdim=True))[0]
        return d["vector"]
    return vector


def neutralise(block):
    """Makes a middle block (residual net, transformers) the identity, so that a deeper network starts where the shallower one ended."""
    resnet, transformers = block[0], block[1]
    torch.nn.init.zeros_(resnet.block2.block[1].weight), torch.nn.init.zeros_(resnet.block2.block[1].bias)
    torch.nn.init.dirac_(resnet.res_conv.weight), torch.nn.init.zeros_(resnet.res_conv.bias)
    for t in transformers:
        for linear in (t.attn1["to_out"][0], t.ff["net"][2]):
            torch.nn.init.zeros_(linear.weight), torch.nn.init.zeros_(linear.bias)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--batch", type=int, default=900, help="codes")
    parser.add_argument("--share", type=float, default=1.0, help="of each batch that the estimator sees")
    parser.add_argument("--start-from", help="state of an earlier run, possibly with fewer middle blocks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(f"{args.work}/tokens.pkl", "rb") as f:
        data = [d for d in pickle.load(f) if d["split"] in ("reply", "reply_test") and 20 <= len(d["codes"]) <= 220]
    for d in data:
        d.pop("wave22", None)
    data += [d for d in more.load(args.work, "replies", voiced=True) if 20 <= len(d["codes"]) <= 220]
    fixed = [d for d in data if d.get("fixed")]      # what is said over and over must be clear
    data += fixed * FIXED_MORE + [d for d in fixed if d["text"] in domain.first_heard()] * FIXED_MORE
    vector = speaker_encoder(args.work)
    train, test = [d for d in data if d["split"] == "reply"], [d for d in data if d["split"] == "reply_test"][:24]
    torch.manual_seed(5)
    net = modules.Flow(**SHAPE)
    if args.start_from and not os.path.exists(f"{args.work}/state/flow.pt"):
        old = torch.load(args.start_from, weights_only=False)["nets"]["net"]
        new = [k for k in net.load_state_dict(old, strict=False).missing_keys]
        for k, block in enumerate(net.decoder["estimator"].mid_blocks):
            if any(f".mid_blocks.{k}." in name for name in new):
                neutralise(block)
        print(f"flow: {len(old)} tensors of {args.start_from}, {len(new)} new ones", flush=True)
    short = {}
    for d in train:
        if len(d["codes"]) <= 75 and d["style"] in ("neutral", *PITCHED):
            short.setdefault(voice_of(d), []).append(d)
    run = trainer.Run(args.work, "flow", dict(net=net), args.minutes, args.rate, warmup=args.warmup, decay=0.01, floor=1e-5)
    print(f"flow: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, {len(train)} utterances", flush=True)

    def losses(batch, rng, share, generator=None):
        mus, mels, prefix, vectors = [], [], [], []
        for d in batch:
            other = rng.choice(short[voice_of(d)]) if voice_of(d) in short and rng.random() < 0.4 else None
            token = torch.tensor(d["codes"])[None]
            frames = net.frames(token.shape[1])
            mel = torch.from_numpy(d["mel22"].astype("float32"))
            mel = F.pad(mel, (0, max(0, frames - mel.shape[1])), mode="replicate")[:, :frames]
            vectors.append(vector(other or d))
            if other:
                said = torch.from_numpy(other["mel22"].astype("float32"))
                first = said.shape[1]
                mus.append(net.mu(torch.cat([torch.tensor(other["codes"])[None], token], 1), len(other["codes"]), first, frames)[0].T)
                mel = torch.cat([said, mel], 1)
            else:
                groups = rng.randint(0, token.shape[1] // 5 * 2 // 5) if rng.random() < 0.6 else 0
                first = net.frames(groups * 5)
                mus.append(net.mu(token, groups * 5, first, frames - first)[0].T)
            mels.append(mel.T)
            prefix.append(first)
        n = torch.tensor([len(m) for m in mels])
        size = int(n.max())
        mask = (torch.arange(size)[None] < n[:, None]).float()[:, None]
        stack = lambda rows: torch.stack([F.pad(r, (0, 0, 0, size - len(r))) for r in rows]).transpose(1, 2)
        mu, mel = stack(mus), stack(mels)
        prior = ((mu - mel).abs() * mask).sum() / (mask.sum() * 80)
        if share < 1:      # the encoder learns from every row, the costly estimator from some
            rows = torch.randperm(len(batch))[:max(1, round(len(batch) * share))]
            mu, mel, mask, vectors, prefix = mu[rows], mel[rows], mask[rows], [vectors[i] for i in rows], [prefix[i] for i in rows]
        cond = mel * (torch.arange(size)[None] < torch.tensor(prefix)[:, None]).float()[:, None]
        speaker = net.speaker(torch.stack(vectors))
        keep = (torch.rand(len(mel), generator=generator) >= 0.2).float()
        mu, cond, speaker = mu * keep[:, None, None], cond * keep[:, None, None], speaker * keep[:, None]
        t = 1 - torch.cos(torch.rand(len(mel), generator=generator) * 0.5 * math.pi)
        z = torch.randn(mel.shape, generator=generator)
        y = (1 - t)[:, None, None] * z + t[:, None, None] * mel
        v = net.decoder["estimator"](y * mask, mask, mu, t, speaker, cond)
        velocity = (((v - (mel - z)) ** 2) * mask).sum() / (mask.sum() * 80)
        return prior, velocity

    batches = trainer.bucketed(train, lambda d: len(d["codes"]), args.batch, run.random)
    while run.begin_step():
        prior, velocity = losses(next(batches), run.random, args.share)
        run.step(prior + velocity, dict(prior=prior, velocity=velocity))
    net.eval()
    distance = count = prior = 0
    with torch.no_grad():
        for d in test:
            if d["voice"] != synth.TARGET:
                continue
            token = torch.tensor(d["codes"])[None]
            frames = net.frames(token.shape[1])
            mel = torch.from_numpy(d["mel22"].astype("float32"))[:, :frames]
            z = torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(1))
            out = net(token, token[:, :0], torch.zeros(1, 0, 80), vector(d)[None], z)[0, :, :mel.shape[1]]
            distance += (out - mel).abs().mean().item()
            prior += (net.mu(token, 0, 0, frames)[0, :, :mel.shape[1]] - mel).abs().mean().item()
            count += 1
    figures = dict(mel_distance=distance / count, prior_distance=prior / count)
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
