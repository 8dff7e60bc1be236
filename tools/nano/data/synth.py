"""Speaks the domain with free synthesisers: `python -m tools.nano.data.synth WORK [--jobs 2] [--users 11000] [--replies 6000] [--share 1.0]`.

Writes shards `WORK/speech/NNNN.npz` (int16 samples at the source rate, one concatenated array) + `NNNN.json` (one record per
utterance: text, split, voice, style, offset, samples, rate, phone end times). A shard that exists is kept, so a run can be
interrupted and continued. With a `share` the held-out utterances stay the same, all of them, and so many of the others are left. Voices and their licences are listed in `models/nano/README.md`.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import wave

import numpy as np
import torch

from .. import features
from . import domain, psola

TARGET = "cmu_us_slt_arctic_hts"
ACCENTS = ["en-us"] * 6 + ["en-gb", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
VARIANTS = (["", "m1", "m2", "m3", "m4", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "klatt", "klatt2", "klatt3", "klatt5"] +
            "adam Alex Alicia Andrea antonio aunty belinda benjamin caleb david ed Gene Hugo linda marcelo max michael mike pablo paul "
            "pedro rob robert steph travis victor zac anika norbert shelby sandro grandma".split())
VARIANTS_UNSEEN = ["f4", "m5", "klatt4", "Andy", "Lee", "quincy"]
HELD_OUT = ("test", "unseen", "reply_test")
SHARD = 120


def voice(rng: random.Random, engine: str, unseen: bool = False) -> dict:
    if engine == "espeak":
        variant = rng.choice(VARIANTS_UNSEEN if unseen else VARIANTS)
        accent = "en-us" if unseen else rng.choice(ACCENTS)
        return dict(engine="espeak", voice=accent + ("+" + variant if variant else ""), speed=rng.randint(125, 190), pitch=rng.randint(25, 75))
    if engine == "flite":
        return dict(engine="flite", voice=rng.choice(["slt", "rms", "awb", "kal16"]), stretch=round(rng.uniform(0.9, 1.25), 2))
    return dict(engine="festival", voice={"kal": "kal_diphone", "ked": "ked_diphone", "slt": TARGET}[engine])


def plan(users: int, replies: int, share: float = 1.0) -> list[dict]:
    """The list of utterances; a function of the arguments alone. The held-out ones do not depend on `share`, which is a part of the others."""
    rng = random.Random(20261)
    words = sorted({w.split("(")[0] for w in (line.split()[0] for line in open("/usr/share/pocketsphinx/model/en-us/cmudict-en-us.dict"))
                    if re.fullmatch(r"[a-z]{3,9}", w)})
    jobs = []

    def add(count, split, engines, held, want):
        made = 0
        while made < count:
            engine = rng.choice(engines)
            record = want(engine)
            if record["kind"] not in domain.CLOSED and record["kind"] != "words" and domain.held_out(record["text"]) != held:
                continue
            record.update(voice(rng, engine, split == "unseen"), split=split)
            jobs.append(record)
            made += 1

    def user(engine):
        if rng.random() < 0.15:
            return dict(text=" ".join(rng.sample(words, rng.randint(2, 5))), kind="words", style="neutral")
        turn = domain.question(rng)
        return dict(text=turn.user, kind=turn.kind, style="neutral")

    def clean_user(engine):
        turn = domain.question(rng)
        return dict(text=turn.user, kind=turn.kind, style="neutral")

    def reply(engine):
        style, text = domain.spoken_reply(rng)
        return dict(text=text, kind="reply", style=style)

    add(int(users * 0.66), "train", ["espeak"], False, user)
    add(int(users * 0.26), "train", ["flite"], False, user)
    add(int(users * 0.05), "train", ["kal"], False, user)
    add(int(users * 0.03), "train", ["slt"], False, user)
    tests = min(300, users)
    add(tests, "test", ["espeak", "espeak", "flite", "kal"], True, clean_user)
    add(tests, "unseen", ["espeak", "ked"], True, clean_user)
    add(replies, "reply", ["slt"], False, reply)
    add(replies // 4, "reply", ["flite", "kal", "espeak"], False, reply)
    add(min(120, replies), "reply_test", ["slt"], True, reply)
    # The voice prompts are chosen among these, however small the data set is.
    for style, text, engine in (("sing", domain.STYLES["sing"][1], "slt"), ("happy", domain.STYLES["happy"][1], "slt"),
                                ("neutral", "the sky is blue.", "slt"), ("neutral", "the sky is blue.", "kal")):
        jobs.append(dict(text=text, kind="reply", style=style, split="reply", **voice(rng, engine)))
    kept = {id(j) for j in jobs[-4:]}
    rng.shuffle(jobs)
    choice = random.Random(20262)
    return [j for j in jobs if j["split"] in HELD_OUT or id(j) in kept or choice.random() < share]


def _flite_ends(text: str):
    ends = []
    for item in text.split():
        name, _, end = item.rpartition(":")
        if name:
            ends.append((name, float(end)))
    return ends


def _festival_ends(path: str):
    ends = []
    for line in open(path):
        parts = line.split()
        if len(parts) == 3:
            ends.append((parts[2], float(parts[0])))
    return ends


def _read(path: str):
    with wave.open(path, "rb") as f:
        return np.frombuffer(f.readframes(f.getnframes()), dtype=np.int16), f.getframerate()


def _restyle(path: str, style: str, ends):
    """-> (samples, rate, phone ends) of a wave file in the style: tempo by sox; happy and sung pitch by psola."""
    if style in ("fast", "slow"):
        factor = 1.3 if style == "fast" else 0.78
        subprocess.run(["sox", path, path + ".style.wav", "tempo", "-s", str(factor)], check=True, stderr=subprocess.DEVNULL)
        return *_read(path + ".style.wav"), ends and [(n, e / factor) for n, e in ends]
    samples, rate = _read(path)
    if style == "neutral":
        return samples, rate, ends
    wave22 = features.resample(torch.from_numpy(samples.astype(np.float32) / 32768), rate, psola.RATE).numpy()
    wave22 = psola.happy(wave22) if style == "happy" else psola.sung(wave22, ends or [])
    return (np.clip(wave22, -1, 1) * 32767).astype(np.int16), psola.RATE, None


def speak(jobs: list[dict]):
    """-> (records, int16 samples); a job that the synthesiser refuses is left out."""
    folder = tempfile.mkdtemp()
    by_voice: dict = {}
    for i, job in enumerate(jobs):
        if job["engine"] == "festival":
            by_voice.setdefault(job["voice"], []).append(i)
    for name, members in by_voice.items():
        script = [f"(voice_{name})",
                  "(define (say text path) (let ((u (utt.synth (eval (list 'Utterance 'Text text))))) "
                  "(utt.save.wave u (string-append path \".wav\") 'riff) (utt.save.segs u (string-append path \".lab\"))))"]
        script += [f'(say "{jobs[i]["text"]}" "{folder}/{i}")' for i in members]
        open(f"{folder}/batch.scm", "w").write("\n".join(script))
        subprocess.run(["festival", "--batch", f"{folder}/batch.scm"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records, audio, at = [], [], 0
    for i, job in enumerate(jobs):
        path, ends = f"{folder}/{i}.wav", None
        try:
            if job["engine"] == "espeak":
                subprocess.run(["espeak-ng", "-v", job["voice"], "-s", str(job["speed"]), "-p", str(job["pitch"]), "-w", path, job["text"]],
                               stderr=subprocess.DEVNULL)
            elif job["engine"] == "flite":
                done = subprocess.run(["flite", "-voice", job["voice"], "--setf", f"duration_stretch={job['stretch']}", "-psdur",
                                       "-o", path, "-t", job["text"]], capture_output=True, text=True)
                ends = _flite_ends(done.stdout)
            else:
                ends = _festival_ends(f"{folder}/{i}.lab")
            samples, rate, ends = _restyle(path, job["style"], ends)
        except (OSError, wave.Error, EOFError, subprocess.CalledProcessError):
            continue
        if not 0.25 <= len(samples) / rate <= 9:
            continue
        records.append(dict(job, at=at, samples=len(samples), rate=rate, phones=ends))
        audio.append(samples)
        at += len(samples)
    shutil.rmtree(folder)
    return records, np.concatenate(audio)


def _work(task):
    path, jobs = task
    records, audio = speak(jobs)
    np.save(path + ".tmp.npy", audio)
    json.dump(records, open(path + ".tmp.json", "w"))
    os.replace(path + ".tmp.npy", path + ".npy")
    os.replace(path + ".tmp.json", path + ".json")
    return len(records), sum(r["samples"] / r["rate"] for r in records)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--users", type=int, default=11000)
    parser.add_argument("--replies", type=int, default=6000)
    parser.add_argument("--share", type=float, default=1.0, help="of what training may hear")
    args = parser.parse_args()
    folder = f"{args.work}/speech"
    os.makedirs(folder, exist_ok=True)
    jobs = plan(args.users, args.replies, args.share)
    tasks = [(f"{folder}/{k:04d}", jobs[i:i + SHARD]) for k, i in enumerate(range(0, len(jobs), SHARD))]
    todo = [t for t in tasks if not os.path.exists(t[0] + ".json")]
    started, count, seconds = time.time(), 0, 0.0
    print(f"{len(jobs)} utterances in {len(tasks)} shards, {len(todo)} to make", flush=True)
    with multiprocessing.Pool(args.jobs, os.nice, (5,)) as pool:
        for k, (n, s) in enumerate(pool.imap_unordered(_work, todo), 1):
            count, seconds = count + n, seconds + s
            left = (time.time() - started) / k * (len(todo) - k)
            print(f"\rspeech {k}/{len(todo)} shards, {count} utterances, {seconds / 3600:.2f} h of audio, {left:.0f} s left ", end="", flush=True)
    print(f"\ndone in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
