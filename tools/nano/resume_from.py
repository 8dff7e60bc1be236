"""Training states from a finished model folder: `python -m tools.nano.resume_from MODEL WORK [--only tts,lm]`.

The official layout holds everything that is served, so each stage goes on from there: `WORK/state/*.pt`, `centroids.npy`, `tokenizer.model`, and the
voices' recordings in `WORK/speakers`, which train.lm then prefers to new ones. What is dropped after training (the encoders' heads, the optimisers'
moments) begins anew. A state that exists is kept.
"""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil

import numpy as np
import torch
from safetensors.torch import load_file

from .train import encoders as train_encoders

LM, SPEAK, VOICE = "Step-Audio-Chat", "Step-Audio-TTS-3B", "Step-Audio-TTS-3B/CosyVoice-300M-25Hz"
STAGES = ("linguistic", "semantic", "lm", "tts", "flow", "vocoder", "speaker")


def load(path):
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def linguistic(model, work):
    tensors = load(model / "Step-Audio-Tokenizer/linguistic.safetensors")
    np.save(work / "centroids.npy", tensors.pop("kmeans.centroids").numpy())
    task = train_encoders.LinguisticTask()
    task.shift.copy_(tensors.pop("cmvn.shift")), task.rescale.copy_(tensors.pop("cmvn.rescale"))
    task.net.load_state_dict(tensors)
    return task.state_dict()


def semantic(model, work):
    names = {"encoder.positional_embedding": "positional_embedding", "quantizer._codebook.embed": "embed"}
    task = train_encoders.SemanticTask()
    task.net.load_state_dict({names.get(k, k): v for k, v in load(model / "Step-Audio-Tokenizer/semantic.safetensors").items()})
    task.mass.fill_(1.0), task.total.copy_(task.net.embed), task.on.fill_(1.0)
    return task.state_dict()


def language_model(model, work):
    config = {k: v for k, v in json.load(open(model / LM / "config.json")).items() if k not in ("reply_format", "tool_calls", "history_turns", "fallback_replies")}
    json.dump(config, open(work / "state/lm_config.json", "w"))
    shutil.copyfile(model / LM / "tokenizer.model", work / "tokenizer.model")
    return load(model / LM / "model.safetensors")


def tts(model, work):
    folder = work / "speakers"
    if not folder.exists():
        shutil.copytree(model / SPEAK / "speakers", folder)
    return load(model / SPEAK / "model.safetensors")


READ = dict(linguistic=linguistic, semantic=semantic, lm=language_model, tts=tts, flow=lambda m, w: load(m / VOICE / "flow.safetensors"),
            vocoder=lambda m, w: load(m / VOICE / "hift.safetensors"), speaker=lambda m, w: load(m / VOICE / "campplus.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("work")
    parser.add_argument("--only", help="comma-separated stages", default=",".join(STAGES))
    args = parser.parse_args()
    model, work = pathlib.Path(args.model), pathlib.Path(args.work)
    os.makedirs(work / "state", exist_ok=True)
    torch.manual_seed(1)
    for name in args.only.split(","):
        path = work / f"state/{name}.pt"
        if path.exists():
            print(f"{name}: {path} exists, kept")
            continue
        net = READ[name](model, work)
        torch.save(dict(nets=dict(net=net), steps=0, used=0.0, extra={}), path)
        print(f"{name}: {sum(v.numel() for v in net.values()) / 1e6:.2f} M values")


if __name__ == "__main__":
    main()
