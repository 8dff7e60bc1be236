"""The PyTorch definitions of tools/nano load the official-layout checkpoints of the goldens and reproduce their values.

`python tests/tools/test_nano_modules.py [GOLDENS]`; exits 1 when a case is outside its tolerance.
"""
import json
import math
import pathlib
import re
import sys

import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tools.nano import features, modules  # noqa: E402

torch.set_num_threads(1)
failures, checks = [], 0


def near(name, got, want, tolerance):
    global checks
    checks += 1
    error = (got - want).abs().max().item() if got.shape == want.shape and want.numel() else (0.0 if got.shape == want.shape else math.inf)
    if not error <= tolerance:
        failures.append(f"{name}: error {error:.3g} over {tolerance:.3g} (shapes {tuple(got.shape)} {tuple(want.shape)})")


def flow_of(folder):
    c = json.load(open(folder / "config.json"))["flow"]
    e, s = c["encoder"], c["estimator"]
    net = modules.Flow(c["vocab_size"], c["input_size"], e["output_size"], e["attention_heads"], e["linear_units"], e["num_blocks"],
                       rate=c["input_frame_rate"], cfg_rate=c["cfm"]["inference_cfg_rate"],
                       estimator=dict(channels=s["channels"], blocks=s["n_blocks"], mid_blocks=s["num_mid_blocks"], heads=s["num_heads"], head_dim=s["attention_head_dim"]))
    net.load_state_dict(load_file(folder / "flow.safetensors"))
    return net.eval()


def hift_of(folder):
    c = json.load(open(folder / "config.json"))["hift"]
    state = load_file(folder / "hift.safetensors")
    net = modules.HiFT(c["base_channels"], state["f0_predictor.classifier.weight"].shape[1])
    net.load_state_dict(state)
    return net.eval()


def check_vocoder(folder):
    manifest = json.load(open(folder / "manifest.json"))
    flows, hifts = {}, {}
    for case in manifest["cases"]:
        t = load_file(folder / case["file"])
        kind, tol, model = case["kind"], case["tol"], case["model"] and folder / manifest["models"][case["model"]]["dir"]
        if case["params"].get("dtype") == "bf16":
            continue
        with torch.no_grad():
            if kind == "resample":
                near(case["name"], features.resample(t["in.wav"][0], case["params"]["orig"], case["params"]["new"]), t["out.wav"][0], 5e-6)
            elif kind == "mel":
                near(case["name"], features.vocoder_mel(t["in.wav"])[0].T[None], t["out.feat"], 5e-4)
            elif kind == "fbank":
                near(case["name"], features.fbank(t["in.wav"][0], "povey", 1.0), t["out.fbank"], 5e-3)
            elif kind == "speaker":
                net = modules.CamPlus(16, 4, 2, head=32)
                net.load_state_dict(load_file(model / "campplus.safetensors"))
                near(case["name"], net.eval()(t["out.fbank_cmn"]), t["out.embedding"], 2e-3)
            elif kind in ("flow", "tokens2wav"):
                net = flows.setdefault(model, flow_of(model))
                mel = net(*(t["in." + n] for n in ("token", "prompt_token", "prompt_feat", "embedding", "z")))
                near(case["name"], mel, t["out.mel"], 1e-3)
            elif kind == "hift":
                net = hifts.setdefault(model, hift_of(model))
                near(case["name"], net(t["in.mel"], t["in.phase"], t["in.noise"]), t["out.wav"], 3e-3)
            elif kind == "estimator":
                net = flows.setdefault(model, flow_of(model))
                near(case["name"], net.decoder["estimator"](t["in.x"], t["in.mask"], t["in.mu"], t["in.t"], t["in.spks"], t["in.cond"]), t["out.y"], 3e-4)


def check_tokenizer(folder):
    manifest = json.load(open(folder / "manifest.json"))
    ckpt = folder / "ckpt"
    dims = json.load(open(ckpt / "ckpt.json"))
    asr = next((ckpt / "dengcunqin").iterdir())
    state = load_file(asr / "model.safetensors")
    p = dims["paraformer"]
    ling = modules.SanmEncoder(p["output_size"], p["attention_heads"], p["linear_units"], p["num_blocks"])
    ling.load_state_dict({k: v for k, v in state.items() if k.startswith("encoder.")})
    mvn = [torch.tensor([float(x) for x in m.split()]) for m in re.findall(r"<LearnRateCoef> 0 \[ (.*?) \]", (asr / "am.mvn").read_text())]
    d = dims["s3"]
    s3 = modules.S3Encoder(d["n_audio_state"], d["n_audio_head"], d["n_audio_layer"], d["n_codebook_size"], context=d["n_audio_ctx"])
    weights = load_file(ckpt / "speech_tokenizer_v1.safetensors")
    renamed = {k.replace("encoder.positional_embedding", "positional_embedding").replace("quantizer._codebook.embed", "embed"): v for k, v in weights.items()}
    s3.load_state_dict(renamed)
    ling.eval(), s3.eval()
    for name, case in manifest["cases"].items():
        t = load_file(folder / case["file"])
        if "wav_pre" not in t:
            continue
        with torch.no_grad():
            if "enc_out" in t:
                feats = (features.linguistic_features(t["wav_pre"]) + mvn[0]) * mvn[1]
                near(name + " feats", feats, t["feats"], 4e-3)
                near(name + " enc_out", ling(feats[None], torch.tensor([len(feats)]))[0], t["enc_out"], 2e-3)
            if len(t["wav_pre"]) >= 480 and len(t["wav_pre"]) <= 480000:
                mel = features.log_mel(t["wav_pre"])
                hidden, _ = s3(mel[None], torch.tensor([mel.shape[1]]))
                near(name + " s3_hidden", hidden[0], t["s3_hidden"], 2e-3)


def check_lm(folder):
    cases = json.load(open(folder / "cases.json"))["cases"]
    tensors = load_file(folder / "cases.safetensors")
    for case in cases:
        if case["kind"] != "prefill":
            continue
        config = json.load(open(folder / case["model"] / "config.json"))
        net = modules.Step1(**config)
        state = {}
        for shard in sorted((folder / case["model"]).glob("*.safetensors")):
            state.update(load_file(shard))
        net.load_state_dict({k: v.float() for k, v in state.items()})
        ids = tensors[case["tensors"]["input_ids"]].long()[None]
        with torch.no_grad():
            near(case["id"], net.hidden(ids)[0], tensors[case["tensors"]["hidden"]], 1e-4)


if __name__ == "__main__":
    goldens = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/goldens"
    for family, check in (("vocoder", check_vocoder), ("tokenizer", check_tokenizer), ("lm", check_lm)):
        check(goldens / family)
    print("\n".join(failures))
    print(f"{checks - len(failures)} passed, {len(failures)} failed")
    sys.exit(bool(failures))
