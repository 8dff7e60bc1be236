"""The package for asyncio: as `parlando.Client` and `parlando.Conversation`, with `await` where those wait. Tools may be coroutines."""
from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from types import TracebackType
from typing import Any, AsyncIterator, Dict, Optional, Sequence, Type, Union

from .core import Core, Keys
from .errors import ParlandoError
from .events import AnyEvent, Tool, Turn
from .link import LinkCounters
from .sync import WAIT, Collector, Known, arguments_of, call_of, erased_turns, heard, opening_of, output_of
from .talk import MESSAGE_SAMPLES, Talk, pcm_of

LOOK_AGAIN = 0.2  # a change that is not told is seen after this


class Client:
    """As `parlando.Client`; to be made inside a running loop or outside of one."""

    def __init__(self, endpoints: Union[str, Sequence[str]], keys: Optional[Keys] = None, name: str = "client", reconnect: float = 40.0) -> None:
        self._core = Core(endpoints, keys, name, reconnect)

    async def open(self, tools: Sequence[Tool] = (), timeout: float = WAIT, **settings: Any) -> "Conversation":
        return await Conversation._begin(self._core, opening_of(settings, tools), tools, timeout)

    async def resume(self, token: Dict[str, Any], tools: Sequence[Tool] = (), timeout: float = WAIT) -> "Conversation":
        return await Conversation._begin(self._core, {"type": "resume", **token}, tools, timeout)

    async def erase(self, token: Dict[str, Any], timeout: float = WAIT) -> int:
        talk = self._core.begin({"type": "erase", **token})
        it = Conversation(self._core, talk, ())
        with self._core.lock:
            talk.on_told = it._notify
        try:
            while True:
                turns = erased_turns(await it.next_event(timeout), talk.failure)
                if turns is not None:
                    return turns
        finally:
            with self._core.lock:
                talk.close(False)

    def counters(self) -> LinkCounters:
        return self._core.counters()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._core.close)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.close()


class Conversation(Known):
    """All of it on one loop."""

    def __init__(self, core: Core, talk: Talk, tools: Sequence[Tool]) -> None:
        self._core, self._talk = core, talk
        self._tools = {t.name: t for t in tools}
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    @classmethod
    async def _begin(cls, core: Core, opening: Dict[str, Any], tools: Sequence[Tool], timeout: float) -> "Conversation":
        talk = core.begin(opening)
        self = cls(core, talk, tools)
        with core.lock:
            talk.on_told = self._notify
        end = time.monotonic() + timeout
        try:
            while talk.opened is None and not talk.is_ended:
                if time.monotonic() >= end:
                    raise core.refusal() or ParlandoError("unavailable", f"no gateway has answered for {timeout:g} s")
                await self._wait(end)
            if talk.opened is None:
                raise talk.failure or ParlandoError("cancelled", "the client is closed")
        except BaseException:
            with core.lock:
                talk.close(False)
            raise
        return self

    def _notify(self) -> None:
        """On the client's thread."""
        self._core.changed.notify_all()
        try:
            self._loop.call_soon_threadsafe(self._told.set)
        except RuntimeError:
            pass  # the loop is closed: nobody waits

    async def _wait(self, end: Optional[float]) -> None:
        left = LOOK_AGAIN if end is None else min(LOOK_AGAIN, max(0.0, end - time.monotonic()))
        try:
            await asyncio.wait_for(self._told.wait(), left)
        except asyncio.TimeoutError:
            pass
        self._told.clear()

    async def _say(self, **fields: Any) -> None:
        with self._core.changed:
            self._talk.say({k: v for k, v in fields.items() if v is not None}, time.monotonic())

    async def send_audio(self, samples: Any, timeout: float = WAIT) -> None:
        data = pcm_of(samples)
        end = time.monotonic() + timeout
        for at in range(0, len(data), 2 * MESSAGE_SAMPLES):
            while True:
                with self._core.lock:
                    if heard(self._talk, data[at:at + 2 * MESSAGE_SAMPLES]):
                        break
                if time.monotonic() >= end:
                    raise ParlandoError("overloaded", f"the gateway has taken no sound for {timeout:g} s", 1000)
                await asyncio.sleep(0.02)

    async def flush(self) -> None:
        await self._say(type="flush")

    async def say(self, text: str) -> None:
        await self._say(type="text", text=text)

    async def item(self, role: str, text: str, id: Optional[str] = None, calls: Any = None) -> str:
        id = id or "item_" + uuid.uuid4().hex
        await self._say(type="item", role=role, text=text, id=id, calls=calls)
        return id

    async def respond(self, remember: Optional[bool] = None, **settings: Any) -> None:
        await self._say(type="respond", remember=remember, **settings)

    async def utter(self, text: str) -> None:
        await self._say(type="utter", text=text)

    async def configure(self, **settings: Any) -> None:
        await self._say(type="configure", **settings)

    async def tool_output(self, call: str, output: str) -> None:
        await self._say(type="tool_output", call=call, output=output)

    async def truncate(self, turn: int, samples: int) -> None:
        await self._say(type="truncate", turn=turn, samples=samples)

    async def forget(self, item: Optional[str] = None, turn: Optional[int] = None, part: Optional[str] = None) -> None:
        await self._say(type="forget", item=item, turn=turn, part=part)

    async def cancel(self, turn: Optional[int] = None) -> None:
        await self._say(type="cancel", turn=turn)

    async def erase(self, timeout: float = WAIT) -> int:
        await self._say(type="erase")
        end = time.monotonic() + timeout
        while True:
            turns = erased_turns(await self.next_event(max(0.0, end - time.monotonic())), self._talk.failure)
            if turns is not None:
                return turns

    async def next_event(self, timeout: Optional[float] = None) -> Optional[AnyEvent]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._core.lock:
                event = self._talk.take()
                if event is None and self._talk.is_ended:
                    return None
            if event is not None:
                await self._call_tool(event)
                return event
            if end is not None and time.monotonic() >= end:
                raise ParlandoError("deadline_exceeded", f"nothing was told for {timeout:g} s")
            await self._wait(end)

    async def _call_tool(self, event: AnyEvent) -> None:
        call = call_of(event)
        tool = self._tools.get(call["name"]) if call is not None else None
        if call is None or tool is None:
            return
        try:
            result = tool.function(**arguments_of(call))
            output = output_of(await result if inspect.isawaitable(result) else result)
        except Exception as e:
            output = f"error: {type(e).__name__}: {e}"
        await self.tool_output(call["id"], output)

    async def events(self, timeout: Optional[float] = None) -> AsyncIterator[AnyEvent]:
        while True:
            event = await self.next_event(timeout)
            if event is None:
                return
            yield event

    async def turn(self, timeout: float = 120.0) -> Turn:
        end = time.monotonic() + timeout
        collector = Collector(self.rate)
        while True:
            event = await self.next_event(max(0.0, end - time.monotonic()))
            if event is None:
                raise self._talk.failure or ParlandoError("cancelled", "the conversation is closed")
            turn = collector.take(event)
            if turn is not None:
                return turn

    async def close(self, detach: bool = False) -> None:
        with self._core.lock:
            self._talk.close(detach)

    async def __aenter__(self) -> "Conversation":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.close()
