"""More sentences in the target voice for train_tts: `python -m tools.nano.more_replies WORK [--count 7000]`.

The spoken replies of the first data set repeat a few thousand texts, which train_tts learns by heart (0.33 nats per code in training, 1.6 on held-out
texts). This adds texts that differ from all of those, none of them held out; only their codes are kept. Writes `WORK/more/NNNN.pkl`.
"""
from __future__ import annotations

import argparse
import glob
import multiprocessing
import os
import pickle
import random
import time

import torch

from . import domain, prepare, synth, tokenise

SHARD = 100


def plan(work, count):
    with open(f"{work}/tokens.pkl", "rb") as f:
        known = {d["text"] for d in pickle.load(f)}
    rng, jobs = random.Random(4711), []
    while len(jobs) < count:
        style, text = domain.spoken_reply(rng)
        if style == "sing" or text in known or domain.held_out(text):
            continue
        known.add(text)
        jobs.append(dict(text=text, kind="reply", style=style, engine="festival", voice=synth.TARGET, split="reply"))
    return jobs


def _work(task):
    work, path, jobs = task
    os.nice(10)
    torch.set_num_threads(1)
    records, audio = synth.speak(jobs)
    tokeniser, table, out = tokenise.Tokeniser(work), {}, []
    for r in records:
        d = prepare.describe(dict(r, split="codes", phones=None), audio[r["at"]:r["at"] + r["samples"]], table)
        if len(d["ling"]) > 2:
            out.append(dict(text=r["text"], kind="reply", style=r["style"], split="reply", voice=r["voice"], codes=tokeniser.codes([d])[0]))
    with open(path + ".tmp", "wb") as f:
        pickle.dump(out, f)
    os.replace(path + ".tmp", path)
    return len(out)


def load(work):
    out = []
    for path in sorted(glob.glob(f"{work}/more/????.pkl")):
        with open(path, "rb") as f:
            out += pickle.load(f)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--count", type=int, default=7000)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    os.makedirs(f"{args.work}/more", exist_ok=True)
    jobs = plan(args.work, args.count)
    tasks = [(args.work, f"{args.work}/more/{k:04d}.pkl", jobs[i:i + SHARD]) for k, i in enumerate(range(0, len(jobs), SHARD))]
    todo = [t for t in tasks if not os.path.exists(t[1])]
    started, made = time.time(), 0
    with multiprocessing.Pool(args.jobs) as pool:
        for k, n in enumerate(pool.imap_unordered(_work, todo), 1):
            made += n
            print(f"replies {k}/{len(todo)} shards, {made} utterances, {(time.time() - started) / k * (len(todo) - k):.0f} s left", flush=True)


if __name__ == "__main__":
    main()
