"""Client of the parlando engine: spoken dialogue over ZeroMQ. `Client` waits; `parlando.aio.Client` is the same for asyncio."""
from . import aio
from .core import Keys
from .errors import ParlandoError
from .events import AnyEvent, Event, Latency, Metrics, Sound, Tool, Turn
from .sync import Client, Conversation

__all__ = ["AnyEvent", "Client", "Conversation", "Event", "Keys", "Latency", "Metrics", "ParlandoError", "Sound", "Tool", "Turn", "aio"]
__version__ = "0.1.0"
