"""What lies between a mouth and the engine: telephones, rooms, overdriven microphones, other people talking; and other mouths.

Every effect takes and gives a float32 wave at 16 kHz of about the same level. `disturb(wave, rng, others)` draws one to three of them for training;
`CONDITIONS` are the fixed strong ones of the evaluation, which training never draws exactly.
"""
from __future__ import annotations

import numpy as np


RATE = 16000


def level(wave):
    return float(np.sqrt((wave ** 2).mean() + 1e-9))


def band(wave, low, high, slope=0.08):
    """Pass band with raised-cosine flanks of `slope` octave-like width."""
    spectrum = np.fft.rfft(wave)
    f = np.fft.rfftfreq(len(wave), 1 / RATE)
    rise = np.clip((f - low * (1 - slope)) / (low * 2 * slope + 1e-9), 0, 1)
    fall = np.clip((high * (1 + slope) - f) / (high * 2 * slope), 0, 1)
    return np.fft.irfft(spectrum * np.sin(rise * np.pi / 2) ** 2 * np.sin(fall * np.pi / 2) ** 2, len(wave)).astype(np.float32)


def mu_law(wave, steps=255):
    peak = max(1e-4, float(np.abs(wave).max()))
    x = wave / peak
    y = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    y = np.round(y * steps / 2) / (steps / 2)
    return (np.sign(y) * np.expm1(np.abs(y) * np.log(256)) / 255 * peak).astype(np.float32)


def telephone(wave, low=300, high=3400, steps=255):
    return mu_law(band(wave, low, high), steps)


def room(wave, rng, seconds=0.5, direct=1.0):
    """Synthetic impulse response: the direct sound, six early reflections and a tail that falls by 60 dB in `seconds`; direct: its share in amplitude."""
    taps = int(RATE * seconds)
    tail = rng.standard_normal(taps) * 10 ** (-3 * np.arange(taps) / taps)
    tail[:int(0.004 * RATE)] = 0
    for at in rng.integers(int(0.004 * RATE), int(0.05 * RATE), 6):
        tail[min(at, taps - 1)] += rng.choice([-1, 1]) * rng.uniform(2, 6)
    tail *= 1 / max(1e-6, np.sqrt((tail ** 2).sum()))
    tail[0] = direct
    size = 1 << (len(wave) + taps).bit_length()
    return np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[:len(wave)].astype(np.float32)


def far(wave, rng):
    """A microphone across the room: little direct sound, dull, with the room's own noise."""
    wave = band(room(wave, rng, rng.uniform(0.3, 0.6), rng.uniform(0.7, 1.2)), 60, rng.uniform(3800, 6500), 0.3)
    return wave + rng.standard_normal(len(wave)).astype(np.float32) * level(wave) * 10 ** (-rng.uniform(15, 28) / 20)


def clip(wave, over=4.0):
    """Overdriven by `over` times: what is above the ceiling is flat."""
    ceiling = float(np.abs(wave).max()) / over
    return np.clip(wave, -ceiling, ceiling)


def babble(wave, rng, others, db):
    """Other people, `db` below the speaker."""
    noise = np.zeros(len(wave), np.float32)
    for _ in range(int(rng.integers(3, 7))):
        other = others[int(rng.integers(len(others)))]
        other = np.tile(other, -(-len(wave) // len(other)))
        noise += np.roll(other, int(rng.integers(len(other))))[:len(wave)] / level(other)
    return wave + noise * (level(wave) / level(noise) * 10 ** (-db / 20))


def resample(wave, factor):
    """`factor` times faster and higher."""
    return np.interp(np.arange(int(len(wave) / factor)) * factor, np.arange(len(wave)), wave).astype(np.float32)


def tempo(wave, factor, frame=480, reach=120):
    """`factor` times faster at the same pitch: overlap-add of frames that are moved to where they fit best (WSOLA)."""
    hop = frame // 2
    window = np.hanning(frame + 1)[:frame].astype(np.float32)
    count = max(1, int(len(wave) / factor) // hop - 1)
    padded = np.pad(wave, (reach, frame + 2 * reach + hop))
    out = np.zeros(hop * (count + 1), np.float32)
    at = reach
    for k in range(count):
        if k:
            want = padded[at + hop:at + hop + frame]
            start = min(int(k * hop * factor), len(wave) - 1)
            area = padded[start:start + frame + 2 * reach]
            at = start + int(np.argmax(np.correlate(area, want, "valid")))
        out[k * hop:k * hop + frame] += padded[at:at + frame] * window
    return out


def shift(wave, factor):
    """Another mouth: pitch and formants `factor` times higher, same duration."""
    return tempo(resample(wave, factor), 1 / factor)


def disturb(wave, rng, others=()):
    """-> (wave, seconds put in front, speed factor): one to three effects in the order of nature."""
    rate, wave = 1.0, wave.astype(np.float32)
    if rng.random() < 0.5:
        wave = shift(wave, rng.uniform(0.78, 1.25))
    if rng.random() < 0.35:
        rate = rng.uniform(0.8, 1.3)
        wave = tempo(wave, rate)
    draw = rng.random()
    if len(others) and draw < 0.2:
        wave = babble(wave, rng, others, rng.uniform(4, 20))
    elif draw < 0.35:
        noise = rng.standard_normal(len(wave)).astype(np.float32)
        wave = wave + noise * (level(wave) / level(noise) * 10 ** (-rng.uniform(4, 25) / 20))
    draw = rng.random()
    if draw < 0.3:
        wave = room(wave, rng, rng.uniform(0.15, 0.9), rng.uniform(0.9, 3.0))
    elif draw < 0.45:
        wave = far(wave, rng)
    draw = rng.random()
    if draw < 0.35:
        wave = telephone(wave, rng.uniform(200, 400), rng.uniform(2800, 3900), int(rng.choice([127, 255])))
    elif draw < 0.47:
        wave = clip(wave, rng.uniform(1.5, 6))
    wave = wave / max(1e-4, float(np.abs(wave).max()))
    front, back = (int(RATE * rng.uniform(0, 0.3)) for _ in range(2))
    quiet = lambda n: rng.standard_normal(n) * 2e-4
    return np.concatenate([quiet(front), wave * 10 ** (rng.uniform(-12, 0) / 20), quiet(back)]).astype(np.float32), front / RATE, rate


CONDITIONS = {
    "telephone": lambda wave, rng: telephone(wave),
    "reverberation": lambda wave, rng: room(wave, rng, 0.7, 1.0),
    "pitch lowered": lambda wave, rng: shift(wave, 0.84),
    "clipped": lambda wave, rng: clip(wave, 5.0),
    "far microphone": far,
}
