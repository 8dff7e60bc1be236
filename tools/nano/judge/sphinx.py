"""Listeners that no stage was trained by: pocketsphinx with a bigram of the domain, with its own open language model, and with phones alone.

`Judge(folder).hear(waves, texts, how)` -> (error rate, what was heard). Waves are float32 at 16 kHz. how: `domain` (words of the domain, their
usual order), `open` (128 000 English words: what a stranger would make of it), `phones` (no words: edit distance to the dictionary's phones).
"""
from __future__ import annotations

import collections
import math
import os
import random
import subprocess
import wave

import numpy as np

from ..data import domain, prepare
from ..train import trainer

SPHINX = "/usr/share/pocketsphinx/model/en-us"
EXTRA = "parlando P AA R L AA N D OW\n"


def save_wav(path, samples, rate):
    with wave.open(path, "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(rate), f.writeframes(np.clip(samples * 32767, -32768, 32767).astype(np.int16).tobytes())


def load_wav(path):
    with wave.open(path, "rb") as f:
        return np.frombuffer(f.readframes(f.getnframes()), np.int16).astype(np.float32) / 32768, f.getframerate()


def write_bigram(folder):
    """`domain.arpa`: a bigram of the domain with absolute discounting, and its dictionary; `open.dict`: all English words."""
    rng = random.Random(11)
    sentences = [prepare.words(domain.spoken_reply(rng)[1]) for _ in range(40000)]
    pairs, singles = collections.Counter(), collections.Counter()
    for s in sentences:
        s = ["<s>", *s, "</s>"]
        singles.update(s[1:])
        pairs.update(zip(s, s[1:]))
    context, followers = collections.Counter(), collections.Counter()
    for (a, b), c in pairs.items():
        context[a] += c
        followers[a] += 1
    total, discount = sum(singles.values()), 0.7
    p = {w: c / total for w, c in singles.items()}
    seen = collections.defaultdict(float)
    for a, b in pairs:
        seen[a] += p[b]
    words = sorted(singles) + ["<s>"]
    with open(f"{folder}/domain.arpa", "w") as f:
        f.write(f"\\data\\\nngram 1={len(words)}\nngram 2={len(pairs)}\n\n\\1-grams:\n")
        for w in words:
            back = discount * followers[w] / context[w] / max(1e-3, 1 - seen[w]) if w in context else 1.0
            f.write(f"{math.log10(p.get(w, 1e-9)):.4f} {w} {math.log10(max(1e-6, back)):.4f}\n")
        f.write("\n\\2-grams:\n")
        for (a, b), c in sorted(pairs.items()):
            f.write(f"{math.log10((c - discount) / context[a]):.4f} {a} {b}\n")
        f.write("\n\\end\\\n")
    lines = open(f"{SPHINX}/cmudict-en-us.dict").readlines()
    with open(f"{folder}/domain.dict", "w") as f:
        f.writelines([line for line in lines if line.split()[0].split("(")[0] in singles] + [EXTRA])
    with open(f"{folder}/open.dict", "w") as f:
        f.writelines(lines + [EXTRA])


def spelt(word):
    """Pronunciations are compared as sounds: "one's" and "ones" are the same error as none."""
    return word.split("(")[0].replace("'", "")


class Judge:
    def __init__(self, folder):
        self.folder = folder
        os.makedirs(f"{folder}/judge", exist_ok=True)
        write_bigram(folder)
        self.table = prepare.pronunciations()

    def write(self, waves):
        for i, w in enumerate(waves):
            w = w / max(1e-4, np.abs(w).max()) * 0.5
            hiss = np.random.default_rng(i).standard_normal(3200).astype(np.float32) * 1e-3
            save_wav(f"{self.folder}/judge/{i}.wav", np.concatenate([hiss[:1600], w, hiss[1600:]]), 16000)
        open(f"{self.folder}/judge/ctl", "w").write("\n".join(map(str, range(len(waves)))))

    def options(self, how):
        folder = self.folder
        if how == "phones":
            return ["-allphone", f"{SPHINX}/en-us-phone.lm.bin", "-allphone_ci", "yes", "-beam", "1e-20", "-pbeam", "1e-20", "-lw", "2.0"]
        if how == "open":
            return ["-lm", f"{SPHINX}/en-us.lm.bin", "-dict", f"{folder}/open.dict"]
        return ["-lm", f"{folder}/domain.arpa", "-dict", f"{folder}/domain.dict"]

    def hear(self, waves, texts, how="domain"):
        self.write(waves)
        path = f"{self.folder}/judge/{how}.hyp"
        subprocess.run(["pocketsphinx_batch", "-adcin", "yes", "-adchdr", "44", "-cepdir", f"{self.folder}/judge", "-cepext", ".wav", "-ctl", f"{self.folder}/judge/ctl",
                        "-hyp", path, "-hmm", f"{SPHINX}/en-us", *self.options(how)], capture_output=True)
        heard = [line.rsplit("(", 1)[0].split() for line in open(path)]
        if how == "phones":
            heard = [[p.lower() for p in h if not p.startswith("+") and p != "SIL"] for h in heard]
        wants = [self.phones(t) if how == "phones" else prepare.words(t) for t in texts]
        return rate(heard, wants), [" ".join(h) for h in heard]

    def phones(self, text):
        return [p for w in prepare.words(text) for p in self.table.get(w, [])]


def rate(heard, wants):
    """Word (or phone) errors over words."""
    wrong = sum(trainer.edit_distance([spelt(w) for w in h], [spelt(w) for w in want]) for h, want in zip(heard, wants))
    return wrong / max(1, sum(len(w) for w in wants))
