"""Pitch-synchronous overlap-add: moves pitch and timing of a spoken wave without moving its formants (Moulines and Charpentier, 1990).
Gives the training speech its happy and its sung style."""
from __future__ import annotations

import numpy as np
import torch

from .. import features

HOP = 256      # of features.pitch, at 22.05 kHz
RATE = 22050


def _between(track, fallback):
    """Unvoiced frames (0) filled by straight lines between their voiced neighbours."""
    voiced = np.flatnonzero(track > 0)
    return np.interp(np.arange(len(track)), voiced, track[voiced]) if len(voiced) else np.full(len(track), fallback)


def _marks(wave, periods):
    """Sample positions one period apart, drawn towards the largest peak nearby."""
    marks, at = [], int(periods[0])
    while at < len(wave) - 1:
        period = periods[min(len(periods) - 1, at // HOP)]
        reach = int(period * 0.25)
        low, high = max(0, at - reach), min(len(wave), at + reach + 1)
        at = low + int(np.argmax(wave[low:high]))
        marks.append(at)
        at += int(period)
    return np.array(marks or [0])


def reshape(wave, pitch, target, stretch):
    """wave [samples] at 22.05 kHz; pitch and target: Hz per frame of 256 samples (pitch 0 = unvoiced, which keeps its own spacing);
    stretch: output over input duration per frame. -> [samples] float32."""
    frames = len(pitch)
    known = _between(pitch, 110.0)
    marks = _marks(wave, RATE / known)
    ends = np.concatenate([[0], np.cumsum(np.asarray(stretch) * HOP)])           # output time at each input frame border
    borders = np.arange(frames + 1) * HOP
    out, weight = np.zeros(int(ends[-1]) + 4096, np.float32), np.zeros(int(ends[-1]) + 4096, np.float32)
    at = 0.0
    while at < ends[-1]:
        source = np.interp(at, ends, borders)
        frame = min(frames - 1, int(source // HOP))
        mark = marks[np.argmin(np.abs(marks - source))]
        half = int(RATE / known[min(frames - 1, mark // HOP)])
        low, high = max(0, mark - half), min(len(wave), mark + half)
        window = np.hanning(2 * half + 1)[low - mark + half:high - mark + half]
        start = int(at) - (mark - low)
        first = max(0, -start)
        size = high - low - first
        out[start + first:start + first + size] += wave[low + first:high] * window[first:]
        weight[start + first:start + first + size] += window[first:]
        at += RATE / (target[frame] if pitch[frame] > 0 else known[frame])
    return (out / np.maximum(weight, 0.5))[:int(ends[-1])].astype(np.float32)


def happy(wave):
    """Four semitones up, with wider movement around the median and a little faster."""
    pitch = features.pitch(torch.from_numpy(wave)).numpy()
    known = _between(pitch, 180.0)
    middle = np.median(known)
    return reshape(wave, pitch, middle * 2 ** (4 / 12) * (known / middle) ** 1.6, np.full(len(pitch), 0.95))


# A pentatonic scale in semitones over the deepest note; every vowel of the language has its note.
NOTES = dict(aa=0, ao=0, ow=0, ah=2, ax=2, uw=2, uh=4, er=4, ae=4, eh=7, ih=7, ay=9, ey=9, aw=9, oy=12, iy=12)
DEEPEST = 165.0


def sung(wave, ends):
    """Every vowel holds its note at 1.7 times its length; consonants glide. ends: [(phone, end in seconds)]."""
    pitch = features.pitch(torch.from_numpy(wave)).numpy()
    target, stretch, start = np.zeros(len(pitch)), np.ones(len(pitch)), 0
    for name, end in ends:
        stop = min(len(pitch), int(end * RATE / HOP))
        if name in NOTES:
            target[start:stop] = DEEPEST * 2 ** (NOTES[name] / 12)
            stretch[start:stop] = 1.7
        start = stop
    return reshape(wave, pitch, _between(target, DEEPEST), stretch)
