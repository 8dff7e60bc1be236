"""Sessions that talk in real time: each always sends its microphone, and some at a time ask a recorded question and listen to the answer."""
import asyncio
import collections
import json
import random
import struct
import time
import wave

from history import History
from ws import AsyncWebSocket

FRAME = 640        # 20 ms of s16le at 16 kHz
RATE = 22050       # of answers
LOUD = 500
TURN_SECONDS_MAX = 70
OPEN_SECONDS_MAX = 45  # what a silent gateway has can be resumed behind 30 s
KEPT_FRAMES = 3000  # of the microphone: a minute, for as long as a session waits for its client
OVERLAP_BYTES = RATE // 10 * 2  # of sound that was heard a client asks for once more when it resumes: the same has to come


def question(path):
    """-> the frames of a recording up to its last loud one"""
    with wave.open(str(path), "rb") as f:
        assert f.getframerate() == 16000 and f.getnchannels() == 1, path
        raw = f.readframes(f.getnframes())
    frames = [raw[i:i + FRAME].ljust(FRAME, b"\0") for i in range(0, len(raw), FRAME)]
    loud = [max(abs(v) for v in struct.unpack("<320h", frame)) > LOUD for frame in frames]
    return frames[:max(i for i, l in enumerate(loud) if l) + 1]


def questions(source):
    """-> {name: (frames, words)} of the bundled recordings"""
    folder = source / "models/nano/questions"
    return {name: (question(folder / name), said) for name, said in json.loads((folder / "questions.json").read_text()).items()}


class Claim:
    """What has come of the turn under way: what a client says when it resumes, so that nothing of it is told twice and nothing is missing. Only
    of its sound it leaves out the last, to see that what comes goes on where the other ended."""

    def __init__(self, turn):
        self.begin(turn)

    def begin(self, turn):
        self.turn, self.samples, self.bytes, self.tool_calls = turn, 0, {"transcript": 0, "text": 0}, 0
        self.last = b""  # of its sound

    def sound(self, data):
        self.samples += len(data) // 2
        self.last = (self.last + data)[-OVERLAP_BYTES:]

    def event(self, e):
        if e["type"] == "text":
            if e["turn"] != self.turn:
                self.begin(e["turn"])
            if e["kind"] in self.bytes:
                self.bytes[e["kind"]] += len(e["text"].encode())
            else:
                self.tool_calls += 1
        elif e["type"] == "turn":
            self.begin(e["turn"] + 1)
        elif e["type"] == "error" and e.get("turn", 0) >= self.turn:
            self.begin(e["turn"])

    def fields(self):
        return {"turn": self.turn, "samples": self.samples - len(self.last) // 2, "transcript_bytes": self.bytes["transcript"], "reply_bytes": self.bytes["text"], "tool_calls": self.tool_calls}


class Turn:
    """One question and what came of it. `silence` is the longest pause before and between its sounds; `dry` the longest time for which a loudspeaker that
    began with the first sound had nothing to play."""

    def __init__(self, session, said):
        self.session, self.gateway, self.said = session.number, session.gateway, said
        self.played_until, self.dry, self.resumed = None, 0.0, 0
        self.lost_unheard = False  # its socket was lost before it was told what of the question had been heard
        self.start, self.end, self.speech_end = time.monotonic(), None, None
        self.texts, self.tool_calls, self.audio, self.heard_at, self.max_gap = {}, [], 0, None, 0.0
        self.again = b""  # sound that was heard and is to come once more
        self.event, self.problems, self.excused, self.told = {}, [], False, {}
        self.done = asyncio.get_running_loop().create_future()

    def text(self, kind, text):
        if kind == "tool_call":
            self.tool_calls.append(json.loads(text))
        else:
            self.texts[kind] = self.texts.get(kind, "") + text

    def resume(self, again):
        """It goes on at another socket. @param again  sound that was heard and comes once more"""
        self.resumed, self.again = self.resumed + 1, again
        self.lost_unheard |= not self.texts.get("transcript")

    def sound(self, data):
        """-> what of it was not heard before"""
        known = data[:len(self.again)]
        if not self.again.startswith(known):
            self.problems.append(f"behind the resume came other sound than had been heard, {len(self.again)} bytes before what is new")
        self.again, data = self.again[len(known):], data[len(known):]
        if data:
            self.play(len(data))
        return data

    def play(self, size):
        now = time.monotonic()
        since = self.heard_at or self.speech_end
        if since is not None:
            self.max_gap = max(self.max_gap, now - since)
        self.heard_at = now
        self.audio += size
        if self.played_until is not None:
            self.dry = max(self.dry, now - self.played_until)
        self.played_until = max(now, self.played_until or 0) + size / 2 / RATE

    def silence(self):
        """The longest, told in the controller's words when it was a long one."""
        text = f"longest silence {1000 * self.max_gap:.0f} ms"
        return text if self.max_gap < 10 else f"{text}, stages {json.dumps(self.event.get('stages'))}, told {json.dumps(self.told)}"

    def tell(self, kind):
        if self.speech_end is not None:
            self.told.setdefault(kind, round(time.monotonic() - self.speech_end, 2))

    def finish(self, event):
        if not self.done.done():
            self.end, self.event = time.monotonic(), event
            self.done.set_result(event)

    def failed_as(self, codes):
        """-> whether it ended in an error of one of these codes"""
        return self.event.get("type") == "error" and self.event.get("code") in codes

    def judge(self, number):
        """What must hold of every turn, whatever was done to the engine meanwhile. @param number  of the session's turns"""
        e = self.event
        if e.get("type") != "turn":
            self.problems.append(f"no answer: {json.dumps(e)[:200]}")
            return
        if e["turn"] != number:
            self.problems.append(f"turn {e['turn']} came where turn {number} was due")
        for kind, key in (("transcript", "user"), ("text", "assistant")):
            if self.texts.get(kind, "") != e[key]:
                self.problems.append(f"{key} is {e[key]!r}, the client was told {self.texts.get(kind, '')!r}")
        if self.tool_calls != e["tool_calls"]:
            self.problems.append(f"tool_calls is {json.dumps(e['tool_calls'])}, the client was told {json.dumps(self.tool_calls)}")
        if not e["assistant"] and not e["tool_calls"]:
            self.problems.append("the answer is empty")
        if self.again:
            self.problems.append(f"{len(self.again)} bytes of sound that had been heard did not come once more")
        if abs(self.audio / 2 / RATE - e["audio_seconds"]) > 0.001:
            self.problems.append(f"{self.audio / 2 / RATE:.3f} s of sound came, the turn has {e['audio_seconds']:.3f} s")


def heard(turns):
    """What the worst of them was for whoever listened: for how long a loudspeaker that had begun had nothing to play, and the longest silence."""
    quietest = max(turns, key=lambda t: t.max_gap, default=None)
    return f"dry for {1000 * max(t.dry for t in turns):.0f} ms, {quietest.silence()}" if turns else "nobody talked"


class Session:
    def __init__(self, crowd, number, gateway):
        self.crowd, self.number, self.gateway = crowd, number, gateway
        self.ws, self.turn, self.frames, self.turns, self.id = None, None, [], 0, ""
        self.frames_all = 0  # of the question that is asked
        self.lost_at, self.expired, self.token, self.whole = None, False, "", asyncio.Event()
        self.claim, self.kept, self.said = Claim(1), collections.deque(maxlen=KEPT_FRAMES), 0  # the microphone's last minute, and how many frames there were
        self.may_be_cut = self.may_be_lost = False
        self.random = random.Random(number)

    def wanted(self):
        """What it says first: a session that was lost goes on, and its turn with it; without one there is a new one."""
        lead = {"lead_ms": self.crowd.lead_ms} if self.crowd.lead_ms else {}
        if not self.token:
            return {"type": "open", "speak": True, "seed": 1000 + self.number, **lead}
        return {"type": "resume", "session": self.id, "token": self.token, **self.claim.fields(), **lead}

    async def open(self):
        """On its gateway, or, when that is gone, at once on the next one, then on each in turn behind a pause."""
        until, error, tries = time.monotonic() + OPEN_SECONDS_MAX, None, 0
        ports = self.crowd.ports()
        while time.monotonic() < until:
            ws = None
            try:
                if tries >= len(ports):  # none of those that were known takes it
                    ports = await self.crowd.look()
                names = sorted(ports, key=lambda n: (n != self.gateway, n))
                if self.lost_at is not None:
                    names = names[1:] + names[:1] if names[:1] == [self.gateway] else names
                name = names[tries % len(names)] if names else None
                ws = await AsyncWebSocket.connect(*ports[name], "/v1/dialogue", timeout=5)
                ws.send(self.wanted())
                event = json.loads(await asyncio.wait_for(ws.receive(), 10))
                if event["type"] == "opened":
                    return self.opened(ws, name, event)
                error = event
                if self.token and event.get("code") == "not_found":
                    if self.crowd.may_lose(self):
                        self.crowd.not_kept.append(self.id)
                    else:
                        self.crowd.stray(self, f"its session was not kept: {json.dumps(event)[:200]}")
                    self.token = ""
                    self.cut(json.dumps(event)[:200])
            except (OSError, KeyError, ValueError, asyncio.TimeoutError) as e:
                error = e
            if ws is not None:
                ws.close()  # what is answered too late is not to have the session
            tries += 1
            if tries > 1:
                await asyncio.sleep(min(0.4, 0.05 * 2 ** (tries - 2)) * (0.5 + self.random.random()))
        raise RuntimeError(f"session {self.number} could not be opened: {error!r}")

    def opened(self, ws, name, event):
        if not event.get("resumed"):
            self.claim, self.said, self.turns = Claim(event["turns"] + 1), 0, event["turns"]
            self.kept.clear()
        else:
            # A turn that was asked may be over by now; its end is told behind this.
            if event["turns"] not in (self.turns, self.turns + (self.turn is not None)):
                self.crowd.stray(self, f"it is back with {event['turns']} turns, expected {self.turns}")
            if event.get("turn", self.claim.turn) != self.claim.turn:
                self.claim.begin(event["turn"])
            if self.turn and self.turn.end is None:
                self.turn.resume(self.claim.last)
            # What was said and did not arrive is said again.
            missing = self.said - event["input_samples"] * 2 // FRAME
            if event["input_samples"] * 2 > self.said * FRAME:
                self.crowd.stray(self, f"it is back with {event['input_samples']} samples of a voice, {self.said * FRAME // 2} were said")
            if missing > len(self.kept):
                self.crowd.stray(self, f"{missing} frames of its voice did not arrive, it has {len(self.kept)}")
            for frame in list(self.kept)[max(0, len(self.kept) - missing):] if missing > 0 else ():
                ws.send(frame)
        self.ws, self.gateway, self.id, self.token = ws, name, event["session"], event["resume_token"]
        if self.lost_at is not None:
            self.crowd.came_again.append((time.monotonic(), time.monotonic() - self.lost_at))
            self.crowd.resumed += bool(event.get("resumed"))
            self.lost_at = None
        self.whole.set()

    def cut(self, why):
        """What it asked has gone with its session."""
        if self.turn:
            self.turn.finish({"type": "closed", "message": why})

    def hear(self, data):
        if isinstance(data, bytes):
            if self.turn:
                self.claim.sound(self.turn.sound(data))
            else:
                self.crowd.stray(self, f"{len(data)} bytes of sound without a question")
            return
        event = json.loads(data)
        kind = event["type"]
        self.claim.event(event)
        if self.turn:
            self.turn.tell(event.get("kind", kind))
        if kind in ("speech_started", "speech_ended"):
            return
        if kind == "error" and not self.turn and "a connection lasts at most" in event.get("message", ""):
            self.expired = True  # between two turns; its client goes on at another connection
            return
        if not self.turn:
            self.crowd.stray(self, f"without a question: {data[:200]}")
        elif kind == "text":
            self.turn.text(event["kind"], event["text"])
        elif kind in ("turn", "error"):
            if kind == "turn":
                self.crowd.history.tell(self.id, event)
            self.turn.finish(event)

    async def listen(self):
        """Hears what is said, and is back as soon as it can when its socket is lost, whether it talks or waits to."""
        while not self.crowd.stopping or self.turn:
            try:
                while True:
                    self.hear(await self.ws.receive())
            except (ConnectionError, OSError) as error:
                self.whole.clear()
                self.ws, self.lost_at = None, None if self.expired else time.monotonic()
                self.may_be_cut, self.may_be_lost = self.crowd.may_close(self), self.crowd.may_lose(self)
                if self.expired:
                    self.token = ""
                    self.cut(str(error))
                elif not self.may_be_cut:
                    self.crowd.stray(self, f"its socket was closed: {error}")
                self.expired = False
            if not self.crowd.stopping or self.turn:
                await self.open()

    def tick(self):
        if not self.id:
            return
        frame = self.frames.pop() if self.frames else bytes(FRAME)
        if self.turn and not self.frames and self.turn.speech_end is None:
            self.turn.speech_end = time.monotonic()
        self.kept.append(frame)  # people go on while their socket is away
        self.said += 1
        try:
            if self.ws is not None:
                self.ws.send(frame)
        except (ConnectionError, OSError):
            pass  # `listen` hears of it

    async def ask(self):
        name, (frames, words) = self.random.choice(sorted(self.crowd.questions.items()))
        turn = self.turn = Turn(self, words)
        self.crowd.begun(turn)
        self.frames, self.frames_all = frames[::-1], len(frames)
        try:
            await asyncio.wait_for(asyncio.shield(turn.done), TURN_SECONDS_MAX)
        except asyncio.TimeoutError:
            turn.finish({"type": "timeout", "message": f"nothing within {TURN_SECONDS_MAX} s"})
        # What could not be resumed, where that may be: told apart, and not judged.
        turn.excused = turn.event["type"] == "closed" and (self.may_be_cut or self.crowd.stopping) or turn.resumed and self.may_be_lost and turn.failed_as(("unavailable",))
        if turn.event["type"] == "turn":
            self.turns += 1
        if not turn.excused:
            turn.judge(self.turns)
        self.turn, self.frames = None, []
        self.crowd.ended(turn)

    async def run(self):
        listener = None
        try:
            await self.open()
            listener = asyncio.create_task(self.listen())
            while not self.crowd.stopping and not listener.done():
                async with self.crowd.gate:
                    if self.ws is not None and not self.crowd.stopping:
                        await self.ask()
                if self.ws is None and not self.crowd.stopping:
                    await asyncio.wait([listener, back := asyncio.create_task(self.whole.wait())], return_when=asyncio.FIRST_COMPLETED)
                    back.cancel()
                await asyncio.sleep(0.05 + 0.3 * self.random.random())
            if listener.done():
                listener.result()  # it could not come back
        except RuntimeError as error:
            self.crowd.stray(self, str(error))
        finally:
            if listener:
                listener.cancel()
            if self.ws is not None:
                self.ws.close()
                self.ws = None


class Crowd:
    """All sessions on one thread; `begun`, `ended` and `stray` keep what happened."""

    def __init__(self, fleet, questions, sessions, talking, lead_ms=0):
        """@param lead_ms  of sound that clients want to be ahead of their loudspeakers; 0: all as it comes"""
        self.lead_ms = lead_ms
        self.fleet, self.questions, self.gate = fleet, questions, asyncio.Semaphore(talking)
        self.talking, self.wanted = talking, sessions
        self.turns, self.strays, self.stopping, self.closing = [], [], False, None
        self.sessions, self.tasks, self.late, self.history = [], [], 0.0, History()
        self.came_again = []  # (when, how many seconds behind the loss of its socket) of sessions whose gateway died
        self.resumed, self.known, self.looking = 0, {}, None  # of them as the session that it was; gateways and their ports
        self.not_kept = []  # sessions that were lost, and might be

    def ports(self):
        """Of gateways as they were last seen: a client has a list of addresses."""
        return self.known

    async def look(self):
        """Where gateways are now; who comes while somebody looks gets the same answer."""
        async def all_of_them():
            try:
                self.known = await asyncio.to_thread(self.fleet.gateways)
            finally:
                self.looking = None
        if self.looking is None:
            self.looking = asyncio.create_task(all_of_them())
        await asyncio.shield(self.looking)
        return self.known

    def begun(self, turn):
        self.turns.append(turn)

    def ended(self, turn):
        pass

    def settle(self):
        """Of a run that is over: what was heard of questions whose socket was lost before that was told. Each that is always understood where no socket is lost is
        understood across two as well: nothing of the voice was lost or came twice. Tells how many there were. -> problems"""
        turns = [t for t in self.turns if t.event.get("type") == "turn"]
        resumed, calm = [t for t in turns if t.resumed], [t for t in turns if not t.resumed]
        understood, misheard = ({t.said for t in calm if (t.event["user"] == t.said) == right} for right in (True, False))
        asked = [t for t in resumed if t.lost_unheard]
        wrong = [t for t in asked if t.event["user"] != t.said]
        judged = [t for t in wrong if t.said in understood - misheard]
        if resumed:
            print(f"  resumed: {len(resumed)} turns, of which {len(asked)} had not been told what was heard; of these {len(asked) - len(wrong)} were understood, {len(judged)} were not, "
                  f"{len(wrong) - len(judged)} are left out (such a question is misheard without a loss, too, or was not asked without one)", flush=True)
        return [f"session {t.session} at {t.gateway}: a resumed turn heard {t.event['user']!r} for {t.said!r}" for t in judged]

    def stray(self, session, text):
        self.strays.append((time.monotonic(), f"session {session.number} at {session.gateway}: {text}"))

    def may_close(self, session):
        """Sockets of a gateway that is killed are closed; no others."""
        return self.stopping or session.gateway == self.closing

    def may_lose(self, session):
        """Sessions whose gateway was killed are kept for their clients."""
        return False

    def under_way(self):
        return [t for t in self.turns if t.end is None]

    async def tick(self):
        """20 ms of everybody's microphone; a tick that came late is made up for, as by a sound card."""
        due = time.monotonic()
        while True:
            due += 0.02
            late = time.monotonic() - due
            self.late = max(self.late, late)
            if late < 0:
                await asyncio.sleep(-late)
            for session in self.sessions:
                session.tick()
            if late > 0:
                await asyncio.sleep(0)

    async def start(self):
        self.stopping = False
        names = sorted(await self.look())
        self.sessions = [Session(self, n, names[n % len(names)]) for n in range(self.wanted)]
        self.tasks = [asyncio.create_task(s.run()) for s in self.sessions] + [asyncio.create_task(self.tick())]

    async def wait_talking(self, seconds=40):
        """Until as many talk as may."""
        until = time.monotonic() + seconds
        while len(self.under_way()) < min(self.talking, self.wanted) and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def wait_for(self, seconds, does):
        """Until somebody does that. -> the gateway's name, or None"""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for session in self.sessions:
                if session.turn and session.turn.end is None and does(session):
                    return session.gateway
            await asyncio.sleep(0.02)
        return None

    async def wait_hearing(self, seconds=20):
        """Until somebody hears an answer."""
        return await self.wait_for(seconds, lambda s: s.turn.audio)

    async def wait_asking(self, seconds=20):
        """Until somebody is in the middle of a question."""
        return await self.wait_for(seconds, lambda s: s.frames and s.frames_all / 3 < len(s.frames) < 2 * s.frames_all / 3)

    async def wait_ended(self, turns):
        for turn in turns:
            await asyncio.wait([turn.done], timeout=TURN_SECONDS_MAX + 5)
        await asyncio.sleep(0.05)

    async def wait_turns_since(self, start, count, seconds=60):
        """Until so many sessions have begun and ended a turn since then."""
        until = time.monotonic() + seconds
        while len({t.session for t in self.turns if t.start >= start and t.end is not None}) < count and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def stop(self):
        """Turns under way are heard to their end, then all sockets close."""
        self.stopping = True
        await asyncio.gather(*self.tasks[:-1])
        if self.tasks[-1].done():
            self.tasks[-1].result()  # the microphones have failed, and nobody was heard since
        self.tasks[-1].cancel()
        self.sessions = []
