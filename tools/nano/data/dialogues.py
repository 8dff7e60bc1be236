"""Earlier turns of every kind: what the engine puts in front of a question, and what the question's right answer is behind it.

The engine keeps of a turn what the user said (its transcript) and what was answered aloud, never the tool's call; a style stays in the answer as its
tag. `context(rng, turn)` puts one to three such exchanges in front of a question; `second(rng)` draws a question with them, for evaluation.
"""
from __future__ import annotations

import json
import random

from . import domain

TURNS = (1, 2, 3)
SHARE = (55, 27, 18)      # of dialogues with one, two and three earlier turns
RESTYLE = {"say it faster": "fast", "say it slower": "slow", "say it happily": "happy"}
EARLIER = [(domain._math, 14), (domain._timer, 12), (domain._weather, 14), (domain._clock, 12), (domain._capital, 8), (domain._fact, 10), (domain._talk, 14),
           (domain._introduce, 9), (domain._style, 6), (domain._echo, 4), (domain._other, 3)]
RECALL = ("what is my name", "do you know my name")


def answered(rng: random.Random, turn: domain.Turn) -> domain.Turn:
    """A turn whose tool has answered: the reply is what was said aloud in the end, about its own city, day and amount."""
    if not turn.is_call:
        return turn
    call = json.loads(turn.reply[len("<|CALL_START|>"):-len("<|CALL_END|>")])
    a = call["arguments"]
    if call["name"] == "get_weather":
        spoken = domain.weather_answer(a["city"], a["day"], rng.choice(domain.SKIES), rng.randint(-9, 35))
    elif call["name"] == "set_timer":
        spoken = domain.timer_answer(a["amount"], a["unit"])
    else:
        spoken = ""
        while not spoken:
            made, _, said = domain.tool_result(rng)
            spoken = said if call["name"] in made else ""
    return domain.Turn(turn.kind, turn.user, spoken, turn.history)


def exchange(rng: random.Random, kind=None) -> domain.Turn:
    """One earlier turn. Kinds are nearer to each other in frequency than in `domain.question`: arithmetic alone would be a third.
    kind: `tool` (a tool answered), `talk` (anything else) or None."""
    while True:
        makers, weights = zip(*EARLIER)
        turn = rng.choices(makers, weights)[0](rng)
        if not turn.history and (kind is None or turn.is_call == (kind == "tool")):
            return answered(rng, turn)


def reply_behind(turn_user: str, reply: str, history: list) -> str:
    """The right answer to a question behind a history: only names, "say it faster" and the like depend on it."""
    if turn_user in RECALL:
        said = [m["content"] for m in history if m["role"] == "assistant" and m["content"].startswith("nice to meet you, ")]
        return f"your name is {said[-1][len('nice to meet you, '):-1]}." if said else "you have not told me your name."
    if turn_user in RESTYLE and history:
        return domain.TAG[RESTYLE[turn_user]] + domain.untag(history[-1]["content"])[1]
    return reply


def history(rng: random.Random, turns: int, user: str = "", last=None) -> list:
    """Messages of earlier turns in front of the question `user`; `last`: kind of the latest of them."""
    places = range(turns - (last is not None))      # where a name may have been told
    out, named = [], rng.choice(places) if user in RECALL and places and rng.random() < 0.7 else -1
    for k in range(turns):
        out += domain.history_of(domain._introduce(rng) if k == named else exchange(rng, last if k == turns - 1 else None))
    return out


def context(rng: random.Random, user: str, reply: str, last=None, turns=None):
    """-> (history, right reply) of a question that may have stood alone."""
    past = history(rng, turns or rng.choices(TURNS, SHARE)[0], user, last)
    return past, reply_behind(user, reply, past)


def second(rng: random.Random, last=None) -> domain.Turn:
    """A question with one to three turns in front of it, kinds alike in frequency."""
    makers, weights = zip(*EARLIER)
    if rng.random() < 0.12:
        user = rng.choice([*RECALL, *RESTYLE])
        turn = domain.Turn("recall" if user in RECALL else "restyle", user, "")
    else:
        turn = rng.choices(makers, weights)[0](rng)
    past, reply = context(rng, turn.user, turn.reply, last)
    return domain.Turn(turn.kind, turn.user, reply, past)
