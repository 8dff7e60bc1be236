"""Judges a nano model through the C++ runtime: `python -m tools.nano.judge.evaluate WORK [--parlando build/bin/parlando] [--model models/nano]`.

Listening: held-out sentences in known and unseen voices, with noise at 10 dB, through telephone, room and other channels. Dialogues: the last question
behind one to three earlier turns, spoken and typed, and behind a tool's answer. Speaking: judges of tools.nano.judge.sphinx, all fixed replies, and nano itself.
Styles, clones, and recorded people (reported without target). Prints the table of the model card as JSON lines.
"""
from __future__ import annotations

import argparse
import json
import os

import torch

from ..data import channel
from .listening import agreement, converse, humans, listen, noise
from .speaking import speak
from .styles import clone, tags


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--parlando", default=os.environ.get("PARLANDO", "build/bin/parlando"))
    parser.add_argument("--model", default="models/nano")
    parser.add_argument("--count", type=int, default=60, help="spoken replies")
    parser.add_argument("--only", choices=["listen", "talk", "speak", "style"], help="part of the measures")
    parser.add_argument("--humans", default="../shared/audio", help="folder with recordings of people; left out when it does not exist")
    parser.add_argument("--limit", type=int, help="listening tests: at most this many utterances")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.makedirs(f"{args.work}/eval", exist_ok=True)
    results = []

    def measures():
        if args.only in (None, "listen"):
            yield listen(args, "test", None, args.limit)
            yield listen(args, "unseen", None, args.limit)
            yield listen(args, "test", noise(10), args.limit, "at 10 dB")
            for name, condition in channel.CONDITIONS.items():
                yield listen(args, "test", condition, args.limit, "through " + name)
        if args.only in (None, "talk"):
            yield from converse(args, min(200, args.limit or 200))
        if args.only in (None, "speak"):
            yield from speak(args, args.count)
        if args.only in (None, "style"):
            yield from tags(args)
            yield clone(args)
            yield from humans(args)
            yield agreement(args)

    for r in measures():
        results.append(r)
        print(json.dumps(r, ensure_ascii=False), flush=True)
    json.dump(results, open(f"{args.work}/eval/results{'-' + args.only if args.only else ''}.json", "w"), indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
