"""Weights between two models that are the same but for training: `python -m tools.nano.mix OLD NEW OUT [--share 0.5]`.

The chat model of OUT (a copy of NEW) is `share` of NEW's weights and the rest of OLD's. What practice on little data made worse comes back, most of what it
taught stays: the judge decides on the share (`tools.nano.judge.evaluate`).
"""
from __future__ import annotations

import argparse
import pathlib
import shutil
import sys

from safetensors.torch import load_file, save_file

FILE = "Step-Audio-Chat/model.safetensors"


def between(old: dict, new: dict, share: float) -> dict:
    """Tensors `share` of the way from old to new, in old's types."""
    return {k: old[k].float().lerp(new[k].float(), share).to(old[k].dtype).contiguous() for k in old}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--share", type=float, default=0.5)
    args = parser.parse_args()
    old, new = load_file(args.old / FILE), load_file(args.new / FILE)
    different = sorted(k for k in old.keys() | new.keys() if k not in old or k not in new or old[k].shape != new[k].shape)
    if different:
        sys.exit(f"{args.old} and {args.new} differ in the shape of '{different[0]}': only a model that started from the other can be mixed with it")
    shutil.copytree(args.new, args.out, symlinks=True, dirs_exist_ok=True)
    save_file(between(old, new, args.share), args.out / FILE)


if __name__ == "__main__":
    main()
