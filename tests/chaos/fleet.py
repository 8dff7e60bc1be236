"""`parlando serve --processes` with replicas of every role: its children, by the names of their files, and what their metrics say."""
import concurrent.futures
import glob
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from engine import Engine

ROLES = ("vad", "tokenizer", "llm-chat", "llm-tts", "tts", "context", "controller", "gateway")
# Gauges that are back where they were when nobody talks any more.
GAUGES = ("streams", "load", "queue_messages", "sessions", "sockets")


def free_ports(count):
    """The first of a row of free ports, below those that the system gives to connections."""
    for first in range(22000 + os.getpid() % 300 * 20, 32000, 20):
        held = []
        try:
            for port in range(first, first + count):
                s = socket.socket()
                held.append(s)
                s.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for s in held:
                s.close()
    raise RuntimeError("no free ports")


class Child:
    def __init__(self, pid, name, config):
        self.pid, self.name, self.role = pid, name, config["role"]
        self.host, port = config["wire"]["metrics"].rsplit(":", 1)
        self.metrics_port = int(port)

    def text(self, path="/metrics", timeout=2):
        return urllib.request.urlopen(f"http://{self.host}:{self.metrics_port}{path}", timeout=timeout).read().decode()

    def gauge(self, name, text=None):
        """-> None when there is no such gauge"""
        found = re.search(rf"^parlando_{self.role.replace('-', '_')}_{name} (\S+)$", text or self.text(), re.M)
        return float(found[1]) if found else None

    def is_ready(self):
        try:
            return self.text("/readyz") == "ready\n"
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number):
        os.kill(self.pid, number)


class Services:
    """Children of some kind, which `children(role=None)` lists; what their metrics say of them."""

    def busiest(self, role):
        """The replica that has most to do."""
        return max(self.children(role), key=lambda c: c.gauge("sessions" if role == "gateway" else "load") or 0)

    def wait_ready(self, role, count, not_pids=(), seconds=60):
        """Until so many replicas of a role are ready and none of these processes is left. -> whether it came to that"""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            there = self.children(role)
            if len(there) == count and not any(c.pid in not_pids for c in there) and all(c.is_ready() for c in there):
                return True
            time.sleep(0.1)
        return False

    def gauges(self):
        """-> {"vad-1 streams": 0, …} of all children"""
        def of(child):
            try:
                text = child.text()
            except (urllib.error.URLError, OSError) as error:
                return {f"{child.name} answers": repr(error)}
            return {f"{child.name} {g}": v for g in GAUGES if (v := child.gauge(g, text)) is not None}
        out = {}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for found in pool.map(of, self.children()):
                out.update(found)
        return out

    def settled(self, seconds):
        """The gauges once they stand still; for a baseline."""
        before, until = None, time.monotonic() + seconds
        while (now := self.gauges()) != before and time.monotonic() < until:
            before = now
            time.sleep(0.7)
        return now

    def above_baseline(self, seconds):
        """What has not come back to the baseline after so many seconds, and how long it took. A replica that is new compares with its role."""
        start = time.monotonic()
        while True:
            gauges = self.gauges()
            over = {} if gauges else {"the fleet": "gone"}
            for key, value in gauges.items():
                name, gauge = key.split(" ")
                role = name.rsplit("-", 1)[0]
                known = [v for k, v in self.baseline.items() if k.split(" ")[0].rsplit("-", 1)[0] == role and k.split(" ")[1] == gauge]
                most = max((v for v in known if not isinstance(v, str)), default=0)
                if isinstance(value, str) or value > most:
                    over[key] = value
            took = time.monotonic() - start
            if not over or took > seconds:
                return over, took
            time.sleep(0.1)


class Fleet(Services):
    def __init__(self, folder, source, run, replicas=2, extra=(), store=None):
        self.parlando, self.run = pathlib.Path(folder) / "parlando", pathlib.Path(run) / "run"
        base = free_ports(64)
        self.port, self.store = base, store or pathlib.Path(run) / "store.sqlite"
        args = ["--processes", "--listen", f"127.0.0.1:{base}", "--metrics-port", base + 1, "--store", self.store, "--run-folder", self.run,
                "--model-path", pathlib.Path(source) / "models/nano", *extra]
        for role in ROLES:
            args += ["--replicas", f"{role}={replicas}"]
        self.engine = Engine(self.parlando, *args)
        self.baseline = self.settled(10)

    # ---- who is there
    def children(self, role=None):
        out = []
        for stat in glob.glob("/proc/[0-9]*/stat"):
            try:
                if int(open(stat).read().rsplit(")", 1)[1].split()[1]) != self.engine.process.pid:
                    continue
                words = open(stat[:-4] + "cmdline").read().split("\0")
                file = pathlib.Path(words[words.index("--config") + 1])
                child = Child(int(stat.split("/")[2]), file.stem, json.loads(file.read_text()))
            except (OSError, ValueError, IndexError):
                continue  # it has just ended or just been forked
            if role in (None, child.role):
                out.append(child)
        return sorted(out, key=lambda c: (ROLES.index(c.role), c.name))

    def gateways(self):
        """-> {name of a gateway: host and port of its listener}, from the kernel's table of sockets"""
        listening = {}
        for line in open("/proc/net/tcp").read().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                listening[words[9]] = int(words[1].split(":")[1], 16)
        out = {}
        for child in self.children("gateway"):
            for fd in glob.glob(f"/proc/{child.pid}/fd/*"):
                try:
                    found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
                except OSError:
                    continue
                if found and found[1] in listening and listening[found[1]] != child.metrics_port:
                    out[child.name] = ("127.0.0.1", listening[found[1]])
        return out

    # ---- what is done to it
    def scale(self, role, count):
        done = subprocess.run([self.parlando, "scale", "--run-folder", self.run, f"{role}={count}"], capture_output=True, text=True)
        return done.returncode == 0 or done.stderr

    def said(self, count=40):
        return [line for line in self.engine.all if " ends a turn " not in line][-count:]

    def end_of(self, child, seconds=5):
        """How a child that is gone has ended, in its supervisor's words: `exit 0`, `signal 6`."""
        until = time.monotonic() + seconds
        while True:
            for line in self.engine.all:
                if found := re.search(rf" ended \(([^)]+)\).* instance={re.escape(child.name)} pid={child.pid}$", line):
                    return found[1]
            if time.monotonic() > until:
                return "its supervisor does not say how"
            time.sleep(0.05)

    def stop(self):
        for child in self.children():
            child.signal(signal.SIGCONT)
        return self.engine.stop()
