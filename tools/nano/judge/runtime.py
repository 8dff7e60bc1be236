"""The C++ runtime as a program: questions in, answers out; texts in, waves out. And the held-out utterances that both are tried with."""
from __future__ import annotations

import glob
import json
import os
import subprocess

import numpy as np
import torch

from .. import features
from .sphinx import load_wav


def test_items(work, split):
    for path in sorted(glob.glob(f"{work}/speech/????.json")):
        audio = None
        for r in json.load(open(path)):
            if r["split"] == split:
                audio = np.load(path.replace(".json", ".npy")) if audio is None else audio
                yield r, audio[r["at"]:r["at"] + r["samples"]].astype(np.float32) / 32768


def ask(args, requests, extra=()):
    path = f"{args.work}/eval/requests.jsonl"
    with open(path, "w") as f:
        f.write("\n".join(json.dumps(r) for r in requests))
    done = subprocess.run([args.parlando, "talk", "--batch", path, "--model-path", args.model, "--threads", "1", "--json", *extra], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if len(lines) != len(requests):
        raise SystemExit(f"parlando answered {len(lines)} of {len(requests)} requests: {done.stderr[-500:]}")
    return lines


def say(args, requests, command="tts"):
    """Speaks JSON-lines requests -> waves at 22.05 kHz, what the runtime says about each."""
    folder = f"{args.work}/eval/said"
    os.makedirs(folder, exist_ok=True)
    for path in glob.glob(f"{folder}/*.wav"):
        os.remove(path)
    with open(f"{folder}/requests.jsonl", "w") as f:
        f.write("\n".join(json.dumps(dict(r, output=f"{i}.wav"), ensure_ascii=False) for i, r in enumerate(requests)))
    done = subprocess.run([args.parlando, command, "--batch", f"{folder}/requests.jsonl", "--out-dir", folder, "--model-path", args.model, "--threads", "1", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-500:])
    return [load_wav(f"{folder}/{i}.wav")[0] for i in range(len(requests))], [json.loads(line) for line in done.stdout.splitlines()]


def at16(wave, rate=22050):
    return features.resample(torch.from_numpy(wave), rate, 16000).numpy()
