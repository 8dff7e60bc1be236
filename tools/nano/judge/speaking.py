"""Speaking: held-out and fixed replies through the whole path, judged by pocketsphinx and by nano itself; speed."""
from __future__ import annotations

from ..data import domain, prepare
from .runtime import ask, at16, say, test_items
from .sphinx import Judge, rate, save_wav


def speak(args, count):
    folder = f"{args.work}/eval"
    judge = Judge(folder)
    items = [(r, s) for r, s in test_items(args.work, "reply_test") if r["style"] == "neutral"][:count]
    texts = [r["text"] for r, _ in items]
    truth = [at16(s, r["rate"]) for r, s in items]
    waves, lines = say(args, [dict(text=t, speaker="Clara") for t in texts])
    waves = [at16(w) for w in waves]
    fixed = set(domain.fixed_replies())
    # A fixed reply that was drawn four times counts four times; each of `different` counts once.
    chosen = dict(held_out=[i for i, t in enumerate(texts) if t not in fixed], fixed=[i for i, t in enumerate(texts) if t in fixed],
                  different=[i for i, t in enumerate(texts) if t not in texts[:i]])
    for how, what in (("domain", "judge"), ("open", "judge with an open language model"), ("phones", "phone error")):
        key = "phone_error" if how == "phones" else "word_error"
        yield dict(measure=f"{what} on the synthesiser itself", utterances=len(texts), **{key: round(judge.hear(truth, texts, how)[0], 4)})
        error, heard = judge.hear(waves, texts, how)
        parts = {}
        if how == "domain":
            for name, rows in chosen.items():
                parts[name], parts[name + "_word_error"] = len(rows), round(rate([heard[i].split() for i in rows], [prepare.words(texts[i]) for i in rows]), 4)
        examples = list(dict.fromkeys(f"{t} | {h}" for t, h in zip(texts, heard) if prepare.words(t) != h.split()))
        yield dict(measure=f"spoken replies, {what}", utterances=len(texts), **{key: round(error, 4)}, **parts, examples=examples if how == "domain" else examples[:4])
    seconds, work = sum(line["audio_seconds"] for line in lines), sum(line["total_ms"] for line in lines) / 1000
    firsts = sorted(line["first_audio_ms"] for line in lines)
    yield dict(measure="speaking speed, one core", times_real_time=round(seconds / work, 2), first_audio_ms_median=round(firsts[len(firsts) // 2], 1))
    requests = []
    for i in range(len(texts)):
        save_wav(f"{folder}/again_{i}.wav", waves[i], 16000)
        requests.append(dict(wav=f"{folder}/again_{i}.wav", system="write down what you hear."))
    heard = [prepare.words(answer.get("transcript", "")) for answer in ask(args, requests, ["--no-speech"])]
    yield dict(measure="spoken replies, heard by nano", utterances=len(texts), word_error=round(rate(heard, [prepare.words(t) for t in texts]), 4))
    # Every fixed reply there is, and those that people hear first.
    texts = domain.fixed_replies()[:None if count >= 60 else count]
    heard = [h.split() for h in judge.hear([at16(w) for w in say(args, [dict(text=t, speaker="Clara") for t in texts])[0]], texts)[1]]
    first = domain.first_heard()
    two = [i for i, t in enumerate(texts) if any(mark in t for mark in (". ", "! ", "? "))]
    for name, rows in (("all fixed replies", range(len(texts))), ("what people hear first", [i for i, t in enumerate(texts) if t in first]), ("fixed replies of two sentences", two)):
        if rows:
            wrong = [f"{texts[i]} | {' '.join(heard[i])}" for i in rows if prepare.words(texts[i]) != heard[i]]
            yield dict(measure=f"{name}, judge", utterances=len(rows), word_error=round(rate([heard[i] for i in rows], [prepare.words(texts[i]) for i in rows]), 4), examples=wrong)
