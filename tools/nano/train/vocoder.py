"""Trains mel -> wave: `python -m tools.nano.train.vocoder WORK [--minutes 27] [--alone 0.5]`. Multi-resolution STFT + mel + F0 losses; the true F0
drives the source in training, the predicted one in service. After the share `alone` of the budget critics join in: small convolutions over spectra at the
same resolutions that tell made speech from spoken (least squares, with feature matching). `--behind-flow COUNT`: half of the practice on spectra that the flow
makes of the codes of so many utterances, which is what the vocoder is given in service; the wave to make is the one that was spoken. The judge chooses the weights (`--judge`)."""
from __future__ import annotations

import argparse
import os
import pickle
import random

import numpy as np
import torch

import torch.nn.functional as F
from torch import nn

from .. import features, modules
from ..data import more, synth
from . import flow as train_flow, trainer

SHAPE = dict(base=96, cond=96)
SEGMENT, BATCH = 32, 6
RESOLUTIONS = ((512, 128), (1024, 256), (256, 64))


def spectra(wave):
    for n, hop in RESOLUTIONS:
        s = torch.stft(wave, n, hop, window=torch.hann_window(n), return_complex=True)
        yield (s.real ** 2 + s.imag ** 2 + 1e-7).sqrt()


def losses(got, want):
    convergence = log = 0
    for a, b in zip(spectra(got), spectra(want)):
        convergence = convergence + ((b - a).pow(2).sum((1, 2)).sqrt() / b.pow(2).sum((1, 2)).sqrt().clamp(min=1e-2)).mean()
        log = log + (a.log() - b.log()).abs().mean()
    return convergence, log, (features.vocoder_mel(got) - features.vocoder_mel(want)).abs().mean()


class Critic(nn.Module):
    """Log-magnitude spectrum [B, bins, frames] -> map of how spoken each place looks, and the layers on the way."""

    def __init__(self, width=16):
        super().__init__()
        shape = lambda i, o, stride: nn.utils.parametrizations.weight_norm(nn.Conv2d(i, o, (5, 3), stride, (2, 1)))
        self.layers = nn.ModuleList([shape(1, width, (2, 1)), shape(width, width, (2, 1)), shape(width, 2 * width, (2, 2)), shape(2 * width, 2 * width, (2, 1))])
        self.last = nn.Conv2d(2 * width, 1, 3, 1, 1)

    def forward(self, spectrum):
        x, between = spectrum.log()[:, None], []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            between.append(x)
        return self.last(x), between


def criticise(critics, optimiser, got, want):
    """Trains the critics once -> (adversarial loss, feature matching) for the vocoder."""
    real, fake = list(spectra(want)), list(spectra(got))
    loss = sum(((1 - c(r)[0]) ** 2).mean() + (c(f.detach())[0] ** 2).mean() for c, r, f in zip(critics, real, fake))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    adversarial = matching = 0
    for c, r, f in zip(critics, real, fake):
        with torch.no_grad():
            wanted = c(r)[1]
        said, made = c(f)
        adversarial = adversarial + ((1 - said) ** 2).mean()
        matching = matching + sum((a - b).abs().mean() for a, b in zip(made, wanted))
    return adversarial, matching


@torch.no_grad()
def behind_flow(work, data, count, rng):
    """Utterances with codes whose mel is the flow's, behind the recording that their voice is served with."""
    prompts, net = train_flow.served_prompts(work), modules.Flow(**train_flow.SHAPE)
    net.load_state_dict(trainer.weights(work, "flow"))
    net.eval()
    known = [d for d in data if train_flow.voice_of(d) in prompts and 20 <= len(d["codes"]) <= 220]
    out = []
    for d in rng.sample(known, min(count, len(known))):
        prompt = prompts[train_flow.voice_of(d)]
        said, token = torch.from_numpy(prompt["mel22"]).T[None], torch.tensor(d["codes"])[None]
        z = torch.randn(1, 80, said.shape[1] + net.frames(token.shape[1]))
        mel = net(token, torch.tensor(prompt["codes"])[None], said, prompt["vector"][None], z, steps=train_flow.SERVED_STEPS)[0]
        out.append(dict(d, mel22=mel[:, :d["mel22"].shape[1]].numpy()))
    return [d for d in out if d["mel22"].shape[1] > SEGMENT + 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=27)
    parser.add_argument("--alone", type=float, default=0.5, help="share of the budget before the critics join; 1: never")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--behind-flow", type=int, default=0, metavar="COUNT")
    parser.add_argument("--judge", type=int, default=4, help="how often the judge listens and chooses the weights; 0: the last ones are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(f"{args.work}/tokens.pkl", "rb") as f:
        data = [d for d in pickle.load(f) if d["split"] in ("reply", "reply_test") and "wave22" in d]
    data += [d for d in more.load(args.work, "replies", voiced=True) if "wave22" in d]      # happy and sung: higher than the rest; fixed: heard most
    train = [d for d in data if d["split"] == "reply" and d["mel22"].shape[1] > SEGMENT + 2]
    test = [d for d in data if d["split"] == "reply_test"][:12]
    high = [d for d in train if d["style"] in ("happy", "sing") and d["voice"] == synth.TARGET]
    target, others = [d for d in train if d["voice"] == synth.TARGET and d["style"] not in ("happy", "sing")], [d for d in train if d["voice"] != synth.TARGET]
    torch.manual_seed(6)
    net = modules.HiFT(**SHAPE)
    made = behind_flow(args.work, train, args.behind_flow, random.Random(9)) if args.behind_flow else []
    run = trainer.Run(args.work, "vocoder", dict(net=net), args.minutes, args.rate, warmup=100, clip=10.0, betas=(0.8, 0.99), decay=0.0, floor=2e-5, power=0.7)
    print(f"vocoder: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    critics = nn.ModuleList([Critic() for _ in RESOLUTIONS])
    critic_optimiser = torch.optim.AdamW(critics.parameters(), lr=5e-4, betas=(0.8, 0.99))
    if "critics" in run.extra:
        critics.load_state_dict(run.extra["critics"])
    run.extra["critics"] = critics.state_dict()      # the live tensors: every save has them as they are
    from ..judge import during      # which needs this module

    ear, heard = during.Ear(args.work, "vocoder") if args.judge else None, run.fraction
    if args.behind_flow:      # through another flow the same weights are heard differently
        run.extra.pop("error", None)
        net.load_state_dict(run.extra.pop("best", net.state_dict()))
    if ear and os.path.exists(run.path) and (run.steps == 0 or args.behind_flow):      # a finished model is the start, and what to beat
        run.judge(ear, net)
    while run.begin_step():
        mel, f0, wave = [], [], []
        for _ in range(BATCH):
            d = run.random.choice(made if made and run.random.random() < 0.5 else run.random.choices([target, high, others], [45, 35, 20])[0])
            at = run.random.randint(0, d["mel22"].shape[1] - SEGMENT - 1)
            mel.append(d["mel22"][:, at:at + SEGMENT].astype(np.float32))
            f0.append(d["f0"][at:at + SEGMENT].astype(np.float32))
            w = d["wave22"][at * 256:(at + SEGMENT) * 256].astype(np.float32) / 32768
            wave.append(np.pad(w, (0, SEGMENT * 256 - len(w))))
        mel, f0, wave = (torch.from_numpy(np.stack(x)) for x in (mel, f0, wave))
        phase, noise = (torch.rand(BATCH, 9, 1) * 2 - 1) * np.pi, torch.randn(BATCH, 9, SEGMENT * 256)
        got = net(mel, phase, noise, f0)
        convergence, log, mel_loss = losses(got, wave)
        f0_loss = (net.f0(mel) - f0).abs().mean() / 100
        adversarial = matching = torch.zeros(())
        if run.fraction >= args.alone:
            adversarial, matching = criticise(critics, critic_optimiser, got, wave)
        run.step(convergence + log + 3 * mel_loss + f0_loss + 0.3 * adversarial + 0.6 * matching, dict(convergence=convergence, log=log, mel=mel_loss, f0_hz=f0_loss * 100, adversarial=adversarial, matching=matching))
        if ear and run.fraction - heard > 0.999 / args.judge:
            heard = run.fraction
            run.judge(ear, net)
    if ear:
        run.judge(ear, net)
    net.eval()
    total = 0
    with torch.no_grad():
        for d in test:
            mel = torch.from_numpy(d["mel22"].astype(np.float32))[None]
            got = net(mel, torch.zeros(1, 9, 1), torch.randn(1, 9, mel.shape[2] * 256))
            total += (features.vocoder_mel(got)[0] - mel[0]).abs().mean().item()
    figures = dict(copy_mel_distance=total / len(test))
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
