"""The closed English domain of parlando-nano.

`question(rng)` draws one user utterance with the answer the model must give; `tool_result(rng)` draws what a tool returned and
how it is spoken; `dialogue(rng)` draws a two-turn exchange. Everything is lower-case words plus `. , ? !`, so that the text that
is spoken, transcribed and scored is the same string. Deterministic for a given `random.Random`.
"""
from __future__ import annotations

import json
import random
import re
import zlib
from dataclasses import dataclass, field

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
         "eighteen nineteen").split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
TAG = {"fast": "(快速1)", "slow": "(慢速1)", "happy": "(高兴1)", "sing": "(哼唱)", "neutral": ""}

CITIES = ("amsterdam athens berlin boston cairo chicago dublin lisbon london madrid moscow oslo paris prague rome sydney tokyo "
          "toronto vienna warsaw").split()
CAPITALS = dict(austria="vienna", brazil="brasilia", canada="ottawa", china="beijing", denmark="copenhagen", egypt="cairo",
                england="london", france="paris", germany="berlin", greece="athens", hungary="budapest", ireland="dublin",
                italy="rome", japan="tokyo", norway="oslo", poland="warsaw", portugal="lisbon", russia="moscow", spain="madrid",
                sweden="stockholm")
NAMES = "anna daniel emma george helen jack laura martin nina oliver peter robert sarah thomas".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
SKIES = "sunny cloudy rainy windy snowy foggy".split()
ORDINALS = ("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
            "sixteenth seventeenth eighteenth nineteenth twentieth").split()
ORDINALS += ["twenty " + o for o in ORDINALS[:9]] + ["thirtieth", "thirty first"]

FACTS = {
    "how many days are in a week": "a week has seven days.",
    "how many months are in a year": "a year has twelve months.",
    "how many hours are in a day": "a day has twenty four hours.",
    "how many minutes are in an hour": "an hour has sixty minutes.",
    "how many seconds are in a minute": "a minute has sixty seconds.",
    "what is the largest planet": "the largest planet is jupiter.",
    "what is the smallest planet": "the smallest planet is mercury.",
    "what color is the sky": "the sky is blue.",
    "what color is grass": "grass is green.",
    "what color is snow": "snow is white.",
    "how many legs does a spider have": "a spider has eight legs.",
    "how many legs does a cat have": "a cat has four legs.",
    "who wrote hamlet": "shakespeare wrote hamlet.",
    "what do bees make": "bees make honey.",
    "what is the fastest animal": "the fastest animal is the cheetah.",
    "what is the highest mountain": "the highest mountain is mount everest.",
    "what is the longest river": "the longest river is the nile.",
    "how many continents are there": "there are seven continents.",
    "when does water boil": "water boils at one hundred degrees.",
    "when does water freeze": "water freezes at zero degrees.",
    "what is the opposite of hot": "the opposite of hot is cold.",
    "what is the opposite of big": "the opposite of big is small.",
    "what is the opposite of day": "the opposite of day is night.",
    "how many sides does a triangle have": "a triangle has three sides.",
    "how many sides does a square have": "a square has four sides.",
    "what comes after monday": "tuesday comes after monday.",
    "what comes after june": "july comes after june.",
    "what is the first month of the year": "the first month is january.",
}
SMALL_TALK = {
    "hello": "hello! how can i help you?",
    "hi there": "hi! what can i do for you?",
    "good morning": "good morning! how can i help you?",
    "good evening": "good evening! how can i help you?",
    "how are you": "i am fine, thank you. how are you?",
    "i am fine": "i am happy to hear that.",
    "i am tired": "i am sorry to hear that. have a good rest.",
    "nice to meet you": "nice to meet you too!",
    "thank you": "you are welcome!",
    "thank you very much": "you are very welcome!",
    "goodbye": "goodbye! have a nice day.",
    "bye bye": "bye! see you soon.",
    "good night": "good night! sleep well.",
    "what is your name": "my name is parlando.",
    "who are you": "i am parlando, a tiny voice assistant.",
    "what can you do": "i can do math, set timers, tell the weather, and sing.",
    "who made you": "i was made by the parlando project.",
    "are you a robot": "i am a small computer program.",
    "tell me a joke": "why did the robot go on holiday? it needed to recharge.",
    "can you hear me": "yes, i can hear you.",
    "never mind": "okay, no problem.",
    "help me": "you can ask me about math, time, or the weather.",
}
STYLES = {
    "fast": (["speak faster", "please speak faster", "say it faster", "talk faster please"], "okay, i will speak faster."),
    "slow": (["speak slowly", "please speak more slowly", "say it slower", "slow down please"], "okay, i will speak slowly."),
    "happy": (["say it happily", "speak happily", "sound happy please", "say it in a happy voice"], "okay, now i sound happy!"),
    "sing": (["sing a song", "please sing", "can you sing", "sing something for me"], "la la la, this is my little song."),
}
NOT_UNDERSTOOD = "i did not understand."
ECHO = ("the cat sits on the table|i like green apples|the sun is shining|we go home now|my dog is very small|"
        "the train is late today|she sells sea shells|this is a nice day|open the red door|music makes me happy|"
        "the water is cold|two birds fly over the house|i would like some tea|the book is on the chair").split("|")
OTHER = ("i want to buy a new car|who won the football game last night|how do i cook rice|tell me about quantum physics|"
         "my phone is broken|where can i park here|do you like my shoes|read me the news|call my mother|book a table for two|"
         "what should i wear to the party|play some jazz|turn off the kitchen light|how old is the president|"
         "i lost my keys again|why is the internet so slow|send an email to my boss|what does this word mean|"
         "is there a bank near here|how much does the ticket cost").split("|")


def spell(n: int) -> str:
    """Cardinal in words, -99 … 999."""
    if n < 0:
        return "minus " + spell(-n)
    if n < 20:
        return UNITS[n]
    if n < 100:
        return TENS[n // 10] + (" " + UNITS[n % 10] if n % 10 else "")
    return UNITS[n // 100] + " hundred" + (" " + spell(n % 100) if n % 100 else "")


def call(tool: str, **arguments) -> str:
    """A tool call as the model writes it, between the official control tokens."""
    body = json.dumps({"name": tool, "arguments": arguments}, separators=(",", ":"))
    return f"<|CALL_START|>{body}<|CALL_END|>"


@dataclass
class Turn:
    kind: str
    user: str                     # what the user says (empty = non-speech)
    reply: str                    # text with a leading style tag, or a tool call
    history: list = field(default_factory=list)   # earlier messages [{role, content}]

    @property
    def is_call(self) -> bool:
        return self.reply.startswith("<|CALL_START|>")


def _duration(rng):
    unit = rng.choice(["second", "minute", "hour"])
    n = rng.randint(1, 12 if unit == "hour" else 60)
    return n, unit, f"{spell(n)} {unit}" + ("" if n == 1 else "s")


def _math(rng):
    op = rng.choice(["plus", "plus", "minus", "times"])
    top = 10 if op == "times" else 20
    a, b = rng.randint(0, top), rng.randint(0, top)
    if op == "minus" and a < b:
        a, b = b, a
    value = {"plus": a + b, "minus": a - b, "times": a * b}[op]
    asked = f"{spell(a)} {op} {spell(b)}"
    form = rng.choice(["what is %s", "what is %s", "how much is %s", "tell me %s", "%s", "calculate %s"])
    return Turn("math", form % asked, f"{asked} is {spell(value)}.")


def _timer(rng):
    n, unit, said = _duration(rng)
    form = rng.choice(["set a timer for %s", "please set a timer for %s", "start a timer for %s", "wake me up in %s"])
    return Turn("timer", form % said, call("set_timer", amount=n, unit=unit))


def _weather(rng):
    city = rng.choice(CITIES)
    day, tail = rng.choice([("today", ""), ("today", " today"), ("tomorrow", " tomorrow")])
    form = rng.choice(["what is the weather in %s", "how is the weather in %s", "tell me the weather in %s", "is it raining in %s"])
    if day == "tomorrow" and form.startswith("is it"):
        form = "will it rain in %s"
    return Turn("weather", form % city + tail, call("get_weather", city=city, day=day))


def _clock(rng):
    if rng.random() < 0.4:
        return Turn("time", rng.choice(["what is the date today", "what day is it today", "tell me the date"]), call("get_date"))
    if rng.random() < 0.5:
        return Turn("time", rng.choice(["what time is it", "tell me the time", "what time is it now"]), call("get_time"))
    city = rng.choice(CITIES)
    return Turn("time", rng.choice(["what time is it in %s", "tell me the time in %s"]) % city, call("get_time", city=city))


def _capital(rng):
    country = rng.choice(sorted(CAPITALS))
    form = rng.choice(["what is the capital of %s", "tell me the capital of %s"])
    return Turn("capital", form % country, f"the capital of {country} is {CAPITALS[country]}.")


def _fact(rng):
    asked = rng.choice(sorted(FACTS))
    return Turn("fact", rng.choice(["", "", "can you tell me "]) + asked, FACTS[asked])


def _talk(rng):
    said = rng.choice(sorted(SMALL_TALK))
    return Turn("talk", said, SMALL_TALK[said])


def _introduce(rng):
    name = rng.choice(NAMES)
    return Turn("name", rng.choice([f"my name is {name}", f"i am {name}"]), f"nice to meet you, {name}.")


def _style(rng):
    style = rng.choice(sorted(STYLES))
    said, answer = STYLES[style]
    return Turn("style", rng.choice(said), TAG[style] + answer)


def _echo(rng):
    text = rng.choice(ECHO) if rng.random() < 0.7 else rng.choice(sorted(FACTS.values())).rstrip(".")
    return Turn("echo", rng.choice(["repeat after me ", "please say "]) + text, text + ".")


def _other(rng):
    return Turn("other", rng.choice(OTHER), NOT_UNDERSTOOD)


def _recall(rng):
    if rng.random() < 0.25:
        return Turn("recall", "what is my name", "you have not told me your name.")
    first = _introduce(rng)
    name = first.reply[len("nice to meet you, "):-1]
    return Turn("recall", rng.choice(["what is my name", "do you know my name"]), f"your name is {name}.", history_of(first))


def history_of(turn: Turn) -> list:
    return [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply}]


def fixed_replies() -> list[str]:
    """What the small closed intents say: few texts, which training and test share on the speaking side as on the listening side."""
    names = [text for n in NAMES for text in (f"nice to meet you, {n}.", f"your name is {n}.")]
    return sorted({*FACTS.values(), *SMALL_TALK.values(), *(answer for _, answer in STYLES.values()), *(e + "." for e in ECHO), *names,
                   "you have not told me your name.", NOT_UNDERSTOOD})


# Numbers that differ in one phone (or nearly so), in either order.
NEAR_NUMBERS = [(n + 10, n * 10) for n in range(3, 10)] + [(9, 5), (1, 9), (7, 11), (1, 11), (50, 59), (15, 59), (20, 12), (2, 10), (60, 16)]


def near_number(rng) -> Turn:
    """A question whose number is easily taken for another one."""
    n = rng.choice(rng.choice(NEAR_NUMBERS))
    if rng.random() < 0.15 and n in range(20, 60, 10):
        n += rng.randint(1, 9)
    if n < 20 and rng.random() < 0.4:
        a, b = rng.sample([n, rng.randint(0, 20)], 2)
        asked = f"{spell(a)} plus {spell(b)}"
        return Turn("math", rng.choice(["what is %s", "how much is %s", "%s"]) % asked, f"{asked} is {spell(a + b)}.")
    unit = rng.choice(["second", "minute"]) if n > 12 else rng.choice(["second", "minute", "hour"])
    n = min(n, 60)
    form = rng.choice(["set a timer for %s", "please set a timer for %s", "start a timer for %s", "wake me up in %s"])
    return Turn("timer", form % f"{spell(n)} {unit}{'' if n == 1 else 's'}", call("set_timer", amount=n, unit=unit))


FIRST_HEARD = ("hello", "hi there", "good morning", "good evening", "how are you", "nice to meet you", "thank you", "goodbye", "bye bye", "what is your name", "who are you",
               "what can you do", "can you hear me", "help me")      # what people say first: its answers must be the clearest


SHORT = 14      # bytes; "good morning!" is short


def first_heard() -> set[str]:
    return {SMALL_TALK[said] for said in FIRST_HEARD}


def pieces(text: str) -> list[str]:
    """What the engine speaks one after the other (services/controller/text_chunker): the text's sentences, one of a word or two with the next one. None here
    is so long that it is cut at a comma."""
    out = [""]
    for sentence in re.split(r"(?<=[.!?]) ", text):
        if len(out[-1]) < SHORT:
            out[-1] = f"{out[-1]} {sentence}".strip()
        else:
            out.append(sentence)
    return out


def pieces_of(texts) -> list[str]:
    return sorted({piece for text in texts for piece in pieces(text)})


WEIGHTED = [(_math, 28), (_timer, 10), (_weather, 13), (_clock, 9), (_capital, 8), (_fact, 9), (_talk, 8), (_introduce, 3),
            (_style, 5), (_echo, 4), (_other, 3), (_recall, 3)]
CLOSED = {"talk", "style", "fact", "other", "recall", "name", "echo"}   # too few texts to hold any out


def question(rng: random.Random) -> Turn:
    """One user utterance and its right answer (without earlier turns unless the answer needs them)."""
    makers, weights = zip(*WEIGHTED)
    return rng.choices(makers, weights)[0](rng)


def restyle(rng: random.Random, previous: Turn) -> Turn:
    """`say it faster` after a spoken reply: the same words again under a style tag."""
    style = rng.choice(["fast", "slow", "happy"])
    said = {"fast": "say it faster", "slow": "say it slower", "happy": "say it happily"}[style]
    body = previous.reply.split(")", 1)[1] if previous.reply.startswith("(") else previous.reply
    return Turn("restyle", said, TAG[style] + body, history_of(previous))


def dialogue(rng: random.Random) -> Turn:
    """A question with up to one earlier exchange in front of it."""
    draw = rng.random()
    if draw < 0.12:
        while True:
            first = question(rng)
            if not first.is_call and not first.history and first.kind != "style":
                return restyle(rng, first)
    turn = question(rng)
    if not turn.history and turn.kind not in ("recall", "style") and draw < 0.40:
        while True:
            first = question(rng)
            if not first.is_call and not first.history:
                turn.history = history_of(first)
                break
    return turn


def weather_answer(city, day, sky, degrees):
    return f"{day} in {city} {'it is' if day == 'today' else 'it will be'} {sky}, {spell(degrees)} degrees."


def timer_answer(n, unit):
    return f"okay, timer set for {spell(n)} {unit}{'' if n == 1 else 's'}."


def spoken_result(tool: str, result: dict) -> str:
    """What is said aloud when a tool has answered."""
    r = result
    if tool == "get_weather":
        return weather_answer(r["city"], r["day"], r["sky"], r["degrees"])
    if tool == "get_time":
        tail = "o'clock" if r["minute"] == 0 else ("oh " if r["minute"] < 10 else "") + spell(r["minute"])
        return f"it is {spell(r['hour'])} {tail}."
    if tool == "get_date":
        return f"today is {r['day']}, {r['month']} {ORDINALS[r['date'] - 1]}."
    return timer_answer(r["amount"], r["unit"])


def tool_result(rng: random.Random):
    """-> (the call that was made, JSON the tool returned, reply that is spoken)."""
    draw = rng.random()
    if draw < 0.4:
        tool, asked = "get_weather", dict(city=rng.choice(CITIES), day=rng.choice(["today", "tomorrow"]))
        result = dict(asked, sky=rng.choice(SKIES), degrees=rng.randint(-9, 35))
    elif draw < 0.65:
        tool, asked, result = "get_time", {}, dict(hour=rng.randint(1, 12), minute=rng.randint(0, 59))
    elif draw < 0.8:
        tool, asked, result = "get_date", {}, dict(day=rng.choice(DAYS), month=rng.choice(MONTHS), date=rng.randint(1, 31))
    else:
        n, unit, _ = _duration(rng)
        tool, asked = "set_timer", dict(amount=n, unit=unit)
        result = asked
    return call(tool, **asked), result, spoken_result(tool, result)


def spoken_reply(rng: random.Random):
    """-> (style, text) of something the model says aloud."""
    while True:
        if rng.random() < 0.4:
            style, text = "neutral", tool_result(rng)[2]
        else:
            turn = question(rng)
            if turn.is_call:
                continue
            style, text = untag(turn.reply)
        if style == "neutral" and rng.random() < 0.2:
            style = rng.choice(["fast", "slow", "happy"])
        return style, text


def untag(reply: str):
    for style, tag in TAG.items():
        if tag and reply.startswith(tag):
            return style, reply[len(tag):]
    return "neutral", reply


def held_out(text: str) -> bool:
    """True for the 5 % of texts that no training stage may see."""
    return zlib.crc32(text.encode()) % 20 == 0
