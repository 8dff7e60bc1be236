"""The judge beside a stage that is being trained: `Ear(work, "flow")` says what is misheard of what the stage would say now.

Every other sentence of the fixed replies, all that people hear first, and held-out sentences that the last evaluation does not use; spoken by the synthesiser once, its codes
through flow and vocoder behind Clara's recording, or its mel through the vocoder alone while there is no flow. The language model that speaks makes codes of its own.
A stage keeps the weights that the judge likes best.
"""
from __future__ import annotations

import os
import pickle
import random

import numpy as np
import torch

from .. import features
from ..data import domain, synth
from . import ablate, runtime, sphinx

HELD_OUT = 30


def texts_of(work, count=HELD_OUT):
    """-> sentences of fixed replies and `count` held-out ones that are not among the utterances of the last evaluation."""
    first = domain.pieces_of(domain.first_heard())
    fixed = [t for i, t in enumerate(domain.pieces_of(domain.fixed_replies())) if t in first or i % 2]
    last = {r["text"] for r, _ in runtime.test_items(work, "reply_test")} | set(ablate.texts_of(60)[1])
    rng, held = random.Random(78), []
    while len(held) < count:
        style, text = domain.spoken_reply(rng)
        if style != "sing" and domain.held_out(text) and text not in last and text not in held and text not in domain.fixed_replies():
            held.append(text)
    return fixed + held


def spoken(work):
    """[(text, wave at 22.05 kHz)] of the synthesiser, kept in `WORK/eval/ear.pkl`."""
    path = f"{work}/eval/ear.pkl"
    texts = texts_of(work)
    if os.path.exists(path):
        with open(path, "rb") as f:
            kept = pickle.load(f)
        if [t for t, _ in kept] == texts:
            return kept
    records, audio = synth.speak([dict(text=t, style="neutral", kind="reply", engine="festival", voice=synth.TARGET, split="reply") for t in texts])
    said = [(r["text"], features.resample(torch.from_numpy(audio[r["at"]:r["at"] + r["samples"]].astype(np.float32) / 32768), r["rate"], 22050).numpy()) for r in records]
    made = f"{path}.{os.getpid()}.tmp"      # stages that run side by side may both come here first
    with open(made, "wb") as f:
        pickle.dump(said, f)
    os.replace(made, path)
    return said


class Ear:
    """stage: `tts`, `flow` or `vocoder`; the others are taken from their states. codes: of `tts`, makes codes of (net, text)."""

    def __init__(self, work, stage, most=None, codes=None):
        os.makedirs(f"{work}/eval/{stage}", exist_ok=True)
        self.stage, self.judge, self.own_codes = stage, sphinx.Judge(f"{work}/eval/{stage}"), codes
        self.said = spoken(work)[:most]
        self.path = ablate.Stages(work, [name for name in ("flow", "vocoder") if name != stage and os.path.exists(f"{work}/state/{name}.pt")])
        self.codes = [] if codes else [self.path.tokeniser.wave(features.resample(torch.from_numpy(w), 22050, 16000)) for _, w in self.said]

    def error(self, net) -> float | None:
        """Word errors over words with `net` in its place; None while there is nothing to hear it through."""
        path = self.path
        if self.stage == "flow":
            path.flow = net
        elif self.stage == "vocoder":
            path.hift = net
        if path.hift is None or (self.stage == "tts" and path.flow is None):
            return None
        was = net.training
        net.eval()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            codes = [self.own_codes(net, t) for t, _ in self.said] if self.stage == "tts" else self.codes
            waves = [path.sound(path.mel(c)) if path.flow is not None else path.copy(w, 22050) for c, (_, w) in zip(codes, self.said)]
        net.train(was)
        return self.judge.hear(waves, [t for t, _ in self.said])[0]
