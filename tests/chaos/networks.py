"""Every service of an engine in a network, and with a clock, of its own, and what lies on the way between two of them.

Needs root and ip, nsenter, unshare. Everything happens in networks that end with the program; the machine's own are not touched.
`enter()` comes first: it goes on inside, or ends the program with 77 where that cannot be.
"""
import asyncio
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

from fleet import Child, Services
from talkers import heard

PORT, METRICS, DOOR, WAYS = 7000, 9000, 7860, 8000
KEY = "key-of-these-tests"
NOWHERE = "02:00:00:00:00:99"
READY_SECONDS = 180
STEP_LIMIT_MS = 15000  # what is cut off is tested here, not who is slow; nobody starts again what ends itself
# Who calls whom; of everyone but the gateway there are two.
CALLS = {"gateway": ["controller"], "controller": ["vad", "tokenizer", "llm-chat", "tts", "context"], "tts": ["llm-tts", "tokenizer"]}
SERVICES = {"llm-chat": "llm", "llm-tts": "llm"}
CHUNK = 16384


def enter():
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "nsenter", "unshare")):
        print("needs root, ip, nsenter and unshare")
        sys.exit(77)
    if "--inside" in sys.argv:
        return
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        print("networks of our own are not allowed here")
        sys.exit(77)
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv, "--inside"])


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True)


def clock_options(number):
    """Its steady clock is days away from everybody else's, where the kernel can do that: no time of one end means anything at the other."""
    words = ["--time", "--monotonic", str(86400 * number), "--boottime", str(86400 * number)]
    return words if subprocess.run(["unshare", *words, "true"], capture_output=True).returncode == 0 else []


class Node(Child):
    """An instance in a network of its own, with one address on the bridge."""

    def __init__(self, parlando, folder, name, number, config):
        role = config["role"]
        self.address = f"10.77.0.{number}"
        config["wire"] |= {"bind": f"tcp://{self.address}:{PORT}", "metrics": f"{self.address}:{METRICS}", "curve": {"plain_tcp": True}, "step_limit_ms": STEP_LIMIT_MS}
        file = pathlib.Path(folder) / f"{name}.json"
        file.write_text(json.dumps(config))
        self.log = open(pathlib.Path(folder) / f"{name}.log", "w")
        # It begins when its network is there.
        program = parlando / f"parlando-{SERVICES.get(role, role)}"
        self.process = subprocess.Popen(["unshare", "--net", *clock_options(number), "sh", "-c", 'read go; exec "$0" --config "$1"', program, file], stdin=subprocess.PIPE,
                                        stdout=self.log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        super().__init__(self.process.pid, name, config)
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.pid}/ns/net") == own:
            time.sleep(0.01)
        ip("link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        ip("link", "set", f"v{number}", "master", "bridge", "up")
        self.inside("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("link", "set", "lo", "up")
        self.inside("link", "set", "eth0", "up")
        self.process.stdin.write(b"go\n")
        self.process.stdin.close()

    def inside(self, *words):
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "ip", *map(str, words)], check=True)

    def cut_from(self, other):
        """What we send to it is lost; what it sends arrives. A wrong neighbour address: frames leave and nobody takes them, which needs no firewall."""
        self.inside("neigh", "replace", other.address, "lladdr", NOWHERE, "nud", "permanent", "dev", "eth0")

    def heal(self, other):
        self.inside("neigh", "del", other.address, "dev", "eth0")


class Way:
    """What is between callers of a role and one instance: bytes go through here. All but `serve` may be called from any thread."""

    def __init__(self, caller, callee, port, target):
        self.caller, self.callee, self.port, self.target = caller, callee, port, target
        self.random = random.Random(port)
        self.writers, self.flipped, self.carried = set(), 0, 0
        self.clear()

    def clear(self):
        self.delay, self.jitter, self.bytes_per_second, self.flip_every = 0.0, 0.0, None, None

    async def serve(self):
        self.server = await asyncio.start_server(self.carry, "10.77.0.1", self.port)

    async def carry(self, reader, writer):
        try:
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        ends = {writer, back}
        self.writers |= ends
        await asyncio.gather(self.pump(reader, back), self.pump(there, writer))
        self.writers -= ends

    async def pump(self, reader, writer):
        queue, last = asyncio.Queue(64), 0.0

        async def give():
            while (item := await queue.get()) is not None:
                due, data = item
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if self.bytes_per_second:
                    await asyncio.sleep(len(data) / self.bytes_per_second)
                writer.write(self.flip(data))
                self.carried += len(data)
                await writer.drain()
        giver = asyncio.create_task(give())
        try:
            while data := await reader.read(CHUNK if not self.bytes_per_second else 1024):
                last = max(last, time.monotonic() + self.delay + self.jitter * self.random.random())
                await queue.put((last, data))
            await queue.put(None)
            await giver
        except OSError:
            giver.cancel()
        finally:
            writer.close()

    def flip(self, data):
        """One bit of as many bytes as `flip_every` says, wherever that falls: in lengths, headers or sound."""
        if not self.flip_every:
            return data
        out, at = bytearray(data), int(self.random.expovariate(1 / self.flip_every))
        while at < len(out):
            out[at] ^= 1 << self.random.randrange(8)
            self.flipped += 1
            at += 1 + int(self.random.expovariate(1 / self.flip_every))
        return bytes(out)

    def reset(self):
        for writer in list(self.writers):
            self.loop.call_soon_threadsafe(writer.transport.abort)


class Network(Services):
    """@param with_ways  callers reach everybody through a Way (`ways`), on a thread of its own"""

    def __init__(self, parlando, source, folder, with_ways=False):
        ip("link", "set", "lo", "up")
        ip("link", "add", "bridge", "type", "bridge")
        ip("addr", "add", "10.77.0.1/24", "dev", "bridge")
        ip("link", "set", "bridge", "up")
        models = source / "models"
        nano = models / "nano"
        chat = json.loads((nano / "Step-Audio-Chat/config.json").read_text())
        self.store = pathlib.Path(folder) / "store.sqlite"
        cores = {"vad": {"weights": str(models / "silero-vad/silero_vad.safetensors")},
                 "tokenizer": {"model": str(nano / "Step-Audio-Tokenizer")},
                 "llm-chat": {"model": str(nano / "Step-Audio-Chat")},
                 "llm-tts": {"model": str(nano / "Step-Audio-TTS-3B")},
                 "tts": {"model": str(nano / "Step-Audio-TTS-3B")},
                 "context": {"store": str(self.store)},
                 "controller": {"tools": "demo"} | ({"history_turns": chat["history_turns"]} if "history_turns" in chat else {}),
                 "gateway": {"page": "", "questions": "", "listen": ""}}
        names = [(f"{role}-{n}", role) for role in cores for n in range(1, 2 if role == "gateway" else 3)]
        numbers = {name: 10 + i for i, (name, _) in enumerate(names)}
        self.ways = []
        if with_ways:
            for caller, callees in CALLS.items():
                for name, role in names:
                    if role in callees:
                        self.ways.append(Way(caller, name, WAYS + len(self.ways), (f"10.77.0.{numbers[name]}", PORT)))
            self.run_ways()

        def addresses(caller, role):
            if with_ways:
                return [f"tcp://10.77.0.1:{w.port}" for w in self.ways if w.caller == caller and w.callee.rsplit("-", 1)[0] == role]
            return [f"tcp://10.77.0.{numbers[name]}:{PORT}" for name, r in names if r == role]
        self.nodes = []
        for name, role in names:
            core = dict(cores[role])
            if role == "gateway":
                core["listen"] = f"10.77.0.{numbers[name]}:{DOOR}"
                core["keys_file"] = str(pathlib.Path(folder) / "keys")
                pathlib.Path(core["keys_file"]).write_text(hashlib.sha256(KEY.encode()).hexdigest() + " tests\n")
                os.environ["PARLANDO_TEST_KEY"] = KEY
            config = {"service": SERVICES.get(role, role), "role": role, "core": core, "wire": {"connect": {r: addresses(role, r) for r in CALLS.get(role, [])}}}
            self.nodes.append(Node(parlando, folder, name, numbers[name], config))

    def run_ways(self):
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def serve():
            for way in self.ways:
                way.loop = loop
                await way.serve()
            ready.set()
            await asyncio.Event().wait()
        threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True).start()
        if not ready.wait(30):
            raise RuntimeError("the ways are not open within 30 s")

    def start(self):
        for node in self.nodes:
            if not self.wait_ready(node.role, len(self.children(node.role)), seconds=READY_SECONDS):
                raise RuntimeError(f"{node.name} is not ready: {self.said()}")
        self.baseline = self.settled(10)

    def children(self, role=None):
        return [n for n in self.nodes if role in (None, n.role)]

    def gateways(self):
        return {n.name: (n.address, DOOR) for n in self.children("gateway")}

    def said(self, count=4):
        return "\n".join(f"{n.name}: {line}" for n in self.nodes for line in pathlib.Path(n.log.name).read_text().splitlines()[-count:] if " ends a turn " not in line)

    def ended(self):
        return [f"{n.name} ended with {n.process.returncode}" for n in self.nodes if n.process.poll() is not None]

    def stop(self):
        for n in self.nodes:
            if n.process.poll() is None:
                n.process.send_signal(signal.SIGKILL)
            n.process.wait()


async def trial(network, crowd, name, fault):
    """A fault under talking sessions; every turn must be answered, whole and once. @param fault  coroutine. -> problems"""
    await crowd.wait_talking()
    strays, start = len(crowd.strays), time.monotonic()
    note = await fault or ""
    end = time.monotonic() + 1
    await asyncio.sleep(1)
    await crowd.wait_ended([t for t in crowd.under_way() if t.start < end])
    turns = [t for t in crowd.turns if t.start <= end and t.end is not None and t.end >= start]
    problems = [f"session {t.session}, '{t.said}': {p}" for t in turns for p in t.problems] + [text for _, text in crowd.strays[strays:]] + network.ended()
    answered = [t for t in turns if t.event.get("type") == "turn"]
    if not answered:
        problems.append("nobody was answered")
    print(f"  {name:<28} {'FAIL' if problems else 'pass'}  {len(answered)} of {len(turns)} answered, {heard(turns)}  {note}", flush=True)
    return [f"{name}: {p}" for p in problems]


async def calm(network, crowd, seconds):
    """The load ends; gauges come back, and the store holds what was told. -> problems"""
    await crowd.stop()
    over, took = await asyncio.to_thread(network.above_baseline, seconds)
    print(f"  the load ends: {'back at the baseline after %.1f s' % took if not over else 'still %s' % over}")
    return [f"the load ends: {k} is {v}" for k, v in over.items()] + crowd.settle() + crowd.history.problems(network.store)
