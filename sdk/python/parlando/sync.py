"""The package for programs that wait: a client, its conversations."""
from __future__ import annotations

import json
import time
import uuid
from types import TracebackType
from typing import Any, Dict, Iterator, List, Optional, Sequence, Type, Union

import numpy as np

from .core import Core, Keys
from .errors import ParlandoError
from .events import AnyEvent, Event, Metrics, Sound, Tool, Turn
from .link import LinkCounters
from .talk import MESSAGE_SAMPLES, Talk, pcm_of

WAIT = 30.0
OUTPUT_BYTES_MAX = 60000  # of a tool, as gateways take it


def opening_of(settings: Dict[str, Any], tools: Sequence[Tool]) -> Dict[str, Any]:
    if tools:
        settings = {**settings, "tools": [t.describe() for t in tools]}
    return {"type": "open", **settings}


def call_of(event: AnyEvent) -> Optional[Dict[str, Any]]:
    """The call of a tool that this program is to execute: {id, name, arguments}."""
    if not isinstance(event, Event) or event.type != "text" or event["kind"] != "tool_call":
        return None
    call = json.loads(event["text"])
    return None if "result" in call else call


def arguments_of(call: Dict[str, Any]) -> Dict[str, Any]:
    given = call.get("arguments") or {}
    given = json.loads(given) if isinstance(given, str) else given
    return given if isinstance(given, dict) else {"value": given}


def output_of(result: Any) -> str:
    """What the model is told of a tool's result. One that is too large to be told is said to be so, so that the turn goes on."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    size = len(text.encode())
    return text if size <= OUTPUT_BYTES_MAX else f"error: the tool has answered {size} bytes, at most {OUTPUT_BYTES_MAX} can be told"


class Known:
    """What is known of a conversation, whoever waits for it how."""
    _core: Core
    _talk: Talk

    @property
    def session(self) -> str:
        return self._talk.session

    @property
    def rate(self) -> int:
        """Of the answers' sound, in Hz."""
        return self._talk.rate

    @property
    def endpoint(self) -> str:
        """Of the gateway that has it now; empty while it looks for one."""
        return self._core.endpoint_of(self._talk)

    @property
    def metrics(self) -> Metrics:
        return self._talk.metrics

    def resume_token(self) -> Dict[str, Any]:
        """What another program needs to go on with this session (`Client.resume`). A token counts once."""
        with self._core.lock:
            return self._talk.resume_token()

    def session_token(self) -> Dict[str, Any]:
        """What opens this session again, hours later and at any gateway (`Client.open(**token)`), or erases it (`Client.erase`)."""
        with self._core.lock:
            return self._talk.session_token()


def erased_turns(event: Optional[AnyEvent], failure: Optional[ParlandoError]) -> Optional[int]:
    """Of what is told behind `erase`: how many turns were erased; None: it was none of it. @raise ParlandoError when they were not"""
    if event is None:
        raise failure or ParlandoError("cancelled", "the conversation is closed")
    if not isinstance(event, Event) or event.type not in ("erased", "error"):
        return None
    if event.type == "erased":
        return int(event["turns"])
    if event.get("turn"):
        return None  # of a turn that was under way
    raise ParlandoError(str(event.get("code")), str(event.get("message", "")), int(event.get("retry_ms", 0)))


def heard(talk: Talk, pcm: bytes) -> bool:
    """Whether there was room for this sound. @raise ParlandoError for any other reason"""
    try:
        talk.hear(pcm)
    except ParlandoError as error:
        if error.code != "overloaded" or talk.is_ended:
            raise
        return False
    return True


class Collector:
    """What is told of a turn, until it is over."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._events: List[AnyEvent] = []

    def take(self, event: AnyEvent) -> Optional[Turn]:
        """@raise ParlandoError of the turn, or of the conversation"""
        self._events.append(event)
        if not isinstance(event, Event):
            return None
        if event.type == "error":
            raise ParlandoError(str(event.get("code")), str(event.get("message", "")), int(event.get("retry_ms", 0)))
        if event.type == "cancelled":
            raise ParlandoError("cancelled", f"turn {event.get('turn')} was cancelled")
        if event.type != "turn":
            return None
        sound = [e.samples for e in self._events if isinstance(e, Sound) and e.turn == event["turn"]]
        return Turn(event["turn"], event.get("user", ""), event.get("assistant", ""), np.concatenate(sound) if sound else np.zeros(0, np.int16),
                    self._rate, event.data, self._events)


class Client:
    """A connection to one gateway or several (`endpoints`: `tcp://host:port`, `ipc://path`), on a thread of its own. Conversations move to
    another gateway, or back to the same one, when theirs is lost; one without any for `reconnect` seconds ends. (A gateway that falls silent is
    given up by the engine after 30 s, and what it had can be resumed from then on.)"""

    def __init__(self, endpoints: Union[str, Sequence[str]], keys: Optional[Keys] = None, name: str = "client", reconnect: float = 40.0) -> None:
        self._core = Core(endpoints, keys, name, reconnect)

    def open(self, tools: Sequence[Tool] = (), timeout: float = WAIT, **settings: Any) -> "Conversation":
        """A new conversation; `settings` are the fields of `open` (services/gateway/README.md): system, speaker, speak, seed, lead_ms, detection,
        temperature, … @raise ParlandoError what the engine says, or unavailable"""
        return Conversation(self._core, self._core.begin(opening_of(settings, tools)), tools, timeout)

    def resume(self, token: Dict[str, Any], tools: Sequence[Tool] = (), timeout: float = WAIT) -> "Conversation":
        """A conversation that another program left with `close(detach=True)`, or lost. @param token  `Conversation.resume_token()` of it"""
        return Conversation(self._core, self._core.begin({"type": "resume", **token}), tools, timeout)

    def erase(self, token: Dict[str, Any], timeout: float = WAIT) -> int:
        """Everything that was said in a session is deleted, for good. @param token  `Conversation.session_token()` of it @return turns that were stored
        @raise ParlandoError not_found: nothing is stored of it"""
        talk = self._core.begin({"type": "erase", **token})
        end = time.monotonic() + timeout
        try:
            with self._core.changed:
                while True:
                    event = talk.take()
                    turns = erased_turns(event, talk.failure) if event is not None or talk.is_ended else None
                    if turns is not None:
                        return turns
                    if time.monotonic() >= end:
                        raise ParlandoError("deadline_exceeded", f"the session was not erased within {timeout:g} s")
                    if event is None:
                        self._core.changed.wait(max(0.0, min(0.2, end - time.monotonic())))
        finally:
            with self._core.lock:
                talk.close(False)

    def counters(self) -> LinkCounters:
        return self._core.counters()

    def close(self) -> None:
        """Ends all its conversations."""
        self._core.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()


class Conversation(Known):
    """Any thread may speak; one thread at a time takes events. Events that nobody takes stop the gateway (at 256), so take them all."""

    def __init__(self, core: Core, talk: Talk, tools: Sequence[Tool], timeout: float) -> None:
        self._core, self._talk = core, talk
        self._tools = {t.name: t for t in tools}
        try:
            with core.changed:
                end = time.monotonic() + timeout
                while talk.opened is None and not talk.is_ended:
                    if time.monotonic() >= end:
                        raise core.refusal() or ParlandoError("unavailable", f"no gateway has answered for {timeout:g} s")
                    core.changed.wait(max(0.0, min(0.2, end - time.monotonic())))
                if talk.is_ended and talk.opened is None:
                    raise talk.failure or ParlandoError("cancelled", "the client is closed")
        except BaseException:
            with core.lock:
                talk.close(False)
            raise

    # ---- speaking

    def _say(self, **fields: Any) -> None:
        with self._core.changed:
            self._talk.say({k: v for k, v in fields.items() if v is not None}, time.monotonic())

    def send_audio(self, samples: Any, timeout: float = WAIT) -> None:
        """The user's sound, 16 kHz mono: int16 or float array [samples], or s16le bytes. Waits while the gateway takes no more (it takes four times
        real time, behind half a minute at once). @raise ParlandoError overloaded after `timeout`"""
        data = pcm_of(samples)
        end = time.monotonic() + timeout
        for at in range(0, len(data), 2 * MESSAGE_SAMPLES):
            with self._core.changed:
                while not heard(self._talk, data[at:at + 2 * MESSAGE_SAMPLES]):
                    if time.monotonic() >= end:
                        raise ParlandoError("overloaded", f"the gateway has taken no sound for {timeout:g} s", 1000)
                    self._core.changed.wait(0.1)

    def flush(self) -> None:
        """The user has finished speaking."""
        self._say(type="flush")

    def say(self, text: str) -> None:
        """A typed turn."""
        self._say(type="text", text=text)

    def item(self, role: str, text: str, id: Optional[str] = None, calls: Any = None) -> str:
        """Something that was said before: it stands in front of the next turn. @return its id"""
        id = id or "item_" + uuid.uuid4().hex
        self._say(type="item", role=role, text=text, id=id, calls=calls)
        return id

    def respond(self, remember: Optional[bool] = None, **settings: Any) -> None:
        """Answer now: what waits, or the conversation as it stands."""
        self._say(type="respond", remember=remember, **settings)

    def utter(self, text: str) -> None:
        """The assistant says this."""
        self._say(type="utter", text=text)

    def configure(self, **settings: Any) -> None:
        """From the next turn on."""
        self._say(type="configure", **settings)

    def tool_output(self, call: str, output: str) -> None:
        self._say(type="tool_output", call=call, output=output)

    def truncate(self, turn: int, samples: int) -> None:
        """No more than this of a turn's sound was played."""
        self._say(type="truncate", turn=turn, samples=samples)

    def forget(self, item: Optional[str] = None, turn: Optional[int] = None, part: Optional[str] = None) -> None:
        self._say(type="forget", item=item, turn=turn, part=part)

    def cancel(self, turn: Optional[int] = None) -> None:
        """Drops the turn under way, or that one."""
        self._say(type="cancel", turn=turn)

    def erase(self, timeout: float = WAIT) -> int:
        """Everything that was said here is deleted, for good, and the conversation ends; what was told before is dropped. @return turns that were stored"""
        self._say(type="erase")
        end = time.monotonic() + timeout
        while True:
            event = self.next_event(max(0.0, end - time.monotonic()))
            turns = erased_turns(event, self._talk.failure)
            if turns is not None:
                return turns

    # ---- listening

    def next_event(self, timeout: Optional[float] = None) -> Optional[AnyEvent]:
        """None when the conversation has ended. Tools are called here. @raise ParlandoError deadline_exceeded when nothing came in time"""
        end = None if timeout is None else time.monotonic() + timeout
        with self._core.changed:
            while True:
                event = self._talk.take()
                if event is not None:
                    break
                if self._talk.is_ended:
                    return None
                if end is not None and time.monotonic() >= end:
                    raise ParlandoError("deadline_exceeded", f"nothing was told for {timeout:g} s")
                self._core.changed.wait(0.2 if end is None else max(0.0, min(0.2, end - time.monotonic())))
        self._call_tool(event)
        return event

    def _call_tool(self, event: AnyEvent) -> None:
        call = call_of(event)
        tool = self._tools.get(call["name"]) if call is not None else None
        if call is None or tool is None:
            return
        try:
            output = output_of(tool.function(**arguments_of(call)))
        except Exception as e:  # the model is told, and may make something of it
            output = f"error: {type(e).__name__}: {e}"
        self.tool_output(call["id"], output)

    def events(self, timeout: Optional[float] = None) -> Iterator[AnyEvent]:
        """All that is told until the conversation ends."""
        while True:
            event = self.next_event(timeout)
            if event is None:
                return
            yield event

    def turn(self, timeout: float = 120.0) -> Turn:
        """Takes events until the turn under way, or the next one, is over. @raise ParlandoError when it fails"""
        end = time.monotonic() + timeout
        collector = Collector(self.rate)
        while True:
            event = self.next_event(max(0.0, end - time.monotonic()))
            if event is None:
                raise self._talk.failure or ParlandoError("cancelled", "the conversation is closed")
            turn = collector.take(event)
            if turn is not None:
                return turn

    def close(self, detach: bool = False) -> None:
        """@param detach  the session waits to be resumed (about a minute)"""
        with self._core.lock:
            self._talk.close(detach)

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()
