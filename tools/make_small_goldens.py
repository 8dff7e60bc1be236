"""Adds to tests/goldens what the official set holds only in large files: the kinds speaker, prompt and tokens2wav of the vocoder family.

`python tools/make_small_goldens.py [TARGET]`. Computed by the PyTorch definitions of tools/nano, which tests/tools/test_nano_modules.py holds
against the official values: a small random speaker encoder, and the selection's own flow and vocoder on one group of codes.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/tools")]
from test_nano_modules import flow_of, hift_of  # noqa: E402
from tools.nano import features, modules  # noqa: E402

MODEL = "CosyVoice-300M-25Hz"


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "tests/goldens") / "vocoder"
    folder = target / "models" / MODEL
    torch.set_num_threads(1)
    torch.manual_seed(21)
    net = modules.CamPlus(8, 4, 2, layers=(2, 2, 2), head=8).eval()
    for m in net.modules():
        if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            m.running_mean.normal_(0, 0.1), m.running_var.uniform_(0.5, 1.5)
            if m.affine:
                torch.nn.init.uniform_(m.weight, 0.8, 1.2), torch.nn.init.normal_(m.bias, 0, 0.1)
    save_file({k: v.contiguous() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}, folder / "campplus.safetensors")
    manifest = json.load(open(target / "manifest.json"))
    if "campplus.safetensors" not in manifest["models"][MODEL]["files"]:
        manifest["models"][MODEL]["files"].append("campplus.safetensors")
    manifest["cases"] = [c for c in manifest["cases"] if c["kind"] not in ("speaker", "prompt", "tokens2wav")]

    def add(name, kind, params, tol, note, tensors):
        file = f"cases/{name}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, target / file)
        manifest["cases"].append(dict(name=name, kind=kind, model=MODEL, file=file, params=params, tol=tol, note=note,
                                      tensors={k: dict(dtype=str(v.dtype)[6:], shape=list(v.shape)) for k, v in tensors.items()}))

    def voice(rate, seconds):
        t = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
        wave = sum(torch.sin(2 * torch.pi * 140 * k * t + k) / k for k in range(1, 12)) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 5 * t))
        return (0.2 * wave).float() + 0.01 * torch.randn(len(t))

    with torch.no_grad():
        def embedding(wave16):
            bank = features.fbank(wave16, "povey", 1.0)
            centred = (bank - bank.mean(0))[None]
            return bank, centred, net(centred)

        wave = voice(16000, 0.45)
        bank, centred, vector = embedding(wave)
        near = dict(atol=0.002, rtol=0.002)
        add("speaker_small", "speaker", {}, near, "PyTorch definition", {"in.wav": wave[None], "out.fbank": bank, "out.fbank_cmn": centred, "out.embedding": vector})
        wave = voice(24000, 0.4)
        wave16, wave22 = features.resample(wave, 24000, 16000), features.resample(wave, 24000, 22050)
        mel = features.vocoder_mel(wave22[None])[0].T[None]
        add("prompt_small", "prompt", dict(sample_rate=24000), near, "PyTorch definition",
            {"in.wav": wave[None], "out.wav16": wave16[None], "out.wav22": wave22[None], "out.speech_feat": mel, "out.embedding": embedding(wave16)[2]})
        flow, hift = flow_of(folder), hift_of(folder)
        token, frames = torch.tensor([[5, 900, 1030, 4000, 5119]]), flow.frames(5)
        t = {"in.token": token, "in.prompt_token": token[:, [1, 0, 2, 4, 3]], "in.prompt_feat": torch.randn(1, 11, 80) - 4, "in.embedding": torch.randn(1, 192),
             "in.z": torch.randn(1, 80, 11 + frames), "in.phase": (torch.rand(1, 9, 1) * 2 - 1) * torch.pi, "in.noise": torch.randn(1, 9, frames * 256)}
        t["out.mel"] = flow(t["in.token"], t["in.prompt_token"], t["in.prompt_feat"], t["in.embedding"], t["in.z"])
        t["out.wav"] = hift(t["out.mel"], t["in.phase"], t["in.noise"])
        add("tokens2wav_small", "tokens2wav", dict(dtype="fp32", sample_rate=22050), dict(mel_atol=0.0001, atol=0.02, rtol=0.05, min_snr_db=40), "PyTorch definition", t)
    json.dump(manifest, open(target / "manifest.json", "w"), ensure_ascii=False, separators=(",", ":"))
    for path in (target.parent / "lm/prompts.json", target.parent / "lm/cases.json", target.parent / "tokenizer/manifest.json"):
        data = json.load(open(path))
        json.dump(data, open(path, "w"), ensure_ascii=False, separators=(",", ":"))
    total = sum(p.stat().st_size for p in target.parent.rglob("*") if p.is_file())
    print(f"{target.parent}: {total / 2 ** 20:.2f} MiB")


if __name__ == "__main__":
    main()
