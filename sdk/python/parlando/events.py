"""What a conversation tells its user."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Union

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Event:
    """An event of `/v1/dialogue` (services/gateway/README.md): `type`, and its fields in `data`."""
    type: str
    data: Dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.data.get(name, default)


@dataclass(frozen=True)
class Sound:
    """A part of an answer. `samples` [n] int16, mono; `first_sample` counts from the start of the turn's sound."""
    turn: int
    first_sample: int
    rate: int
    samples: Samples
    type: str = "sound"


AnyEvent = Union[Event, Sound]


@dataclass
class Turn:
    """A turn that is over. `sound` [n] int16 at `rate`; `record` is the `turn` event, `events` all that were told of it."""
    number: int
    user: str
    assistant: str
    sound: Samples
    rate: int
    record: Dict[str, Any]
    events: List[AnyEvent] = field(repr=False)

    @property
    def tool_calls(self) -> List[Dict[str, Any]]:
        return list(self.record.get("tool_calls", []))


@dataclass(frozen=True)
class Tool:
    """What the model may call and this program executes: `function(**arguments)` answers a text, or anything that JSON holds. With
    `aio` it may be a coroutine. `parameters` is a JSON schema of an object."""
    name: str
    function: Callable[..., Any]
    description: str = ""
    parameters: Optional[Dict[str, Any]] = None

    def describe(self) -> Dict[str, Any]:
        return {"name": self.name, "description": self.description, "parameters": self.parameters or {"type": "object", "properties": {}}}


class Latency:
    """Times of one kind, in milliseconds; the last 1,000 are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_ms = 0.0
        self.max_ms = 0.0
        self._last: List[float] = []

    def add(self, seconds: float) -> None:
        ms = seconds * 1e3
        if len(self._last) < 1000:
            self._last.append(ms)
        else:
            self._last[self.count % 1000] = ms
        self.count += 1
        self.sum_ms += ms
        self.max_ms = max(self.max_ms, ms)

    def quantile_ms(self, q: float) -> float:
        """0 when nothing was measured."""
        return float(np.quantile(self._last, q)) if self._last else 0.0


@dataclass
class Metrics:
    """Of a conversation. Latencies count from the end of what the user said: `flush`, `say`, `respond`, `utter`, or the detected end of speech."""
    sound_sent_seconds: float = 0.0
    sound_received_seconds: float = 0.0
    turns: int = 0
    errors: int = 0
    resumed: int = 0
    said_again: int = 0  # messages and sound messages repeated after a resume
    first_text: Latency = field(default_factory=Latency)
    first_sound: Latency = field(default_factory=Latency)
    whole_turn: Latency = field(default_factory=Latency)
