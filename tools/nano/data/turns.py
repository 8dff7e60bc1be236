"""Labelled turn-taking data for a semantic end-of-turn detector: `python -m tools.nano.data.turns WORK [--count 3000]`.

Writes `WORK/turns/NNNN.npy` (int16 at 16 kHz, one array) and `NNNN.json`: label, text said so far, `rest` (what is still to come), voice, at, samples, end
(seconds at which speech stops), split. Labels:
  complete      a whole question; the turn may be taken
  cut           a question that stops between two words, as a detector sees it in the middle
  hesitating    a question with a filler ("um", "let me see") or a long pause inside, up to that place
  backchannel   "uh huh", "okay", "right" while the other one speaks: no turn at all
  cough         coughs, clicks, breath: no speech
Every record ends in 0.1 to 0.9 s of the room's own noise. `WORK/turns/dialogues.json`: question after question with pauses and labels, for the real-time
benchmark: start and end of every utterance and whether an answer is due. A shard that exists is kept.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
import zlib

import numpy as np
import torch

from .. import features
from . import channel, domain, synth

SHARD, RATE = 100, 16000
LABELS = dict(complete=35, cut=25, hesitating=20, backchannel=10, cough=10)
FILLERS = ("um", "uh", "er", "well", "let me see", "hold on", "i mean", "hm")
BACKCHANNELS = ("uh huh", "okay", "right", "yes", "i see", "mm", "yeah", "sure", "really", "oh", "aha", "good")


def draw(rng: random.Random) -> dict:
    label = rng.choices(list(LABELS), list(LABELS.values()))[0]
    if label == "cough":
        return dict(label=label, text="", said="", rest="", style="neutral")
    if label == "backchannel":
        text = rng.choice(BACKCHANNELS)
        return dict(label=label, text=text, said=text, rest="")
    turn = domain.question(rng)
    words = turn.user.split()
    if label == "complete" or len(words) < 3:
        return dict(label="complete", text=turn.user, said=turn.user, rest="")
    at = rng.randint(1, len(words) - 1)
    said, rest = " ".join(words[:at]), " ".join(words[at:])
    if label == "hesitating" and rng.random() < 0.7:
        said += ", " + rng.choice(FILLERS)
    return dict(label=label, text=said if label == "hesitating" else turn.user, said=said, rest=rest)


def plan(count):
    rng, jobs = random.Random(31), []
    for _ in range(count):
        d = draw(rng)
        engine = rng.choices(["espeak", "flite", "kal"], [70, 25, 5])[0]
        unseen = zlib.crc32(d["text"].encode()) % 10 == 0
        jobs.append(dict(d, kind="turn", style="neutral", split="test" if unseen else "train", **synth.voice(rng, engine)))
    return jobs


def cough(rng):
    """One to three bursts of shaped noise with a fast rise and a slow fall, or a breath, or clicks."""
    kind, out = rng.choice(["cough", "cough", "breath", "clicks"]), []
    for _ in range(int(rng.integers(1, 4))):
        n = int(RATE * rng.uniform(0.12, 0.4))
        wave = rng.standard_normal(n)
        t = np.arange(n) / n
        if kind == "cough":
            wave = channel.band(wave.astype(np.float32), 250, rng.uniform(1800, 5000), 0.4) * np.minimum(1, t / 0.05) * np.exp(-rng.uniform(3, 7) * t)
        elif kind == "breath":
            wave = channel.band(wave.astype(np.float32), 500, 3500, 0.5) * np.sin(np.pi * t) * 0.3
        else:
            wave = wave * (rng.random(n) < 0.003)
        out += [wave, np.zeros(int(RATE * rng.uniform(0.03, 0.25)))]
    wave = np.concatenate(out).astype(np.float32)
    return wave / max(1e-4, np.abs(wave).max()) * 0.5


def speech_end(wave, db=-35):
    """Seconds at which the last 20 ms above `db` of the loudest end."""
    frames = wave[:len(wave) // 320 * 320].reshape(-1, 320)
    loud = np.flatnonzero(10 * np.log10((frames ** 2).mean(1) + 1e-9) > 10 * np.log10((frames ** 2).mean(1).max() + 1e-9) + db)
    return (int(loud[-1]) + 1) * 0.02 if len(loud) else 0.0


def cut_at(record, wave):
    """Where the said words end: by phone times where the synthesiser gives them, else by the share of letters, at the quietest place nearby."""
    share = len(record["said"]) / max(1, len(record["text"]))
    at = int(len(wave) * share)
    low, high = max(0, at - 1600), min(len(wave) - 320, at + 1600)
    steps = range(low, max(low + 1, high), 80)
    return min(steps, key=lambda k: float((wave[k:k + 320] ** 2).mean()))


def finish(record, wave, rng):
    if record["label"] == "cut":
        wave = wave[:cut_at(record, wave)]
    end = speech_end(wave)
    wave = wave[:int(end * RATE)]
    if record["label"] == "hesitating" and rng.random() < 0.4:
        wave = np.concatenate([wave, np.zeros(int(RATE * rng.uniform(0.3, 0.8)), np.float32)])
    if rng.random() < 0.3:
        wave = channel.telephone(wave) if rng.random() < 0.4 else channel.room(wave, rng, rng.uniform(0.2, 0.6), rng.uniform(1, 3))
    wave = wave / max(1e-4, np.abs(wave).max()) * 10 ** (-rng.uniform(1, 12) / 20)
    tail = np.zeros(int(RATE * rng.uniform(0.1, 0.9)), np.float32)
    wave = np.concatenate([wave, tail])
    return wave + rng.standard_normal(len(wave)).astype(np.float32) * 10 ** (-rng.uniform(45, 70) / 20), end


def _work(task):
    path, jobs = task
    torch.set_num_threads(1)
    spoken = [j for j in jobs if j["text"]]
    records, audio = synth.speak(spoken)
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    waves = [features.resample(torch.from_numpy(audio[r["at"]:r["at"] + r["samples"]].astype(np.float32) / 32768), r["rate"], RATE).numpy() for r in records]
    silent = [j for j in jobs if not j["text"]]
    records, waves = records + silent, waves + [cough(rng) for _ in silent]
    out, pieces, at = [], [], 0
    for r, w in zip(records, waves):
        wave, end = finish(r, w, rng)
        pieces.append((np.clip(wave, -1, 1) * 32767).astype(np.int16))
        out.append(dict({k: r[k] for k in ("label", "said", "rest", "voice", "split")}, at=at, samples=len(wave), end=round(end, 2)))
        at += len(wave)
    np.save(path + ".tmp.npy", np.concatenate(pieces))
    json.dump(out, open(path + ".tmp.json", "w"))
    os.replace(path + ".tmp.npy", path + ".npy")
    os.replace(path + ".tmp.json", path + ".json")
    return len(out)


def timelines(folder, count=50):
    """Scripts of whole conversations: utterances by shard and index, the pause in front of each, and whether an answer is due behind it."""
    rng, pool = random.Random(5), {}
    for path in sorted(f for f in os.listdir(folder) if f.endswith(".json") and f != "dialogues.json"):
        for k, r in enumerate(json.load(open(f"{folder}/{path}"))):
            if r["split"] == "test":
                pool.setdefault(r["label"], []).append(dict(shard=path[:-5], index=k, label=r["label"], seconds=round(r["samples"] / RATE, 2), end=r["end"], said=r["said"]))
    scripts = []
    while len(scripts) < count and "complete" in pool:
        script = []
        for _ in range(rng.randint(3, 7)):
            label = rng.choices(list(LABELS), [60, 5, 15, 12, 8])[0]
            if pool.get(label):
                script.append(dict(rng.choice(pool[label]), pause=round(rng.uniform(0.4, 3.0), 2), answer=label == "complete"))
        scripts.append(script)
    json.dump(scripts, open(f"{folder}/dialogues.json", "w"))
    return len(scripts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    folder = f"{args.work}/turns"
    os.makedirs(folder, exist_ok=True)
    jobs = plan(args.count)
    todo = [(f"{folder}/{k:04d}", jobs[i:i + SHARD]) for k, i in enumerate(range(0, len(jobs), SHARD))]
    todo = [t for t in todo if not os.path.exists(t[0] + ".json")]
    started, made = time.time(), 0
    with multiprocessing.Pool(args.jobs, os.nice, (5,)) as pool:
        for k, n in enumerate(pool.imap_unordered(_work, todo), 1):
            made += n
            print(f"turns {k}/{len(todo)} shards, {made} utterances, {(time.time() - started) / k * (len(todo) - k):.0f} s left", flush=True)
    print(timelines(folder), "dialogues")


if __name__ == "__main__":
    main()
