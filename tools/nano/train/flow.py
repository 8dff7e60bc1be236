"""Trains tokens -> mel: `python -m tools.nano.train.flow WORK [--minutes 50]`. Conditional flow matching on raw log-mel plus an L1 prior on mu, mostly at
the few times where the solver stands, half of it from where the solver's own steps have led: so it mends what it did, and few steps are enough. Speaker
vector from the speaker encoder; the prompt is the recording that the voice is served with, another utterance of the voice (in the same style where that
moves the pitch), a random prefix of the same one or nothing. The judge chooses the weights (`--judge`). `--start-from STATE` takes what fits from an
earlier state; blocks that it lacks begin as identities."""
from __future__ import annotations

import argparse
import math
import os
import pickle

import torch
import torch.nn.functional as F

from .. import features, modules
from ..data import domain, more, synth
from . import lm as train_lm, trainer, speaker as train_speaker

SHAPE = dict(vocab_size=1536, input_size=96, width=128, heads=4, hidden=384, blocks=3, rate=125 / 3,
             estimator=dict(channels=(96, 96), blocks=1, mid_blocks=2, heads=4, head_dim=32), cfg_rate=0.0)


STEPS = 5      # of the solver that is practised
SERVED_STEPS = 2    # and of the one that is served: the judge hears no difference (11.5 % of the words wrong, 12.3 with five, 12.9 with one; 85 sentences)
FIXED_MORE = 6      # further times that a fixed reply comes up
PITCHED = ("happy", "sing")
PROMPT_STYLE = {"Clara高兴1": "happy", "Clara哼唱": "sing"}
SERVED, OTHER = 0.45, 0.2      # shares of the utterances behind the served recording of their voice, and behind another utterance of it
OWN_WAY, ANY_TIME = 0.5, 0.15      # shares of the batches that start from where the solver's own steps lead, and at times where it never stands
SMOOTH = 0.5      # share of mu in what the estimator learns to make: the judge mishears a third less of spectra half-way to it
DROPPED = 0.2 if SHAPE["cfg_rate"] else 0.0      # of the conditions, which only guidance needs


def voice_of(d):
    """A voice in a style of its own pitch counts as another voice."""
    return d["voice"] + (d["style"] if d["style"] in PITCHED else "")


def speaker_encoder(work):
    """-> function that gives an utterance its speaker vector, once."""
    net = modules.CamPlus(**train_speaker.SHAPE)
    net.load_state_dict(trainer.weights(work, "speaker"))
    net.eval()

    @torch.no_grad()
    def vector(d):
        if "vector" not in d:
            x = torch.from_numpy(d.pop("speaker").astype("float32"))[None]
            d["vector"] = net(x - x.mean(1, keepdim=True))[0]
        return d["vector"]
    return vector


def served_prompts(work, replies=None):
    """The recordings that stand in front of every reply in service, as the engine prepares them: voice (see `voice_of`) -> codes, mel22, vector.
    replies: utterances with waves to choose from where no model brought its recordings; without them they are read."""
    if replies is None and train_lm.served_voices(work) is None:
        with open(f"{work}/tokens.pkl", "rb") as f:
            replies = [d for d in pickle.load(f) if d["split"] == "reply" and 5 < len(d["codes"]) < 260]
    waves, prompts = train_lm.voices(work, replies)
    vector, out = speaker_encoder(work), {}
    for name, d in prompts.items():
        wave = torch.from_numpy(waves[name].astype("float32") / 32768)
        mel = features.vocoder_mel(wave[None])[0][:, :int(len(d["codes"]) / SHAPE["rate"] * 22050 / 256)].numpy()
        prompt = dict(codes=d["codes"], mel22=mel, speaker=features.fbank(features.resample(wave, 22050, 16000), "povey", 1.0).numpy())
        vector(prompt)
        out[d["voice"] + PROMPT_STYLE.get(name, "")] = prompt
    return out


def times(steps=STEPS):
    """Where the solver stands before each of its steps, and 1."""
    return 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * math.pi)


@torch.no_grad()
def own_way(net, x, mask, mu, speaker, cond, steps):
    """Where the solver is after `steps` of its steps from the noise `x`: not on the straight line that flow matching teaches."""
    span = times()
    for k in range(steps):
        x = x + (span[k + 1] - span[k]) * net.decoder["estimator"](x * mask, mask, mu, span[k].expand(len(x)), speaker, cond)
    return x


def neutralise(block):
    """Makes a middle block (residual net, transformers) the identity, so that a deeper network starts where the shallower one ended."""
    resnet, transformers = block[0], block[1]
    torch.nn.init.zeros_(resnet.block2.block[1].weight), torch.nn.init.zeros_(resnet.block2.block[1].bias)
    torch.nn.init.dirac_(resnet.res_conv.weight), torch.nn.init.zeros_(resnet.res_conv.bias)
    for t in transformers:
        for linear in (t.attn1["to_out"][0], t.ff["net"][2]):
            torch.nn.init.zeros_(linear.weight), torch.nn.init.zeros_(linear.bias)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--batch", type=int, default=900, help="codes")
    parser.add_argument("--share", type=float, default=1.0, help="of each batch that the estimator sees")
    parser.add_argument("--judge", type=int, default=5, help="how often the judge listens; 0: the last weights are kept")
    parser.add_argument("--start-from", help="state of an earlier run, possibly with fewer middle blocks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(f"{args.work}/tokens.pkl", "rb") as f:
        data = [d for d in pickle.load(f) if d["split"] in ("reply", "reply_test") and 20 <= len(d["codes"]) <= 220]
    served = served_prompts(args.work, [d for d in data if d["split"] == "reply"])
    for d in data:
        d.pop("wave22", None)
    data += [d for d in more.load(args.work, "replies", voiced=True) if 20 <= len(d["codes"]) <= 220]
    fixed, first = [d for d in data if d.get("fixed")], domain.pieces_of(domain.first_heard())      # what is said over and over must be clear
    data += fixed * FIXED_MORE + [d for d in fixed if d["text"] in first] * FIXED_MORE
    vector = speaker_encoder(args.work)
    train, test = [d for d in data if d["split"] == "reply"], [d for d in data if d["split"] == "reply_test"][:24]
    torch.manual_seed(5)
    net = modules.Flow(**SHAPE)
    if args.start_from and not os.path.exists(f"{args.work}/state/flow.pt"):
        old = torch.load(args.start_from, weights_only=False)["nets"]["net"]
        new = [k for k in net.load_state_dict(old, strict=False).missing_keys]
        for k, block in enumerate(net.decoder["estimator"].mid_blocks):
            if any(f".mid_blocks.{k}." in name for name in new):
                neutralise(block)
        print(f"flow: {len(old)} tensors of {args.start_from}, {len(new)} new ones", flush=True)
    short, span = {}, times()
    for d in train:
        if len(d["codes"]) <= 75 and d["style"] in ("neutral", *PITCHED):
            short.setdefault(voice_of(d), []).append(d)
    run = trainer.Run(args.work, "flow", dict(net=net), args.minutes, args.rate, warmup=args.warmup, decay=0.01, floor=1e-5)
    print(f"flow: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, {len(train)} utterances", flush=True)

    def losses(batch, rng, share, generator=None):
        mus, mels, prefix, vectors = [], [], [], []
        for d in batch:
            other, draw = None, rng.random()
            if draw < SERVED:
                other = served.get(voice_of(d))
            elif draw < SERVED + OTHER and voice_of(d) in short:
                other = rng.choice(short[voice_of(d)])
            token = torch.tensor(d["codes"])[None]
            frames = net.frames(token.shape[1])
            mel = torch.from_numpy(d["mel22"].astype("float32"))
            mel = F.pad(mel, (0, max(0, frames - mel.shape[1])), mode="replicate")[:, :frames]
            vectors.append(vector(other or d))
            if other:
                said = torch.from_numpy(other["mel22"].astype("float32"))
                first = said.shape[1]
                mus.append(net.mu(torch.cat([torch.tensor(other["codes"])[None], token], 1), len(other["codes"]), first, frames)[0].T)
                mel = torch.cat([said, mel], 1)
            else:
                groups = rng.randint(0, token.shape[1] // 5 * 2 // 5) if rng.random() < 0.6 else 0
                first = net.frames(groups * 5)
                mus.append(net.mu(token, groups * 5, first, frames - first)[0].T)
            mels.append(mel.T)
            prefix.append(first)
        n = torch.tensor([len(m) for m in mels])
        size = int(n.max())
        mask = (torch.arange(size)[None] < n[:, None]).float()[:, None]
        stack = lambda rows: torch.stack([F.pad(r, (0, 0, 0, size - len(r))) for r in rows]).transpose(1, 2)
        mu, mel = stack(mus), stack(mels)
        prior = ((mu - mel).abs() * mask).sum() / (mask.sum() * 80)
        if share < 1:      # the encoder learns from every row, the costly estimator from some
            rows = torch.randperm(len(batch))[:max(1, round(len(batch) * share))]
            mu, mel, mask, vectors, prefix = mu[rows], mel[rows], mask[rows], [vectors[i] for i in rows], [prefix[i] for i in rows]
        given = (torch.arange(size)[None] < torch.tensor(prefix)[:, None])[:, None]
        mel = torch.where(given, mel, torch.lerp(mel, mu.detach(), SMOOTH))
        cond = mel * given
        speaker = net.speaker(torch.stack(vectors))
        keep = (torch.rand(len(mel), generator=generator) >= DROPPED).float()
        mu, cond, speaker = mu * keep[:, None, None], cond * keep[:, None, None], speaker * keep[:, None]
        z = torch.randn(mel.shape, generator=generator)
        k, draw, weight = rng.randrange(STEPS), rng.random(), 1.0
        if draw < OWN_WAY:
            t, y = span[k].expand(len(mel)), own_way(net, z * mask, mask, mu.detach(), speaker.detach(), cond, k)
            want, weight = (mel - y) / (1 - span[k]), float(1 - span[k])      # late, a small error of place asks for a large velocity
        else:
            t = span[k].expand(len(mel)) if draw < 1 - ANY_TIME else 1 - torch.cos(torch.rand(len(mel), generator=generator) * 0.5 * math.pi)
            y, want = (1 - t)[:, None, None] * z + t[:, None, None] * mel, mel - z
        v = net.decoder["estimator"](y * mask, mask, mu, t, speaker, cond)
        velocity = (((v - want) ** 2) * mask).sum() / (mask.sum() * 80)
        return prior, velocity * weight

    from ..judge import during      # which needs this module

    ear, heard = during.Ear(args.work, "flow") if args.judge else None, run.fraction
    if ear and os.path.exists(run.path) and run.steps == 0:      # a finished model is the start, and what to beat
        run.judge(ear, net)
    batches = trainer.bucketed(train, lambda d: len(d["codes"]), args.batch, run.random)
    while run.begin_step():
        prior, velocity = losses(next(batches), run.random, args.share)
        run.step(prior + velocity, dict(prior=prior, velocity=velocity))
        if ear and run.fraction - heard > 0.999 / args.judge:
            heard = run.fraction
            run.judge(ear, net)
    if ear:
        run.judge(ear, net)
    net.eval()
    distance = count = prior = 0
    with torch.no_grad():
        for d in test:
            if d["voice"] != synth.TARGET:
                continue
            token = torch.tensor(d["codes"])[None]
            frames = net.frames(token.shape[1])
            mel = torch.from_numpy(d["mel22"].astype("float32"))[:, :frames]
            z = torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(1))
            out = net(token, token[:, :0], torch.zeros(1, 0, 80), vector(d)[None], z)[0, :, :mel.shape[1]]
            distance += (out - mel).abs().mean().item()
            prior += (net.mu(token, 0, 0, frames)[0, :, :mel.shape[1]] - mel).abs().mean().item()
            count += 1
    figures = dict(mel_distance=distance / count, prior_distance=prior / count)
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
