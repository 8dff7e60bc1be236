"""Messages to frames and back, version 1: docs/protocol.md of the engine, "Envelope", "Batch", "Bodies". Nothing here keeps state.

A message is three frames: an envelope of 80 bytes, a body (JSON or packed fields), a payload. All numbers are little-endian.
"""
from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

VERSION = VERSION_MIN = 1
ENVELOPE_BYTES = 80
BODY_BYTES_MAX = 128 << 10
EVENT_BYTES_MAX = 128 << 10  # of a client's event
AUDIO_BYTES_MAX = 32 << 10
BATCH_MESSAGES_MAX = 1024
BATCH_BYTES_MAX = 256 << 10

HELLO, HEARTBEAT, HEARTBEAT_REPLY, WINDOW, CANCEL, ERROR, REFUSED, RESYNC, BATCH = range(1, 10)
OPEN, CLOSE, AUDIO, SPEECH, EVENT = 16, 17, 32, 81, 121

_MAGIC = 0x444C5250  # "PRLD"
_ENVELOPE = struct.Struct("<IHHHHIQQQIIQQIIII")
_RECORD = struct.Struct("<HHIQQQIIQII")  # of a batch
_CRC_AT = 72
assert _ENVELOPE.size == ENVELOPE_BYTES and _RECORD.size == 56

Key = Tuple[int, int, int]
"""A stream: session (high, low) and number."""


class WireError(ValueError):
    """Frames that are no message; `code` as the engine names it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Message:
    type: int
    session: Tuple[int, int] = (0, 0)
    stream: int = 0
    turn: int = 0
    epoch: int = 0
    sequence: int = 0  # of the link and direction; the link gives it
    trace: int = 0
    remaining_ms: int = 0
    version: int = VERSION
    body: bytes = b""
    payload: bytes = b""

    @property
    def key(self) -> Key:
        return (*self.session, self.stream)

    def size(self) -> int:
        return ENVELOPE_BYTES + len(self.body) + len(self.payload)

    def fields(self) -> Dict[str, Any]:
        """The body of a JSON type. @raise ValueError"""
        out = json.loads(self.body) if self.body else {}
        if not isinstance(out, dict):
            raise ValueError("the body is no JSON object")
        return out


# ------------------------------------------------------------------------------------------------ checksum

_BLOCK = 1024


def _crc_tables() -> np.ndarray:
    """[1024, 256]: what a byte adds to the checksum when so many zero bytes follow it. CRC is linear: a block's is the sum (xor) over
    its bytes."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, np.uint32(0x82F63B78) ^ (first >> 1), first >> 1)
    out = np.empty((_BLOCK, 256), np.uint32)
    out[0] = first
    for k in range(1, _BLOCK):
        out[k] = first[out[k - 1] & 0xFF] ^ (out[k - 1] >> 8)
    return out


_TABLES = _crc_tables()
_BYTE_TABLE: List[int] = _TABLES[0].tolist()
_ADVANCE: List[List[int]] = [_TABLES[_BLOCK - 1 - i].tolist() for i in range(4)]
_PLACES = np.arange(_BLOCK - 1, -1, -1)


def crc32c(data: bytes, seed: int = 0) -> int:
    """CRC-32C (Castagnoli) as in iSCSI; `seed` chains."""
    state = ~seed & 0xFFFFFFFF
    whole = len(data) // _BLOCK * _BLOCK
    if whole:
        blocks = np.frombuffer(data, np.uint8, whole).reshape(-1, _BLOCK)
        for own in np.bitwise_xor.reduce(_TABLES[_PLACES, blocks], axis=1).tolist():
            state = own ^ _ADVANCE[0][state & 255] ^ _ADVANCE[1][state >> 8 & 255] ^ _ADVANCE[2][state >> 16 & 255] ^ _ADVANCE[3][state >> 24]
    rest = data[whole:]
    if len(rest) > 64:
        head = (int.from_bytes(rest[:4], "little") ^ state).to_bytes(4, "little")
        joined = np.frombuffer(head + rest[4:], np.uint8)
        state = int(np.bitwise_xor.reduce(_TABLES[_PLACES[_BLOCK - len(rest):], joined]))
    else:
        for byte in rest:
            state = _BYTE_TABLE[(state ^ byte) & 255] ^ (state >> 8)
    return ~state & 0xFFFFFFFF


# ------------------------------------------------------------------------------------------------ frames

def _envelope(m: Message, type_: int, sequence: int, body: bytes, payload: bytes, version: int) -> bytes:
    def packed(crc: int) -> bytes:
        return _ENVELOPE.pack(_MAGIC, version, ENVELOPE_BYTES, type_, 0, m.remaining_ms, *m.session, m.epoch, m.turn, m.stream, sequence, m.trace,
                              len(body), len(payload), crc, 0)
    head = packed(0)
    return packed(crc32c(head + body + payload))


def encode(m: Message, version: int = VERSION) -> List[bytes]:
    return [_envelope(m, m.type, m.sequence, m.body, m.payload, version), m.body, m.payload]


def encode_batch(messages: Sequence[Message], version: int = VERSION) -> List[bytes]:
    """Several numbered messages, whose numbers follow each other, as one."""
    parts = []
    for m in messages:
        parts += [_RECORD.pack(m.type, 0, m.remaining_ms, *m.session, m.epoch, m.turn, m.stream, m.trace, len(m.body), len(m.payload)), m.body, m.payload]
    payload = b"".join(parts)
    return [_envelope(Message(BATCH), BATCH, messages[0].sequence, b"", payload, version), b"", payload]


def decode(frames: Sequence[bytes]) -> List[Message]:
    """One message, or those of a batch in order. @raise WireError"""
    if len(frames) != 3:
        raise WireError("bad_frame", f"a message of {len(frames)} frames, expected 3")
    head, body, payload = frames
    if len(head) < ENVELOPE_BYTES:
        raise WireError("bad_frame", f"an envelope of {len(head)} bytes, expected {ENVELOPE_BYTES} at least")
    (magic, version, length, type_, _flags, remaining, high, low, epoch, turn, stream, sequence, trace, body_bytes, payload_bytes, crc,
     _reserved) = _ENVELOPE.unpack_from(head)
    if magic != _MAGIC:
        raise WireError("bad_magic", "the frames are not of this protocol")
    if not VERSION_MIN <= version <= VERSION:
        raise WireError("bad_version", f"a message of version {version}, {VERSION_MIN} to {VERSION} are read")
    if length != len(head) or body_bytes != len(body) or payload_bytes != len(payload):
        raise WireError("bad_frame", "the sizes in the envelope are not those of the frames")
    if crc32c(head[:_CRC_AT] + bytes(4) + head[_CRC_AT + 4:] + body + payload) != crc:
        raise WireError("bad_frame", "the checksum is wrong")
    if type_ != BATCH:
        return [Message(type_, (high, low), stream, turn, epoch, sequence, trace, remaining, version, bytes(body), bytes(payload))]
    out: List[Message] = []
    at = 0
    while at < len(payload):
        if at + _RECORD.size > len(payload):
            raise WireError("bad_frame", "a batch ends within a record")
        kind, _flags, remaining, high, low, epoch, turn, stream, trace, body_bytes, payload_bytes = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        end = at + body_bytes + payload_bytes
        if end > len(payload) or is_link_word(kind):
            raise WireError("bad_frame", "a batch with a record that cannot be")
        out.append(Message(kind, (high, low), stream, turn, epoch, sequence + len(out), trace, remaining, version,
                           bytes(payload[at:at + body_bytes]), bytes(payload[at + body_bytes:end])))
        at = end
    if not out or len(out) > BATCH_MESSAGES_MAX:
        raise WireError("bad_frame", f"a batch of {len(out)} messages")
    return out


def is_link_word(type_: int) -> bool:
    """The link's own words are neither numbered nor kept."""
    return type_ <= 4 or 7 <= type_ <= 15


# ------------------------------------------------------------------------------------------------ bodies

def json_message(type_: int, fields: Dict[str, Any], **head: Any) -> Message:
    return Message(type_, body=json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(), **head)


@dataclass
class HeartbeatReply:
    """What a gateway says of itself."""
    ready: bool = True
    draining: bool = False
    busy: bool = False
    slots: int = 1
    load: int = 0
    progress: int = 0
    step_limit_ms: int = 2000
    sent: int = 0

    @classmethod
    def read(cls, body: bytes) -> "HeartbeatReply":
        out, at = cls(), 0
        for name, form in (("ready", "<?"), ("draining", "<?"), ("busy", "<?"), ("slots", "<q"), ("load", "<q"), ("progress", "<Q"), ("step_limit_ms", "<I"), ("sent", "<Q")):
            if at + struct.calcsize(form) > len(body):
                break  # an older writer
            setattr(out, name, struct.unpack_from(form, body, at)[0])
            at += struct.calcsize(form)
        return out


def heartbeat(sent: int) -> Message:
    return Message(HEARTBEAT, body=struct.pack("<??qQ", True, False, 1, sent))


_WINDOW_RECORD = struct.Struct("<QQIQ")


def window(received: int, limits: Sequence[Tuple[Key, int]]) -> Message:
    return Message(WINDOW, body=struct.pack("<Q", received), payload=b"".join(_WINDOW_RECORD.pack(*key, limit) for key, limit in limits))


def read_window(m: Message) -> Tuple[int, List[Tuple[Key, int]]]:
    received = struct.unpack_from("<Q", m.body)[0] if len(m.body) >= 8 else 0
    whole = len(m.payload) // _WINDOW_RECORD.size * _WINDOW_RECORD.size
    return received, [((high, low, stream), limit) for high, low, stream, limit in _WINDOW_RECORD.iter_unpack(m.payload[:whole])]


def audio(first_sample: int, pcm: bytes) -> Message:
    return Message(AUDIO, body=struct.pack("<q", first_sample), payload=pcm)


def close(detached: bool) -> Message:
    return Message(CLOSE, body=struct.pack("<?", detached))


def event(fields: Dict[str, Any]) -> Message:
    return Message(EVENT, payload=json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())


@dataclass
class Speech:
    first_sample: int = 0
    rate: int = 22050
    pcm: bytes = field(default=b"", repr=False)

    @classmethod
    def read(cls, m: Message) -> "Speech":
        _piece, first, rate = struct.unpack_from("<IqI", m.body) if len(m.body) >= 16 else (0, 0, 22050)
        return cls(first, rate, m.payload)
