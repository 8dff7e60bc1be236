"""The parts of the nano recipe that need no training: answers behind earlier turns, channels, plans that cover every word.

`python tests/tools/test_nano_recipe.py`; exits 1 when a check fails.
"""
import collections
import contextlib
import io
import pathlib
import random
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tools.nano import modules  # noqa: E402
from tools.nano.data import channel, dialogues, domain, more, pauses, prepare, synth, turns  # noqa: E402
from tools.nano.judge import ablate, during  # noqa: E402
from tools.nano.train import flow, trainer  # noqa: E402

failures, checks = [], 0


def check(name, ok, seen=""):
    global checks
    checks += 1
    if not ok:
        failures.append(f"{name} {seen}")


def answers_behind_turns():
    name = domain.history_of(domain.Turn("name", "my name is emma", "nice to meet you, emma."))
    other = domain.history_of(domain.Turn("time", "what time is it", "it is four thirty three."))
    happy = domain.history_of(domain.Turn("style", "speak happily", "(高兴1)okay, now i sound happy!"))
    cases = [("what is my name", name + other, "your name is emma."), ("what is my name", other, "you have not told me your name."),
             ("say it faster", other, "(快速1)it is four thirty three."), ("say it slower", happy, "(慢速1)okay, now i sound happy!"),
             ("say it faster", [], "(快速1)okay, i will speak faster."), ("hello", other, "hello! how can i help you?")]
    plain = {**domain.SMALL_TALK, "say it faster": "(快速1)okay, i will speak faster.", "say it slower": "", "what is my name": ""}
    for user, history, want in cases:
        check(f"reply to '{user}'", dialogues.reply_behind(user, plain[user], history) == want)
    rng = random.Random(1)
    kinds, lengths = collections.Counter(), collections.Counter()
    for _ in range(2000):
        turn = dialogues.second(rng, "tool")
        lengths[len(turn.history) // 2] += 1
        check("no call in a history", all("<|CALL_START|>" not in m["content"] for m in turn.history))
        check("a tool answered last", turn.history[-1]["content"].startswith(("okay, timer", "today ", "tomorrow ", "it is ")), turn.history[-1]["content"])
        kinds[turn.kind] += 1
    check("one to three earlier turns", set(lengths) == {1, 2, 3}, lengths)
    check("every kind is asked", {"math", "timer", "weather", "time", "capital", "fact", "talk", "name", "style", "echo", "other", "recall", "restyle"} == set(kinds), kinds)


def channels():
    rng = np.random.default_rng(2)
    tone = lambda hz: np.sin(2 * np.pi * hz * np.arange(16000) / 16000).astype(np.float32) * 0.5
    for hz, passes in ((100, False), (1000, True), (3000, True), (5000, False)):
        loss = 20 * np.log10(channel.level(channel.telephone(tone(hz))) / channel.level(tone(hz)))
        check(f"telephone at {hz} Hz", loss > -1 if passes else loss < -20, loss)
    peak = lambda w: np.abs(np.fft.rfft(w)).argmax() * 16000 / len(w)
    check("shift moves pitch", abs(peak(channel.shift(tone(400), 1.2)) - 480) < 8, peak(channel.shift(tone(400), 1.2)))
    check("shift keeps duration", abs(len(channel.shift(tone(400), 1.2)) - 16000) < 600)
    check("tempo keeps pitch", abs(peak(channel.tempo(tone(400), 1.25)) - 400) < 8)
    check("tempo changes duration", abs(len(channel.tempo(tone(400), 1.25)) - 12800) < 600)
    for k in range(40):
        wave, front, rate = channel.disturb(tone(300 + 10 * k), rng, [tone(200)])
        check("disturbed waves are finite", np.isfinite(wave).all() and np.abs(wave).max() <= 1.01 and 0 <= front < 0.31 and 0.79 < rate < 1.31, k)


def words_before_sentences():
    rng = random.Random(3)
    sentences = domain.fixed_replies() + [domain.tool_result(rng)[2] for _ in range(2000)]
    words = sorted({w for s in sentences for w in prepare.words(s)})
    spans, turn = more.spans_of(sentences), more.in_turn(rng, words)
    counts = collections.defaultdict(set)
    for _ in range(8 * len(words)):
        text = more.mixed(rng, next(turn), words, spans)
        for w in prepare.words(text):
            counts[w].add(text)
    mixes = set().union(*counts.values())
    check("no mixed sentence is two", all(domain.pieces(text) == [text] for text in mixes))
    check("every word in at least eight sentences", all(len(counts[w]) >= 8 for w in words), sorted(words, key=lambda w: len(counts[w]))[:3])
    held = [s for s in domain.fixed_replies() if domain.held_out(s)]
    check("held-out sentences lend no spans", not any(span in " ".join(prepare.words(s)) and len(span.split()) == 4 for s in held for span in spans[""][0]
                                                   if not any(span in " ".join(prepare.words(t)) for t in sentences if not domain.held_out(t))))


def what_the_engine_speaks():
    rng = random.Random(7)
    said = {domain.spoken_reply(rng)[1] for _ in range(20000)} | set(domain.fixed_replies())
    pieces = domain.pieces_of(said)
    check("a reply is its sentences", domain.pieces("i am fine, thank you. how are you?") == ["i am fine, thank you.", "how are you?"])
    check("a short one goes with the next", domain.pieces("good morning! how can i help you?") == ["good morning! how can i help you?"])
    check("no reply is cut elsewhere", all(len(p) < 100 and ", " not in p[60:] for p in pieces), max(pieces, key=len))
    with tempfile.TemporaryDirectory() as work:
        planned = [j["text"] for j in more.plan_replies(work, 400)]
    check("what is practised is what is spoken at once", all(domain.pieces(t) == [t] for t in planned), [t for t in planned if domain.pieces(t) != [t]][:3])
    check("the sentences of every fixed reply", set(domain.pieces_of(domain.fixed_replies())) <= set(planned))
    check("and the judge hears no other", all(domain.pieces(t) == [t] for t in ablate.texts_of(5)[0]))


def near_numbers():
    rng = random.Random(4)
    said = collections.Counter(w for _ in range(3000) for w in domain.near_number(rng).user.split())
    check("both of each pair", all(said[domain.spell(n)] > 20 for pair in domain.NEAR_NUMBERS for n in pair if n <= 20), said)
    check("tens up to sixty", all(said[domain.TENS[n]] > 20 for n in range(3, 7)))


def turn_labels():
    rng = random.Random(5)
    drawn = [turns.draw(rng) for _ in range(4000)]
    shares = collections.Counter(d["label"] for d in drawn)
    check("every label", set(shares) == set(turns.LABELS), shares)
    check("a whole question has no rest", all(not d["rest"] for d in drawn if d["label"] == "complete"))
    check("what is cut goes on", all(d["rest"] and d["text"].startswith(d["said"]) for d in drawn if d["label"] == "cut"))
    check("coughs hold no words", all(not d["said"] for d in drawn if d["label"] == "cough"))


def pause_labels():
    rng = random.Random(6)
    drawn = [domain.question(rng) for _ in range(3000)]
    of = lambda split: {t.user for t in drawn if t.kind not in domain.CLOSED and pauses.belongs(t.user, t.kind, split)}
    check("splits share no open sentence", not (of("train") & of("test") or of("train") & of("check") or of("check") & of("test")))
    check("every sentence has a split", of("train") | of("check") | of("test") == {t.user for t in drawn if t.kind not in domain.CLOSED})
    check("splits share no voice", not (set(pauses.VOICES["train"]) & set(pauses.VOICES["test"]) or set(pauses.VOICES["train"]) & set(pauses.VOICES["check"])
                                        or set(pauses.VOICES["check"]) & set(pauses.VOICES["test"])))
    speaker, kinds = pauses.Speaker("test"), collections.Counter()
    again = [(u.text, u.voice) for u in pauses.Speaker("test").utterances(5, 4)]
    for k, u in enumerate(speaker.utterances(60, 4)):
        kinds[u.kind] += 1
        check("the same seed says the same", k >= 5 or (u.text, u.voice) == again[k], k)
        check("speech, then 0.7 s without", u.end == len(u.wave) - int(0.7 * pauses.RATE) and channel.level(u.wave[u.end - 4000:u.end]) > 0, u.text)
        check("an end is complete or nothing follows", u.complete or u.kind in ("opening", "cut", "comma", "hesitating", "list", "correction"), u.kind)
        check("a pause before the end is none", not pauses.is_end(u, dict(sample=u.end - 4000, resumed_sample=u.end - 2000)))
        check("the pause at the end is what the utterance is", pauses.is_end(u, dict(sample=u.end + 1500, resumed_sample=None)) == u.complete)
    check("every kind is said", set(kinds) == set(pauses.KINDS), kinds)
    wave, words = speaker.speak("what is the weather in rome", dict(engine="espeak", voice="en-us+f4", speed=150, pitch=50, span=50))
    check("words begin where they are said", [letter for letter, _ in words][:5] == [0, 5, 8, 12, 20] and sorted(s for _, s in words) == [s for _, s in words], words)
    first, rest = speaker.cut("what is the weather in rome", dict(engine="espeak", voice="en-us+f4", speed=150, pitch=50, span=50), 23)
    check("a cut sentence is the whole one", len(first) + len(rest) == len(wave) and len(first) > len(rest))


def held_out_stay():
    of = lambda jobs, held: [j for j in jobs if (j["split"] in synth.HELD_OUT) == held]
    whole, part = synth.plan(900, 500), synth.plan(900, 500, 0.1)
    check("a share keeps every held-out utterance", of(part, True) == of(whole, True) and len(of(part, True)) == 720)
    check("a share of the others", 0.05 < len(of(part, False)) / len(of(whole, False)) < 0.16, len(of(part, False)))
    check("what the voices are chosen from stays", {"sing", "happy", "neutral"} <= {j["style"] for j in of(part, False) if j["voice"] == synth.TARGET})


def solver_in_training():
    torch.manual_seed(1)
    net = modules.Flow(**{**flow.SHAPE, "input_size": 16, "width": 32, "hidden": 32, "blocks": 1, "estimator": dict(channels=(16, 16), blocks=1, mid_blocks=1, heads=2, head_dim=8)}).eval()
    token = torch.randint(256, (1, 30))
    frames = net.frames(30)
    z, said = torch.randn(1, 80, frames), torch.zeros(1, 0, 80)
    with torch.no_grad():
        mu, vector = net.mu(token, 0, 0, frames), torch.randn(1, 192)
        made = flow.own_way(net, z, torch.ones(1, 1, frames), mu, net.speaker(vector), torch.zeros_like(mu), flow.STEPS)
        check("training stands where the solver stands", (made - net(token, token[:, :0], said, vector, z, steps=flow.STEPS)).abs().max() < 1e-4)
        check("no step is no way", (flow.own_way(net, z, torch.ones(1, 1, frames), mu, None, mu, 0) == z).all())
        check("every step moves it", (made - z).abs().max() > 0.1)


class Errors:
    """A judge whose verdicts are known."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def error(self, net):
        return self.errors.pop(0)


def judged_weights():
    with tempfile.TemporaryDirectory() as work:
        net, ear = torch.nn.Linear(2, 2), Errors(None, 0.3, 0.2, 0.4)
        with contextlib.redirect_stdout(io.StringIO()):
            run = trainer.Run(work, "stage", dict(net=net), 1.0, 0.1)
            run.judge(ear, net)
            run.save()
            check("unheard weights are the last ones", "best" not in run.extra and (trainer.weights(work, "stage")["weight"] == net.weight).all())
            for value in (3.0, 2.0, 4.0):
                torch.nn.init.constant_(net.weight, value)
                run.judge(ear, net)
            run.save()
            check("the judge's choice is kept", (trainer.weights(work, "stage")["weight"] == 2.0).all())
            again = torch.nn.Linear(2, 2)
            run = trainer.Run(work, "stage", dict(net=again), 1.0, 0.1)
            check("training goes on from the last weights", (again.weight == 4.0).all())
            run.judge(Errors(0.25), again)
            check("a later start knows what to beat", (trainer.weights(work, "stage")["weight"] == 2.0).all() and run.extra["error"] == 0.2)


class Heard:
    """Path and judge in one: a mel is the codes themselves, and what is heard is what was made."""

    def __init__(self, flow, hift):
        self.flow, self.hift, self.waves = flow, hift, []

    def mel(self, codes):
        return codes

    def sound(self, mel):
        return mel

    def hear(self, waves, texts):
        self.waves = waves
        return sum(w != [len(t)] for w, t in zip(waves, texts)) / len(texts), []


def the_speaking_model_is_heard():
    def ear(path):
        out = during.Ear.__new__(during.Ear)
        out.stage, out.path, out.judge, out.codes = "tts", path, path, []
        out.said, out.own_codes = [("ab", None), ("abc", None)], lambda net, text: [net.offset + len(text)] if not net.training else ["trains"]
        return out

    net = torch.nn.Linear(1, 1)
    net.offset = 0
    for flow_net, hift in ((None, "vocoder"), ("flow", None)):
        check("nothing is judged before there is a voice", ear(Heard(flow_net, hift)).error(net) is None)
    path = Heard("flow", "vocoder")
    check("its own codes are heard", ear(path).error(net) == 0 and path.waves == [[2], [3]], path.waves)
    check("and it trains on", net.training and path.flow == "flow" and path.hift == "vocoder")
    net.offset = 1
    check("what it says wrongly counts", ear(path).error(net) == 1)


if __name__ == "__main__":
    for part in (answers_behind_turns, channels, words_before_sentences, what_the_engine_speaks, near_numbers, turn_labels, pause_labels, held_out_stay,
                 solver_in_training, judged_weights, the_speaking_model_is_heard):
        part()
    print("\n".join(sorted(set(failures))[:20]))
    print(f"{checks - len(failures)} passed, {len(failures)} failed")
    sys.exit(bool(failures))
