"""Where the word errors of the speaking path come from: `python -m tools.nano.ablate WORK [--count 24]`.

Judge's word error with the true mel (vocoder alone), with mel from the true codes (flow + vocoder) and with the flow's own prior mu.
"""
import argparse
import pickle

import numpy as np
import torch

from . import evaluate, features, modules, synth, train_flow, train_vocoder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--count", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(f"{args.work}/tokens.pkl", "rb") as f:
        items = [d for d in pickle.load(f) if d["split"] == "reply_test" and d["style"] == "neutral"][:args.count]
    train_flow.speaker_vectors(args.work, items)
    load = lambda net, name: (net.load_state_dict(torch.load(f"{args.work}/state/{name}.pt", weights_only=False)["nets"]["net"]), net.eval())[1]
    flow, hift = load(modules.Flow(**train_flow.SHAPE), "flow"), load(modules.HiFT(**train_vocoder.SHAPE), "vocoder")
    folder = f"{args.work}/eval"
    evaluate.make_judge(folder)
    texts = [d["text"] for d in items]

    @torch.no_grad()
    def voice(mel):
        wave = hift(mel[None], torch.zeros(1, 9, 1), torch.randn(1, 9, mel.shape[1] * 256))[0]
        return features.resample(wave, 22050, 16000).numpy()

    @torch.no_grad()
    def mel_of(d, prior):
        token = torch.tensor(d["codes"])[None]
        frames = flow.frames(token.shape[1])
        if prior:
            return flow.mu(token, 0, 0, frames)[0]
        return flow(token, token[:, :0], torch.zeros(1, 0, 80), d["vector"][None], torch.randn(1, 80, frames))[0]

    for name, make in (("true mel", lambda d: torch.from_numpy(d["mel22"].astype(np.float32))), ("true codes, flow", lambda d: mel_of(d, False)), ("true codes, prior mu", lambda d: mel_of(d, True))):
        print(name, round(evaluate.judge(folder, [voice(make(d)) for d in items], texts)[0], 3), flush=True)


if __name__ == "__main__":
    main()
