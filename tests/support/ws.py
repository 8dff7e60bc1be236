"""WebSocket clients of a few lines (RFC 6455, no extensions), for tests that talk to the gateway or to a browser's debugging port."""
import asyncio
import base64
import json
import os
import socket
import struct


def request_of(host, port, path):
    """With the key of PARLANDO_TEST_KEY, if there is one: addresses that others reach ask for one."""
    secret = os.environ.get("PARLANDO_TEST_KEY")
    bearer = f"Authorization: Bearer {secret}\r\n" if secret else ""
    key = base64.b64encode(os.urandom(16)).decode()
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{bearer}\r\n".encode()


def frame_of(data):
    """One message of a client: bytes are binary, a str is text, anything else JSON."""
    binary = isinstance(data, bytes)
    payload = data if binary else (data if isinstance(data, str) else json.dumps(data)).encode()
    mask, n = os.urandom(4), len(payload)
    head = bytes([0x82 if binary else 0x81])
    head += bytes([0x80 | n]) if n < 126 else bytes([0x80 | 126]) + struct.pack(">H", n) if n < 65536 else bytes([0x80 | 127]) + struct.pack(">Q", n)
    key = (mask * (n // 4 + 1))[:n]
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(n, "big") if n else b""
    return head + mask + body


CLOSE_FRAME = bytes([0x88, 0x82]) + b"\0\0\0\0" + struct.pack(">H", 1000)


class WebSocket:
    def __init__(self, host, port, path, timeout=60):
        self.sock = socket.create_connection((host, port), timeout=timeout)
        self.sock.sendall(request_of(host, port, path))
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            part = self.sock.recv(4096)
            if not part:
                raise ConnectionError("closed during the handshake")
            self.rest += part
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        self.status = int(head.split()[1])
        if self.status != 101:
            raise ConnectionError(f"handshake answered {self.status}")

    def _take(self, n):
        while len(self.rest) < n:
            part = self.sock.recv(65536)
            if not part:
                raise ConnectionError("closed")
            self.rest += part
        out, self.rest = self.rest[:n], self.rest[n:]
        return out

    def send(self, data):
        self.sock.sendall(frame_of(data))

    def receive(self):
        """-> str, or bytes for a binary message; answers pings on the way."""
        whole, first = b"", None
        while True:
            a, b = self._take(2)
            n = b & 127
            n = struct.unpack(">H", self._take(2))[0] if n == 126 else struct.unpack(">Q", self._take(8))[0] if n == 127 else n
            body, op = self._take(n), a & 15
            if op == 8:
                raise ConnectionError("closed by the server")
            if op == 9:
                self.sock.sendall(bytes([0x8A, 0x80 | n]) + b"\0\0\0\0" + body)
            elif op != 10:
                first = first if op == 0 else op
                whole += body
                if a & 128:
                    return whole if first == 2 else whole.decode()

    def close(self):
        self.sock.close()


class AsyncWebSocket:
    """The same for many clients on one thread."""

    @classmethod
    async def connect(cls, host, port, path, timeout=30):
        self = cls()
        self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection(host, port, limit=1 << 20), timeout)
        self.writer.write(request_of(host, port, path))
        try:
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout)
        except asyncio.IncompleteReadError:
            raise ConnectionError("closed during the handshake") from None
        if int(head.split()[1]) != 101:
            raise ConnectionError(f"handshake answered {head.split()[1].decode()}")
        return self

    def send(self, data):
        """Never waits: what the server does not read is kept here."""
        if self.writer.is_closing():
            raise ConnectionError("closed")
        self.writer.write(frame_of(data))

    async def receive(self):
        """-> str, or bytes for a binary message; answers pings on the way."""
        whole, first = b"", None
        while True:
            try:
                a, b = await self.reader.readexactly(2)
                n = b & 127
                if n >= 126:
                    n = int.from_bytes(await self.reader.readexactly(2 if n == 126 else 8), "big")
                body = await self.reader.readexactly(n)
            except asyncio.IncompleteReadError:
                raise ConnectionError("closed") from None
            op = a & 15
            if op == 8:
                raise ConnectionError(f"closed by the server: {int.from_bytes(body[:2], 'big')} {body[2:].decode(errors='replace')}")
            if op == 9:
                self.writer.write(bytes([0x8A, 0x80 | n]) + b"\0\0\0\0" + body)
            elif op != 10:
                first = first if op == 0 else op
                whole += body
                if a & 128:
                    return whole if first == 2 else whole.decode()

    def close(self):
        """Says goodbye first: a client that is merely gone is waited for."""
        if not self.writer.is_closing():
            self.writer.write(CLOSE_FRAME)
        self.writer.close()
