"""Utterances with pauses, and which of them are ends: `python -m tools.nano.data.pauses WORK [--count 28000]`.

What makes a pause that is no end: words that break off in mid-utterance (cut out of the whole sentence, so that the pitch stays up, the last word
often drawn out, or spoken with the intonation of a comma), fillers, openings, a list, a correction to follow and the word that announces it. A sentence whose beginning is complete by
itself ("… in rome | tomorrow") is no end with the first kind of voice and an end when it is spoken as a whole: the words alone do not say it.
Every utterance goes through a channel: noise, telephone, room, level.

A pause is heard as the engine hears it: told from PAUSE_MS of silence on, and judged when the sound of each of TAILS_MS behind it has come. The first of them
counts whatever follows; behind a later one the user has not gone on before.

Splits differ in voices and, small closed intents apart, in sentences: `train`; `check` (thresholds are chosen on it); `test` (figures).
"""
from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
import wave as wavefile
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from .. import features
from . import channel, domain, synth
from .espeak import espeak

RATE, ROWS = 16000, 32      # rows of states that the network sees
PAUSE_MS, TAILS_MS = 96, (160, 480)      # of the engine: `turn.pause_ms`, `judge_ms` and `judge_again_ms`
SHARD, SEEDS = 400, dict(train=1000, check=2000, test=3000)
VOICES = {"check": ["m7", "f5", "zac", "linda"], "test": synth.VARIANTS_UNSEEN}
VOICES["train"] = [v for v in synth.VARIANTS if v not in VOICES["check"]]
FLITE = ["slt", "rms", "awb", "kal16"]
FILLERS = ("um", "uh", "er", "well", "hm", "let me see", "hold on", "you know", "i mean", "like", "wait", "sorry", "let me think")
MARKERS = ("no", "i mean", "sorry", "no wait", "wait", "no no", "rather", "i meant", "oh no", "sorry no", "or rather")
OPENINGS = ("well", "so", "and", "um", "uh", "could you", "can you tell me", "i would like", "please", "okay so", "what is", "the", "hey", "wait", "i want to",
            "let me think", "hold on", "do you know", "tell me", "you know what", "actually", "but", "or maybe")
ANSWERS = ("yes", "no", "okay", "yes please", "no thank you", "thanks", "right", "sure", "uh huh", "all right", "stop", "great", "good", "that is all", "not now",
           "i do not know", "of course", "cancel", "go on", "exactly", "never mind", "sounds good", "why", "really")
KINDS = dict(whole=30, cut=20, comma=18, hesitating=12, answer=8, opening=4, correction=8, list=3)


def belongs(text: str, kind: str, split: str) -> bool:
    """Small closed intents have too few texts to hold any out; of the others a tenth each."""
    return kind in domain.CLOSED or split == {0: "test", 1: "check"}.get(zlib.crc32(text.encode()) % 10, "train")


@dataclass
class Utterance:
    wave: np.ndarray      # float32 at 16 kHz
    kind: str
    text: str             # parts with a bar where it pauses
    voice: str
    end: int              # sample at which the last word ends
    complete: bool        # at that end; every pause before it is none
    unseen: bool          # the sentence is of this split alone


def speech_end(wave, db=-38):
    frames = wave[:len(wave) // 160 * 160].reshape(-1, 160)
    if len(frames) == 0:
        return 0
    power = 10 * np.log10((frames ** 2).mean(1) + 1e-9)
    loud = np.flatnonzero(power > power.max() + db)
    return (int(loud[-1]) + 1) * 160


def fade(wave, ms):
    n = min(len(wave), RATE * ms // 1000)
    if n == 0:
        return wave
    return np.concatenate([wave[:-n], wave[-n:] * np.linspace(1, 0, n, dtype=np.float32)])


def drawn_out(wave, rng):
    """The last sounds slower, as people do who are not done."""
    n = int(RATE * rng.uniform(0.18, 0.4))
    return np.concatenate([wave[:-n], channel.tempo(wave[-n:], rng.uniform(0.5, 0.85))]) if len(wave) > 2 * n else wave


class Speaker:
    def __init__(self, split, flite=None):
        """@param flite  share of its voices; left out: some where the detector is trained, none elsewhere"""
        self.split, self.espeak = split, espeak()
        self.flite = flite if flite is not None else 0.15 if split == "train" else 0

    def draw_voice(self, rng):
        if self.flite > 0 and rng.random() < self.flite:
            return dict(engine="flite", voice=rng.choice(FLITE), stretch=round(rng.uniform(0.85, 1.25), 2))
        variant = rng.choice(VOICES[self.split])
        return dict(engine="espeak", voice=rng.choice(synth.ACCENTS) + ("+" + variant if variant else ""), speed=rng.randint(110, 210),
                    pitch=rng.randint(10, 90), span=rng.randint(20, 80))

    def draw_text(self, rng, fits=lambda turn: True):
        """-> text, whether no other split has it."""
        while True:
            turn = domain.question(rng)
            if belongs(turn.user, turn.kind, self.split) and fits(turn):
                return turn.user, turn.kind not in domain.CLOSED

    def speak(self, text, voice):
        """-> wave at 16 kHz up to its last sound, first samples of its words."""
        if voice["engine"] == "flite":
            with tempfile.NamedTemporaryFile(suffix=".wav") as file:
                subprocess.run(["flite", "-voice", voice["voice"], "--setf", f"duration_stretch={voice['stretch']}", "-o", file.name, "-t", text],
                               check=True, stdout=subprocess.DEVNULL)
                with wavefile.open(file.name) as f:
                    raw, rate = np.frombuffer(f.readframes(f.getnframes()), np.int16).astype(np.float32) / 32768, f.getframerate()
            words = []
        else:
            raw, words = self.espeak.speak(text, voice["voice"], voice["speed"], voice["pitch"], voice["span"])
            rate = self.espeak.rate
        wave = features.resample(torch.from_numpy(raw), rate, RATE).numpy()
        wave = wave[:speech_end(wave)]
        return wave, [(at, int(s * RATE / rate)) for at, s in words if int(s * RATE / rate) < len(wave)]

    def cut(self, text, voice, at):
        """The sentence in two, in front of the word that begins at this letter; nothing where that is not known."""
        wave, words = self.speak(text, voice)
        places = [s for letter, s in words if letter == at]
        if not places or places[0] < 0.15 * RATE or len(wave) - places[0] < 0.1 * RATE:
            return None
        k = min(range(places[0] - 480, places[0] + 240, 40), key=lambda k: float((wave[k:k + 160] ** 2).mean()))
        return wave[:k], wave[k:]

    def parts(self, kind, rng, voice):
        """-> [(wave, text)], complete at its end, of a sentence that is this split's alone."""
        say = lambda text: (self.speak(text, voice)[0], text)
        if kind == "answer":
            return [say(rng.choice(ANSWERS) + rng.choice(["", "."]))], True, False
        if kind == "opening":
            return [say(rng.choice(OPENINGS) + ",")], False, False
        text, unseen = self.draw_text(rng)
        words = text.split()
        if kind == "correction":
            return self.corrected(text, rng, voice), True, unseen
        if kind == "list":
            items = rng.sample(rng.choice([domain.CITIES, domain.DAYS, domain.NAMES, domain.UNITS]), rng.randint(2, 3))
            lead = rng.choice(["", "tell me about ", "i mean ", "it is ", "between "])
            return [say(lead * (k == 0) + "and " * (k + 1 == len(items)) + item + "," * (k + 1 < len(items))) for k, item in enumerate(items)], True, True
        if kind == "whole" or len(words) < 2:
            wave, _ = say(text + rng.choice(["", "", ".", "?"]))
            if rng.random() < 0.15:
                wave = drawn_out(wave, rng)
            return [(fade(wave, rng.choice([0, 0, 15, 40])), text)], True, unseen
        k = rng.randint(1, len(words) - 1)
        before, behind = " ".join(words[:k]), " ".join(words[k:])
        halves = self.cut(text, voice, len(before) + 1) if voice["engine"] == "espeak" and (kind == "cut" or rng.random() < 0.4) else None
        first, rest = halves or (say(before + ",")[0], say(behind)[0])
        if rng.random() < (0.45 if halves else 0.25):
            first = drawn_out(first, rng)
        out = [(fade(first, rng.choice([10, 20, 40, 70])), before)]
        if kind == "hesitating":
            filler = rng.choice(FILLERS)
            wave = say(filler + ",")[0]
            if rng.random() < 0.5:
                out.append((wave, filler))
            else:
                space = np.zeros(int(RATE * rng.uniform(0.03, 0.15)), np.float32)
                out = [(np.concatenate([out[0][0], space, wave]), before + " " + filler)]
        if rng.random() < 0.25:
            return out, False, unseen
        return out + [(say(behind)[0] if halves and rng.random() < 0.4 else rest, behind)], True, unseen

    def corrected(self, text, rng, voice):
        """Something else first, perhaps broken off, a word that takes it back, perhaps by itself, and what was meant."""
        words = text.split()
        say = lambda text: (self.speak(text, voice)[0], text)
        swaps = [(group, w) for group in (domain.CITIES, domain.DAYS, domain.UNITS, list(domain.CAPITALS)) for w in words if w in group]
        if swaps:
            group, word = rng.choice(swaps)
            other = rng.choice([w for w in group if w != word])
            at = words.index(word)
            first = " ".join(words[:at] + [other] + (words[at + 1:] if rng.random() < 0.3 else []))
            rest = rng.choice([" ".join(words[at - (words[at - 1] in ("in", "of", "on", "to") and at > 0):]), text, word])
        else:
            first, rest = " ".join(words[:rng.randint(1, len(words))]), text
        marker = rng.choice(MARKERS)
        # A whole sentence that falls at its end would be one: it has the intonation of a comma.
        out = [say(first + ",")]
        if rng.random() < 0.3:
            out[0] = (drawn_out(out[0][0], rng), first + ",")
        if rng.random() < 0.5:
            return [*out, say(marker + ", " + rest)]
        return [*out, say(marker + ","), say(rest)]

    def utterances(self, count, seed):
        rng, noise = random.Random(seed), np.random.default_rng(seed)
        while count > 0:
            voice = self.draw_voice(rng)
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            parts, complete, unseen = self.parts(kind, rng, voice)
            if min(len(w) for w, _ in parts) < 0.08 * RATE:
                continue
            count -= 1
            pieces = [np.zeros(int(RATE * rng.uniform(0.35, 0.8)), np.float32)]
            for k, (wave, _) in enumerate(parts):
                pieces += [wave, np.zeros(int(RATE * rng.uniform(0.3, 1.3)) if k + 1 < len(parts) else int(0.7 * RATE), np.float32)]
            wave = np.concatenate(pieces)
            yield Utterance(through_channel(wave, rng, noise), kind, " | ".join(t for _, t in parts), f"{voice['engine']} {voice['voice']}",
                            len(wave) - len(pieces[-1]), complete, unseen)


def through_channel(wave, rng, noise):
    if rng.random() < 0.25:
        wave = channel.room(wave, noise, rng.uniform(0.15, 0.6), rng.uniform(1, 3))
    if rng.random() < 0.2:
        wave = channel.telephone(wave, rng.uniform(200, 400), rng.uniform(2800, 3900))
    wave = wave / max(1e-4, float(np.abs(wave).max())) * 10 ** (-rng.uniform(1, 20) / 20)
    below = rng.uniform(12, 30) if rng.random() < 0.2 else rng.uniform(30, 80)
    hiss = noise.standard_normal(len(wave))
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(hiss)
        hiss = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum)) / 40.0), len(hiss))
    return (wave + hiss / np.sqrt((hiss ** 2).mean()) * channel.level(wave) * 10 ** (-below / 20)).astype(np.float32)


def write_wav(path, wave):
    with wavefile.open(os.fspath(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(RATE)
        f.writeframes((np.clip(wave, -1, 1) * 32767).astype(np.int16).tobytes())


def ask(recordings, parlando, model, *options):
    """What the C++ runtime says of files: a list of pauses each."""
    command = [parlando, "pauses", *recordings, "--model-path", model, "--threads", "1", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return [json.loads(line)["pauses"] for line in done.stdout.splitlines()]


def hear(waves, folder, parlando, model, live):
    """What the C++ runtime hears: for each wave its pauses, and what the detector sees of all of them, [pauses, 32, width] in float16."""
    for k, wave in enumerate(waves):
        write_wav(f"{folder}/{k}.wav", wave)
    with open(f"{folder}/list", "w") as f:
        f.write("\n".join(f"{folder}/{k}.wav" for k in range(len(waves))))
    pauses = ask([], parlando, model, "--list", f"{folder}/list", "--states", f"{folder}/states", "--pause-ms", str(PAUSE_MS),
                 "--tail-ms", ",".join(map(str, TAILS_MS)), *["--live"] * live)
    count = sum(len(p) for p in pauses)
    return pauses, np.fromfile(f"{folder}/states", np.float32).reshape(count, ROWS, -1).astype(np.float16)


def is_end(utterance, pause):
    """The network behind a pause hears speech for a little longer than there is, so a pause that is its end hardly begins before it; where nothing was
    heard behind it, soft last sounds were not."""
    early = RATE * 35 // 100 if pause["resumed_sample"] is None else RATE // 10
    return utterance.complete and pause["sample"] >= utterance.end - early


def shard(path, split, number, count, parlando, model):
    # Every fifth shard in the voices of the other synthesiser alone: they end their words otherwise.
    speaker = Speaker(split, flite=1 if split == "train" and number % 5 == 4 else None)
    utterances = list(speaker.utterances(count, SEEDS[split] + number))
    with tempfile.TemporaryDirectory() as folder:
        # Both ways of tokenising are served; what is judged with is the one that the engine goes by unless it is told otherwise.
        pauses, states = hear([u.wave for u in utterances], folder, parlando, model, live=split != "train" or number % 3 > 0)
    of = [(k, p) for k, found in enumerate(pauses) for p in found]
    silence = lambda p: None if p["resumed_sample"] is None else (p["resumed_sample"] - p["sample"]) * 1000 // RATE
    records = [dict(utterance=k, kind=utterances[k].kind, text=utterances[k].text, voice=utterances[k].voice, unseen=utterances[k].unseen,
                    complete=is_end(utterances[k], p), rows=p["rows"], tail_ms=p["tail_ms"], silence_ms=silence(p), sample=p["sample"], end=utterances[k].end,
                    seconds=(p["sample"] - p["begun_sample"]) / RATE + p["tail_ms"] / 1000) for k, p in of]
    np.save(path + ".tmp.npy", states)
    json.dump(records, open(path + ".tmp.json", "w"))
    os.replace(path + ".tmp.npy", path + ".npy")
    os.replace(path + ".tmp.json", path + ".json")
    return len(records)


def main():
    parser = argparse.ArgumentParser(description="Writes WORK/pauses/SPLIT-NNNN.npy (states) and .json (labels); a shard that exists is kept.")
    parser.add_argument("work")
    parser.add_argument("--count", type=int, default=28000, help="utterances to train with; an eighth as many to check and to test each")
    parser.add_argument("--parlando", default=os.environ.get("PARLANDO", "build/bin/parlando"))
    parser.add_argument("--model", default="models/nano")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.makedirs(f"{args.work}/pauses", exist_ok=True)
    todo = []
    for split, count in (("train", args.count), ("check", args.count // 8), ("test", args.count // 8)):
        todo += [(f"{args.work}/pauses/{split}-{k:04d}", split, k, min(SHARD, count - at)) for k, at in enumerate(range(0, count, SHARD))]
    todo = [t for t in todo if not os.path.exists(t[0] + ".json")]
    for k, task in enumerate(todo, 1):
        made = shard(*task, args.parlando, args.model)
        print(f"pauses {k}/{len(todo)} shards, {made} in the last, {time.process_time():.0f} s of this processor used", flush=True)


if __name__ == "__main__":
    main()
