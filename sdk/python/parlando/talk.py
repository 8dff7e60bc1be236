"""One conversation, without sockets, threads or waiting: what the user of the package says goes in, events come out. It finds itself a
gateway, and another one when that is lost. `sync` and `aio` give it a face."""
from __future__ import annotations

import itertools
import json
import random
import re
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Collection, Deque, Dict, List, Optional, Protocol

import numpy as np

from . import wire
from .errors import ParlandoError
from .events import AnyEvent, Event, Metrics, Sound
from .link import Link
from .wire import Key, Message

INPUT_RATE = 16000
MESSAGE_SAMPLES = 1600  # of sound in one message at most: 100 ms
KEPT_SAMPLES = 60 * INPUT_RATE  # of sound that is said again after a resume
UNSENT_SAMPLES = 20 * INPUT_RATE  # of sound that waits for the gateway; then `overloaded`
KEPT_EVENTS = 512
KEPT_EVENT_BYTES = 1 << 20
ASKS = ("text", "flush", "respond", "utter")
AGAIN, AGAIN_MAX = 0.05, 0.4  # pauses behind attempts that have failed: the first, and what they double up to
SERVED = 5.0  # behind `opened`: a gateway has served, also when there was nothing to tell
OPEN_WAIT = 10.0  # an `open` or `resume` that is not answered is given up


class Place(Protocol):
    """A gateway, as conversations see it."""
    link: Link


class Finder(Protocol):
    """The client, as conversations see it."""
    def find(self, but: Optional[Place], nor: Collection[Place] = ()) -> Optional[Place]: ...
    def standing(self) -> int: ...
    def wake(self) -> None: ...


@dataclass
class _Input:
    position: int  # samples before it
    fields: Optional[Dict[str, Any]] = None
    pcm: bytes = b""
    sent: bool = False
    bytes: int = 0  # of `fields`

    @property
    def samples(self) -> int:
        return len(self.pcm) // 2

    @property
    def type(self) -> str:
        return str(self.fields["type"]) if self.fields is not None else ""


@dataclass
class _Told:
    event: AnyEvent
    link: Optional[Link]
    key: Optional[Key]


class Talk:
    """@param reconnect  seconds that a session may be without a gateway before it is given up"""

    def __init__(self, finder: Finder, opening: Dict[str, Any], reconnect: float, now: float) -> None:
        self._finder = finder
        self._opening = opening  # open, or the user's own resume
        self._reconnect = reconnect
        self._state = "placing"  # placing, asking, open, ended
        self._resumes = opening["type"] == "resume"
        self._place: Optional[Place] = None
        self._avoid: Optional[Place] = None
        self._key: Key = (0, 0, 0)
        self._not_before = self._opened_at = now
        self._failures = 0  # attempts in a row, from the loss of a gateway that has served
        self._was_served = False  # by this gateway: it has told something behind `opened`
        self._refusers: List[Place] = []
        self._refusal: Optional[ParlandoError] = None
        self._answer: Optional[ParlandoError] = None  # the last one for which it looks elsewhere, or asks again
        self._ask_by = 0.0
        self._lost_at = now
        self._failure: Optional[ParlandoError] = None
        self.opened: Optional[Dict[str, Any]] = None
        self.session, self._token, self._session_token = "", "", ""
        self.rate = 0
        self.metrics = Metrics()
        self._had: Dict[str, int] = {}  # of the turn whose end was not told yet: what `resume` claims
        self._noted_turn = 0  # the last number that an utterance has which was noted
        self._log: Deque[_Input] = deque()  # what was sent, then what was not
        self._log_samples = self._log_bytes = self._log_events = 0
        self._unsent = self._unsent_samples = self._unsent_events = self._unsent_bytes = 0  # inputs, the last of the log; of sound; of messages
        self._came_turn = 0  # up to this one, what asked for turns has left the log
        self._position = 0  # samples of the user's, as the gateway counts them
        self._swallow_no_speech = False
        self._told: Deque[_Told] = deque()
        self._asked_at: Optional[float] = None
        self._first: Dict[str, bool] = {}
        self.on_told: Optional[Callable[[], None]] = None
        if self._resumes:
            self.session, self._token = opening["session"], opening["token"]
            self._had = {k: opening[k] for k in ("turn", "samples", "transcript_bytes", "reply_bytes", "tool_calls") if k in opening}

    # ---- what is known

    @property
    def is_open(self) -> bool:
        return self._state == "open"

    @property
    def is_ended(self) -> bool:
        return self._state == "ended"

    @property
    def failure(self) -> Optional[ParlandoError]:
        """Why it has ended, when nobody here wanted it."""
        return self._failure

    def resume_token(self) -> Dict[str, Any]:
        """What another program needs to go on with this session (`Client.resume`). A token counts once."""
        return {"session": self.session, "token": self._token, **self._had}

    def session_token(self) -> Dict[str, Any]:
        """What opens this session again for as long as it is stored, or erases it. @raise ParlandoError unsupported: its gateway gives none"""
        if not self._session_token:
            raise ParlandoError("unsupported", "the gateway has given no token of the session")
        return {"session": self.session, "token": self._session_token}

    # ---- what the user says

    def say(self, fields: Dict[str, Any], now: float) -> None:
        """@raise ParlandoError overloaded: later; cancelled: it has ended; invalid_argument: too large"""
        self._must_go_on()
        size = len(json.dumps(fields, ensure_ascii=False).encode())
        if size > wire.EVENT_BYTES_MAX:
            raise ParlandoError("invalid_argument", f"a message of {size} bytes, at most {wire.EVENT_BYTES_MAX} are sent")
        self._offer(_Input(self._position, fields=fields, bytes=size))
        if fields["type"] in ASKS:
            self._ask(now)

    def hear(self, pcm: bytes) -> None:
        """s16le at 16 kHz, at most MESSAGE_SAMPLES. @raise ParlandoError as `say`; then nothing of it was taken"""
        self._must_go_on()
        self._offer(_Input(self._position, pcm=pcm))
        self.metrics.sound_sent_seconds += len(pcm) / 2 / INPUT_RATE

    def unsent_samples(self) -> int:
        waiting = self._place.link.waiting_bytes(self._key) // 2 if self._place is not None else 0
        return waiting + self._unsent_samples

    def has_room(self) -> bool:
        """For another piece of sound."""
        return self.unsent_samples() < UNSENT_SAMPLES

    def close(self, detached: bool) -> None:
        if self._state == "ended":
            return
        self._leave(detached)
        self._state = "ended"
        self._notify()

    def _must_go_on(self) -> None:
        if self._state == "ended":
            raise self._failure or ParlandoError("cancelled", "the conversation is closed")

    def _ask(self, now: float) -> None:
        self._asked_at = now
        self._first = {}

    def _offer(self, given: _Input) -> None:
        """What is said while others still wait stands behind them: without a gateway, or behind what is said again."""
        self._say_unsent()
        if given.fields is None and not self.has_room():
            raise ParlandoError("overloaded", f"{self.unsent_samples()} samples wait for the gateway, at most {UNSENT_SAMPLES} are kept", 100)
        if self._state == "open" and not self._unsent:
            self._send(given)
        elif given.fields is not None and (self._unsent_events >= KEPT_EVENTS or self._unsent_bytes + given.bytes > KEPT_EVENT_BYTES):
            raise ParlandoError("overloaded", f"{self._unsent_events} messages of {self._unsent_bytes} bytes wait for a gateway, "
                                f"at most {KEPT_EVENTS} of {KEPT_EVENT_BYTES} are kept", 100)
        self._keep(given)
        # What was sent, the oldest first. Never what was not: of sound less is taken than is kept, and of messages no more.
        while self._log_samples > KEPT_SAMPLES:
            self._drop(0)
        while self._log_events > KEPT_EVENTS or self._log_bytes > KEPT_EVENT_BYTES:
            self._drop(next(n for n, i in enumerate(self._log) if i.fields is not None))
        self._finder.wake()

    def _keep(self, given: _Input) -> None:
        self._log.append(given)
        self._position += given.samples
        self._log_samples += given.samples
        self._log_bytes += given.bytes
        self._log_events += given.fields is not None
        if not given.sent:
            self._count_unsent(given, 1)

    def _count_unsent(self, given: _Input, sign: int) -> None:
        self._unsent += sign
        self._unsent_samples += sign * given.samples
        self._unsent_events += sign * (given.fields is not None)
        self._unsent_bytes += sign * given.bytes

    def _say_unsent(self) -> None:
        """In order, as far as the link has room; the rest at the next tick. A link that takes nothing because it is gone says so itself."""
        while self._state == "open" and self._unsent:
            given = self._log[-self._unsent]
            try:
                self._send(given)
            except ParlandoError:
                return
            self._count_unsent(given, -1)

    def _drop(self, n: int) -> None:
        self._log_samples -= self._log[n].samples
        self._log_bytes -= self._log[n].bytes
        self._log_events -= self._log[n].fields is not None
        del self._log[n]

    def _drop_through(self, n: int) -> None:
        for _ in range(n + 1):
            self._drop(0)

    def _send(self, given: _Input) -> None:
        assert self._place is not None
        m = wire.event(given.fields) if given.fields is not None else wire.audio(given.position, given.pcm)
        m.session, m.stream = (self._key[0], self._key[1]), self._key[2]
        self._place.link.send(m)
        given.sent = True

    # ---- finding a gateway

    def on_tick(self, now: float) -> None:
        if self._state in ("placing", "asking") and now - self._lost_at > self._reconnect:
            return self._give_up()
        if self._state == "asking" and now >= self._ask_by:
            self._lost(now, self._place)
        if self._state == "open" and self._place is not None and self._place.link.is_suspect:
            # It may wake, and then it reads that we have gone; meanwhile another one goes on.
            if self._finder.find(self._place) is not None:
                self._lost(now, self._place)
        if self._state == "placing" and now >= self._not_before:
            self._look_for_place(now)
        self._say_unsent()

    def _look_for_place(self, now: float) -> None:
        place = self._finder.find(self._avoid, self._refusers) or (self._finder.find(None, self._refusers) if self._avoid is not None else None)
        if place is None:
            if self._is_new() and self._finder.standing() > 0:
                self._fail(self._refusal or ParlandoError("overloaded", "no gateway takes another conversation", 1000))
            return
        self._place = place
        self._key = (random.getrandbits(64), random.getrandbits(64), 1)
        self._state = "asking"
        self._was_served = False
        self._say_again(now)

    def _say_again(self, now: float) -> None:
        assert self._place is not None
        self._ask_by = now + OPEN_WAIT
        fields = dict(self._opening)
        if self._resumes:
            fields = {"type": "resume", "session": self.session, "token": self._token, **self._had}
            if "lead_ms" in self._opening:
                fields["lead_ms"] = self._opening["lead_ms"]
        m = wire.event(fields)
        m.session, m.stream = (self._key[0], self._key[1]), self._key[2]
        try:
            self._place.link.send(m)
        except ParlandoError:
            self._lost(now, self._place)  # it is full
        self._finder.wake()

    def _give_up(self) -> None:
        """Whether gateways were not there, full, silent, or did not have it."""
        message = f"no gateway has taken the conversation for {self._reconnect:g} s"
        if self._answer is not None:
            message += f"; the last answer was {self._answer}"
        self._fail(ParlandoError("unavailable", message, 1000))

    def _leave(self, detached: bool) -> None:
        if self._place is not None:
            m = wire.close(detached)
            m.session, m.stream = (self._key[0], self._key[1]), self._key[2]
            try:
                self._place.link.send(m)
            except ParlandoError:
                pass  # the link is gone, and the stream with it
            self._finder.wake()
        self._place = None

    def _lost(self, now: float, avoid: Optional[Place], wait: float = 0.0) -> None:
        """This gateway does not go on with it; another one, or the same one anew, may. Behind one that has served the next is asked at once; behind
        every attempt that has failed since, later. @param wait  as the gateway says, at least"""
        was_open = self._state == "open"
        if was_open and (self._was_served or now - self._opened_at >= SERVED):
            self._failures = 0
        if not was_open:
            self._failures = max(self._failures, 1)
        wait = max(wait, self._pause())
        self._failures += 1
        self._leave(detached=was_open or self._resumes)  # a session that nobody has a token of is not to wait
        if was_open:
            self._lost_at = now
            self._resumes = True
        self._avoid = avoid
        self._state = "placing"
        self._not_before = now + wait

    def _pause(self) -> float:
        """At random within the upper half: many that lost the same gateway spread out."""
        if self._failures == 0:
            return 0.0
        return min(AGAIN_MAX, AGAIN * 2 ** min(self._failures - 1, 8)) * random.uniform(0.5, 1)

    def _fail(self, error: ParlandoError) -> None:
        self._leave(detached=False)
        self._failure = error
        self._state = "ended"
        self.metrics.errors += 1
        self._tell(Event("error", {"type": "error", "code": error.code, "message": error.message, "session_ended": True}), None)

    def on_link_down(self, place: Place, now: float) -> None:
        if self._place is place and self._state in ("asking", "open"):
            self._lost(now, None)

    # ---- what the gateway says

    def owns(self, key: Key) -> bool:
        return self._place is not None and key == self._key

    def on_message(self, m: Message, now: float) -> None:
        """What makes no sense ends this conversation and no other."""
        try:
            self._on_message(m, now)
        except (AttributeError, KeyError, TypeError, ValueError, struct.error) as e:
            self._fail(ParlandoError("bad_format", f"the gateway said something that makes no sense: {type(e).__name__}: {e}"))

    def _on_message(self, m: Message, now: float) -> None:
        assert self._place is not None
        link = self._place.link
        if m.type == wire.SPEECH:
            return self._on_sound(m, now)
        fields = m.fields() if m.type == wire.ERROR else json.loads(m.payload)
        if m.type == wire.ERROR:
            link.handled(m.key)
            return self._on_stream_ended(fields, now)
        if self._state == "asking" and fields.get("type") in ("opened", "error"):
            link.handled(m.key)
            return self._on_answer(fields, now)
        self._on_event(fields, now)

    def _on_stream_ended(self, fields: Dict[str, Any], now: float) -> None:
        error = ParlandoError(str(fields.get("code", "internal")), str(fields.get("message", "")), int(fields.get("retry_ms", 0)))
        if self._is_refused(error, now):
            return
        elsewhere = error.code in ("unavailable", "credit_exceeded") or (self._state == "asking" and error.code == "overloaded")
        if not elsewhere:
            return self._fail(error)
        self._lost(now, self._place, error.retry_ms / 1e3)
        self._answer = error

    def _is_new(self) -> bool:
        return self.opened is None and not self._resumes

    def _is_refused(self, error: ParlandoError, now: float) -> bool:
        """A conversation that never stood is not waited for: the next gateway is asked at once, each once, and its client decides when to come again."""
        if not self._is_new() or error.code != "overloaded" or self._place is None:
            return False
        self._refusers.append(self._place)
        self._refusal = error
        self._lost(now, None)
        self._look_for_place(now)
        return True

    def _on_answer(self, fields: Dict[str, Any], now: float) -> None:
        if fields["type"] == "opened":
            return self._on_opened(fields, now)
        error = ParlandoError(str(fields.get("code", "internal")), str(fields.get("message", "")), int(fields.get("retry_ms", 0)))
        if self._is_refused(error, now):
            return
        # Until its death is noticed, the former gateway still has the session.
        later = error.code in ("unavailable", "overloaded", "not_ready") or (error.code == "not_found" and self.opened is not None)
        if not later:
            return self._fail(error)
        self._lost(now, None, error.retry_ms / 1e3)
        self._answer = error

    def _on_opened(self, fields: Dict[str, Any], now: float) -> None:
        first = self.opened is None
        self.opened = fields
        self.session, self._token, self.rate = fields["session"], fields["resume_token"], int(fields["rate"])
        self._session_token = fields.get("session_token", self._session_token)
        self._state = "open"
        self._opened_at = now
        self._avoid = self._answer = None
        resumed = bool(fields.get("resumed"))
        under_way = int(fields.get("turn", 0))
        claimed = self._had.get("turn", 0) if resumed else 0
        if not claimed or under_way != claimed:  # else that one is under way, from there
            self._nothing_of(under_way or claimed or int(fields["turns"]) + 1)
        if resumed and not first:
            self.metrics.resumed += 1
        if first and not self._log:
            self._position = int(fields.get("input_samples", 0))
        self._repeat(fields)
        self._tell(Event("opened" if first else "resumed", fields), None)

    def _repeat(self, fields: Dict[str, Any]) -> None:
        """Says what the gateway has not heard: all that was not sent, sound behind `input_samples`, messages that were said behind that sound.
        Of messages at that very place it is known only whether a turn has come of them; it may be that of one in front of a `cancel`, which is said
        again, and so is what stands behind it."""
        arrived = int(fields.get("input_samples", 0))
        came = "turn" in fields or int(fields.get("turns", 0)) >= self._had["turn"]
        inputs, self._log = list(self._log), deque()
        last_ask = -1
        for n, given in enumerate(inputs if came else []):
            if not given.sent or given.position != arrived:
                continue
            if given.type == "cancel":
                break
            if given.type in ASKS:
                last_ask = n
        self._came_turn = int(fields.get("turn", fields.get("turns", 0))) if came else 0
        self._log_samples = self._log_bytes = self._log_events = 0
        self._unsent = self._unsent_samples = self._unsent_events = self._unsent_bytes = 0
        self._position = arrived
        for n, given in enumerate(inputs):
            end = given.position + given.samples
            if given.fields is None:
                if given.sent and end <= arrived:
                    continue
                if given.sent and given.position < arrived:
                    given.pcm = given.pcm[2 * (arrived - given.position):]
            elif given.sent and given.position < arrived:
                continue
            elif given.sent and given.position == arrived and n <= last_ask:
                if given.fields["type"] != "flush":
                    continue
                self._swallow_no_speech = True  # the first one may have arrived
                self._came_turn = 0  # it is in the log
            self.metrics.said_again += given.sent
            given.position, given.sent = self._position, False
            self._keep(given)
        self._say_unsent()

    def _nothing_of(self, turn: int) -> None:
        self._had = {"turn": turn, "samples": 0, "transcript_bytes": 0, "reply_bytes": 0, "tool_calls": 0}

    def _first_sent(self, types: Collection[str]) -> Optional[int]:
        sent = itertools.islice(self._log, len(self._log) - self._unsent)
        return next((n for n, i in enumerate(sent) if i.type in types), None)

    def _forget_ask(self, turn: int, is_noted: bool = False) -> None:
        """A turn is over: what asked for it, and what was said before that, is not said again. What was not sent has asked for nothing yet; and
        what asked for a turn that had come when the session was resumed is not in the log.
        @param turn  0: it is not known which @param is_noted  an utterance, which nothing but `flush` asks for"""
        if 0 < turn <= self._came_turn:
            if turn == self._came_turn:
                self._came_turn = 0  # a number may come again behind `cancelled`
            return
        # A `cancel` is not answered yet; inputs are answered in order, so what stands behind it is not, either.
        n = self._first_sent((*ASKS, "cancel"))
        if n is not None and self._log[n].type in (("flush",) if is_noted else ASKS):
            self._drop_through(n)

    def _forget_cancelled(self, turn: int) -> None:
        """Answers a `cancel`, and then all that was said before it is over, but for what had asked for another turn than the one that it names. Without
        one the engine has dropped the turn of its own accord."""
        was_over = 0 < turn < self._had["turn"]
        n = self._first_sent(("cancel",))
        if n is None:
            if not was_over:
                self._forget_ask(turn)
            return
        if was_over and (self._log[n].fields or {}).get("turn"):
            self._drop(n)
        else:
            self._drop_through(n)
        if turn == self._came_turn:
            self._came_turn = 0

    def _no_more_of(self, turn: int) -> None:
        """It was cancelled or has failed: its number may come again. Of one that was over before nothing was to come."""
        if turn == 0 or turn >= self._had["turn"]:
            self._nothing_of(max(turn, self._had["turn"]))

    def _on_turn(self, fields: Dict[str, Any], now: float) -> None:
        turn = int(fields["turn"])
        self._note("turn", self.metrics.whole_turn, now)
        self.metrics.turns += 1
        self._forget_ask(turn)
        self._swallow_no_speech = False
        is_forgotten = fields.get("remembered") is False  # its number is used again
        if not is_forgotten and turn <= self._noted_turn and turn < self._had["turn"]:
            self._noted_turn = 0  # the note was lost with its controller, and its number used again
        self._nothing_of(max(turn if is_forgotten else turn + 1, self._noted_turn + 1))

    def _on_noted(self, fields: Dict[str, Any]) -> None:
        """An utterance has the number of a turn, which stands in its name: utterance_<turn>_<sample>. It is told at once, also while a turn before it
        is still heard, whose end is then to come."""
        had = self._had
        named = re.match(r"utterance_(\d+)", str(fields.get("id", "")))
        turn = int(named[1]) if named else had["turn"]
        self._forget_ask(turn, is_noted=True)
        self._noted_turn = max(self._noted_turn, turn)
        has_some = any(n for name, n in had.items() if name != "turn")
        if had["turn"] == turn or (had["turn"] < turn and not has_some):
            self._nothing_of(turn + 1)

    def _reach(self, turn: int) -> bool:
        """Something of this turn is told. Numbers that no turn has are passed over (items that are stored on their own); a number comes again when the
        turn was lost with its controller. @return whether it counts for what is claimed"""
        if 0 < turn <= self._noted_turn:
            return turn == self._had["turn"]  # its text may come behind `noted`
        if turn and turn != self._had["turn"]:
            self._nothing_of(turn)
        return True

    def _note(self, kind: str, latency: Any, now: float) -> None:
        if self._asked_at is not None and not self._first.get(kind):
            self._first[kind] = True
            latency.add(now - self._asked_at)

    def _on_event(self, fields: Dict[str, Any], now: float) -> None:
        assert self._place is not None
        link, kind = self._place.link, str(fields.get("type", ""))
        self._was_served = self._was_served or kind != "error"
        if kind == "text":
            if not self._reach(int(fields.get("turn", 0))):
                pass
            elif fields["kind"] == "tool_call":
                self._had["tool_calls"] += 1
            else:
                name = "reply_bytes" if fields["kind"] == "text" else "transcript_bytes"
                self._had[name] += len(fields["text"].encode())
            if fields["kind"] == "text":
                self._note("text", self.metrics.first_text, now)
        elif kind == "turn":
            self._on_turn(fields, now)
        elif kind == "noted":
            self._on_noted(fields)
        elif kind == "cancelled":
            self._forget_cancelled(int(fields.get("turn", 0)))
            self._no_more_of(int(fields.get("turn", 0)))
        elif kind == "speech_ended" and self._asked_at is None:
            self._ask(now)
        elif kind == "speech_started":
            self._asked_at = None
        elif kind == "erased":
            link.handled(self._key)
            self._leave(detached=False)
            self._state = "ended"
            return self._tell(Event(kind, fields), None)
        elif kind == "error":
            if fields.get("code") == "no_speech" and self._swallow_no_speech:
                self._swallow_no_speech = False
                link.handled(self._key)
                return
            self.metrics.errors += 1
            if fields.get("session_ended"):
                self._failure = ParlandoError(str(fields.get("code")), str(fields.get("message", "")), int(fields.get("retry_ms", 0)))
                link.handled(self._key)
                self._leave(detached=False)
                self._state = "ended"
                self._tell(Event(kind, fields), None)
                return
            self._forget_ask(int(fields.get("turn") or 0))
            if fields.get("turn"):
                self._no_more_of(int(fields["turn"]))
        self._tell(Event(kind, fields), link)

    def _on_sound(self, m: Message, now: float) -> None:
        assert self._place is not None
        speech = wire.Speech.read(m)
        self._was_served = True
        samples = np.frombuffer(speech.pcm, "<i2").astype(np.int16, copy=False)
        if self._had.get("turn", 0) < m.turn:
            self._reach(m.turn)
        first = self._had.get("samples", 0) if m.turn == self._had.get("turn") else speech.first_sample
        if m.turn == self._had.get("turn"):
            self._had["samples"] += len(samples)
        self._note("sound", self.metrics.first_sound, now)
        self.metrics.sound_received_seconds += len(samples) / speech.rate
        self._tell(Sound(m.turn, first, speech.rate, samples), self._place.link)

    # ---- what the user is told

    def _tell(self, event: AnyEvent, link: Optional[Link]) -> None:
        self._told.append(_Told(event, link, self._key if link is not None else None))
        self._notify()

    def _notify(self) -> None:
        if self.on_told is not None:
            self.on_told()

    def take(self) -> Optional[AnyEvent]:
        """The next event. Until it is taken, its place in the window is not free: who takes nothing is sent nothing."""
        if not self._told:
            return None
        told = self._told.popleft()
        if told.link is not None and told.key is not None:
            told.link.handled(told.key)
            self._finder.wake()
        return told.event


def pcm_of(samples: Any) -> bytes:
    """bytes (s16le), int16 or float arrays in [-1, 1], mono at 16 kHz. @raise ParlandoError invalid_argument"""
    if isinstance(samples, (bytes, bytearray, memoryview)):
        data = bytes(samples)
        if len(data) % 2:
            raise ParlandoError("invalid_argument", f"{len(data)} bytes of sound, expected an even number")
        return data
    array = np.asarray(samples)
    if array.ndim != 1:
        raise ParlandoError("invalid_argument", f"sound of {array.ndim} dimensions, expected [samples]")
    if array.dtype.kind == "f":
        if not np.all(np.isfinite(array)):
            raise ParlandoError("invalid_argument", "sound with values that are no finite numbers")
        return bytes(np.clip(np.rint(array * 32767.0), -32768, 32767).astype("<i2").tobytes())
    if array.dtype != np.int16:
        raise ParlandoError("invalid_argument", f"sound of {array.dtype}, expected int16, float or bytes")
    return bytes(array.astype("<i2").tobytes())
