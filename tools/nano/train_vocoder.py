"""Trains mel -> wave: `python -m tools.nano.train_vocoder WORK [--minutes 27]`. Multi-resolution STFT + mel + F0 losses; the true F0
drives the source in training, the predicted one in service."""
from __future__ import annotations

import argparse

import numpy as np
import torch

from . import features, modules, more, synth, trainer

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=27)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = trainer.load_features(args.work, {"reply", "reply_test"})
    for d in data:
        for k in ("ling", "mel", "speaker", "ling_frames", "mel_frames"):
            d.pop(k, None)
    data += [d for d in more.load(args.work, "replies", voiced=True) if "wave22" in d]      # happy and sung: higher than the rest
    train = [d for d in data if d["split"] == "reply" and d["mel22"].shape[1] > SEGMENT + 2]
    test = [d for d in data if d["split"] == "reply_test"][:12]
    high = [d for d in train if d["style"] in ("happy", "sing") and d["voice"] == synth.TARGET]
    target, others = [d for d in train if d["voice"] == synth.TARGET and d["style"] not in ("happy", "sing")], [d for d in train if d["voice"] != synth.TARGET]
    torch.manual_seed(6)
    net = modules.HiFT(**SHAPE)
    run = trainer.Run(args.work, "vocoder", dict(net=net), args.minutes, 2e-3, warmup=100, clip=10.0, betas=(0.8, 0.99), decay=0.0, floor=2e-5, power=0.7)
    print(f"vocoder: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    while run.begin_step():
        mel, f0, wave = [], [], []
        for _ in range(BATCH):
            d = run.random.choice(run.random.choices([target, high, others], [45, 35, 20])[0])
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
        run.step(convergence + log + 3 * mel_loss + f0_loss, dict(convergence=convergence, log=log, mel=mel_loss, f0_hz=f0_loss * 100))
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
