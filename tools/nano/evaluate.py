"""Judges a nano model through the C++ runtime: `python -m tools.nano.evaluate WORK [--parlando build/bin/parlando] [--model models/nano]`.

Held-out sentences in known voices, in unseen voices and with noise at 10 dB, human recordings (reported without target), spoken replies
judged by pocketsphinx with a bigram of the domain and heard again by nano itself. Prints the table of the model card as JSON lines.
"""
from __future__ import annotations

import argparse
import collections
import glob
import json
import math
import os
import random
import subprocess
import wave

import numpy as np
import torch

from . import domain, features, prepare, trainer


def save_wav(path, samples, rate):
    with wave.open(path, "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(rate), f.writeframes(np.clip(samples * 32767, -32768, 32767).astype(np.int16).tobytes())


def load_wav(path):
    with wave.open(path, "rb") as f:
        return np.frombuffer(f.readframes(f.getnframes()), np.int16).astype(np.float32) / 32768, f.getframerate()


def test_items(work, split):
    for path in sorted(glob.glob(f"{work}/speech/????.json")):
        audio = None
        for r in json.load(open(path)):
            if r["split"] == split:
                audio = np.load(path.replace(".json", ".npy")) if audio is None else audio
                yield r, audio[r["at"]:r["at"] + r["samples"]].astype(np.float32) / 32768


def ask(args, requests, extra=()):
    path = f"{args.work}/eval/requests.jsonl"
    with open(path, "w") as f:
        f.write("\n".join(json.dumps(r) for r in requests))
    done = subprocess.run([args.parlando, "talk", "--batch", path, "--model-path", args.model, "--threads", "1", "--json", *extra], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if len(lines) != len(requests):
        raise SystemExit(f"parlando answered {len(lines)} of {len(requests)} requests: {done.stderr[-500:]}")
    return lines


def expected(answers, text):
    turn = answers.get(text)
    if turn is None:
        return None
    if text in ("what is my name", "do you know my name"):
        return "you have not told me your name."
    return turn.reply


def right(answer, want):
    if "error" in answer:
        return False
    if want.startswith("<|CALL_START|>"):
        call = json.loads(want[len("<|CALL_START|>"):-len("<|CALL_END|>")])
        made = answer["tool_calls"][0] if answer["tool_calls"] else {}
        return made.get("name") == call["name"] and made.get("arguments") == call["arguments"]
    return answer["reply"] == want and not answer["tool_calls"]


def listen(args, name, noise_db=None, limit=None):
    from . import train_lm
    answers = train_lm.answers()
    rng, requests, wants, kinds = np.random.default_rng(3), [], [], []
    for k, (r, samples) in enumerate(test_items(args.work, name)):
        want = expected(answers, r["text"])
        if want is None or (limit and len(requests) >= limit):
            continue
        wave16 = features.resample(torch.from_numpy(samples), r["rate"], 16000).numpy()
        if noise_db is not None:
            noise = rng.standard_normal(len(wave16)).astype(np.float32)
            wave16 = wave16 + noise * np.sqrt((wave16 ** 2).mean() / (noise ** 2).mean()) * 10 ** (-noise_db / 20)
        path = f"{args.work}/eval/{name}_{k}.wav"
        save_wav(path, wave16 / max(1e-4, np.abs(wave16).max()) * 0.7, 16000)
        requests.append(dict(wav=path)), wants.append((r["text"], want)), kinds.append(r["kind"])
    wrong = total = good = 0
    by_kind = collections.defaultdict(lambda: [0, 0])
    confusion = collections.defaultdict(collections.Counter)      # intent said -> intent understood, by the transcript
    for answer, (said, want), kind in zip(ask(args, requests, ["--no-speech"]), wants, kinds):
        ok = right(answer, want)
        good += ok
        by_kind[kind][0] += ok
        understood = answers.get(answer.get("transcript", ""))
        confusion[kind][understood.kind if understood else "another text"] += 1
        by_kind[kind][1] += 1
        wrong += trainer.edit_distance(answer.get("transcript", "").split(), said.split())
        total += len(said.split())
    return dict(measure=f"listen {name}" + (f" at {noise_db} dB" if noise_db is not None else ""), utterances=len(requests), word_error=round(wrong / total, 4),
                reply_exact=round(good / len(requests), 4), kinds={k: f"{a}/{b}" for k, (a, b) in sorted(by_kind.items())}, confusion={k: dict(v) for k, v in sorted(confusion.items())})


def make_judge(folder):
    """An ARPA bigram of the domain with absolute discounting, and its dictionary."""
    rng = random.Random(11)
    sentences = [prepare.words(domain.spoken_reply(rng)[1]) for _ in range(40000)]
    pairs, singles = collections.Counter(), collections.Counter()
    for s in sentences:
        s = ["<s>", *s, "</s>"]
        singles.update(s[1:])
        pairs.update(zip(s, s[1:]))
    context, followers = collections.Counter(), collections.Counter()
    for (a, b), c in pairs.items():
        context[a] += c
        followers[a] += 1
    total, discount = sum(singles.values()), 0.7
    p = {w: c / total for w, c in singles.items()}
    seen = collections.defaultdict(float)
    for a, b in pairs:
        seen[a] += p[b]
    words = sorted(singles) + ["<s>"]
    with open(f"{folder}/domain.arpa", "w") as f:
        f.write(f"\\data\\\nngram 1={len(words)}\nngram 2={len(pairs)}\n\n\\1-grams:\n")
        for w in words:
            back = discount * followers[w] / context[w] / max(1e-3, 1 - seen[w]) if w in context else 1.0
            f.write(f"{math.log10(p.get(w, 1e-9)):.4f} {w} {math.log10(max(1e-6, back)):.4f}\n")
        f.write("\n\\2-grams:\n")
        for (a, b), c in sorted(pairs.items()):
            f.write(f"{math.log10((c - discount) / context[a]):.4f} {a} {b}\n")
        f.write("\n\\end\\\n")
    with open(f"{folder}/domain.dict", "w") as f:
        for line in open("/usr/share/pocketsphinx/model/en-us/cmudict-en-us.dict"):
            if line.split()[0].split("(")[0] in singles:
                f.write(line)
        f.write("parlando P AA R L AA N D OW\n")


def judge(folder, waves, texts):
    os.makedirs(f"{folder}/judge", exist_ok=True)
    for i, w in enumerate(waves):
        w = w / max(1e-4, np.abs(w).max()) * 0.5
        hiss = np.random.default_rng(i).standard_normal(3200).astype(np.float32) * 1e-3
        save_wav(f"{folder}/judge/{i}.wav", np.concatenate([hiss[:1600], w, hiss[1600:]]), 16000)
    open(f"{folder}/judge/ctl", "w").write("\n".join(map(str, range(len(waves)))))
    subprocess.run(["pocketsphinx_batch", "-adcin", "yes", "-adchdr", "44", "-cepdir", f"{folder}/judge", "-cepext", ".wav", "-ctl", f"{folder}/judge/ctl", "-hyp", f"{folder}/judge/hyp",
                    "-hmm", "/usr/share/pocketsphinx/model/en-us/en-us", "-lm", f"{folder}/domain.arpa", "-dict", f"{folder}/domain.dict"], capture_output=True)
    wrong = total = 0
    heard = []
    for line, text in zip(open(f"{folder}/judge/hyp"), texts):
        got, want = line.rsplit("(", 1)[0].split(), prepare.words(text)
        wrong, total = wrong + trainer.edit_distance(got, want), total + len(want)
        heard.append(" ".join(got))
    return wrong / max(1, total), heard


def speak(args, count):
    folder = f"{args.work}/eval"
    make_judge(folder)
    items = [(r, s) for r, s in test_items(args.work, "reply_test") if r["style"] == "neutral"][:count]
    texts = [r["text"] for r, _ in items]
    truth = [features.resample(torch.from_numpy(s), r["rate"], 16000).numpy() for r, s in items]
    yield dict(measure="judge on the synthesiser itself", utterances=len(texts), word_error=round(judge(folder, truth, texts)[0], 4))
    with open(f"{folder}/speak.jsonl", "w") as f:
        f.write("\n".join(json.dumps(dict(text=t, speaker="Clara", output=f"say_{i}.wav")) for i, t in enumerate(texts)))
    for path in glob.glob(f"{folder}/say_*.wav"):
        os.remove(path)
    done = subprocess.run([args.parlando, "tts", "--batch", f"{folder}/speak.jsonl", "--out-dir", folder, "--model-path", args.model, "--threads", "1", "--json"], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    waves = []
    for i in range(len(texts)):
        w, rate = load_wav(f"{folder}/say_{i}.wav")
        waves.append(features.resample(torch.from_numpy(w), rate, 16000).numpy())
    error, heard = judge(folder, waves, texts)
    fixed, parts = set(domain.fixed_replies()), {}
    for name, chosen in (("held_out", [i for i, t in enumerate(texts) if t not in fixed]), ("fixed", [i for i, t in enumerate(texts) if t in fixed])):
        wrong = sum(trainer.edit_distance(heard[i].split(), prepare.words(texts[i])) for i in chosen)
        parts[name], parts[name + "_word_error"] = len(chosen), round(wrong / max(1, sum(len(prepare.words(texts[i])) for i in chosen)), 4)
    yield dict(measure="spoken replies, judge", utterances=len(texts), word_error=round(error, 4), **parts, examples=[f"{t} | {h}" for t, h in list(zip(texts, heard))[:4]])
    seconds, work = sum(line["audio_seconds"] for line in lines), sum(line["total_ms"] for line in lines) / 1000
    firsts = sorted(line["first_audio_ms"] for line in lines)
    yield dict(measure="speaking speed, one core", times_real_time=round(seconds / work, 2), first_audio_ms_median=round(firsts[len(firsts) // 2], 1))
    requests = []
    for i in range(len(texts)):
        save_wav(f"{folder}/again_{i}.wav", waves[i], 16000)
        requests.append(dict(wav=f"{folder}/again_{i}.wav", system="write down what you hear."))
    wrong = total = 0
    for answer, text in zip(ask(args, requests, ["--no-speech"]), texts):
        want = prepare.words(text)
        wrong += trainer.edit_distance(prepare.words(answer.get("transcript", "")), want)
        total += len(want)
    yield dict(measure="spoken replies, heard by nano", utterances=len(texts), word_error=round(wrong / total, 4))


def say(args, requests, command="tts"):
    """Speaks JSON-lines requests through the runtime -> waves at 22.05 kHz."""
    folder = f"{args.work}/eval/said"
    os.makedirs(folder, exist_ok=True)
    for path in glob.glob(f"{folder}/*.wav"):
        os.remove(path)
    with open(f"{folder}/requests.jsonl", "w") as f:
        f.write("\n".join(json.dumps(dict(r, output=f"{i}.wav"), ensure_ascii=False) for i, r in enumerate(requests)))
    done = subprocess.run([args.parlando, command, "--batch", f"{folder}/requests.jsonl", "--out-dir", folder, "--model-path", args.model, "--threads", "1", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-500:])
    return [load_wav(f"{folder}/{i}.wav")[0] for i in range(len(requests))]


TAG_TEXTS = ["the capital of france is paris.", "two plus seven is nine.", "it is ten past four.", "nice to meet you, anna.", "today in rome it is sunny, twenty degrees.", "the sky is blue."]


def tags(args):
    """Tempo and pitch of each style tag against the same sentences without one (medians over sentences)."""
    forms = {"neutral": "", "fast": domain.TAG["fast"], "slow": domain.TAG["slow"], "happy": domain.TAG["happy"], "sing": domain.TAG["sing"]}
    waves = say(args, [dict(text=tag + text, speaker="Clara") for tag in forms.values() for text in TAG_TEXTS])
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
    from . import modules, train_speaker
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
        wave16 = features.resample(torch.from_numpy(w), r["rate"], 16000).numpy() if r["rate"] < 16000 else w
        save_wav(f"{args.work}/eval/references/{i}.wav", wave16, max(16000, r["rate"]))
        requests.append(dict(text=TAG_TEXTS[i % len(TAG_TEXTS)], speaker=f"voice{i}", prompt_text=r["text"], wav_path=os.path.abspath(f"{args.work}/eval/references/{i}.wav")))
    clones = say(args, requests, "clone")
    plain = say(args, [dict(text=r["text"], speaker="Clara") for r in requests])
    near = np.array([float(embed(c, 22050) @ embed(w, r["rate"])) for c, (r, w) in zip(clones, references)])
    far = np.array([float(embed(p, 22050) @ embed(w, r["rate"])) for p, (r, w) in zip(plain, references)])
    return dict(measure="clone", utterances=len(references), cosine_to_reference=round(float(np.median(near)), 3), default_voice_to_reference=round(float(np.median(far)), 3), nearer=f"{int((near > far).sum())}/{len(near)}")


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
    from safetensors.torch import load_file

    from . import modules, text
    tok = text.Tokenizer(f"{args.work}/tokenizer.model")
    folder = f"{args.model}/Step-Audio-Chat"
    net = modules.Step1(**{k: v for k, v in json.load(open(f"{folder}/config.json")).items() if k not in ("reply_format", "tool_calls", "history_turns")})
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--parlando", default="build/bin/parlando")
    parser.add_argument("--model", default="models/nano")
    parser.add_argument("--count", type=int, default=60, help="spoken replies")
    parser.add_argument("--only", choices=["listen", "speak", "style"], help="part of the measures")
    parser.add_argument("--humans", default="../shared/audio", help="folder with recordings of people; left out when it does not exist")
    parser.add_argument("--limit", type=int, help="listening tests: at most this many utterances")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.makedirs(f"{args.work}/eval", exist_ok=True)
    results = [] if args.only in ("speak", "style") else [listen(args, "test", None, args.limit), listen(args, "unseen", None, args.limit), listen(args, "test", 10, args.limit)]
    for r in results:
        print(json.dumps(r), flush=True)
    def rest():
        if args.only in (None, "speak"):
            yield from speak(args, args.count)
        if args.only in (None, "style"):
            yield from tags(args)
            yield clone(args)
            yield from humans(args)
            yield agreement(args)

    for r in rest():
        results.append(r)
        print(json.dumps(r, ensure_ascii=False), flush=True)
    json.dump(results, open(f"{args.work}/eval/results{'-' + args.only if args.only else ''}.json", "w"), indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
