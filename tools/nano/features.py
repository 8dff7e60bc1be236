"""Model front ends in torch, sample for sample as the engine computes them (specified by the reference front ends):
Kaldi filter bank, low-frame-rate stacking, Whisper log-mel, HiFi-GAN log-mel, windowed-sinc resampling, F0 and augmentation.
Waves are float32 in [-1, 1], one channel, shape [samples]."""
from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F


@lru_cache(None)
def kaldi_mel(bins: int = 80, rate: int = 16000, n_fft: int = 512, low: float = 20.0, high: float = 8000.0) -> torch.Tensor:
    """[bins, n_fft/2+1] triangles that are linear on the mel axis; the Nyquist bin has weight 0."""
    mel = lambda f: 1127.0 * np.log1p(np.asarray(f, np.float64) / 700.0)
    edges = np.linspace(mel(low), mel(high), bins + 2)
    axis = mel(np.arange(n_fft // 2) * rate / n_fft)[None]
    l, c, r = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    w = np.maximum(0.0, np.minimum((axis - l) / (c - l), (r - axis) / (r - c)))
    return torch.from_numpy(np.pad(w, ((0, 0), (0, 1)))).float()


@lru_cache(None)
def slaney_mel(bins: int, rate: int, n_fft: int, low: float = 0.0, high: float = 8000.0) -> torch.Tensor:
    """[bins, n_fft/2+1] Slaney mel filters with Slaney area normalisation (librosa's default)."""
    step, knee = 200.0 / 3, 1000.0
    log_step = math.log(6.4) / 27

    def to_mel(f):
        return f / step if f < knee else knee / step + math.log(f / knee) / log_step

    def to_hz(m):
        return np.where(m < knee / step, m * step, knee * np.exp(log_step * (m - knee / step)))

    edges = to_hz(np.linspace(to_mel(low), to_mel(high), bins + 2))
    freq = np.arange(n_fft // 2 + 1) * rate / n_fft
    ramp = edges[:, None] - freq[None]
    gap = np.diff(edges)
    w = np.maximum(0, np.minimum(-ramp[:-2] / gap[:-1, None], ramp[2:] / gap[1:, None]))
    return torch.from_numpy(w * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


def fbank(wave: torch.Tensor, window: str = "hamming", scale: float = 32768.0) -> torch.Tensor:
    """[samples] at 16 kHz -> [frames, 80] log filter bank (snip edges, no dither). `povey` with scale 1 for the speaker encoder."""
    if len(wave) < 400:
        return wave.new_zeros(0, 80)
    frames = (wave * scale).unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    n = torch.arange(400, dtype=torch.float64)
    win = 0.54 - 0.46 * torch.cos(2 * math.pi * n / 399) if window == "hamming" else (0.5 - 0.5 * torch.cos(2 * math.pi * n / 399)) ** 0.85
    power = torch.fft.rfft(frames * win.float(), 512).abs() ** 2
    return (power @ kaldi_mel().T).clamp(min=1.1920929e-7).log()


def lfr(frames: torch.Tensor, stack: int = 7, skip: int = 6) -> torch.Tensor:
    """[T, 80] -> [ceil(T/6), 560]: seven frames centred on every sixth, edges repeated."""
    count = math.ceil(len(frames) / skip)
    padded = torch.cat([frames[:1].repeat(stack // 2, 1), frames])
    need = (count - 1) * skip + stack - len(padded)
    if need > 0:
        padded = torch.cat([padded, frames[-1:].repeat(need, 1)])
    return padded.unfold(0, stack, skip)[:count].transpose(1, 2).reshape(count, -1)


def linguistic_count(samples: int) -> int:
    """Linguistic tokens of an utterance of `samples` at 16 kHz: four per 3840, and a tail from 880 samples on."""
    q, r = divmod(samples, 3840)
    return 4 * q + (0 if r < 880 else math.ceil(((r - 400) // 160 + 1) / 6))


def linguistic_features(wave: torch.Tensor) -> torch.Tensor:
    """[samples] -> [tokens, 560], before CMVN."""
    q, r = divmod(len(wave), 3840)
    used = wave if r >= 880 else wave[:3840 * q]
    count = linguistic_count(len(wave))
    if count == 0:
        return wave.new_zeros(0, 560)
    frames = fbank(used)
    padded = torch.cat([frames[:1].repeat(3, 1), frames])
    index = (torch.arange(count)[:, None] * 6 + torch.arange(7)[None]).clamp(max=len(padded) - 1)
    return padded[index].reshape(count, -1)


def log_mel(wave: torch.Tensor) -> torch.Tensor:
    """[samples] at 16 kHz -> [128, samples/160] Whisper log-mel."""
    spectrum = torch.stft(wave, 400, 160, window=torch.hann_window(400), return_complex=True)[:, :-1].abs() ** 2
    mel = (slaney_mel(128, 16000, 400) @ spectrum).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0


def vocoder_mel(wave: torch.Tensor) -> torch.Tensor:
    """[..., samples] at 22.05 kHz -> [..., 80, samples/256] natural-log mel; differentiable."""
    flat = wave.reshape(-1, wave.shape[-1])
    padded = F.pad(flat[:, None], (384, 384), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, 256, window=torch.hann_window(1024), center=False, return_complex=True)
    magnitude = (spectrum.real ** 2 + spectrum.imag ** 2 + 1e-9).sqrt()
    mel = (slaney_mel(80, 22050, 1024) @ magnitude).clamp(min=1e-5).log()
    return mel.reshape(*wave.shape[:-1], 80, -1)


@lru_cache(None)
def resample_kernel(source: int, target: int):
    """torchaudio's default windowed-sinc kernel [target/g, taps], width."""
    g = math.gcd(source, target)
    a, b = source // g, target // g
    base = min(a, b) * 0.99
    width = math.ceil(6 * a / base)
    shift = -(np.arange(b, dtype=np.float32) / np.float32(b)).astype(np.float64)[:, None]
    t = np.clip((shift + np.arange(-width, width + a, dtype=np.float64)[None] / a) * base, -6, 6)
    kernel = np.sinc(t) * np.cos(t * math.pi / 12) ** 2 * base / a
    return torch.from_numpy(kernel).float(), width, a, b


def resample(wave: torch.Tensor, source: int, target: int) -> torch.Tensor:
    if source == target:
        return wave
    kernel, width, a, b = resample_kernel(source, target)
    padded = F.pad(wave[None, None], (width, width + a))
    out = F.conv1d(padded, kernel[:, None], stride=a)[0].T.reshape(-1)
    return out[:math.ceil(b * len(wave) / a)]


def peak_normalise(wave: torch.Tensor) -> torch.Tensor:
    return wave / wave.abs().max().clamp(min=0.01) * 0.999


def trim(wave: torch.Tensor) -> torch.Tensor:
    """Cuts silence at both ends of a wave at 16 kHz as the tokenizer does for voice prompts."""
    n = len(wave)
    frames = F.pad(wave, (256, 256)).unfold(0, 512, 128)[:1 + n // 128]
    rms = frames.double().pow(2).mean(1).sqrt().clamp(min=1e-5)
    loud = torch.nonzero(20 * (rms.log10() - rms.max().log10()) > -20.0)[:, 0]
    start, end = int(loud[0]) * 128, min(n, (int(loud[-1]) + 1) * 128)
    count = 240 * -(-(end - start) // 240) + 4320
    skip = start - 800
    padded = F.pad(wave, (max(0, -skip), 0))[max(0, skip):]
    return F.pad(padded, (0, max(0, count - len(padded))))[:count]


def pitch(wave: torch.Tensor, low: float = 75.0, high: float = 450.0) -> torch.Tensor:
    """[samples] at 22.05 kHz -> [samples/256] Hz, 0 = unvoiced. Normalised cross-correlation with a median of five."""
    frames, lag_min, lag_max, span = len(wave) // 256, int(22050 / high), int(22050 / low), 768
    padded = F.pad(wave, (512, 1024 + lag_max))
    start = torch.arange(frames) * 256 + 128 + 512 - (span + lag_max) // 2
    block = padded[start[:, None] + torch.arange(span + lag_max)[None]]
    block = block - block.mean(1, keepdim=True)
    head = block[:, :span]
    cross = torch.fft.irfft(torch.fft.rfft(head, 2048).conj() * torch.fft.rfft(block, 2048), 2048)[:, :lag_max]
    energy = F.pad(block ** 2, (1, 0)).cumsum(1)
    norm = (energy[:, span:span + lag_max] - energy[:, :lag_max]).clamp(min=1e-9) * (head ** 2).sum(1, keepdim=True).clamp(min=1e-9)
    score = cross / norm.sqrt()
    score[:, :lag_min] = -1
    best = score.max(1).values
    # The earliest peak close to the best avoids octave errors downwards.
    near = (score > 0.87 * best[:, None]) & (score >= F.pad(score, (1, 0))[:, :-1]) & (score >= F.pad(score, (0, 1))[:, 1:])
    lag = torch.where(near.any(1), near.float().argmax(1), score.argmax(1)).clamp(1, lag_max - 2)
    y0, y1, y2 = (score.gather(1, (lag + k)[:, None])[:, 0] for k in (-1, 0, 1))
    bend = y0 - 2 * y1 + y2
    lag_fine = lag + torch.where(bend.abs() > 1e-6, 0.5 * (y0 - y2) / bend.clamp(max=-1e-6), torch.zeros_like(bend)).clamp(-1, 1)
    voiced = (best > 0.6) & ((head ** 2).mean(1) > 1e-5)
    f0 = torch.where(voiced, 22050 / lag_fine, torch.zeros_like(best))
    return F.pad(f0[None, None], (2, 2), mode="replicate")[0, 0].unfold(0, 5, 1).median(1).values if frames > 2 else f0


def augment(wave: np.ndarray, rng: np.random.Generator, noisy: float = 0.6, lowest_db: float = 8, highest_db: float = 35):
    """-> (wave, seconds put in front, speed factor). Speed, room, tilt, noise (with probability `noisy`), gain and padding; what a microphone does."""
    rate = 1.0
    if rng.random() < 0.45:
        rate = rng.uniform(0.87, 1.15)
        wave = np.interp(np.arange(int(len(wave) / rate)) * rate, np.arange(len(wave)), wave).astype(np.float32)
    if rng.random() < 0.35:
        taps = int(16000 * rng.uniform(0.05, 0.25))
        room = rng.standard_normal(taps) * np.exp(-5.0 * np.arange(taps) / taps) * rng.uniform(0.02, 0.12)
        room[0] = 1
        size = 1 << (len(wave) + taps).bit_length()
        wave = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(room, size), size)[:len(wave)].astype(np.float32)
    if rng.random() < 0.3:
        wave = wave + rng.uniform(-0.5, 0.5) * np.concatenate([wave[:1], wave[:-1]])
    wave = wave / max(1e-4, np.abs(wave).max())
    if rng.random() < noisy:
        noise = rng.standard_normal(len(wave))
        if rng.random() < 0.5:
            spectrum = np.fft.rfft(noise)
            noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum)) / 40.0), len(noise))
        level = np.sqrt((wave ** 2).mean() + 1e-9) / np.sqrt((noise ** 2).mean() + 1e-9)
        wave = wave + noise * level * 10 ** (-rng.uniform(lowest_db, highest_db) / 20)
    front, back = (int(16000 * rng.uniform(0, 0.3)) for _ in range(2))
    gain = 10 ** (rng.uniform(-12, 0) / 20)
    quiet = lambda n: rng.standard_normal(n) * 2e-4
    return np.concatenate([quiet(front), wave * gain, quiet(back)]).astype(np.float32), front / 16000, rate
