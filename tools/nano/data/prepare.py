"""Encoder features of every utterance: `python -m tools.nano.data.prepare WORK [--part 0/2]`.

Reads `WORK/speech`, writes `WORK/features/NNNN.pkl`: per utterance the linguistic and semantic front-end features (float16), phone
and character labels, and for the voices that speak replies also mel, F0 and the wave at 22.05 kHz. Shards that exist are kept.
"""
from __future__ import annotations

import argparse
import glob
import json
import os
import pickle
import re
import time
import zlib

import numpy as np
import torch

from .. import features
from . import channel

PHONES = ("aa ae ah ao aw ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh").split()
PHONE_ID = {p: i + 1 for i, p in enumerate(PHONES)}       # 0 = blank or silence
ALIASES = dict(ax="ah", ix="ih", axr="er", dx="t", nx="n", el="l", em="m", en="n", hv="hh")
CHARS = " abcdefghijklmnopqrstuvwxyz'"
CHAR_ID = {c: i + 1 for i, c in enumerate(CHARS)}
VOICED_SPLITS = ("reply", "reply_test")


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", " ", text.lower()).split()


def pronunciations(path="/usr/share/pocketsphinx/model/en-us/cmudict-en-us.dict") -> dict:
    table = {}
    for line in open(path):
        head, *phones = line.split()
        table.setdefault(head, [p.lower() for p in phones])
    table["parlando"] = "p aa r l aa n d ow".split()
    return table


def frame_labels(ends, hop, count, offset, rate, centre):
    """Phone at the centre of each frame; the audio was made `rate` times faster and delayed by `offset` seconds."""
    label, start, at = np.zeros(count, np.int16), offset, np.arange(count) * hop + centre
    for name, end in ends:
        end = end / rate + offset
        label[(at >= start) & (at < end)] = PHONE_ID.get(ALIASES.get(name, name), 0)
        start = end
    return label


def describe(record, samples, table, others=()):
    """Features of an utterance as its split is heard: clean, augmented, noisy, or through a channel (`others` babble behind it)."""
    wave = torch.from_numpy(samples.astype(np.float32) / 32768)
    wave16 = features.resample(wave, record["rate"], 16000)
    offset, rate = 0.0, 1.0
    rng = np.random.default_rng(zlib.crc32(f"{record['text']}{record['voice']}{record['at']}".encode()))
    if record["split"] == "channel":
        disturbed, offset, rate = channel.disturb(wave16.numpy(), rng, others)
        wave16 = torch.from_numpy(disturbed)
    elif record["split"] in ("train", "noisy"):
        heavy = record["split"] == "noisy"
        if heavy or rng.random() < 0.7:
            noisy, offset, rate = features.augment(wave16.numpy(), rng, *((0.8, 5, 25) if heavy else ()))
            wave16 = torch.from_numpy(noisy)
    wave16 = features.peak_normalise(wave16)
    ling, mel = features.linguistic_features(wave16), features.log_mel(wave16)
    out = dict(text=record["text"], kind=record["kind"], style=record["style"], split=record["split"], voice=record["voice"],
               ling=ling.half().numpy(), mel=mel.half().numpy(), chars=[CHAR_ID[c] for c in " ".join(words(record["text"]))],
               phones=[PHONE_ID[p] for w in words(record["text"]) for p in table.get(w, [])])
    if record["phones"]:
        out["ling_frames"] = frame_labels(record["phones"], 0.06, len(ling), offset, rate, 0.0125)
        out["mel_frames"] = frame_labels(record["phones"], 0.04, -(-(-(-mel.shape[1] // 2)) // 2), offset, rate, 0.02)
    if record["split"] in VOICED_SPLITS:
        wave22 = features.resample(wave, record["rate"], 22050)
        wave22 = wave22 * (0.6 / max(0.05, float(wave22.abs().max())))
        out["wave22"] = (wave22 * 32767).short().numpy()
        out["mel22"] = features.vocoder_mel(wave22).half().numpy()
        out["f0"] = features.pitch(wave22).half().numpy()
        out["speaker"] = features.fbank(features.resample(wave22, 22050, 16000), "povey", 1.0).half().numpy()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--part", default="0/1")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    torch.set_num_threads(1)
    os.makedirs(f"{args.work}/features", exist_ok=True)
    table = pronunciations()
    shards = sorted(glob.glob(f"{args.work}/speech/????.json"))[part::parts]
    started = time.time()
    for k, path in enumerate(shards, 1):
        out = path.replace("/speech/", "/features/").replace(".json", ".pkl")
        if not os.path.exists(out):
            audio = np.load(path.replace(".json", ".npy"))
            shard = [describe(r, audio[r["at"]:r["at"] + r["samples"]], table) for r in json.load(open(path))]
            with open(out + ".tmp", "wb") as f:
                pickle.dump(shard, f, protocol=5)
            os.replace(out + ".tmp", out)
        left = (time.time() - started) / k * (len(shards) - k)
        print(f"\rfeatures {k}/{len(shards)} shards, {left:.0f} s left ", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
