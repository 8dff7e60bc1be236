"""More speech for the language models, once the tokenizers are trained: `python -m tools.nano.data.more WORK {replies|questions} [--count N]`.

replies: sentences in the target voice for train.tts and train.flow, words before sentences. The sentences of the fixed replies in every style;
sentences mixed from the domain's words, in turn one around every word, so that none is known from one sentence alone, some of those happy and
sung; last, sentences of the domain that the first data set does not hold. questions: users in many voices for train.lm, half with more noise than the first data
set, half through channels (tools.nano.data.channel), some about numbers that are easily mistaken.
Keeps codes, of fixed and mixed replies mel and speaker features, of fixed, happy and sung ones the wave. Writes `WORK/more/NNNN.pkl` and `WORK/heard/NNNN.pkl`; a shard that exists is kept.
"""
from __future__ import annotations

import argparse
import glob
import json
import multiprocessing
import os
import pickle
import random
import time

import numpy as np
import torch

from .. import features
from . import domain, prepare, synth, tokenise

SHARD = 100
DOMAIN_SHARE = 0.5         # of the sentences for speaking; the rest is mixed
NEAR_SHARE = 0.12          # of questions: numbers that differ in one phone
FOLDERS = dict(replies="more", questions="heard")


def mixed(rng, word, words, spans):
    """A sentence around `word`: beside it one to three pieces, single words or two to four words in a row of a sentence that is not held out. Between
    pieces a comma now and then; never the end of a sentence: a short sentence that is spoken with the next one is practised in
    the fixed replies alone."""
    near = spans.get(word, ())
    pieces = [rng.choice(words) if rng.random() < 0.45 else rng.choice(rng.choice(spans[""])) for _ in range(rng.randint(1, 3))]
    pieces.insert(rng.randint(0, len(pieces)), word if not near or rng.random() < 0.6 else rng.choice(near))
    text = pieces[0]
    for piece in pieces[1:]:
        text += ("," if rng.random() < 0.13 else "") + " " + piece
    return text + rng.choice("...!?")


def spans_of(*groups):
    """Two to four words in a row of the sentences that are not held out: by word, and under "" one list for each group of sentences."""
    out = {"": []}
    for sentences in groups:
        rows = [prepare.words(s) for s in sentences if not domain.held_out(s)]
        out[""].append(sorted({" ".join(r[i:i + n]) for r in rows for n in (2, 3, 4) for i in range(len(r) - n + 1) if n < len(r)}))
        for span in out[""][-1]:
            for word in set(span.split()):
                out.setdefault(word, []).append(span)
    return out


def in_turn(rng, words):
    """Endless words, each as often as every other."""
    while True:
        yield from rng.sample(words, len(words))


def known_texts(work):
    return {r["text"] for path in glob.glob(f"{work}/speech/????.json") for r in json.load(open(path))}


def plan_replies(work, count):
    known, rng, jobs = known_texts(work), random.Random(4711), []
    answers = sorted({domain.untag(t.reply)[1] for t in (domain.question(rng) for _ in range(30000)) if not t.is_call})
    results = sorted({domain.tool_result(rng)[2] for _ in range(10000)})
    words = sorted({w for s in answers + results for w in prepare.words(s)})
    spans, turns = spans_of(answers, results), in_turn(rng, words)
    for text in domain.pieces_of(domain.fixed_replies())[:count]:
        jobs += [dict(text=text, style=style, fixed=True, voiced=True) for style in ("neutral", "fast", "slow", "happy")]
    for _ in range(round(count * (1 - DOMAIN_SHARE))):
        style = rng.choices(["neutral", "fast", "slow", "happy", "sing"], [60, 8, 8, 13, 11])[0]
        jobs.append(dict(text=mixed(rng, next(turns), words, spans), style=style, voiced=True))
    size = len(jobs) + round(count * DOMAIN_SHARE)
    while len(jobs) < size:
        style, text = domain.spoken_reply(rng)
        if style == "sing" or domain.held_out(text):
            continue
        text = rng.choice(domain.pieces(text))
        if text in known:
            continue
        known.add(text)
        jobs.append(dict(text=text, style=style))
    return [dict(j, kind="reply", engine="festival", voice=synth.TARGET, split="reply") for j in jobs]


def plan_questions(work, count):
    rng, jobs = random.Random(4712), []
    while len(jobs) < count:
        turn = domain.near_number(rng) if rng.random() < NEAR_SHARE else domain.question(rng)
        if turn.kind not in domain.CLOSED and domain.held_out(turn.user):
            continue
        engine = rng.choices(["espeak", "flite", "kal", "slt"], [72, 21, 4, 3])[0]
        jobs.append(dict(text=turn.user, kind=turn.kind, style="neutral", split=rng.choice(["noisy", "channel"]), **synth.voice(rng, engine)))
    return jobs


def _work(task):
    work, path, jobs = task
    torch.set_num_threads(1)
    records, audio = synth.speak(jobs)
    tokeniser, table, out = tokenise.Tokeniser(work), {}, []
    babble = [features.resample(torch.from_numpy(audio[r["at"]:r["at"] + r["samples"]].astype(np.float32) / 32768), r["rate"], 16000).numpy()
              for r in records[:40] if r["split"] == "channel"]
    for r in records:
        voiced, fixed = r.pop("voiced", False), r.pop("fixed", False)
        split = "codes" if r["split"] == "reply" and not voiced else r["split"]
        d = prepare.describe(dict(r, split=split, phones=None), audio[r["at"]:r["at"] + r["samples"]], table, babble)
        if len(d["ling"]) > 2:
            keep = dict(text=r["text"], kind=r["kind"], style=r["style"], split=r["split"], voice=r["voice"], codes=tokeniser.codes([d])[0])
            if fixed:
                keep.update(fixed=True)
            if voiced:
                keep.update(mel22=d["mel22"], speaker=d["speaker"])
                if fixed or r["style"] in ("happy", "sing"):
                    keep.update(f0=d["f0"], wave22=d["wave22"])
            out.append(keep)
    with open(path + ".tmp", "wb") as f:
        pickle.dump(out, f)
    os.replace(path + ".tmp", path)
    return len(out)


def load(work, what, voiced=False):
    """What there is; with `voiced` only utterances that carry mel and speaker features, without it those features are dropped."""
    out = []
    for path in sorted(glob.glob(f"{work}/{FOLDERS[what]}/????.pkl")):
        with open(path, "rb") as f:
            for d in pickle.load(f):
                d["voiced"] = "mel22" in d
                if not voiced:
                    for k in ("mel22", "speaker", "f0", "wave22"):
                        d.pop(k, None)
                    out.append(d)
                elif "mel22" in d:
                    out.append(d)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("what", choices=sorted(FOLDERS))
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    folder = f"{args.work}/{FOLDERS[args.what]}"
    os.makedirs(folder, exist_ok=True)
    jobs = (plan_replies if args.what == "replies" else plan_questions)(args.work, args.count)
    tasks = [(args.work, f"{folder}/{k:04d}.pkl", jobs[i:i + SHARD]) for k, i in enumerate(range(0, len(jobs), SHARD))]
    todo = [t for t in tasks if not os.path.exists(t[1])]
    started, made = time.time(), 0
    with multiprocessing.Pool(args.jobs, os.nice, (5,)) as pool:
        for k, n in enumerate(pool.imap_unordered(_work, todo), 1):
            made += n
            print(f"{args.what} {k}/{len(todo)} shards, {made} utterances, {(time.time() - started) / k * (len(todo) - k):.0f} s left", flush=True)


if __name__ == "__main__":
    main()
