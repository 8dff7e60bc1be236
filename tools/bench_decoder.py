"""Flow, in both types, and vocoder beside PyTorch modules of the same definition and size in fp32, interleaved in one run, one thread each.

`python tools/bench_decoder.py [--runs 5] [--seconds 3] [--prompt-seconds 4.4]`: needs build/bin/parlando and an importable torch (tools/setup.sh --nano).
"""
import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import torch  # noqa: E402

from tools.nano import modules  # noqa: E402


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--prompt-seconds", type=float, default=4.4, help="of a voice prompt in front of the speech, as the official voice has it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = json.load(open(ROOT / "configs/official/vocoder.json"))
    e = config["flow"]["estimator"]
    flow = modules.Flow(5120, 512, 512, 8, 2048, 6, estimator=dict(channels=e["channels"], blocks=e["n_blocks"], mid_blocks=e["num_mid_blocks"], heads=e["num_heads"], head_dim=e["attention_head_dim"])).eval()
    hift = modules.HiFT().eval()
    for m in hift.modules():       # what a server would do: weights fused once
        if hasattr(m, "weight_g"):
            torch.nn.utils.remove_weight_norm(m)
    count = lambda seconds: round(seconds * 125 / 3 / 5) * 5
    tokens, prompt = torch.arange(count(args.seconds))[None] % 5120, torch.arange(count(args.prompt_seconds))[None] % 5120
    frames, prompt_frames = flow.frames(tokens.shape[1]), flow.frames(prompt.shape[1])
    z, mel, prompt_mel = torch.randn(1, 80, prompt_frames + frames), torch.randn(1, 80, frames) - 5, torch.randn(1, prompt_frames, 80) - 5
    speaker, phase, noise = torch.ones(1, 192), torch.zeros(1, 9, 1), torch.randn(1, 9, frames * 256)
    peers = {"flow": lambda: flow(tokens, prompt, prompt_mel, speaker, z), "vocoder": lambda: hift(mel, phase, noise)}
    variants = {"flow": "flow", "flow bf16": "flow", "vocoder": "vocoder"}
    ours, theirs = {k: [] for k in variants}, {k: [] for k in peers}
    with torch.no_grad():
        for name, work in peers.items():
            work()
            for _ in range(args.runs):
                theirs[name].append(timed(work))
                for variant in [v for v, peer in variants.items() if peer == name]:
                    command = [ROOT / "build/bin/parlando", "bench", name, "--random-weights", ROOT / "configs/official/vocoder.json", "--seconds", str(args.seconds), "--runs", "5", "--json"]
                    command += ["--prompt-seconds", str(args.prompt_seconds)] + (["--bf16"] if variant.endswith("bf16") else [])
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    ours[variant].append(json.loads(done.stdout)[f"{name}_s"]["median"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    print(f"{frames * 256 / 22050:.2f} s of speech behind a prompt of {prompt_frames * 256 / 22050:.2f} s, one thread, PyTorch in fp32, {model}, commit {commit}")
    median = statistics.median
    for variant, name in variants.items():
        a, b = ours[variant], theirs[name]
        print(f"{variant:10} parlando {median(a):.2f} s ({min(a):.2f}…{max(a):.2f})   PyTorch {median(b):.2f} s ({min(b):.2f}…{max(b):.2f})   ratio {median(a) / median(b):.2f}")
    for kind in ["flow", "flow bf16"]:
        a, b = [median(ours[v]) for v in [kind, "vocoder"]], [median(theirs[v]) for v in peers]
        print(f"{kind} and vocoder: {sum(a):.2f} s, PyTorch {sum(b):.2f} s: ratio {sum(a) / sum(b):.2f}")


if __name__ == "__main__":
    main()
