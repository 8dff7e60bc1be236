"""Copies a small selection of the reference values into tests/goldens: `python tools/select_goldens.py SOURCE [TARGET]`.

Keeps the smallest case of every kind it has room for; see tests/goldens/GOLDENS.md.
"""
import json
import pathlib
import shutil
import subprocess
import sys

from safetensors import safe_open
from safetensors.numpy import save_file

source = pathlib.Path(sys.argv[1])
target = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "tests/goldens")


def tensors(path, keep=lambda name: True):
    with safe_open(path, "np") as f:
        return {k: f.get_tensor(k) for k in f.keys() if keep(k)}, f.metadata()


def copy(path):
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / path, target / path)


def lm():
    folder = source / "lm"
    out = target / "lm"
    out.mkdir(parents=True, exist_ok=True)
    cases = json.load(open(folder / "cases.json"))
    keep = []
    # Of head size 64 one case of each kind that it matters to, and 300 tokens in bf16.
    large = {f"tiny-step1-hd64.{n}" for n in ("prefill.7", "decode", "chunked", "bf16.7", "bf16.300")}
    for c in cases["cases"]:
        if c["id"] in large:
            keep.append(c)
        elif c.get("model", "tiny-step1-np2") == "tiny-step1-np2" and (c.get("length", 0) < 64 or c["kind"] == "alibi"):
            keep.append(c)
    names = {n for c in keep for n in c["tensors"].values()} | {c["logits_from"] for c in keep if c.get("logits_from")}
    cases["cases"] = keep
    json.dump(cases, open(out / "cases.json", "w"), indent=1)
    data, _ = tensors(folder / "cases.safetensors", lambda n: n in names)
    save_file(data, out / "cases.safetensors")
    for model in ("tiny-step1-np2", "tiny-step1-hd64"):
        for f in (folder / model).iterdir():
            copy(f.relative_to(source))
    for f in ("tokenizer.model", "tokenizer_config.json"):
        copy(f"lm/tiny-step1/{f}")
    for f in ("prompts.json", "tp_plan.json"):
        copy(f"lm/{f}")


def vad():
    folder, names = source / "vad", ("unmute_bear_or_shark", "tone")
    (target / "vad").mkdir(parents=True, exist_ok=True)
    cases = json.load(open(folder / "silero_cases.json"))
    json.dump({n: cases[n] for n in names}, open(target / "vad/silero_cases.json", "w"), indent=1)
    data, _ = tensors(folder / "silero_cases.safetensors", lambda n: n.split(".")[0] in names)
    save_file(data, target / "vad/silero_cases.safetensors")


def tokenizer():
    manifest = json.load(open(source / "tokenizer/manifest.json"))
    cases = ("short880", "short50ms", "trim_notrail", "en16k_noenergy")
    manifest["cases"] = {n: manifest["cases"][n] for n in cases}
    pairs = ("24000_16000", "48000_16000")
    manifest["resample"] = {p: manifest["resample"][p] for p in pairs}
    (target / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, c in manifest["cases"].items():
        copy("tokenizer/" + c["wav"]), copy("tokenizer/" + c["file"])
        if name == "trim_notrail":      # the short cases cover them
            large = ("fbank", "mel")
            data, meta = tensors(source / "tokenizer" / c["file"], lambda n: n not in large)
            save_file(data, target / "tokenizer" / c["file"], metadata=meta)
            c["tensors"] = {k: v for k, v in c["tensors"].items() if k not in large} if isinstance(c["tensors"], dict) else [k for k in c["tensors"] if k not in large]
    json.dump(manifest, open(target / "tokenizer/manifest.json", "w"), indent=1)
    data, _ = tensors(source / "tokenizer/resample.safetensors", lambda n: n.split(".")[0] in pairs)
    save_file(data, target / "tokenizer/resample.safetensors")
    asr = next((source / "tokenizer/ckpt/dengcunqin").iterdir()).relative_to(source)
    for f in ("am.mvn", "config.yaml", "configuration.json"):
        copy(asr / f)
    data, meta = tensors(source / asr / "model.safetensors", lambda n: n.startswith("encoder."))
    save_file(data, target / asr / "model.safetensors", metadata=meta)
    for f in ("linguistic_tokenizer.npy", "speech_tokenizer_v1.onnx"):
        copy(f"tokenizer/ckpt/{f}")


def vocoder():
    manifest = json.load(open(source / "vocoder/manifest.json"))
    model, best = "CosyVoice-300M-25Hz", {}
    for c in manifest["cases"]:
        if c["model"] not in (None, model) or c["kind"] in ("speaker", "prompt", "tokens2wav"):
            continue
        size = (source / "vocoder" / c["file"]).stat().st_size
        key = c["kind"]
        if key not in best or size < best[key][0]:
            best[key] = (size, c)
    manifest["cases"] = [c for _, c in best.values()]
    files = ["config.json", "cosyvoice.yaml", "flow.safetensors", "hift.safetensors"]
    manifest["models"] = {model: {"dir": f"models/{model}", "files": files}}
    (target / "vocoder").mkdir(parents=True, exist_ok=True)
    json.dump(manifest, open(target / "vocoder/manifest.json", "w"), indent=1, ensure_ascii=False)
    for c in manifest["cases"]:
        copy("vocoder/" + c["file"])
    for f in files:
        copy(f"vocoder/models/{model}/{f}")


for family in (lm, vad, tokenizer, vocoder):
    family()
subprocess.run([sys.executable, pathlib.Path(__file__).with_name("make_small_goldens.py"), target], check=True)
