"""Starts `parlando up` or `serve` on free ports and talks to it as a client would."""
import json
import queue
import signal
import subprocess
import threading
import wave

from ws import WebSocket


class Engine:
    """`parlando serve …` as a child; `lines` are what it prints."""

    def __init__(self, parlando, *args, command="serve", ready="ready:", timeout=180):
        self.process = subprocess.Popen([parlando, command, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.all = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()
        self.first = self.wait_line(ready, timeout)
        self.port = int(self.first.rsplit(":", 1)[1].split("/")[0])

    def _read(self):
        for line in self.process.stdout:
            self.all.append(line.rstrip())
            self.lines.put(line.rstrip())
        self.lines.put(None)

    def wait_line(self, part, timeout=60):
        while True:
            line = self.lines.get(timeout=timeout)
            if line is None:
                raise RuntimeError("the engine ended: " + "\n".join(self.all))
            if part in line:
                return line

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def pcm(path):
    with wave.open(str(path), "rb") as f:
        assert f.getframerate() == 16000 and f.getnchannels() == 1, path
        return f.readframes(f.getnframes())


class Client:
    def __init__(self, port, resume=None, first="opened", host="127.0.0.1", timeout=60, **options):
        self.ws = WebSocket(host, port, "/v1/dialogue", timeout=timeout)
        self.ws.send(resume or {"type": "open", **options})
        self.events, self.audio = [], b""
        self.wait(first)

    def wait(self, *types):
        """Collects until an event of one of the types; -> that event."""
        while True:
            data = self.ws.receive()
            if isinstance(data, bytes):
                self.audio += data
                continue
            event = json.loads(data)
            self.events.append(event)
            if event["type"] in types:
                return event

    def ask(self, samples, frame=640, flush=True):
        """Sends a recording in 20 ms frames as fast as it goes. -> the turn's or the error's event"""
        self.audio = b""
        for at in range(0, len(samples), frame):
            self.ws.send(samples[at:at + frame])
        if flush:
            self.ws.send({"type": "flush"})
        return self.wait("turn", "error")

    def say(self, text):
        self.audio = b""
        self.ws.send({"type": "text", "text": text})
        return self.wait("turn", "error")
