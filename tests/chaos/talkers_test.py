"""The judge of tests/chaos against an engine of this file: a few lines behind a fake socket, which lose, repeat or exchange something on purpose.

`talkers_test.py SOURCE_DIR`. A conversation of one turn whose socket is lost in the middle of its answer or of its question, and that goes on at another gateway: as it should it passes,
and with each fault the judge says what it is.
"""
import asyncio
import dataclasses
import json
import pathlib
import sys

SOURCE = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(SOURCE / "tests/support"), str(SOURCE / "tests/chaos"), str(SOURCE / "tests/k8s")]
import fleet as engines  # noqa: E402
import talkers  # noqa: E402
import trials  # noqa: E402
from checks import check, finish  # noqa: E402

SAID = "what is seven plus nine"
CALL = {"name": "add", "arguments": {"a": 7, "b": 9}, "result": {"sum": 16}}
SOUND = bytes((17 * i * i + i // 251) % 251 for i in range(2 * talkers.RATE))  # a second, no two stretches of it alike
HEARD_BYTES = len(SOUND) // 2  # when the socket is lost
FRAMES = 10


@dataclasses.dataclass
class Engine:
    """What it does wrong; as it stands, nothing."""
    user: str = SAID                # as the resumed turn heard it, before the loss
    calm_user: str = SAID           # as a turn without a fault heard it
    calm_users: tuple = ()          # the same, one after the other
    calm_first: bool = True         # that turn comes first
    frames_more: int = 0            # that it says it has heard
    deaf: int = 0                   # to so many frames behind the loss
    calls_told: tuple = (1, 0)      # before and behind the loss
    calls: int = 1                  # in the turn's end
    goes_on_at: int = 0             # bytes from where the client has it, behind the loss
    stretch: tuple = (0, 0)         # of the sound that comes then: another one of the same length
    lost: str = "answer"            # in which, or in the "question", the socket is lost
    closes_behind: bool = False     # each socket right behind a turn's end
    dead: str = "gateway-1"         # whose sockets may close

    def __post_init__(self):
        self.frames, self.turns, self.lost_in, self.loud, self.cut = 0, 0, 0, 0, False

    def loses(self):
        """In which turn."""
        return self.turns + 1 == (2 if self.calm_first else 1)

    def heard(self, loud):
        """-> what is understood of so many frames of the question"""
        return SAID if loud == FRAMES else "what is" if loud < FRAMES else f"{SAID} {SAID}"


class Socket:
    """Of a client, at `engine`."""
    engine = None

    @classmethod
    async def connect(cls, host, port, path, timeout=30):
        self = cls()
        self.events, self.name, self.open_ = asyncio.Queue(), f"gateway-{port}", True
        return self

    def tell(self, event):
        self.events.put_nowait(event if isinstance(event, bytes) else json.dumps(event))

    def lose(self):
        self.open_ = False
        self.events.put_nowait(None)

    async def receive(self):
        event = await self.events.get()
        if event is None:
            raise ConnectionError("closed")
        return event

    def close(self):
        pass

    def send(self, data):
        e = self.engine
        if not isinstance(data, bytes):
            return self.open(data)
        if not self.open_:
            return
        e.frames += 1
        if any(data):
            e.loud += e.deaf == 0 or not e.cut
            e.deaf -= e.cut and e.deaf > 0
            if e.lost == "question" and e.loses() and not e.cut and e.loud == FRAMES // 2:
                e.cut = True
                self.lose()
        elif e.loud:
            loud, e.loud = e.loud, 0
            self.answer(loud)

    def open(self, wanted):
        e = self.engine
        event = {"type": "opened", "session": "s", "resume_token": "t", "turns": e.turns}
        if wanted["type"] == "open":
            return self.tell(event)
        open_turn = {"turn": e.turns + 1} if e.lost_in == e.turns + 1 else {}
        self.tell(event | {"resumed": True, "input_samples": (e.frames + e.frames_more) * talkers.FRAME // 2, **open_turn})
        if not open_turn:
            return
        for _ in range(e.calls_told[1]):
            self.tell({"type": "text", "turn": e.turns + 1, "kind": "tool_call", "text": json.dumps(CALL)})
        at = 2 * wanted["samples"] + e.goes_on_at
        sound = SOUND[:e.stretch[0]] + bytes(b ^ 1 for b in SOUND[e.stretch[0]:e.stretch[1]]) + SOUND[e.stretch[1]:]
        rest = sound[at:]
        for i in range(0, len(rest), 1764):
            self.tell(rest[i:i + 1764])
        self.end(e.user)

    def answer(self, loud):
        e = self.engine
        turn = e.turns + 1
        e.lost_in = turn if e.lost == "answer" and e.loses() else 0
        user = e.user if e.lost_in else e.heard(loud) if e.loses() and e.lost else e.calm_users[turn > 1] if e.calm_users else e.calm_user
        self.tell({"type": "text", "turn": turn, "kind": "transcript", "text": user})
        self.tell({"type": "text", "turn": turn, "kind": "text", "text": "sixteen"})
        for _ in range(e.calls_told[0] if e.lost_in else e.calls):
            self.tell({"type": "text", "turn": turn, "kind": "tool_call", "text": json.dumps(CALL)})
        self.tell(SOUND[:HEARD_BYTES])
        if e.lost_in:
            return self.lose()
        self.tell(SOUND[HEARD_BYTES:])
        self.end(user)

    def end(self, user):
        e = self.engine
        e.turns += 1
        self.tell({"type": "turn", "turn": e.turns, "user": user, "assistant": "sixteen", "tool_calls": [CALL] * e.calls, "audio_seconds": len(SOUND) / 2 / talkers.RATE})
        if e.closes_behind:
            self.lose()


class Fleet:
    def gateways(self):
        return {"gateway-1": ("", 1), "gateway-2": ("", 2)}


async def talk(engine, turns):
    """-> all that the judge found of so many turns, and the crowd"""
    Socket.engine, talkers.AsyncWebSocket = engine, Socket
    crowd = talkers.Crowd(Fleet(), {"q": ([b"\1" * talkers.FRAME] * FRAMES, SAID)}, 1, 1)
    crowd.closing = engine.dead
    await crowd.start()
    for _ in range(1000):
        ended = [t for t in crowd.turns if t.end is not None]
        if len(ended) >= turns and not crowd.under_way() or crowd.strays:
            break
        await asyncio.sleep(0.01)
    crowd.stopping = True
    await asyncio.sleep(0.1)
    for task in crowd.tasks:
        task.cancel()
    await asyncio.gather(*crowd.tasks, return_exceptions=True)
    return [p for t in crowd.turns[:turns] for p in t.problems] + [text for _, text in crowd.strays] + crowd.settle(), crowd


async def cases():
    async def case(name, expected, turns=2, **faults):
        found, crowd = await talk(Engine(**faults), turns)
        wanted = f"a problem with {expected!r}" if expected else "none"
        check(name, any(expected in p for p in found) if expected else not found, f"expected {wanted}, found {found}")
        return crowd

    crowd = await case("as it should be", "")
    check("one of two turns was resumed, and its sound is whole", [t.resumed for t in crowd.turns[:2]] == [0, 1] and crowd.turns[1].audio == len(SOUND))
    crowd = await case("the socket is lost in the question", "", lost="question")
    check("one of two turns was resumed within its question", [t.lost_unheard for t in crowd.turns[:2]] == [False, True])
    await case("a part of the question is lost with the socket", "heard 'what is' for", lost="question", deaf=3)
    await case("a part of the question comes twice", f"heard '{SAID} {SAID}' for", lost="question", frames_more=-3)
    await case("what is misheard before the loss is no fault of it", "", user="what is")
    await case("a question that is never understood", "", lost="question", deaf=3, calm_user="what")
    await case("one that is not always understood", "", turns=3, lost="question", deaf=3, calm_users=("what", SAID))
    await case("nor is it, as is seen later", "", turns=3, lost="question", deaf=3, calm_users=(SAID, "what"))
    await case("half heard, before anybody knows that it can be understood", "heard 'what is' for", turns=3, lost="question", deaf=3, calm_first=False)
    await case("more of the voice has arrived than was said", "samples of a voice", frames_more=5)
    await case("a tool call is told twice", "tool_calls is", calls_told=(1, 1))
    await case("a tool call is not told", "tool_calls is", calls_told=(0, 0))
    await case("a tool call is told behind the loss", "", calls_told=(0, 1))
    await case("the sound goes on too late", "other sound", goes_on_at=882)
    await case("the sound goes on too early", "other sound", goes_on_at=-882)
    await case("the sound begins again", "other sound", goes_on_at=-(HEARD_BYTES - talkers.OVERLAP_BYTES))
    await case("other sound of the same length", "other sound", stretch=(HEARD_BYTES - 400, HEARD_BYTES))
    await case("a gateway closes behind each turn and does not leave", "its socket was closed", turns=1, lost="", closes_behind=True, dead="gateway-2")
    await case("a gateway that leaves closes behind a turn", "", turns=1, lost="", closes_behind=True)


class Child:
    role, pid = "gateway", 0

    def __init__(self, name, fleet):
        self.name, self.fleet = name, fleet

    def signal(self, number):
        self.fleet.killed.append(self.name)


class KilledFleet(Fleet):
    def __init__(self, ends=None):
        """@param ends  {name: how it ends}, where that is no drain"""
        self.killed, self.ends = [], ends or {}

    def children(self, role=None):
        return [Child(n, self) for n in self.gateways()]

    def busiest(self, role):
        return self.children()[0]

    def wait_ready(self, *words):
        return True

    def end_of(self, child):
        return self.ends.get(child.name, "exit 0")


async def kills():
    """The fault itself: a gateway is killed where somebody hears an answer; when no turn was resumed in all its trials, it was not tried."""
    fleet = KilledFleet()
    crowd = talkers.Crowd(fleet, {}, 1, 1)
    runner = trials.Trials(fleet, crowd)
    trials.AFTERMATH_SECONDS = 0

    def turn(resumed):
        t = talkers.Turn(type("S", (), {"number": 1, "gateway": "gateway-2"}), SAID)
        t.audio, t.resumed = 10, resumed
        return t

    async def once(resumed, asking=False):
        t = turn(resumed)
        crowd.turns = [t]
        session = talkers.Session(crowd, 1, "gateway-2")
        session.turn, crowd.sessions = t, [session]
        if asking:
            t.audio, session.frames, session.frames_all = 0, [b""] * 5, 10
        fault = trials.kill("gateway", asking)

        async def and_ends(f, c):
            note = await fault(f, c)
            t.finish({"type": "turn", "user": SAID})
            return note
        and_ends.__name__, and_ends.resumes = fault.__name__, fault.resumes
        await runner.trial(and_ends)
    await once(0)
    check("killed is the gateway where somebody hears an answer", fleet.killed == ["gateway-2"], fleet.killed)
    check("a kill behind which nothing was resumed is told", len(runner.not_tried()) == 1, runner.not_tried())
    await once(1)
    check("one that was resumed is enough", not runner.not_tried(), runner.not_tried())
    await once(1, asking=True)
    check("or where somebody is in the middle of a question", fleet.killed == ["gateway-2"] * 3, fleet.killed)


async def rolls():
    """One that is rolled and does not get to the end of its drain is a problem of the trial, though its successor is there."""
    async def problem_of(fleet):
        try:
            await trials.roll("gateway")(fleet, talkers.Crowd(fleet, {}, 1, 1))
            return ""
        except RuntimeError as error:
            return str(error)
    found = await problem_of(KilledFleet())
    check("a roll in which all drain", not found, found)
    found = await problem_of(KilledFleet({"gateway-2": "signal 6"}))
    check("a roll in which one is aborted", "gateway-2" in found and "signal 6" in found, f"found {found!r}")
    fleet = engines.Fleet.__new__(engines.Fleet)
    fleet.engine = type("E", (), {"all": ["parlando: gateway gives no sign of life and is aborted instance=gateway-2 pid=71", "parlando: gateway ended (exit 0), starts again in 100 ms instance=gateway-2 pid=7",
                                          "parlando: gateway ended (signal 6), starts again in 100 ms instance=gateway-2 pid=71"]})
    child = lambda pid: type("C", (), {"name": "gateway-2", "pid": pid})  # noqa: E731
    check("the supervisor's words say how one ended", [fleet.end_of(child(7)), fleet.end_of(child(71))] == ["exit 0", "signal 6"])
    check("nor is one taken for drained of which it says nothing", "does not say" in fleet.end_of(child(8), 0))


asyncio.run(cases())
asyncio.run(kills())
asyncio.run(rolls())
finish()
