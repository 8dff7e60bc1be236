"""The link of sdk/python against scripted frames, on a clock turned by hand. `python_test.py SOURCE_DIR`"""
import pathlib
import random
import sys

ROOT = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "sdk/python")]
from checks import check, finish  # noqa: E402
from parlando import wire  # noqa: E402
from parlando.errors import ParlandoError  # noqa: E402
from parlando.link import Link, LinkDown, LinkSuspect, LinkUp, WINDOW_MESSAGES  # noqa: E402

KEY = dict(session=(1, 2), stream=1)


class Callee:
    """The gateway's end, as far as a test needs it."""

    def __init__(self, instance="gateway-1", window=256, **hello):
        self.link = Link("client-1", "client", 0.0, random.Random(1))
        self.instance, self.window, self.hello = instance, window, hello
        self.now = 0.0
        self.heard, self.words = [], []
        self.incarnation = None
        self.sent = 0

    def take(self):
        """What the client says now."""
        while (frames := self.link.next_frames(self.now)) is not None:
            for m in wire.decode(frames):
                (self.words if wire.is_link_word(m.type) else self.heard).append(m)

    def hello_said(self):
        return [m.fields() for m in self.words if m.type == wire.HELLO][-1]

    def say(self, m):
        self.link.receive(wire.encode(m), self.now)

    def answer_hello(self, **changes):
        self.take()
        h = self.hello_said()
        self.incarnation = h["incarnation"]
        self.say(wire.json_message(wire.HELLO, {**h, "instance": self.instance, "role": "gateway", "answer": True, "received": len(self.received()), "window_messages": self.window, **self.hello, **changes}))
        return self

    def received(self):
        return {m.sequence for m in self.heard}

    def number(self, type_, **fields):
        self.sent += 1
        return wire.Message(type_, sequence=self.sent, **KEY, **fields)

    def pass_time(self, seconds, answers=True):
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.link.tick(self.now)
            self.take()
            if answers:
                self.say(wire.Message(wire.HEARTBEAT_REPLY))

    def events(self):
        out = list(self.link.events)
        self.link.events.clear()
        return out


def linked(**kw):
    c = Callee(**kw).answer_hello()
    assert [type(e) for e in c.events()] == [LinkUp]
    return c


def bodies():
    m = wire.audio(5, b"ab" * 300)
    m.session, m.stream, m.turn, m.trace, m.sequence = (7, 9), 2, 4, 5, 11
    back, = wire.decode(wire.encode(m))
    check("a message comes back", back == m)
    more = [wire.event({"type": "open"}), wire.audio(0, b""), wire.close(True)]
    for n, one in enumerate(more):
        one.sequence, one.session = 20 + n, (3, 4)
    check("a batch comes back", wire.decode(wire.encode_batch(more)) == more)
    wrong = 0
    frames = wire.encode(m)
    for part in range(3):
        for at in range(len(frames[part])):
            bad = list(frames)
            bad[part] = bytes([*frames[part][:at], frames[part][at] ^ 0x40, *frames[part][at + 1:]])
            try:
                wire.decode(bad)
            except wire.WireError:
                wrong += 1
    check("every flipped bit is found", wrong == sum(map(len, frames)), wrong)
    rng = random.Random(3)
    for _ in range(3000):
        junk = [rng.randbytes(rng.choice((0, 1, 79, 80, 81, 200))) for _ in range(rng.randrange(5))]
        try:
            wire.decode(junk)
            check("junk is a message", False, junk)
        except wire.WireError:
            pass
    check("the checksum is the published one", wire.crc32c(b"123456789") == 0xE3069283)


def recorded_frames():
    """The package still reads what a gateway said when the fixture was recorded, and writes an envelope of the same size and version."""
    lines = (ROOT / "tests/sdk/fixtures/client_v1.txt").read_text().splitlines()
    kinds = [m.type for line in lines for m in wire.decode([bytes.fromhex(x) if x != "-" else b"" for x in line.split()[1:]])]
    check("recorded frames are read", wire.HELLO in kinds and wire.EVENT in kinds and wire.AUDIO in kinds and kinds[-1] in (wire.CLOSE, wire.HEARTBEAT, wire.WINDOW), kinds)


def words_that_make_no_sense():
    """A damaged body within a good checksum: a gateway with a fault, or of another version."""
    c = linked()
    c.link.send(wire.Message(wire.EVENT, **KEY, payload=b"{}"))
    c.take()
    malformed = c.link.counters.malformed
    c.say(wire.Message(wire.HEARTBEAT_REPLY, body=b"\x01\x00"))  # an older writer
    check("a short reply is read as far as it goes", c.link.counters.malformed == malformed)
    c.link.reconnected(c.now)
    c.say(wire.Message(wire.HELLO, body=b"{"))
    c.answer_hello()
    c.events()
    window = wire.window(0, [])
    window.body = b"xyz"
    c.say(window)
    wire_read = wire.read_window
    try:
        wire.read_window = lambda m: (_ for _ in ()).throw(ValueError("no window"))
        c.say(wire.window(0, []))
    finally:
        wire.read_window = wire_read
    check("what makes no sense is counted and ends nothing", c.link.counters.malformed > malformed, c.link.counters)
    c.say(c.number(wire.EVENT, payload=b"after"))
    check("and the link goes on", [e.payload for e in c.events()] == [b"after"])


def order():
    c = linked()
    c.link.send(wire.Message(wire.EVENT, **KEY, payload=b"{}"))
    c.take()
    check("the first number is 1", [m.sequence for m in c.heard] == [1])
    c.say(c.number(wire.EVENT, payload=b"1"))
    c.say(c.number(wire.EVENT, payload=b"2"))
    c.say(wire.Message(wire.EVENT, sequence=2, **KEY, payload=b"again"))
    check("each once and in order", [e.payload for e in c.events()] == [b"1", b"2"] and c.link.counters.duplicates == 1)
    c.say(wire.Message(wire.EVENT, sequence=4, **KEY, payload=b"4"))
    c.now += 1
    c.take()
    check("a gap asks for a resync by HELLO", c.hello_said()["received"] == 2 and not c.hello_said()["fresh"] and not c.events())
    c.answer_hello()
    c.say(wire.Message(wire.EVENT, sequence=3, **KEY, payload=b"3"))
    check("and goes on", [e.payload for e in c.events()] == [b"3"])
    c.say(wire.Message(200, sequence=4, **KEY))
    c.say(wire.Message(wire.EVENT, sequence=5, **KEY, payload=b"5"))
    check("an unknown type keeps its place", [e.payload for e in c.events()] == [b"5"])


def resumption():
    c = linked()
    for n in range(3):
        c.link.send(wire.Message(wire.EVENT, **KEY, payload=b"%d" % n))
    c.take()
    c.heard = c.heard[:1]  # the connection was lost behind the first
    c.link.reconnected(c.now)
    c.answer_hello(received=1)
    c.take()
    check("what was not received is said again", [m.payload for m in c.heard] == [b"0", b"1", b"2"] and c.link.counters.resent == 2, c.heard)
    check("without an event", not c.events())
    c.link.reconnected(c.now)
    c.answer_hello(received=7)
    check("a count that cannot be resets", [type(e) for e in c.events()] == [LinkDown])
    c.answer_hello()
    check("then the link is made anew", [type(e) for e in c.events()] == [LinkUp])
    c.link.reconnected(c.now)
    c.take()
    c.answer_hello(incarnation=0)
    check("a gateway that knows nothing resets, too", [type(e) for e in c.events()] == [LinkDown])
    c = linked()
    c.link.reconnected(c.now)
    c.instance = "gateway-2"
    c.answer_hello()
    check("another process is another link", [type(e) for e in c.events()] == [LinkDown])


def credit():
    c = linked(window=4)
    for n in range(10):
        c.link.send(wire.Message(wire.EVENT, **KEY, payload=b"%d" % n))
    c.take()
    check("no more than the window", len(c.heard) == 4)
    c.say(wire.window(4, [((1, 2, 1), 6)]))
    c.take()
    check("a window lets out what it gives room for", len(c.heard) == 6 and c.link.kept() == 2)
    c.link.send(wire.Message(wire.CLOSE, **KEY))
    c.take()
    check("close needs no credit and drops what waits", c.heard[-1].type == wire.CLOSE and len(c.heard) == 7 and c.link.waiting_bytes((1, 2, 1)) == 0)
    try:
        c.link.send(wire.Message(wire.EVENT, **KEY))
        check("a closed stream takes nothing", False)
    except ParlandoError as e:
        check("a closed stream takes nothing", e.code == "cancelled")
    c = linked(window=1)
    try:
        for _ in range(100):
            c.link.send(wire.Message(wire.EVENT, **KEY, payload=bytes(100_000)))
        check("what waits has a limit", False)
    except ParlandoError as e:
        check("what waits has a limit", e.code == "overloaded")
    # Our own window: told when half of it is used, and at ticks.
    c = linked()
    c.link.send(wire.Message(wire.EVENT, **KEY))
    c.take()
    for _ in range(WINDOW_MESSAGES):
        c.say(c.number(wire.EVENT))
    c.words.clear()
    c.pass_time(0.2)
    check("received is told without handling", wire.read_window([m for m in c.words if m.type == wire.WINDOW][-1]) == (WINDOW_MESSAGES, []))
    for _ in range(WINDOW_MESSAGES):
        c.link.handled((1, 2, 1))
    c.pass_time(0.1)
    check("handled gives credit", wire.read_window([m for m in c.words if m.type == wire.WINDOW][-1])[1] == [((1, 2, 1), 2 * WINDOW_MESSAGES)])


def liveness():
    c = linked()
    c.pass_time(1.0)
    check("who answers is up", not c.events() and c.link.is_up)
    c.pass_time(0.5, answers=False)
    check("who is silent is suspect", [type(e) for e in c.events()] == [LinkSuspect] and not c.link.is_up and c.link.is_suspect)
    c.say(wire.Message(wire.HEARTBEAT_REPLY))
    check("and up again when it speaks", [type(e) for e in c.events()] == [LinkUp] and c.link.is_up)
    c.pass_time(2.0, answers=False)
    check("a connection that nothing arrives on is made anew", c.link.reconnect_wanted)
    c.events()
    c.pass_time(31, answers=False)
    check("down when it stays away", LinkDown in [type(e) for e in c.events()] and c.link.peer is None)
    c = linked()
    c.now += 5
    c.link.tick(c.now)
    check("who stood still himself accuses nobody", not c.events())


def garbage():
    rng = random.Random(5)
    for _ in range(300):
        c = linked()
        c.link.send(wire.Message(wire.EVENT, **KEY))
        c.take()
        for _ in range(20):
            kind = rng.randrange(4)
            if kind == 0:
                c.link.receive([rng.randbytes(rng.choice((0, 80, 100))) for _ in range(rng.randrange(5))], c.now)
            else:
                m = wire.Message(rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 32, 81, 121, 999)), (rng.randrange(3), 2), rng.randrange(3), sequence=rng.randrange(4),
                                 body=rng.choice((b"", b"{}", b"{", b"[]", b'{"answer":true,"instance":7}', b'{"code":3}', rng.randbytes(20))), payload=rng.randbytes(rng.randrange(64)))
                c.link.receive(wire.encode(m), c.now)
            c.pass_time(0.05)
            c.events()
    check("no frame harms the link", True)
    c = linked()
    c.say(wire.json_message(wire.REFUSED, {"code": "not_ready", "message": "HELLO comes first"}))
    c.take()
    check("a gateway that forgot us is greeted anew", c.hello_said()["fresh"] is False)
    c = Callee()
    c.take()
    c.say(wire.json_message(wire.REFUSED, {"code": "invalid_argument", "message": "the key is one of role vad"}))
    check("why we are not taken is known", c.link.refusal is not None and "role vad" in c.link.refusal.message)
    c = Callee()
    c.answer_hello(role="vad")
    check("only gateways are linked", c.link.peer is None and c.link.refusal is not None)
    c = Callee()
    c.answer_hello(version_min=2, version_max=3)
    check("only versions that we speak", c.link.peer is None and c.link.refusal.code == "bad_version")


for part in (bodies, recorded_frames, words_that_make_no_sense, order, resumption, credit, liveness, garbage):
    part()
finish()
