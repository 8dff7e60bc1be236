"""The caller's end of a link: docs/protocol.md, "Link". A plain class of frames and time: no sockets, no clock, no threads.

Numbered messages arrive once and in order. What the gateway has not received is kept and said again after a resumed connection.
Every stream has credit: a sender is at most a window ahead of what the other end has handled.
"""
from __future__ import annotations

import random
import struct
from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, List, Optional, Union

from . import wire
from .errors import ParlandoError
from .wire import Key, Message

HEARTBEAT = 0.1
SILENCE_MAX = 0.35
RESUME = 30.0
RECONNECT = 1.0
PUT_OFF = 0.5
HELLO_AGAIN = 0.05
TICK = 0.02
WINDOW_MESSAGES = 256
STREAM_BYTES_MAX = 2 << 20
LINK_BYTES_MAX = 16 << 20
ACK_BYTES = 256 << 10
SESSION_ROLE = "gateway"


@dataclass
class LinkUp:
    """Linked, anew (`fresh`) or again."""
    fresh: bool


@dataclass
class LinkSuspect:
    """Silent; what was said is kept, and all goes on where it was when it wakes."""


@dataclass
class LinkDown:
    """Gone, and all streams with it."""


LinkEvent = Union[LinkUp, LinkSuspect, LinkDown, Message]


@dataclass
class LinkCounters:
    sent: int = 0
    resent: int = 0
    received: int = 0
    duplicates: int = 0
    gaps: int = 0
    malformed: int = 0
    resumed: int = 0
    resets: int = 0
    resyncs: int = 0
    refusals: int = 0
    reconnects: int = 0


class _Stream:
    __slots__ = ("sent", "limit", "arrived", "handled", "told", "waiting", "waiting_bytes", "closed", "moved")

    def __init__(self, limit: int) -> None:
        self.sent, self.limit = 0, limit
        self.arrived, self.handled, self.told = 0, 0, WINDOW_MESSAGES
        self.waiting: Deque[Message] = deque()  # for credit
        self.waiting_bytes = 0
        self.closed = False  # our close is numbered
        self.moved = False


class Link:
    """@param instance  our name, unique per process start"""

    def __init__(self, instance: str, role: str, now: float, randomness: Optional[random.Random] = None) -> None:
        self.instance, self.role = instance, role
        self._random = randomness or random.SystemRandom()
        self.counters = LinkCounters()
        self.peer: Optional[str] = None  # the gateway's instance, while there is a link
        self.ready, self.draining, self.slots = False, False, 0
        self.refusal: Optional[ParlandoError] = None  # why the last HELLO was not taken
        self._call = self._random.getrandbits(64)
        self._attempt = self._first_attempt = 0
        self._out: Deque[List[bytes]] = deque()
        self.events: Deque[LinkEvent] = deque()
        self.reconnect_wanted = False
        self._reconnect_at = now + RECONNECT
        self._next_beat = now
        self._last_tick = now
        self._hello_at = self._said_hello = self._next_window = 0.0
        self._asked = now - HELLO_AGAIN
        self._linked = self._awaiting = self._missing = False
        self._forget()
        self._hello(now)

    # ---- states

    def _forget(self) -> None:
        self.peer = None
        self._incarnation = self._random.getrandbits(64)
        self._version = wire.VERSION
        self._window = WINDOW_MESSAGES
        self._streams: Dict[Key, _Stream] = {}
        self._kept: Deque[Message] = deque()  # numbered, from the first one that has not been received
        self._next = 0  # place in `_kept` of the next to leave
        self._numbered = self._highest = self._received = self._told = 0
        self._bytes = self._unacknowledged = 0
        self._moved: List[Key] = []
        self._suspect_since: Optional[float] = None
        self._heard = 0.0
        self._linked = self._awaiting = self._missing = False
        self._first_attempt = self._attempt + 1

    def _reset(self) -> None:
        had = self.peer is not None
        self._forget()
        if had:
            self.counters.resets += 1
            self.events.append(LinkDown())

    @property
    def is_up(self) -> bool:
        return self.peer is not None and self._linked and self._suspect_since is None

    @property
    def is_suspect(self) -> bool:
        return self.peer is not None and self._suspect_since is not None

    def waiting_bytes(self, key: Key) -> int:
        """What has not left on a stream for want of credit."""
        stream = self._streams.get(key)
        return stream.waiting_bytes if stream else 0

    def kept(self) -> int:
        """Messages that the gateway has not confirmed."""
        return len(self._kept)

    # ---- connection

    def reconnected(self, now: float) -> None:
        """The connection was made anew."""
        self.counters.reconnects += 1
        self._out.clear()
        self._hello_at = 0.0
        self._hello(now)

    def _hello(self, now: float, again: bool = False) -> None:
        self._linked = False
        self._awaiting = True
        self._said_hello = now
        self._attempt += 1
        if not again:
            self._first_attempt = self._attempt
        self._say(wire.json_message(wire.HELLO, {
            "role": self.role, "instance": self.instance, "version_min": wire.VERSION_MIN, "version_max": wire.VERSION,
            "incarnation": self._incarnation, "call": self._call, "attempt": self._attempt, "answer": False, "fresh": self.peer is None,
            "received": self._received, "window_messages": WINDOW_MESSAGES, "ready": True, "draining": False, "slots": 1}))

    def _say(self, m: Message) -> None:
        self._out.append(wire.encode(m, wire.VERSION_MIN))

    def _lost_something(self, now: float) -> None:
        self._missing = True
        if now - self._asked < HELLO_AGAIN:
            return
        self._asked = now
        self.counters.resyncs += 1
        self._hello(now)

    # ---- sending

    def send(self, m: Message) -> None:
        """Taken means it arrives, unless the link is reset. @raise ParlandoError overloaded, unavailable, cancelled"""
        if self.peer is None:
            raise ParlandoError("unavailable", "no gateway is linked", 100)
        stream = self._streams.get(m.key)
        if m.type == wire.CLOSE:
            if stream is None or stream.closed:
                return
            self._bytes -= stream.waiting_bytes
            stream.waiting.clear()
            stream.waiting_bytes = 0
            stream.closed = True
            self._bytes += m.size()
            self._number(stream, m)
            return
        if stream is not None and stream.closed:
            raise ParlandoError("cancelled", "the stream has ended")
        if self._bytes + m.size() > LINK_BYTES_MAX:
            raise ParlandoError("overloaded", f"{self._bytes} bytes wait on the link, at most {LINK_BYTES_MAX} are kept", 100)
        if stream is None:
            stream = self._streams[m.key] = _Stream(self._window)
        if stream.sent < stream.limit:
            self._bytes += m.size()
            self._number(stream, m)
            return
        if stream.waiting_bytes + m.size() > STREAM_BYTES_MAX:
            raise ParlandoError("overloaded", f"{stream.waiting_bytes} bytes wait for the gateway, at most {STREAM_BYTES_MAX} are kept", 100)
        self._bytes += m.size()
        stream.waiting_bytes += m.size()
        stream.waiting.append(m)

    def _number(self, stream: _Stream, m: Message) -> None:
        stream.sent += 1
        self._numbered += 1
        m.sequence = self._numbered
        self._kept.append(m)

    def handled(self, key: Key) -> None:
        """A message that was delivered has been worked on: its place in the window is free."""
        stream = self._streams.get(key)
        if stream is None or stream.handled >= stream.arrived:
            return
        stream.handled += 1
        if not stream.moved:
            stream.moved = True
            self._moved.append(key)

    def next_frames(self, now: float) -> Optional[List[bytes]]:
        """What is to leave next, and is not asked for again by itself."""
        if self._out:
            return self._out.popleft()
        if self.peer is None or not self._linked:
            return None
        urgent = self._unacknowledged > ACK_BYTES or any(
            self._streams[k].handled + WINDOW_MESSAGES >= self._streams[k].told + WINDOW_MESSAGES // 2 for k in self._moved if k in self._streams)
        if (self._received != self._told or self._moved) and (urgent or now >= self._next_window):
            return self._window_frames(now)
        if self._next >= len(self._kept):
            return None
        together: List[Message] = []
        size = 0
        while self._next < len(self._kept) and len(together) < wire.BATCH_MESSAGES_MAX:
            m = self._kept[self._next]
            size += m.size()
            if together and size > wire.BATCH_BYTES_MAX:
                break
            together.append(m)
            self._next += 1
        for m in together:
            if m.sequence > self._highest:
                self.counters.sent += 1
                self._highest = m.sequence
            else:
                self.counters.resent += 1
        return wire.encode(together[0], self._version) if len(together) == 1 else wire.encode_batch(together, self._version)

    def _window_frames(self, now: float) -> List[bytes]:
        self._next_window = now + TICK
        limits = []
        for key in self._moved[:2000]:
            stream = self._streams.get(key)
            if stream is None:
                continue
            stream.moved = False
            stream.told = max(stream.told, stream.handled + WINDOW_MESSAGES)
            limits.append((key, stream.told))
        del self._moved[:2000]
        self._told = self._received
        self._unacknowledged = 0
        return wire.encode(wire.window(self._received, limits), self._version)

    # ---- receiving

    def receive(self, frames: List[bytes], now: float) -> None:
        self._reconnect_at = now + RECONNECT + self._random.random() / 4
        try:
            messages = wire.decode(frames)
        except wire.WireError:
            self.counters.malformed += 1
            if self._linked:
                self._lost_something(now)
            return
        first = messages[0]
        if wire.is_link_word(first.type):
            return self._word(first, now)
        if self.peer is None or not self._linked:
            return  # it comes again when both have agreed
        self._hear(now)
        for m in messages:
            if m.sequence <= self._received:
                self.counters.duplicates += 1
                continue
            if m.sequence != self._received + 1:
                self.counters.gaps += 1
                self._lost_something(now)
                return
            self._received = m.sequence
            self.counters.received += 1
            self._unacknowledged += m.size()
            self._arrived(m)

    def _arrived(self, m: Message) -> None:
        stream = self._streams.get(m.key)
        if stream is None:
            return
        if m.type == wire.CLOSE:  # the answer to ours
            del self._streams[m.key]
            return
        stream.arrived += 1
        if stream.closed or m.type not in (wire.EVENT, wire.SPEECH, wire.ERROR):
            self.handled(m.key)
            return
        if stream.arrived > stream.told + 1:  # an error may be one beyond
            self.handled(m.key)
            m = wire.json_message(wire.ERROR, {"code": "credit_exceeded", "message": "the gateway says more than it may"}, session=m.session, stream=m.stream)
            stream.arrived += 1
        self.events.append(m)

    def _word(self, m: Message, now: float) -> None:
        """What makes no sense is counted, and changes nothing."""
        try:
            self._take_word(m, now)
        except (ValueError, KeyError, TypeError, struct.error):
            self.counters.malformed += 1

    def _take_word(self, m: Message, now: float) -> None:
        if m.type == wire.HELLO:
            self._hello_answered(m.fields(), now)
        elif m.type == wire.HEARTBEAT_REPLY:
            if not self._linked:
                return
            reply = wire.HeartbeatReply.read(m.body)
            self.ready, self.draining, self.slots = reply.ready, reply.draining, reply.slots
            self._hear(now)
            if reply.sent > self._received:
                self._lost_something(now)
        elif m.type == wire.WINDOW:
            if self.peer is not None and self._linked:
                self._hear(now)
                self._on_window(m)
        elif m.type == wire.REFUSED:
            self.counters.refusals += 1
            try:
                told = m.fields()
                why = ParlandoError(str(told.get("code", "internal")), str(told.get("message", "")))
            except ValueError:
                why = ParlandoError("bad_frame", "the gateway refuses, and its reason cannot be read")
            if why.code == "not_ready":  # it does not know this connection (any more)
                if self._linked:
                    self._lost_something(now)
                return
            if self._linked:
                return self._lost_something(now)  # it could not read something
            self.refusal = why
            self._put_off(now)
        elif m.type == wire.RESYNC:
            if self._linked:
                self._lost_something(now)

    def _put_off(self, now: float) -> None:
        self._awaiting = False
        self._hello_at = now + PUT_OFF

    def _hello_answered(self, h: Dict[str, object], now: float) -> None:
        attempt = int(h.get("attempt", 0))  # type: ignore[call-overload]
        if not self._awaiting or not h.get("answer") or not self._first_attempt <= attempt <= self._attempt:
            return
        low, high = max(int(h.get("version_min", 0)), wire.VERSION_MIN), min(int(h.get("version_max", 0)), wire.VERSION)  # type: ignore[call-overload]
        peer, role = str(h["instance"]), str(h["role"])
        other = self.peer is not None and peer != self.peer
        if low > high or role != SESSION_ROLE:
            self.refusal = ParlandoError("bad_version", "the gateway speaks no version that we do") if low > high else ParlandoError(
                "invalid_argument", f"'{peer}' is a {role}, a {SESSION_ROLE} is wanted")
            if other:
                self._reset()
            return self._put_off(now)
        incarnation, received = int(h.get("incarnation", 0)), int(h.get("received", 0))  # type: ignore[call-overload]
        if other or incarnation != self._incarnation or (self.peer is not None and not self._resume(received)):
            had = self.peer is not None
            self._reset()
            if had:
                self._hello(now)
            return
        self.refusal = None
        fresh = self.peer is None
        if fresh:
            self.peer = peer
            self._version = high
            self._window = max(1, int(h.get("window_messages", WINDOW_MESSAGES)))  # type: ignore[call-overload]
        self.ready, self.draining, self.slots = bool(h.get("ready", True)), bool(h.get("draining", False)), int(h.get("slots", 1))  # type: ignore[call-overload]
        self._linked, self._awaiting, self._missing = True, False, False
        self._heard = now
        was_suspect = self._suspect_since is not None
        self._suspect_since = None
        if fresh or was_suspect:
            self.counters.resumed += not fresh
            self.events.append(LinkUp(fresh))

    def _resume(self, received: int) -> bool:
        """The gateway has received up to here; what follows is said again, and all windows are told again."""
        first = self._numbered - len(self._kept) + 1
        if received + 1 < first or received > self._highest:
            return False
        self._acknowledge(received)
        self._next = 0
        for key, stream in self._streams.items():
            if stream.handled and not stream.moved:
                stream.moved = True
                self._moved.append(key)
        self._told = 0
        return True

    def _acknowledge(self, received: int) -> None:
        while self._kept and self._kept[0].sequence <= received:
            self._bytes -= self._kept.popleft().size()
            self._next = max(0, self._next - 1)

    def _on_window(self, m: Message) -> None:
        received, limits = wire.read_window(m)
        self._acknowledge(min(received, self._highest))
        for key, limit in limits:
            stream = self._streams.get(key)
            if stream is None:
                continue
            stream.limit = max(stream.limit, min(limit, stream.sent + 65536))
            while stream.waiting and stream.sent < stream.limit:
                waited = stream.waiting.popleft()
                stream.waiting_bytes -= waited.size()
                self._number(stream, waited)

    def _hear(self, now: float) -> None:
        self._heard = now
        if self._suspect_since is not None and self._linked:
            self._suspect_since = None
            self.counters.resumed += 1
            self.events.append(LinkUp(False))

    # ---- time

    def tick(self, now: float) -> None:
        if now < self._next_beat:
            return
        # When we stood still ourselves, the gateway was not silent meanwhile.
        stood = now - self._last_tick
        if stood > 2 * HEARTBEAT:
            self._heard = min(now, self._heard + stood)
            if self._suspect_since is not None:
                self._suspect_since = min(now, self._suspect_since + stood)
        self._last_tick = now
        self._next_beat = now + HEARTBEAT
        if self.peer is not None and self._suspect_since is None and now - self._heard > SILENCE_MAX:
            self._suspect_since = now
            self.events.append(LinkSuspect())
        if self._missing and self._linked:
            self._lost_something(now)
        if self._suspect_since is not None and now - self._suspect_since > RESUME:
            self._reset()
        if now >= self._reconnect_at:
            self._reconnect_at = now + RECONNECT + self._random.random() / 4
            self.reconnect_wanted = True
            return
        if not self._linked:
            if now >= self._hello_at and now - self._said_hello >= HEARTBEAT:
                self._hello(now, again=True)
            return
        self._say(wire.heartbeat(self._numbered - (len(self._kept) - self._next)))

    def due(self, now: float) -> float:
        """When `tick` or `next_frames` has something to do if nothing arrives."""
        if self._out or (self.peer is not None and self._linked and self._next < len(self._kept)):
            return now
        if self.peer is not None and self._linked and (self._received != self._told or self._moved):
            return min(self._next_beat, max(now, self._next_window))
        return self._next_beat
