"""Flow and vocoder beside PyTorch modules of the same definition and size, interleaved in one run, one thread each.

`python tools/bench_decoder.py [--runs 5] [--seconds 3]`: needs build/bin/parlando and an importable torch (tools/setup.sh --nano).
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
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = json.load(open(ROOT / "configs/official/vocoder.json"))
    e = config["flow"]["estimator"]
    flow = modules.Flow(5120, 512, 512, 8, 2048, 6, estimator=dict(channels=e["channels"], blocks=e["n_blocks"], mid_blocks=e["num_mid_blocks"], heads=e["num_heads"], head_dim=e["attention_head_dim"])).eval()
    hift = modules.HiFT().eval()
    for m in hift.modules():       # what a server would do: weights fused once
        if hasattr(m, "weight_g"):
            torch.nn.utils.remove_weight_norm(m)
    tokens = torch.arange(round(args.seconds * 125 / 3 / 5) * 5)[None] % 5120
    frames = flow.frames(tokens.shape[1])
    z, mel = torch.randn(1, 80, frames), torch.randn(1, 80, frames) - 5
    none, no_mel, speaker = tokens[:, :0], torch.zeros(1, 0, 80), torch.ones(1, 192)
    phase, noise = torch.zeros(1, 9, 1), torch.randn(1, 9, frames * 256)
    peers = {"flow": lambda: flow(tokens, none, no_mel, speaker, z), "vocoder": lambda: hift(mel, phase, noise)}
    ours, theirs = {k: [] for k in peers}, {k: [] for k in peers}
    with torch.no_grad():
        for name, work in peers.items():
            work()
            for _ in range(args.runs):
                theirs[name].append(timed(work))
                done = subprocess.run([ROOT / "build/bin/parlando", "bench", name, "--random-weights", ROOT / "configs/official/vocoder.json", "--seconds", str(args.seconds), "--runs", "5", "--json"],
                                      capture_output=True, text=True, check=True)
                ours[name].append(json.loads(done.stdout)[f"{name}_s"]["median"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    print(f"{frames * 256 / 22050:.2f} s of speech, one thread, fp32, {model}, commit {commit}")
    for name in peers:
        a, b = ours[name], theirs[name]
        print(f"{name:8} parlando {statistics.median(a):.2f} s ({min(a):.2f}…{max(a):.2f})   PyTorch {statistics.median(b):.2f} s ({min(b):.2f}…{max(b):.2f})   ratio {statistics.median(a) / statistics.median(b):.2f}")
    total = sum(statistics.median(ours[n]) for n in peers) / sum(statistics.median(theirs[n]) for n in peers)
    print(f"together: ratio {total:.2f}")


if __name__ == "__main__":
    main()
