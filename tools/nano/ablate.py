"""Where the word errors of the speaking path come from: `python -m tools.nano.ablate WORK [--count 24]`.

Judge's word error with the true mel (vocoder alone), with mel from the true codes (flow + vocoder), the same behind another utterance of the
voice as prompt (as the engine serves it), and with the flow's own prior mu.
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
        everything = pickle.load(f)
    items = [d for d in everything if d["split"] == "reply_test" and d["style"] == "neutral" and d["voice"] == synth.TARGET][:args.count]
    prompt = max((d for d in everything if d["split"] == "reply" and d["voice"] == synth.TARGET and d["style"] == "neutral" and len(d["codes"]) <= 75), key=lambda d: len(d["codes"]))
    vector = train_flow.speaker_encoder(args.work)
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
    def mel_of(d, prior=False, prompted=False):
        token = torch.tensor(d["codes"])[None]
        frames = flow.frames(token.shape[1])
        if prior:
            return flow.mu(token, 0, 0, frames)[0]
        said, mel = (torch.tensor(prompt["codes"])[None], torch.from_numpy(prompt["mel22"].astype(np.float32)).T[None]) if prompted else (token[:, :0], torch.zeros(1, 0, 80))
        return flow(token, said, mel, vector(prompt if prompted else d)[None], torch.randn(1, 80, mel.shape[1] + frames))[0]

    for name, make in (("true mel", lambda d: torch.from_numpy(d["mel22"].astype(np.float32))), ("true codes, flow", mel_of),
                       ("true codes, flow behind a prompt", lambda d: mel_of(d, prompted=True)), ("true codes, prior mu", lambda d: mel_of(d, prior=True))):
        print(name, round(evaluate.judge(folder, [voice(make(d)) for d in items], texts)[0], 3), flush=True)


if __name__ == "__main__":
    main()
