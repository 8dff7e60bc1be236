"""espeak-ng as a library: samples together with where each word begins, which its program does not tell.

The library is one global: `espeak()` gives the process's only one.
"""
from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np


class _Event(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
                ("audio_ms", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", ctypes.c_char * 8)]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS, _WORD, _LIST_END, _UTF8 = 2, 1, 0, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class Espeak:
    def __init__(self):
        self.lib = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.lib.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        if self.rate <= 0:
            raise SystemExit("espeak-ng could not be started")
        self.samples, self.words = [], []

        def hear(wave, count, events):
            if wave and count > 0:
                self.samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
            k = 0
            while events[k].type != _LIST_END:
                if events[k].type == _WORD:
                    self.words.append((events[k].text_position - 1, events[k].sample))
                k += 1
            return 0

        self.callback = _CALLBACK(hear)
        self.lib.espeak_SetSynthCallback(self.callback)

    def speak(self, text, voice, speed=160, pitch=50, span=50):
        """-> (float32 wave at `rate`, [(index of a word's first letter, its first sample)]). @param span  how much the pitch moves, 50 is usual"""
        base, _, variant = voice.partition("+")
        name = {"en-gb": "gmw/en"}.get(base, base) + ("+" + variant if variant else "")      # a language that no voice is named after
        if self.lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice '{voice}'")
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, span)):
            self.lib.espeak_SetParameter(parameter, value, 0)
        self.samples, self.words = [], []
        raw = text.encode()
        self.lib.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, _UTF8, None, None)
        wave = np.concatenate(self.samples) if self.samples else np.zeros(0, np.int16)
        return wave.astype(np.float32) / 32768, list(self.words)


@lru_cache(None)
def espeak() -> Espeak:
    return Espeak()
