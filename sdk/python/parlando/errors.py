"""What goes wrong, as one exception with the engine's own code."""
from __future__ import annotations


class ParlandoError(Exception):
    """`code` is one of the engine's names (`invalid_argument`, `overloaded`, `unavailable`, `deadline_exceeded`, …); `retry_ms` > 0:
    the same may succeed after that time."""

    def __init__(self, code: str, message: str, retry_ms: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_ms = retry_ms
