"""More speech for the language models, once the tokenizers are trained: `python -m tools.nano.more WORK {replies|questions} [--count N]`.

replies: sentences in the target voice for train_tts and train_flow. First ones of the domain that the first data set does not hold, then sentences
mixed from the domain's words, so that every word is practised even where the only sentence that needs it is held out; some of
those happy and sung. After those the fixed replies of the closed intents. questions: users in many voices with more noise than the first data set, for train_lm.
Keeps codes, and of the mixed replies mel and speaker features. Writes `WORK/more/NNNN.pkl` and `WORK/heard/NNNN.pkl`; a shard that exists is kept.
"""
from __future__ import annotations

import argparse
import glob
import multiprocessing
import os
import pickle
import random
import time

import torch

from . import domain, prepare, synth, tokenise

SHARD = 100
DOMAIN_SHARE = 7 / 13      # of 13000: 7000, about all that the domain has beside the first data set
FOLDERS = dict(replies="more", questions="heard")


def mixed(rng, words, spans):
    """Two to four pieces: single words, or two to four words in a row of a sentence that is not held out."""
    pieces = [rng.choice(words) if rng.random() < 0.55 else rng.choice(rng.choice(spans)) for _ in range(rng.randint(2, 4))]
    text = pieces[0]
    for piece in pieces[1:]:
        text += (", " if rng.random() < 0.15 else " ") + piece
    return text + rng.choice("...!?")


def plan_replies(work, count):
    with open(f"{work}/tokens.pkl", "rb") as f:
        known = {d["text"] for d in pickle.load(f)}
    rng, jobs = random.Random(4711), []
    while len(jobs) < round(count * DOMAIN_SHARE):
        style, text = domain.spoken_reply(rng)
        if style == "sing" or text in known or domain.held_out(text):
            continue
        known.add(text)
        jobs.append(dict(text=text, style=style))
    answers = sorted({domain.untag(t.reply)[1] for t in (domain.question(rng) for _ in range(30000)) if not t.is_call})
    results = sorted({domain.tool_result(rng)[2] for _ in range(10000)})
    words = sorted({w for s in answers + results for w in prepare.words(s)})

    def spans(sentences):
        rows = [prepare.words(s) for s in sentences if not domain.held_out(s)]
        return sorted({" ".join(r[i:i + n]) for r in rows for n in (2, 3, 4) for i in range(len(r) - n + 1) if n < len(r)})

    spans = spans(answers), spans(results)
    while len(jobs) < count:
        style = rng.choices(["neutral", "fast", "slow", "happy", "sing"], [60, 8, 8, 13, 11])[0]
        jobs.append(dict(text=mixed(rng, words, spans), style=style, voiced=True))
    jobs += [dict(text=text, style=style, fixed=True) for text in domain.fixed_replies() for style in ("neutral", "neutral", "fast", "slow", "happy")][:count]
    return [dict(j, kind="reply", engine="festival", voice=synth.TARGET, split="reply") for j in jobs]


def plan_questions(work, count):
    rng, jobs = random.Random(4712), []
    while len(jobs) < count:
        turn = domain.question(rng)
        if turn.kind not in domain.CLOSED and domain.held_out(turn.user):
            continue
        engine = rng.choices(["espeak", "flite", "kal", "slt"], [72, 21, 4, 3])[0]
        jobs.append(dict(text=turn.user, kind=turn.kind, style="neutral", split="train", **synth.voice(rng, engine)))
    return jobs


def _work(task):
    work, path, jobs = task
    torch.set_num_threads(1)
    records, audio = synth.speak(jobs)
    tokeniser, table, out = tokenise.Tokeniser(work), {}, []
    for r in records:
        voiced, fixed = r.pop("voiced", False), r.pop("fixed", False)
        split = r["split"] if voiced else "codes" if r["split"] == "reply" else "noisy"
        d = prepare.describe(dict(r, split=split, phones=None), audio[r["at"]:r["at"] + r["samples"]], table)
        if len(d["ling"]) > 2:
            keep = dict(text=r["text"], kind=r["kind"], style=r["style"], split=r["split"], voice=r["voice"], codes=tokeniser.codes([d])[0])
            if fixed:
                keep.update(fixed=True)
            if voiced:
                keep.update(mel22=d["mel22"], speaker=d["speaker"])
                if r["style"] in ("happy", "sing"):
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
