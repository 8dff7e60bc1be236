"""Trains the language model that listens and answers: `python -m tools.nano.train.lm WORK [--minutes 160]`.

Tasks, one per batch: audio -> transcript, newline, reply or tool call (and audio -> transcript on the ASR prompt); text -> reply;
tool result -> reply. Loss on the answer only. Weights start the audio rows at the codebook centroids. Speaking is train.tts.
"""
from __future__ import annotations

import argparse
import json
import os
import pickle
import random

import numpy as np
import torch
import torch.nn.functional as F

from .. import features, modules, text
from ..data import again, dialogues, domain, more, synth, tokenise
from ..judge import sphinx as judge
from . import trainer

CONFIG = dict(architectures=["Step1ForCausalLM"], model_type="step1", bos_token_id=1, pad_token_id=0, eos_token_id=3, hidden_size=160,
              intermediate_size=448, num_attention_heads=4, num_attention_groups=2, num_hidden_layers=5, max_seq_len=2048, rms_norm_eps=1e-5,
              torch_dtype="float32")
PROMPT_CODES_MAX = 75
AUDIO_SHARE = 0.55         # of batches; typed questions are practised as much as spoken ones
SPEAKERS = {"Clara": synth.TARGET, "Ken": "kal_diphone"}


def answers(seed=11, draws=400000):
    """Every question of the domain -> its reply (history-free)."""
    rng, table = random.Random(seed), {}
    for _ in range(draws):
        turn = domain.question(rng)
        if not turn.history:
            table[turn.user] = turn
    return table


class Data:
    def __init__(self, work, rng):
        self.tok = text.Tokenizer(f"{work}/tokenizer.model")
        self.rng = rng
        with open(f"{work}/tokens.pkl", "rb") as f:
            everything = pickle.load(f)
        for d in everything:
            for k in ("mel22", "f0", "speaker"):
                d.pop(k, None)
        self.answers = answers()
        known = [d for d in everything if d["kind"] in ("words", "noise") or d["text"] in self.answers or d["split"] in ("reply", "reply_test")]
        self.audio = [d for d in known if d["split"] == "train" and d["kind"] != "words" and d["codes"]]
        self.words = [d for d in known if d["split"] == "train" and d["kind"] == "words" and d["codes"]]
        rare = [d for d in self.audio if d["kind"] in domain.CLOSED or d["kind"] == "noise"]
        self.audio += rare + [d for d in more.load(work, "questions") if d["text"] in self.answers and d["codes"]]
        self.tests = {s: [d for d in known if d["split"] == s and d["codes"]] for s in ("test", "unseen")}
        self.replies = [d for d in everything if d["split"] == "reply" and 5 < len(d["codes"]) < 260]
        self.reply_tests = [d for d in everything if d["split"] == "reply_test" and d["codes"]]
        self.by_voice = {}
        for d in self.replies:
            if len(d["codes"]) <= PROMPT_CODES_MAX and d["style"] == "neutral":
                self.by_voice.setdefault(d["voice"], []).append(d)
        self.prompt_waves, self.prompts = voices(work, self.replies)
        for d in everything:
            d.pop("wave22", None)
        self.slt = [d for d in self.replies if d["voice"] == synth.TARGET]
        self.others = [d for d in self.replies if d["voice"] != synth.TARGET and d["style"] != "sing"]
        self.more = [d for d in more.load(work, "replies") if 5 < len(d["codes"]) < 260]
        own = [d for d in again.load(work) if d["codes"]]
        self.spoken = self.replies + self.more + own * (len(self.more) // max(1, len(own)))      # what the model itself may say; its own voice in two fifths

    def system(self):
        return [{"role": "system", "content": text.PROMPTS["chat"]}] if self.rng.random() < 0.85 else []

    def chat_audio(self, d, noisy=True):
        """-> (prompt ids, answer text); behind one to three earlier turns of every kind as often as behind none."""
        said, rng = d["text"], self.rng
        reply = domain.NOT_UNDERSTOOD if d["kind"] == "noise" else self.answers[said].reply
        share = 0.75 if said in dialogues.RECALL or said in dialogues.RESTYLE else 0.5
        history, reply = dialogues.context(rng, said, reply) if rng.random() < share else ([], dialogues.reply_behind(said, reply, []))
        return self.tok.chat(self.system() + history + [{"role": "user", "content": self.codes(d, noisy)}]), said + "\n" + reply

    def codes(self, d, noisy):
        if not noisy:
            return d["codes"]
        r = self.rng
        return [c if r.random() > 0.03 else (r.randrange(256) if c < 1024 else 1024 + r.randrange(512)) for c in d["codes"]]

    def transcribe(self, d, noisy=True):
        return self.tok.chat([{"role": "system", "content": text.PROMPTS["asr"]}, {"role": "user", "content": self.codes(d, noisy)}]), d["text"]

    def chat_text(self):
        """A typed question, half of them behind earlier turns."""
        while True:
            turn = dialogues.second(self.rng) if self.rng.random() < 0.5 else domain.near_number(self.rng) if self.rng.random() < 0.1 else domain.question(self.rng)
            if turn.kind not in domain.CLOSED and turn.kind != "restyle" and domain.held_out(turn.user):
                continue
            if not turn.history:
                turn.reply = dialogues.reply_behind(turn.user, turn.reply, [])
            return self.tok.chat(self.system() + turn.history + [{"role": "user", "content": turn.user}]), turn.reply

    def chat_tool(self):
        """A tool has answered: what to say. Behind earlier turns as often as not."""
        made, result, reply = domain.tool_result(self.rng)
        while True:
            turn = domain.question(self.rng)
            if turn.reply == made or (made.startswith('<|CALL_START|>{"name":"get_time"') and '"get_time"' in turn.reply):
                break
            if self.rng.random() < 0.02:
                turn = domain.Turn("x", "please", made)
                break
        history = dialogues.context(self.rng, turn.user, "")[0] if self.rng.random() < 0.5 else []
        messages = self.system() + history + [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply},
                                              {"role": "tool", "content": json.dumps(result, separators=(",", ":"))}]
        return self.tok.chat(messages), reply

    def speak(self, d, prompt=None):
        """-> (prompt ids, answer ids)."""
        rng = self.rng
        sing = d["style"] == "sing"
        if prompt is None:
            fixed = [n for n, v in SPEAKERS.items() if v == d["voice"]]
            if sing:
                prompt, name = self.prompts["Clara哼唱"], "Clara哼唱"
            elif d["style"] == "happy" and d["voice"] == synth.TARGET:
                prompt, name = self.prompts["Clara高兴1"], "Clara高兴1"      # the entry of the registry for this voice and tag
            elif fixed and rng.random() < 0.75:
                prompt, name = self.prompts[fixed[0]], fixed[0]
            else:
                prompt, name = rng.choice(self.by_voice.get(d["voice"]) or [self.prompts["Clara"]]), ""
        else:
            prompt, name = prompt
        p = text.PROMPTS["tts"]
        system = p["sys_prompt_for_vocal"] if sing else p["sys_prompt_with_spk"].replace("{}", name) if name else p["sys_prompt_wo_spk"]
        ids = self.tok.tts(system, prompt["text"], prompt["codes"][:PROMPT_CODES_MAX // 5 * 5], domain.TAG[d["style"]] + d["text"])
        return ids, [self.tok.audio + c for c in d["codes"]] + [text.EOT]


def choose_voices(replies):
    """The voices' recordings, chosen from the data: the longest short one of each, the song, and one that sounds happy."""
    of = lambda voice, style: [d for d in replies if d["voice"] == voice and d["style"] == style]
    short = lambda rows: max((d for d in rows if len(d["codes"]) <= PROMPT_CODES_MAX), key=lambda d: len(d["codes"]))
    prompts = {name: short(of(v, "neutral")) for name, v in SPEAKERS.items()}
    prompts["Clara哼唱"] = min(of(synth.TARGET, "sing"), key=lambda d: len(d["codes"]))
    prompts["Clara高兴1"] = short(of(synth.TARGET, "happy"))
    return {name: d["wave22"] for name, d in prompts.items()}, prompts


def voices(work, replies):
    """-> waves at 22.05 kHz (int16) and prompts (text, voice, codes) by the name they are served under. replies: what to choose from, with waves."""
    waves, prompts = served_voices(work) or choose_voices(replies)
    tokeniser = tokenise.Tokeniser(work)
    for name, d in prompts.items():      # as the engine tokenises a voice prompt: trimmed
        wave = features.resample(torch.from_numpy(waves[name].astype(np.float32) / 32767), 22050, 16000)
        prompts[name] = dict(text=d["text"], voice=d["voice"], codes=tokeniser.wave(features.trim(features.peak_normalise(wave))))
    return waves, prompts


def served_voices(work):
    """The voices' recordings of the model that tools.nano.resume_from brought, or None."""
    if not os.path.exists(f"{work}/speakers/speakers_info.json"):
        return None
    waves, prompts = {}, {}
    for name, said in json.load(open(f"{work}/speakers/speakers_info.json")).items():
        samples, _ = judge.load_wav(f"{work}/speakers/{name}_prompt.wav")
        waves[name] = np.round(samples * 32768).astype(np.int16)
        prompts[name] = dict(text=said, voice=SPEAKERS["Ken" if name.startswith("Ken") else "Clara"])
    return waves, prompts


def rows_of(rows):
    """[(prompt, answer)…] -> ids [B, T] and labels [B, T - 1], -100 where there is nothing to learn."""
    size = max(len(p) + len(a) for p, a in rows)
    ids, labels = torch.full((len(rows), size), text.EOT), torch.full((len(rows), size), -100)
    for i, (p, a) in enumerate(rows):
        ids[i, :len(p) + len(a)] = torch.tensor(p + a)
        labels[i, len(p):len(p) + len(a)] = torch.tensor(a)
    return ids, labels[:, 1:]


def start_rows(net, tok, work):
    """Audio rows begin at the centroids (rotated and scaled): near sounds are near for the model, too."""
    d = net.lm_head.weight.shape[1]
    ling = torch.from_numpy(np.load(f"{work}/centroids.npy"))
    sem = tokenise.load_task(work, "semantic").net.embed
    for offset, table in ((0, ling), (1024, sem)):
        c = table - table.mean(0)
        c = c @ torch.linalg.svd(c, full_matrices=False)[2].T
        c = c / c.norm(dim=1).mean()
        k = min(d, c.shape[1])
        rows = torch.randn(len(c), d) * 0.1
        rows[:, :k] += c[:, :k] * 0.7 * k ** 0.5
        at = tok.audio + offset
        net.model["embed_tokens"].weight.data[at:at + len(c)] = rows
        net.lm_head.weight.data[at:at + len(c)] = rows / d ** 0.5


@torch.no_grad()
def evaluate(net, data, count):
    net.eval()
    figures, rng = {}, data.rng
    data.rng = random.Random(99)
    for name, items in data.tests.items():
        wrong = total = good = 0
        kinds = {}
        for d in items[:count]:
            ids, want = data.chat_audio(d, noisy=False)
            got = data.tok.decode(net.greedy(ids, 90)).replace("<|EOT|>", "")
            heard, _, reply = got.partition("\n")
            want_heard, _, want_reply = want.partition("\n")
            wrong += trainer.edit_distance(heard.split(), want_heard.split())
            total += len(want_heard.split())
            ok = reply == want_reply
            good += ok
            kinds.setdefault(d["kind"], []).append(ok)
        n = len(items[:count])
        figures[f"{name}_word_error"], figures[f"{name}_reply_exact"] = wrong / max(1, total), good / max(1, n)
        print(name, {k: f"{sum(v)}/{len(v)}" for k, v in kinds.items()}, flush=True)
    data.rng = rng
    net.train()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes", type=float, default=160)
    parser.add_argument("--rate", type=float, default=1.6e-3)
    parser.add_argument("--warmup", type=int, default=250)
    parser.add_argument("--tests", type=int, default=300, help="utterances of each test in the last evaluation, a fifth in those before")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(7)
    data = Data(args.work, rng)
    torch.manual_seed(2)
    config = dict(CONFIG, vocab_size=data.tok.size)
    net = modules.Step1(**config)
    for p in net.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.06 if p.shape[0] != data.tok.size else 0.5)
    torch.nn.init.normal_(net.lm_head.weight, std=0.03)
    start_rows(net, data.tok, args.work)
    run = trainer.Run(args.work, "lm", dict(net=net), args.minutes, args.rate, warmup=args.warmup, floor=1e-5, power=0.9, decay=0.02)
    rng.seed(run.steps + 1)
    json.dump(config, open(f"{args.work}/state/lm_config.json", "w"))
    print(f"lm: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, vocabulary {data.tok.size}, audio {len(data.audio)}, replies {len(data.replies)}", flush=True)
    net.train()
    evaluated, pool = run.fraction, []
    while run.begin_step():
        if rng.random() < AUDIO_SHARE:
            if len(pool) < 300:
                pool += rng.sample(data.audio, min(2000, len(data.audio)))
            window = sorted(pool[:300], key=lambda d: len(d["codes"]))
            k = rng.randrange(-19, len(window))     # past both ends, or the shortest and the longest would hardly ever come
            batch = []
            for d in window[max(0, k):k + 20]:
                if rng.random() < 0.2:
                    batch.append(data.transcribe(rng.choice(data.words if rng.random() < 0.3 else data.spoken) if rng.random() < 0.8 else d))   # replies, too: it hears itself
                else:
                    batch.append(data.chat_audio(d))
            del pool[:20]
            task, rows = "audio", [(p, data.tok.cut(a) + [text.EOT]) for p, a in batch]
        else:
            batch = [data.chat_text() if rng.random() < 0.78 else data.chat_tool() for _ in range(40)]
            task, rows = "text", [(p, data.tok.cut(a) + [text.EOT]) for p, a in batch]
        ids, labels = rows_of(rows)
        keep = labels != -100
        hidden = net.hidden(ids[:, :-1], dropout=0.05)
        loss = F.cross_entropy(net.lm_head(hidden[keep]), labels[keep])
        run.step(loss, {task: loss})
        if run.fraction - evaluated > 0.2:
            evaluated = run.fraction
            figures = evaluate(net, data, args.tests // 5)
            print("evaluation", {k: round(v, 3) for k, v in figures.items()}, flush=True)
            run.note(figures)
    figures = evaluate(net, data, args.tests)
    print("final", {k: round(v, 3) for k, v in figures.items()}, flush=True)
    run.note(figures)


if __name__ == "__main__":
    main()
