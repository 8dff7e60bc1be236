"""A conversation of sdk/python over gateways that take, refuse and lose what it says, on a clock turned by hand: what talk_test.cpp asks of
sdk/cpp. `talk_test.py SOURCE_DIR`"""
import inspect
import json
import pathlib
import random
import struct
import sys
import types

import numpy as np

ROOT = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "sdk/python")]
from checks import check, finish  # noqa: E402
from parlando import Client, Conversation, aio, wire  # noqa: E402
from parlando.errors import ParlandoError  # noqa: E402
from parlando.talk import MESSAGE_SAMPLES, Talk  # noqa: E402

FAR = 1 << 20
SECOND = 10  # parts of sound


class Gateway:
    """A place and its link: takes as many messages as it has room for, and remembers them."""

    def __init__(self):
        self.link, self.room, self.is_suspect = self, FAR, False
        self.tried = 0  # messages, taken or not
        self.asked, self.said = [], []  # types of first messages; what came behind the last of them
        self.claim = {}  # the last first message

    def send(self, m):
        if m.type == wire.CLOSE:
            return
        self.tried += 1
        if self.room == 0:
            raise ParlandoError("overloaded", "the link is full")
        self.room -= 1
        if m.type == wire.EVENT and json.loads(m.payload)["type"] in ("open", "resume"):
            self.claim = json.loads(m.payload)
            self.asked.append(self.claim["type"])
            self.said = []
        else:
            self.said.append(m)

    def handled(self, key):
        pass

    def waiting_bytes(self, key):
        return 0

    def kinds(self):
        return "".join("s" if m.type == wire.AUDIO else json.loads(m.payload).get("text", "?") for m in self.said)


class User:
    """Knows three gateways."""

    def __init__(self, reconnect=10.0):
        self.gateways, self.gone = [Gateway() for _ in range(3)], []
        self.now, self.next_sample, self._last = 0.0, 0, self.gateways[0]
        self.talk = Talk(self, {"type": "open"}, reconnect, 0.0)

    def find(self, but, nor=()):
        return next((g for g in self.gateways if g is not but and g not in self.gone and g not in nor), None)

    def standing(self):
        return len(self.gateways) - len(self.gone)

    def wake(self):
        pass

    @property
    def gateway(self):
        """Where it is, or was last."""
        self._last = self.talk._place or self._last
        return self._last

    def go_on(self, seconds=0.05):
        self.now += seconds
        self.talk.on_tick(self.now)

    def told(self, **fields):
        self.talk.on_message(wire.event(fields), self.now)
        while self.talk.take():
            pass

    def opened(self):
        self.go_on()
        self.told(type="opened", session="s", resume_token="t", rate=22050, turns=0)

    def resumed(self, room=FAR, **fields):
        """@param room  of the link to the gateway that is asked now, behind `resume`"""
        for gateway in self.gateways:
            gateway.room = FAR
        for _ in range(10):
            if self.talk._place is None:
                self.go_on()
        self.gateway.room = room
        self.told(**{"type": "opened", "session": "s", "resume_token": "t", "rate": 22050, "resumed": True, "turns": 0, **fields})

    def asked(self):
        return sum(len(g.asked) for g in self.gateways)

    def refused(self, **fields):
        self.told(type="error", message="not yet", **fields)

    def asks_again_behind(self):
        """@return how many ms pass until a gateway is asked once more; none is for 2 s: 2000"""
        before, out = self.asked(), 0
        while self.asked() == before and out < 2000:
            self.go_on(0.001)
            out += 1
        return out

    def lose(self):
        lost = self.gateway
        self.gone = [lost]
        self.talk.on_link_down(lost, self.now)

    def sound(self, turn, samples):
        """@return its first sample, as the user is told"""
        m = wire.Message(wire.SPEECH, turn=turn, body=struct.pack("<IqIB", 0, 0, 22050, 0), payload=bytes(2 * samples))
        self.talk.on_message(m, self.now)
        return self.talk.take().first_sample

    def text(self, turn, kind, text):
        self.told(type="text", turn=turn, kind=kind, text=text)

    def claims(self):
        """Loses its gateway. @return what the next one is told: turn, samples, bytes of the user's and of the answer's text"""
        self.lose()
        for _ in range(10):
            if self.talk._place is None:
                self.go_on()
        return tuple(self.gateway.claim.get(name) for name in ("turn", "samples", "transcript_bytes", "reply_bytes"))

    def said_again(self, **fields):
        """What is said again when the gateway is lost now: texts, s of sound, ? of anything else."""
        self.lose()
        self.resumed(**fields)
        return self.gateway.kinds()

    def cancel(self, **fields):
        self.talk.say({"type": "cancel", **fields}, self.now)

    def hear(self, samples=MESSAGE_SAMPLES):
        """Sound that counts up. @return whether it was taken"""
        pcm = np.arange(self.next_sample, self.next_sample + samples).astype(np.int16).tobytes()
        try:
            self.talk.hear(pcm)
        except ParlandoError as error:
            assert error.code == "overloaded", error
            return False
        self.next_sample += samples
        return True

    def say(self, text):
        try:
            self.talk.say({"type": "text", "text": text}, self.now)
        except ParlandoError as error:
            assert error.code == "overloaded", error
            return False
        return True


class Engine:
    """What it has got of a session."""

    def __init__(self):
        self.sound, self.texts, self.holes = b"", [], 0

    def take(self, said):
        for m in said:
            if m.type == wire.EVENT:
                self.texts.append((len(self.sound) // 2, json.loads(m.payload)["text"]))
            else:
                self.holes += wire.audio(len(self.sound) // 2, m.payload).body != m.body
                self.sound += m.payload

    def has_all(self, samples):
        return not self.holes and self.sound == np.arange(samples).astype(np.int16).tobytes()


def full_links():
    u = User()
    u.opened()
    u.hear(), u.say("A"), u.hear(), u.hear(), u.hear(), u.say("B")
    u.lose()
    u.resumed(room=2, input_samples=0)
    check("it says what there is room for", u.gateway.kinds() == "sA", u.gateway.kinds())
    place = u.gateway
    for _ in range(40):
        u.go_on()
    check("no room is no reason to leave", u.talk.is_open and u.gateway is place and len(place.asked) == 1, place.asked)
    u.say("C"), u.hear()
    check("what is said meanwhile stands behind it", place.kinds() == "sA", place.kinds())
    place.room = 2
    u.go_on()
    check("as room comes", place.kinds() == "sAss", place.kinds())
    place.room = FAR
    u.say("D")
    check("all is said, in order", place.kinds() == "sAsssBCsD", place.kinds())
    engine = Engine()
    engine.take(place.said)
    check("at its place", engine.has_all(5 * MESSAGE_SAMPLES) and u.talk.metrics.said_again == 6, u.talk.metrics)
    u = User()
    u.opened()
    for _ in range(6):
        u.hear()
    u.lose()
    u.resumed(room=3, input_samples=0)
    u.say("A")
    engine = Engine()
    engine.take(u.gateway.said[:2])
    u.lose()
    u.resumed(input_samples=2 * MESSAGE_SAMPLES)
    check("what still waits when the next gateway is lost is said there", u.gateway.kinds() == "ssssA", u.gateway.kinds())
    engine.take(u.gateway.said)
    check("once", engine.has_all(6 * MESSAGE_SAMPLES))


def one_history(seed):
    """Gateways die at any moment, with links of any room; of what they were told the engine got any beginning."""
    dice = random.Random(seed)
    u, engine, arrived, given = User(), Engine(), 0, []
    u.opened()
    for step in range(120):
        what = dice.randrange(10)
        if what < 5:
            u.hear(dice.randrange(1, MESSAGE_SAMPLES + 1))
        elif what < 7:
            if u.say(str(step)):
                given.append((u.next_sample, str(step)))
        elif what < 9:
            u.gateway.room = dice.randrange(6) if what < 8 else FAR
            u.go_on()
        else:
            # Sound is what tells how much has come: messages behind the last of it are in doubt, and are left out here.
            said = u.gateway.said
            to = dice.randrange(arrived, len(said) + 1)
            while to > arrived and said[to - 1].type == wire.EVENT:
                to -= 1
            engine.take(said[arrived:to])
            arrived = 0
            u.lose()
            u.resumed(room=dice.randrange(8), input_samples=len(engine.sound) // 2)
    u.gateway.room = FAR
    u.go_on()
    engine.take(u.gateway.said[arrived:])
    return engine.has_all(u.next_sample) and engine.texts == given


def histories():
    wrong = [seed for seed in range(200) if not one_history(seed)]
    check("whatever links take and lose, everything arrives once and in order", not wrong, f"seeds {wrong}")


def limits():
    u = User()
    u.opened()
    taken = sum(u.hear() for _ in range(60 * SECOND))
    u.lose()
    u.resumed(room=30 * SECOND, input_samples=0)
    check("sound beyond the limit is refused", taken == 60 * SECOND and not u.talk.has_room() and not u.hear(), taken)
    check("messages have a limit of their own", u.say("A"))
    u.gateway.room = 15 * SECOND
    u.go_on()
    more = 0
    while u.hear():
        more += 1
    check("sound is taken again below it", more == 5 * SECOND, more)
    texts = 1
    while u.say("A"):
        texts += 1
    check("messages are kept up to theirs", texts == 512, texts)
    u.gateway.room = FAR
    u.go_on()
    engine = Engine()
    engine.take(u.gateway.said)
    check("nothing that was taken is dropped", engine.has_all(65 * SECOND * MESSAGE_SAMPLES) and len(engine.texts) == 512, len(engine.texts))
    check("there is room again", u.hear())


class Changed:
    """In the place of the client's condition: whoever waits for it waits until there is room."""

    def __init__(self, u):
        self.u, self.waits = u, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self, _):
        self.waits += 1
        self.u.gateway.room = FAR


def room():
    u = User()
    u.opened()
    taken = sum(u.hear() for _ in range(10))
    for _ in range(600):
        u.talk.say({"type": "item", "text": "i"}, u.now)
    u.lose()
    check("messages that were sent take no room from sound", taken == 10 and u.hear())
    texts = 0
    while u.say("A"):
        texts += 1
    check("nor from messages", texts == 512, texts)
    check("sound has a limit of its own", u.hear())
    u.resumed(input_samples=0)
    check("and all is said", u.gateway.kinds() == 11 * "s" + 512 * "A" + "s", u.gateway.kinds())
    engine = Engine()
    engine.take(u.gateway.said)
    check("in order", engine.has_all(12 * MESSAGE_SAMPLES))
    u = User()
    u.opened()
    taken = sum(u.say(100000 * "A") for _ in range(20))
    u.lose()
    texts = 0
    while u.say(100000 * "A"):
        texts += 1
    check("nor do their bytes", (taken, texts) == (20, 10), (taken, texts))
    u = User()
    u.opened()
    changed = Changed(u)
    talk = Conversation(types.SimpleNamespace(changed=changed, lock=changed), u.talk, (), 1.0)
    u.gateway.room = 0
    talk.send_audio(np.zeros(2 * MESSAGE_SAMPLES, np.int16))
    check("who sends sound waits for room", u.gateway.kinds() == "ss" and changed.waits == 1, (u.gateway.kinds(), changed.waits))
    u.talk._fail(ParlandoError("overloaded", "nobody takes what is told"))
    try:
        talk.send_audio(np.zeros(MESSAGE_SAMPLES, np.int16))
        check("but for none when the conversation has ended", False)
    except ParlandoError as error:
        check("but for none when the conversation has ended", error.code == "overloaded" and changed.waits == 1, changed.waits)


def turns():
    u = User()
    u.opened()
    u.say("A")
    u.lose()
    u.say("B")
    u.resumed(room=0, input_samples=0, turn=1)
    u.told(type="turn", turn=1)
    u.gateway.room = FAR
    u.go_on()
    check("the end of a turn that had come forgets nothing that waits", u.gateway.kinds() == "B", u.gateway.kinds())
    u.lose()  # B was on its way
    u.resumed(input_samples=0, turns=1)
    check("nor what was said since", u.gateway.kinds() == "B", u.gateway.kinds())
    u.told(type="turn", turn=2)
    u.lose()
    u.resumed(input_samples=0, turns=2)
    check("which its own turn does", u.gateway.kinds() == "", u.gateway.kinds())
    u = User()
    u.opened()
    u.say("A")
    u.lose()
    u.resumed(input_samples=0, turn=1)
    u.told(type="cancelled", turn=1)
    u.say("B")
    u.told(type="turn", turn=1)
    u.lose()
    u.resumed(input_samples=0, turns=1)
    check("the number of a cancelled turn may come again", u.gateway.kinds() == "", u.gateway.kinds())


def cancelling():
    """Has asked A, cancelled it and asked B."""
    u = User()
    u.opened()
    u.say("A"), u.cancel(), u.say("B")
    return u


def again(name, u, expected, **fields):
    said = u.said_again(input_samples=0, **fields)
    check(name, said == expected, said)


def cancels():
    u = cancelling()
    u.told(type="turn", turn=1)
    u.told(type="cancelled", turn=1)
    again("a turn that was as good as over takes no question behind the cancel with it", u, "B", turns=1)
    u.told(type="turn", turn=2)
    again("which its own turn does", u, "", turns=2)
    u = cancelling()
    u.told(type="cancelled", turn=1)
    again("a cancel that was answered is not said again", u, "B")
    u = cancelling()
    u.told(type="turn", turn=1)
    u.told(type="error", code="invalid_argument", message="no such voice")
    again("an error without a turn forgets nothing behind a cancel", u, "?B", turns=1)
    u = User()
    u.opened()
    u.cancel(), u.say("B")
    u.told(type="turn", turn=1)
    again("a spoken turn that ends in front of a cancel forgets nothing behind it", u, "?B", turns=1)
    u = cancelling()
    again("a turn under way may be the one that was cancelled", u, "?B", turn=1)
    u.told(type="cancelled", turn=1)
    again("and then it is over", u, "B")
    u = cancelling()
    u.cancel(), u.say("C")
    u.told(type="cancelled", turn=1)
    again("an answer is of one cancel", u, "B?C")
    u.told(type="cancelled", turn=1)
    again("the next one of the next", u, "C")
    u = User()
    u.opened()
    u.say("A")
    u.told(type="turn", turn=1)
    u.say("B")
    u.told(type="text", turn=2, kind="text", text="Paris")
    u.cancel(turn=1)
    u.told(type="cancelled", turn=1)
    again("a cancel of a turn that was over ends no other", u, "B", turns=1)
    check("and what was told of that counts", (u.gateway.claim["turn"], u.gateway.claim["reply_bytes"]) == (2, 5), u.gateway.claim)
    u = User()
    u.opened()
    u.say("A")
    u.told(type="cancelled", turn=1)
    again("a turn that the engine drops of its own accord takes its question with it", u, "")


def claims():
    def claimed(name, expected):
        got = u.claims()
        check(name, got == expected, got)

    def told():
        u = User()
        u.opened()
        return u

    u = told()
    u.text(1, "text", "Bern")
    u.told(type="turn", turn=1, remembered=False)
    u.text(1, "text", "Paris")
    u.sound(1, 100)
    claimed("the number of a turn that was not remembered is claimed again", (1, 100, 0, 5))
    u.resumed(input_samples=0, turn=1)
    check("the rest stands behind what was told", (first := u.sound(1, 50)) == 100, first)
    u.told(type="turn", turn=1)
    claimed("and then the next one", (2, 0, 0, 0))
    u = told()
    u.text(1, "transcript", "hello")
    u.told(type="noted", id="utterance_1_0", text="hello")
    claimed("an utterance that was noted is over", (2, 0, 0, 0))
    u.resumed(input_samples=0, turns=1)
    u.text(2, "transcript", "you")
    claimed("and its text counts for no other", (2, 0, 3, 0))
    u = told()
    u.text(1, "text", "Paris")
    u.told(type="noted", id="utterance_2_16000", text="thanks")
    u.sound(1, 100)
    claimed("one that was noted while a turn is heard does not end that", (1, 100, 0, 5))
    u.resumed(input_samples=0, turn=1)
    u.told(type="turn", turn=1)
    u.text(2, "transcript", "thanks")
    claimed("and is passed over behind it", (3, 0, 0, 0))
    u = told()
    u.told(type="noted", id="utterance_1_0", text="hello")
    u.told(type="turn", turn=1)
    u.text(2, "text", "Paris")
    claimed("the number of a note that was lost with its controller comes again", (2, 0, 0, 5))
    u = told()
    u.told(type="turn", turn=1)
    u.text(3, "text", "Paris")  # 2 are items
    claimed("numbers may be passed over", (3, 0, 0, 5))
    u.resumed(input_samples=0, turn=3)
    u.told(type="turn", turn=3, degraded=True)
    u.sound(3, 100)  # late
    u.text(3, "text", "Berne")  # it was lost with its controller
    claimed("and come again", (3, 0, 0, 5))
    u = told()
    u.text(1, "text", "Pa")
    u.sound(1, 100)
    u.claims()
    u.resumed(input_samples=0)
    u.text(1, "text", "Paris")
    check("a turn that is not under way behind a resume begins anew", (first := u.sound(1, 10)) == 0, first)
    claimed("and is claimed so", (1, 10, 0, 5))
    for flushed in (True, False):
        u = told()
        if flushed:
            u.talk.say({"type": "flush"}, u.now)
        u.talk.say({"type": "respond"}, u.now)
        u.told(type="noted", id="utterance_1_0", text="hello")
        u.said_again(input_samples=0, turns=1)
        said = [json.loads(m.payload)["type"] for m in u.gateway.said]
        check("a note forgets its flush and no other question", said == ["respond"], said)


MOST = (50, 100, 200, 400, 400, 400, 400)


def lost():
    """Was opened, has lost its gateway and asks the next one, which does not have the session yet."""
    u = User()
    u.opened()
    u.lose()
    u.talk.on_tick(u.now)
    return u


def grow(pauses):
    return len(pauses) == len(MOST) and all(most / 2 <= p <= most + 1 for p, most in zip(pauses, MOST))


def pauses():
    random.seed(1)
    u = lost()
    check("the next gateway is asked at once", u.asked() == 2)
    behind = []
    for _ in MOST:
        u.refused(code="not_found")
        behind.append(u.asks_again_behind())
    check("then behind pauses that grow to a limit", grow(behind), behind)
    check("which differ", len(set(behind[3:])) > 1, behind)
    u = lost()
    u.refused(code="overloaded", retry_ms=700)
    check("and are no shorter than a gateway says", 700 <= (ms := u.asks_again_behind()) <= 701, ms)
    u, behind = lost(), []
    for _ in MOST:
        u.resumed(input_samples=0)
        u.lose()
        behind.append(u.asks_again_behind())
    check("a gateway that opens and is lost before it has told anything is a failed attempt", grow(behind), behind)
    u, behind = lost(), []
    for _ in MOST:
        u.resumed(input_samples=0)
        u.told(type="error", code="unavailable", message="the model is gone")
        u.lose()
        behind.append(u.asks_again_behind())
    check("an error serves nobody", grow(behind), behind)
    for tells in (True, False):
        u = lost()
        for _ in range(5):
            u.refused(code="not_found")
            u.asks_again_behind()
        u.resumed(input_samples=0)
        if tells:
            u.told(type="text", kind="text", text="Paris")
        else:
            u.go_on(5.0)  # nothing was to be told
        u.lose()
        check("behind a gateway that has served the next one is asked at once", u.asks_again_behind() == 1, tells)
    u = User()
    u.opened()
    for gateway in u.gateways:
        gateway.room = 0
    u.lose()
    for _ in range(2000):
        u.go_on(0.001)
    _, one, other = (g.tried for g in u.gateways)
    check("links that are full are tried one after the other, and not without end", abs(one - other) <= 1 and 5 <= one + other <= 13, (one, other))
    u.gateways[2].room = FAR
    for _ in range(1000):
        u.go_on(0.001)
    check("and the one that has room is found", len(u.gateways[2].asked) == 1)


def looks_for(u, answer):
    """Loses its gateway and hears the same of all others, or nothing, until it gives up. @return seconds it has looked; after a minute it still does: 60"""
    u.opened()
    for gateway in u.gateways:
        gateway.room = 0 if answer == "full" else FAR
    u.lose()
    steps = 0
    while not u.talk.is_ended and steps < 1200:
        u.go_on()
        steps += 1
        if answer not in ("full", "") and u.talk._place is not None:
            u.refused(code=answer)
    return steps * 0.05


def end_of_looking():
    for answer in ("full", "", "unavailable", "overloaded", "not_found"):
        u = User()
        took = looks_for(u, answer)
        check(f"'{answer}': it looks as long as it is to", 10 <= took < 10.2, took)
        error = u.talk.take()
        check("and ends with `unavailable`", u.talk.failure and u.talk.failure.code == "unavailable" and error and error["session_ended"], u.talk.failure)
        is_named = answer not in ("full", "")
        check("which names the last answer", u.talk.failure and (f"{answer}: not yet" in u.talk.failure.message) == is_named, u.talk.failure)
    u = User()
    for _ in range(600):
        u.go_on()  # nobody answers
    check("so does a conversation that never stood", u.talk.failure and u.talk.failure.code == "unavailable", u.talk.failure)
    u = User()
    u.opened()
    for n in range(3):
        u.lose()
        for _ in range(198):
            u.go_on()
        u.resumed(input_samples=0)
        check("each loss has its own time", u.talk.is_open, n)
        u.go_on(5.0)
    # Until then its sessions are another's, as far as anybody knows: 30 s behind its silence, and a round of asking.
    for client in (Client, aio.Client):
        u = User(inspect.signature(client).parameters["reconnect"].default)
        u.opened()
        u.lose()
        for _ in range(720):
            u.go_on()
            if u.talk._place is not None:
                u.refused(code="unavailable", retry_ms=400)
        u.resumed(input_samples=0)
        check("a gateway that falls silent is given up by the engine before the conversation is", u.talk.is_open, u.talk.failure)


for part in (full_links, histories, limits, room, turns, cancels, claims, pauses, end_of_looking):
    part()
finish()
