"""Styles and clones that can be heard: tempo and pitch of each tag, speaker vectors of clones."""
from __future__ import annotations

import os

import numpy as np
import torch

from .. import features, modules
from ..data import domain
from ..train import speaker as train_speaker
from .runtime import at16, say, test_items
from .sphinx import save_wav

TAG_TEXTS = ["the capital of france is paris.", "two plus seven is nine.", "it is ten past four.", "nice to meet you, anna.", "today in rome it is sunny, twenty degrees.", "the sky is blue."]

def tags(args):
    """Tempo and pitch of each style tag against the same sentences without one (medians over sentences)."""
    forms = {"neutral": "", "fast": domain.TAG["fast"], "slow": domain.TAG["slow"], "happy": domain.TAG["happy"], "sing": domain.TAG["sing"]}
    waves = say(args, [dict(text=tag + text, speaker="Clara") for tag in forms.values() for text in TAG_TEXTS])[0]
    seconds, pitch, span = {}, {}, {}
    for k, name in enumerate(forms):
        part = waves[k * len(TAG_TEXTS):(k + 1) * len(TAG_TEXTS)]
        seconds[name] = np.array([len(w) / 22050 for w in part])
        tracks = [features.pitch(torch.from_numpy(w)).numpy() for w in part]
        voiced = [12 * np.log2(t[t > 0] / 100) if (t > 0).any() else np.zeros(1) for t in tracks]
        pitch[name], span[name] = np.array([np.median(v) for v in voiced]), np.array([np.percentile(v, 90) - np.percentile(v, 10) for v in voiced])
    for name in list(forms)[1:]:
        yield dict(measure=f"tag {name}", utterances=len(TAG_TEXTS), duration_ratio=round(float(np.median(seconds[name] / seconds["neutral"])), 3),
                   pitch_semitones=round(float(np.median(pitch[name] - pitch["neutral"])), 2), pitch_span_ratio=round(float(np.median(span[name] / np.maximum(0.1, span["neutral"]))), 2))


def clone(args, count=10):
    """Does a clone move towards its reference? Cosine of speaker embeddings, references in voices that no stage has seen."""
    net = modules.CamPlus(**train_speaker.SHAPE)
    net.load_state_dict(torch.load(f"{args.work}/state/speaker.pt", weights_only=False)["nets"]["net"])
    net.eval()

    @torch.no_grad()
    def embed(wave, rate):
        bank = features.fbank(features.resample(torch.from_numpy(wave), rate, 16000), "povey", 1.0)
        return torch.nn.functional.normalize(net((bank - bank.mean(0))[None])[0], dim=0)

    references = [(r, w) for r, w in test_items(args.work, "unseen") if len(w) / r["rate"] > 1.2][:count]
    os.makedirs(f"{args.work}/eval/references", exist_ok=True)
    requests = []
    for i, (r, w) in enumerate(references):
        wave16 = at16(w, r["rate"]) if r["rate"] < 16000 else w
        save_wav(f"{args.work}/eval/references/{i}.wav", wave16, max(16000, r["rate"]))
        requests.append(dict(text=TAG_TEXTS[i % len(TAG_TEXTS)], speaker=f"voice{i}", prompt_text=r["text"], wav_path=os.path.abspath(f"{args.work}/eval/references/{i}.wav")))
    clones = say(args, requests, "clone")[0]
    plain = say(args, [dict(text=r["text"], speaker="Clara") for r in requests])[0]
    near = np.array([float(embed(c, 22050) @ embed(w, r["rate"])) for c, (r, w) in zip(clones, references)])
    far = np.array([float(embed(p, 22050) @ embed(w, r["rate"])) for p, (r, w) in zip(plain, references)])
    return dict(measure="clone", utterances=len(references), cosine_to_reference=round(float(np.median(near)), 3), default_voice_to_reference=round(float(np.median(far)), 3), nearer=f"{int((near > far).sum())}/{len(near)}")
