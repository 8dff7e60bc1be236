"""The labelled dialogues of `parlando bench turn`: `python -m tools.nano.data.snippets [models/nano/dialogues]`.

The same espeak-ng and the same numpy make the same files (the synthesiser's noise depends on what it has said before: they are made in one go). Voices and sentences are those of the split `test` (tools.nano.data.pauses): the
detector was trained with neither, the tokenizer with none of the voices. Writes FLAC at 16 kHz and `dialogues.json`; README.md beside it says what is in it.
"""
from __future__ import annotations

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np

from . import domain, pauses, turns

RATE = pauses.RATE
KINDS = dict(plain=8, pause=10, correction=4, backchannel=6, cough=4, interruption=4)
BACKCHANNELS = ("uh huh", "okay", "yes", "mm hm", "right", "i see")
LOUD, WINDOW = 0.02, RATE // 100      # as the benchmark finds the true end of speech
EDGE = RATE * 3 // 10


def bounds(wave):
    """First and last samples of the 10 ms windows that are louder than LOUD of the peak."""
    frames = wave[:len(wave) // WINDOW * WINDOW].reshape(-1, WINDOW)
    loud = np.flatnonzero(np.sqrt((frames ** 2).mean(1)) > LOUD * np.abs(wave).max())
    return int(loud[0]) * WINDOW, (int(loud[-1]) + 1) * WINDOW


def trimmed(wave):
    first, end = bounds(wave)
    return pauses.fade(wave[first:end], 10)


class Maker:
    def __init__(self, folder):
        self.folder, self.rng, self.noise = folder, random.Random(77), np.random.default_rng(77)
        self.speaker = pauses.Speaker("test")
        self.said = set()

    def voice(self):
        return dict(engine="espeak", voice="en-us+" + self.rng.choice(pauses.VOICES["test"]), speed=self.rng.randint(135, 175), pitch=self.rng.randint(30, 70), span=50)

    def text(self, fits=lambda text: True):
        """One that no other split has, once."""
        new = lambda turn: turn.kind not in domain.CLOSED and turn.user not in self.said and len(turn.user.split()) > 2 and fits(turn.user)
        text, _ = self.speaker.draw_text(self.rng, new)
        self.said.add(text)
        return text

    def write(self, name, parts, gaps):
        """Parts with silence between them, 0.3 s of it around -> the labels of the sound."""
        peak = 10 ** (-self.rng.uniform(3, 9) / 20)
        parts = [trimmed(p) for p in parts]
        top = max(float(np.abs(p).max()) for p in parts)
        pieces, found, at = [np.zeros(EDGE, np.float32)], [], EDGE
        for k, part in enumerate(parts):
            pieces.append(part / top * peak)
            at += len(part)
            if k < len(gaps):
                silence = RATE * gaps[k] // 1000
                found.append(dict(begin_sample=at, end_sample=at + silence, is_end=False))
                pieces.append(np.zeros(silence, np.float32))
                at += silence
        pieces.append(np.zeros(EDGE, np.float32))
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            pauses.write_wav(file.name, np.concatenate(pieces))
            # -8: the smallest; no dither, no clock: the same bytes every time.
            subprocess.run(["sox", "-D", file.name, "-C", "8", str(self.folder / name)], check=True)
        return dict(file=name, begin_sample=EDGE, end_sample=at, pauses=found)

    def broken(self, text, voice):
        """A sentence that pauses between two words: half of them cut out of the whole, half spoken with the intonation of a comma."""
        words = text.split()
        k = self.rng.randint(2, len(words) - 1)
        before, behind = " ".join(words[:k]), " ".join(words[k:])
        halves = self.speaker.cut(text, voice, len(before) + 1) if self.rng.random() < 0.5 else None
        first, rest = halves or (self.speaker.speak(before + ",", voice)[0], self.speaker.speak(behind, voice)[0])
        if self.rng.random() < 0.4:
            first = pauses.drawn_out(first, self.rng)
        return f"{before} | {behind}", [first, rest]

    def snippet(self, number, kind):
        voice = self.voice()
        name = f"{number:02d}_{kind}"
        say = lambda text: self.speaker.speak(text, voice)[0]
        out = dict(kind=kind, voice=voice["voice"])
        if kind == "pause":
            out["text"], parts = self.broken(self.text(lambda t: len(t.split()) > 3), voice)
            return dict(out, **self.write(name + ".flac", parts, [self.rng.randrange(300, 901, 20)]))
        if kind == "correction":
            text = self.text(lambda t: any(c in t.split() for c in domain.CITIES))
            city = next(c for c in domain.CITIES if c in text.split())
            wrong = self.rng.choice([c for c in domain.CITIES if c != city])
            first, second = text[:text.index(city)] + wrong, self.rng.choice(["no, in ", "i mean in ", "sorry, in "]) + text[text.index(city):]
            return dict(out, text=f"{first} | {second}", **self.write(name + ".flac", [say(first + ","), say(second)], [self.rng.randrange(300, 901, 20)]))
        text = self.text()
        out.update(text=text, **self.write(name + ".flac", [say(text)], []))
        if kind == "plain":
            return out
        if kind == "backchannel":
            said = BACKCHANNELS[number % len(BACKCHANNELS)]
            over = say(said)
        elif kind == "cough":
            said, over = "", turns.cough(self.noise)
        else:
            said = self.text(lambda t: len(t.split()) > 3)
            over = say(said)
        out["over"] = dict(kind=kind, text=said, takes_turn=kind == "interruption", after_ms=self.rng.randrange(300, 701, 50), **self.write(f"{name}_over.flac", [over], []))
        return out


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "models/nano/dialogues")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.flac"):
        old.unlink()
    maker = Maker(folder)
    kinds = [k for k, count in KINDS.items() for _ in range(count)]
    random.Random(3).shuffle(kinds)
    snippets = [maker.snippet(n, kind) for n, kind in enumerate(kinds, 1)]
    with open(folder / "dialogues.json", "w") as f:
        f.write('{"rate": 16000, "snippets": [\n' + ",\n".join(json.dumps(s) for s in snippets) + "\n]}\n")
    seconds = sum(s["end_sample"] + EDGE + (s["over"]["end_sample"] + EDGE if "over" in s else 0) for s in snippets) / RATE
    print(f"{len(snippets)} snippets, {seconds:.0f} s of sound, {sum(p.stat().st_size for p in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
