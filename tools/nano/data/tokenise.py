"""Fits the linguistic centroids and turns every utterance into codes: `python -m tools.nano.data.tokenise WORK`.

Writes `WORK/centroids.npy` and `WORK/tokens.pkl`: per utterance text, kind, split, voice, style, interleaved codes (linguistic 0…255,
semantic 1024 + id) and, for voices that speak replies, mel, F0, wave and speaker features.
"""
from __future__ import annotations

import argparse
import pickle
import random

import numpy as np
import torch

from .. import features
from ..train import encoders as train_encoders, trainer

CENTROIDS = 256
NOISE_KINDS = ("white", "pink", "hum", "silence", "clicks")


def load_task(work, task):
    net = train_encoders.LinguisticTask() if task == "linguistic" else train_encoders.SemanticTask()
    net.load_state_dict(torch.load(f"{work}/state/{task}.pt", weights_only=False)["nets"]["net"])
    return net.eval()


def interleave(linguistic, semantic):
    groups = min(len(linguistic) // 2, len(semantic) // 3)
    out = []
    for g in range(groups):
        out += [int(x) for x in linguistic[2 * g:2 * g + 2]] + [1024 + int(x) for x in semantic[3 * g:3 * g + 3]]
    return out


class Tokeniser:
    """Both codebooks on PyTorch; the reference for the engine's tokenizer on nano weights."""

    def __init__(self, work):
        self.linguistic, self.semantic = load_task(work, "linguistic"), load_task(work, "semantic")
        try:
            self.centroids = torch.from_numpy(np.load(f"{work}/centroids.npy"))
        except FileNotFoundError:
            self.centroids = None

    @torch.no_grad()
    def hidden(self, items):
        x = trainer.pad([d["ling"] for d in items])
        lengths = torch.tensor([len(d["ling"]) for d in items])
        return self.linguistic(x, lengths, 0.0)[0], lengths

    @torch.no_grad()
    def codes(self, items):
        hidden, lengths = self.hidden(items)
        distance = (self.centroids ** 2).sum(1) - 2 * hidden @ self.centroids.T
        ling = distance.argmin(-1)
        mel = trainer.pad([d["mel"].T for d in items]).transpose(1, 2).contiguous()
        frames = torch.tensor([d["mel"].shape[1] for d in items])
        h, valid = self.semantic.net(mel, frames)
        sem = self.semantic.net.quantise(h)[1]
        return [interleave(ling[i, :lengths[i]].tolist(), sem[i][valid[i]].tolist()) for i in range(len(items))]

    def wave(self, wave16: torch.Tensor):
        wave16 = features.peak_normalise(wave16)
        return self.codes([dict(ling=features.linguistic_features(wave16).numpy(), mel=features.log_mel(wave16).numpy())])[0]


def noises(count, seed):
    """Waves that are not speech."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        n, kind = int(16000 * rng.uniform(0.5, 2.5)), NOISE_KINDS[i % len(NOISE_KINDS)]
        wave = rng.standard_normal(n)
        if kind == "pink":
            s = np.fft.rfft(wave)
            wave = np.fft.irfft(s / np.sqrt(1 + np.arange(len(s)) / rng.uniform(5, 100)), n)
        elif kind == "hum":
            t = np.arange(n) / 16000
            base = rng.uniform(40, 400)
            wave = sum(np.sin(2 * np.pi * base * k * t + k) / k for k in range(1, 6)) + wave * rng.uniform(0, 0.3)
        elif kind == "silence":
            wave = wave * 1e-4
        elif kind == "clicks":
            wave = wave * (rng.random(n) < rng.uniform(0.0005, 0.01)) + wave * 0.003
        yield torch.from_numpy((wave / max(1e-3, np.abs(wave).max()) * rng.uniform(0.05, 0.9)).astype(np.float32))


def served(work):
    """True while the encoder is the one that tools.nano.resume_from brought: then its centroids came with it."""
    return torch.load(f"{work}/state/linguistic.pt", weights_only=False)["steps"] == 0


def fit(tok, data, rng):
    target, rest = ([d for d in data if d["split"] == s] for s in ("reply", "train"))
    sample = rng.sample(target, min(700, len(target))) + rng.sample(rest, min(1800, len(rest)))
    rows = []
    for i in range(0, len(sample), 25):
        hidden, lengths = tok.hidden(sample[i:i + 25])
        rows += [hidden[k, :n] for k, n in enumerate(lengths)]
    return train_encoders.k_means(torch.cat(rows)[:60000], CENTROIDS, 25)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = [d for d in trainer.load_features(args.work) if len(d["ling"]) > 2]
    tok = Tokeniser(args.work)
    rng = random.Random(5)
    if not served(args.work) or tok.centroids is None:
        tok.centroids = fit(tok, data, rng)
        np.save(f"{args.work}/centroids.npy", tok.centroids.numpy())
    order = sorted(range(len(data)), key=lambda i: len(data[i]["ling"]))
    for i in range(0, len(order), 24):
        part = [data[k] for k in order[i:i + 24]]
        for d, codes in zip(part, tok.codes(part)):
            d["codes"] = codes
        if i % 2400 == 0:
            print(f"\rtokens {i}/{len(order)} ", end="", flush=True)
    out = []
    for d in data:
        keep = {k: d[k] for k in ("text", "kind", "split", "voice", "style", "codes")}
        keep.update({k: d[k] for k in ("mel22", "f0", "wave22", "speaker") if k in d})
        out.append(keep)
    for split, count, seed in (("train", 240, 1), ("test", 20, 2)):
        out += [dict(text="", kind="noise", split=split, voice="noise", style="neutral", codes=tok.wave(w)) for w in noises(count, seed)]
    used = np.bincount([c for d in out for c in d["codes"]], minlength=1536)
    print(f"\ncodes used: linguistic {int((used[:CENTROIDS] > 0).sum())}/{CENTROIDS}, semantic {int((used[1024:] > 0).sum())}/512")
    with open(f"{args.work}/tokens.pkl", "wb") as f:
        pickle.dump(out, f, protocol=5)


if __name__ == "__main__":
    main()
