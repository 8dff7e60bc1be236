"""Listening: held-out questions in known and unseen voices and through channels; the last question behind earlier turns; recorded people; C++ against PyTorch."""
from __future__ import annotations

import collections
import glob
import json
import os
import random
import subprocess

import numpy as np
import torch
from safetensors.torch import load_file

from .. import modules, text
from ..data import dialogues, domain, prepare
from ..train import lm as train_lm, trainer
from .runtime import ask, at16, test_items
from .sphinx import save_wav


def expected(answers, text):
    turn = answers.get(text)
    return turn and dialogues.reply_behind(text, turn.reply, [])


def right(answer, want):
    if "error" in answer:
        return False
    if want.startswith("<|CALL_START|>"):
        call = json.loads(want[len("<|CALL_START|>"):-len("<|CALL_END|>")])
        made = answer["tool_calls"][0] if answer["tool_calls"] else {}
        return made.get("name") == call["name"] and made.get("arguments") == call["arguments"]
    return answer["reply"] == want and not answer["tool_calls"]


def spoken_right(answer):
    """Was the tool's answer spoken as it is? None when no tool was called."""
    if not answer.get("tool_calls"):
        return None
    made = answer["tool_calls"][0]
    try:
        return answer["reply"] == domain.spoken_result(made["name"], made["result"])
    except (KeyError, IndexError):
        return False


def noise(db):
    def add(wave, rng):
        hiss = rng.standard_normal(len(wave)).astype(np.float32)
        return wave + hiss * np.sqrt((wave ** 2).mean() / (hiss ** 2).mean()) * 10 ** (-db / 20)
    return add


def questions(args, name, condition=None, label=""):
    """-> [(record, path of the wave at 16 kHz)] of a held-out split, as the condition makes it sound."""
    rng, out = np.random.default_rng(3), []
    for k, (r, samples) in enumerate(test_items(args.work, name)):
        wave = at16(samples, r["rate"])
        if condition:
            wave = condition(wave, rng)
        path = f"{args.work}/eval/{label.replace(' ', '_') or name}_{k}.wav"
        save_wav(path, wave / max(1e-4, np.abs(wave).max()) * 0.7, 16000)
        out.append((r, path))
    return out


def listen(args, name, condition=None, limit=None, label=""):
    answers = train_lm.answers()
    asked = [(r, path, expected(answers, r["text"])) for r, path in questions(args, name, condition, label) if expected(answers, r["text"]) is not None][:limit]
    wrong = total = good = 0
    by_kind = collections.defaultdict(lambda: [0, 0])
    confusion = collections.defaultdict(collections.Counter)      # intent said -> intent understood, by the transcript
    for answer, (r, _, want) in zip(ask(args, [dict(wav=path) for _, path, _ in asked], ["--no-speech"]), asked):
        ok, said, kind = right(answer, want), r["text"], r["kind"]
        good += ok
        by_kind[kind][0] += ok
        understood = answers.get(answer.get("transcript", ""))
        confusion[kind][understood.kind if understood else "another text"] += 1
        by_kind[kind][1] += 1
        wrong += trainer.edit_distance(answer.get("transcript", "").split(), said.split())
        total += len(said.split())
    return dict(measure=f"listen {name}{label and ' ' + label}", utterances=len(asked), word_error=round(wrong / total, 4), reply_exact=round(good / len(asked), 4),
                kinds={k: f"{a}/{b}" for k, (a, b) in sorted(by_kind.items())}, confusion={k: dict(v) for k, v in sorted(confusion.items())})


def typed_turn(rng, last):
    """A drawn dialogue; of the open kinds one whose question no stage has seen, where the kind has any."""
    turn = dialogues.second(rng, last)
    if turn.kind in domain.CLOSED or turn.kind == "restyle":
        return turn
    others = (dialogues.second(rng, last) for _ in range(2000))
    return next((t for t in others if t.kind == turn.kind and domain.held_out(t.user)), turn)


def converse(args, count):
    """The last question behind one to three earlier turns: spoken ones are the held-out utterances in known voices, typed ones new draws."""
    answers = train_lm.answers()
    for last, label in ((None, "later turn right"), ("tool", "right after a tool's answer")):
        rng, spoken, typed = random.Random(21 if last else 20), [], []
        for r, path in questions(args, "test"):
            reply = expected(answers, r["text"])
            if reply is not None and len(spoken) < count:
                history, reply = dialogues.context(rng, r["text"], reply, last)
                spoken.append((dict(wav=path, history=history), reply, r["kind"]))
        while len(typed) < count:
            turn = typed_turn(rng, last)
            typed.append((dict(text=turn.user, history=turn.history), turn.reply, turn.kind))
        for name, asked in (("spoken", spoken), ("typed", typed)):
            by_kind, wrong, told = collections.defaultdict(lambda: [0, 0]), [], []
            for answer, (request, want, kind) in zip(ask(args, [a[0] for a in asked], ["--no-speech"]), asked):
                ok = right(answer, want)
                by_kind[kind][0] += ok
                by_kind[kind][1] += 1
                told += [spoken_right(answer)] if spoken_right(answer) is not None else []
                if not ok:
                    wrong.append(f"{request['history'][-1]['content']} / {answer.get('transcript', '')} / {answer.get('reply', answer.get('error'))}")
            yield dict(measure=f"{label}, {name}", utterances=len(asked), reply_exact=round(1 - len(wrong) / len(asked), 4), tool_answer_exact=round(sum(told) / max(1, len(told)), 4),
                       kinds={k: f"{a}/{b}" for k, (a, b) in sorted(by_kind.items())}, examples=wrong[:6])


HUMANS = {"jfk.wav": "and so my fellow americans ask not what your country can do for you ask what you can do for your country", "livekit_hello_world.wav": "hello world", "unmute_bear_or_shark.wav": None, "sglang_cough.wav": None}


def humans(args):
    """Recorded people, far outside the domain: what nano makes of them. Reported, no target."""
    found = [n for n in HUMANS if os.path.exists(f"{args.humans}/{n}")]
    if not found:
        return
    heard = ask(args, [dict(wav=f"{args.humans}/{n}", system="write down what you hear.") for n in found], ["--no-speech"])
    replies = ask(args, [dict(wav=f"{args.humans}/{n}") for n in found], ["--no-speech"])
    wrong = total = 0
    for n, h in zip(found, heard):
        if HUMANS[n]:
            wrong, total = wrong + trainer.edit_distance(prepare.words(h.get("transcript", "")), HUMANS[n].split()), total + len(HUMANS[n].split())
    yield dict(measure="recorded people", utterances=len(found), word_error=round(wrong / max(1, total), 3), examples=[f"{n}: {h.get('transcript', h.get('error'))} | {r.get('reply', r.get('error'))}" for n, h, r in zip(found, heard, replies)])


def agreement(args, count=24):
    """Transcript and reply of the C++ runtime and of PyTorch on the same weights and the same codes, greedy."""
    tok = text.Tokenizer(f"{args.work}/tokenizer.model")
    folder = f"{args.model}/Step-Audio-Chat"
    net = modules.Step1(**{k: v for k, v in json.load(open(f"{folder}/config.json")).items() if k not in ("reply_format", "tool_calls", "history_turns", "fallback_replies")})
    net.load_state_dict({k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items()})
    net.eval()
    same, paths = 0, sorted(glob.glob(f"{args.work}/eval/test_*.wav"))[:count]
    answers = ask(args, [dict(wav=p) for p in paths], ["--no-speech"])
    for path, answer in zip(paths, answers):
        codes = json.loads(subprocess.run([args.parlando, "tokenize", path, "--speech-only", "--json", "--model-path", args.model], capture_output=True, text=True).stdout)["codes"]
        with torch.no_grad():
            got = tok.decode(net.greedy(tok.chat([{"role": "system", "content": text.PROMPTS["chat"]}, {"role": "user", "content": codes}]), 90)).replace("<|EOT|>", "")
        heard, _, reply = got.partition("\n")
        call = reply.startswith("<|CALL_START|>")
        same += heard == answer.get("transcript") and (bool(answer["tool_calls"]) if call else reply == answer["reply"])
    return dict(measure="greedy output, C++ and PyTorch", utterances=len(paths), equal=same)
