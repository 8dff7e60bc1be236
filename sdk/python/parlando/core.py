"""Sockets and the thread that drives them: one per client, for all its conversations. `sync` and `aio` wait in their own ways."""
from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, List, Optional, Sequence, Union

import zmq

from .errors import ParlandoError
from .link import Link, LinkCounters, LinkDown
from .talk import Talk
from .wire import Message

READ_MAX = 64  # messages of one socket before the others get their turn
FULL_AGAIN = 0.02
MESSAGE_BYTES_MAX = 8 << 20


@dataclass(frozen=True)
class Keys:
    """CURVE keys in Z85, 40 characters each: our own pair, and the public key of the gateways. The engine's `keys_file` says which
    public keys are clients' (`<key> client [name]`)."""
    public: str
    secret: str = field(repr=False)
    server: str

    @classmethod
    def read(cls, public_file: str, secret_file: str, server_file: str) -> "Keys":
        texts = [open(name, encoding="ascii").read().strip() for name in (public_file, secret_file, server_file)]
        for name, text in zip((public_file, secret_file, server_file), texts):
            if len(text) != 40:
                raise ParlandoError("bad_format", f"'{name}' has {len(text)} characters, a key has 40")
        return cls(*texts)


class Gateway:
    """A connection to one endpoint."""

    def __init__(self, context: "zmq.Context[Any]", endpoint: str, instance: str, keys: Optional[Keys], now: float) -> None:
        self.endpoint = endpoint
        self._context, self._keys = context, keys
        self._pending: Optional[List[bytes]] = None  # the socket was full
        self.full_again = 0.0
        self.socket = self._connect()
        self.link = Link(instance, "client", now)

    def _connect(self) -> "zmq.Socket[bytes]":
        s: "zmq.Socket[bytes]" = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.IMMEDIATE, 1), (zmq.SNDHWM, 512), (zmq.RCVHWM, 512), (zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX),
                              (zmq.HANDSHAKE_IVL, 1000), (zmq.RECONNECT_IVL, 50), (zmq.RECONNECT_IVL_MAX, 1000)):
            s.setsockopt(option, value)
        if self._keys is not None:
            s.curve_publickey = self._keys.public.encode()
            s.curve_secretkey = self._keys.secret.encode()
            s.curve_serverkey = self._keys.server.encode()
        try:
            s.connect(self.endpoint)
        except zmq.ZMQError as e:
            s.close()
            raise ParlandoError("invalid_argument", f"'{self.endpoint}' cannot be connected: {e}") from None
        return s

    def reconnect(self, now: float) -> None:
        self.socket.close()
        self._pending = None
        self.socket = self._connect()
        self.link.reconnected(now)

    def read(self, now: float) -> bool:
        """@return whether more may wait"""
        for _ in range(READ_MAX):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self.link.receive(frames, now)
        return True

    def flush(self, now: float) -> None:
        while True:
            frames = self._pending or self.link.next_frames(now)
            if frames is None:
                return
            try:
                self.socket.send_multipart(frames, zmq.NOBLOCK)
                self._pending = None
            except zmq.Again:
                self._pending = frames
                self.full_again = now + FULL_AGAIN
                return

    def due(self, now: float) -> float:
        return min(self.link._next_beat, self.full_again) if self._pending is not None else self.link.due(now)


class Core:
    """All public functions may be called from any thread."""

    def __init__(self, endpoints: Union[str, Sequence[str]], keys: Optional[Keys], name: str, reconnect: float) -> None:
        names = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not names:
            raise ParlandoError("invalid_argument", "no endpoint of a gateway is named")
        if not name or len(name) > 60:
            raise ParlandoError("invalid_argument", f"the name '{name}' has {len(name)} characters, expected 1 to 60")
        self.reconnect = reconnect
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._talks: List[Talk] = []
        self._stopped = False
        self._broken: Optional[BaseException] = None
        self._awake, self._wake = socket.socketpair()
        for end in (self._awake, self._wake):
            end.setblocking(False)
        self._context: "zmq.Context[Any]" = zmq.Context()
        now = time.monotonic()
        # An instance is unique per process start; eight digits behind the name, to which the engine may have bound the key.
        try:
            self.gateways = []
            for endpoint in names:
                self.gateways.append(Gateway(self._context, endpoint, f"{name}-{os.urandom(4).hex()}", keys, now))
        except ParlandoError:
            for gateway in self.gateways:
                gateway.socket.close()
            self._context.term()
            raise
        self._thread = threading.Thread(target=self._run, name="parlando", daemon=True)
        self._thread.start()

    # ---- conversations

    def begin(self, opening: Dict[str, Any]) -> Talk:
        with self.lock:
            if self._stopped:
                raise ParlandoError("cancelled", "the client is closed")
            talk = Talk(self, opening, self.reconnect, time.monotonic())
            talk.on_told = self.changed.notify_all
            self._talks.append(talk)
            self.wake()
            return talk

    def find(self, but: Optional[Any], nor: Collection[Any] = ()) -> Optional[Gateway]:
        """A gateway that takes conversations."""
        good = [g for g in self.gateways if g is not but and g not in nor and g.link.is_up and g.link.ready and not g.link.draining and g.link.slots > 0]
        return random.choice(good) if good else None

    def standing(self) -> int:
        """Gateways that are there, whether they have room or not."""
        return sum(g.link.is_up and g.link.ready and not g.link.draining for g in self.gateways)

    def endpoint_of(self, talk: Talk) -> str:
        with self.lock:
            return next((g.endpoint for g in self.gateways if g is talk._place), "")

    def refusal(self) -> Optional[ParlandoError]:
        """Why gateways do not take us at all."""
        return next((g.link.refusal for g in self.gateways if g.link.refusal is not None), None)

    def counters(self) -> LinkCounters:
        """Of all links together."""
        with self.lock:
            out = LinkCounters()
            for gateway in self.gateways:
                for name, n in vars(gateway.link.counters).items():
                    setattr(out, name, getattr(out, name) + n)
            return out

    def close(self) -> None:
        with self.lock:
            if self._stopped:
                return
            for talk in self._talks:
                talk.close(False)
        # What closes the conversations is to leave, but nobody waits long for a gateway that does not listen.
        end = time.monotonic() + 0.5
        with self.changed:
            while time.monotonic() < end and any(g.link.is_up and g.link.kept() for g in self.gateways) and self._broken is None:
                self.changed.wait(0.02)
            self._stopped = True
            self.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def wake(self) -> None:
        try:
            self._wake.send(b"!")
        except (BlockingIOError, OSError):
            pass  # it is awake, or gone

    # ---- the thread

    def _run(self) -> None:
        try:
            while self._pass():
                pass
        except BaseException as e:  # a bug of ours: nobody may wait for ever
            with self.changed:
                self._broken = e
                for talk in self._talks:
                    talk._fail(ParlandoError("internal", f"{type(e).__name__}: {e}"))
                self._stopped = True
                self.changed.notify_all()
        finally:
            for gateway in self.gateways:
                gateway.socket.close()
            self._context.term()
            self._awake.close()

    def _pass(self) -> bool:
        with self.changed:
            if self._stopped:
                return False
            now = time.monotonic()
            more = False
            for gateway in self.gateways:
                more = gateway.read(now) or more
                gateway.link.tick(now)
                if gateway.link.reconnect_wanted:
                    gateway.link.reconnect_wanted = False
                    gateway.reconnect(now)
                self._dispatch(gateway, now)
            self._talks = [t for t in self._talks if not t.is_ended]
            for talk in self._talks:
                talk.on_tick(now)
            for gateway in self.gateways:
                gateway.flush(now)
            self.changed.notify_all()  # who waits for room
            due = min(g.due(now) for g in self.gateways)
            if self._talks:
                due = min(due, now + 0.05)
            sockets = [(g.socket, zmq.POLLIN) for g in self.gateways]
        if more:
            return True
        poller = zmq.Poller()
        for s, flags in sockets:
            poller.register(s, flags)
        poller.register(self._awake, zmq.POLLIN)
        poller.poll(math.ceil(max(0.0, due - time.monotonic()) * 1e3))
        try:
            while self._awake.recv(4096):
                pass
        except BlockingIOError:
            pass
        return True

    def _dispatch(self, gateway: Gateway, now: float) -> None:
        while gateway.link.events:
            event = gateway.link.events.popleft()
            if isinstance(event, Message):
                talk = next((t for t in self._talks if t._place is gateway and t.owns(event.key)), None)
                if talk is None:
                    gateway.link.handled(event.key)
                else:
                    talk.on_message(event, now)
            elif isinstance(event, LinkDown):
                for talk in self._talks:
                    talk.on_link_down(gateway, now)
