"""Cuts one service off from another, one way, while people talk: each instance has a network of its own, and what one sends to the other is
lost without a word for 3 s. Each pair of roles that call each other, each way; every turn must be answered, whole and once.

`partition.py BUILD_BIN SOURCE_DIR [--only TEXT] [--seconds 3]`. Exit code 77 without root or the tools (ip, nsenter, unshare). Everything
happens in networks that end with this program; the machine's own are not touched. A cut is a wrong neighbour address: frames leave and
nobody takes them, which needs no firewall.
"""
import argparse
import asyncio
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--only", default="", help="cuts whose name contains this")
parser.add_argument("--seconds", type=float, default=3)
parser.add_argument("--repeat", type=int, default=1)
parser.add_argument("--sessions", type=int, default=4)
parser.add_argument("--talking", type=int, default=2)
parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
a = parser.parse_args()
if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "nsenter", "unshare")):
    print("needs root, ip, nsenter and unshare")
    sys.exit(77)
if not a.inside:
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        print("networks of our own are not allowed here")
        sys.exit(77)
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv, "--inside"])
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from fleet import Child, Services  # noqa: E402
from talkers import Crowd, question  # noqa: E402

PORT, METRICS, DOOR = 7000, 9000, 7860
KEY = "key-of-these-tests"
NOWHERE = "02:00:00:00:00:99"
READY_SECONDS = 180
RECOVERED_SECONDS = 3
STEP_LIMIT_MS = 15000  # what is cut off is tested here, not who is slow; nobody starts again what ends itself
# Who calls whom; of everyone but the gateway there are two.
CALLS = {"gateway": ["controller"], "controller": ["vad", "tokenizer", "llm-chat", "tts", "context"], "tts": ["llm-tts", "tokenizer"]}
SERVICES = {"llm-chat": "llm", "llm-tts": "llm"}


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True)


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
        self.process = subprocess.Popen(["unshare", "--net", "sh", "-c", 'read go; exec "$0" --config "$1"', program, file], stdin=subprocess.PIPE, stdout=self.log,
                                        stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
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
        """What we send to it is lost; what it sends arrives."""
        self.inside("neigh", "replace", other.address, "lladdr", NOWHERE, "nud", "permanent", "dev", "eth0")

    def heal(self, other):
        self.inside("neigh", "del", other.address, "dev", "eth0")


class Network(Services):
    def __init__(self, parlando, source, folder):
        ip("link", "set", "lo", "up")
        ip("link", "add", "bridge", "type", "bridge")
        ip("addr", "add", "10.77.0.1/24", "dev", "bridge")
        ip("link", "set", "bridge", "up")
        models = source / "models"
        nano = models / "nano"
        chat = json.loads((nano / "Step-Audio-Chat/config.json").read_text())
        cores = {"vad": {"weights": str(models / "silero-vad/silero_vad.safetensors")},
                 "tokenizer": {"model": str(nano / "Step-Audio-Tokenizer")},
                 "llm-chat": {"model": str(nano / "Step-Audio-Chat")},
                 "llm-tts": {"model": str(nano / "Step-Audio-TTS-3B")},
                 "tts": {"model": str(nano / "Step-Audio-TTS-3B")},
                 "context": {"store": str(pathlib.Path(folder) / "store.sqlite")},
                 "controller": {"tokenizer_mode": "exact", "tools": "demo"} | ({"history_turns": chat["history_turns"]} if "history_turns" in chat else {}),
                 "gateway": {"page": "", "questions": "", "listen": ""}}
        names = [(f"{role}-{n}", role) for role in cores for n in range(1, 2 if role == "gateway" else 3)]
        numbers = {name: 10 + i for i, (name, _) in enumerate(names)}
        addresses = {role: [f"tcp://10.77.0.{numbers[name]}:{PORT}" for name, r in names if r == role] for role in cores}
        self.nodes = []
        for name, role in names:
            core = dict(cores[role])
            if role == "gateway":
                core["listen"] = f"10.77.0.{numbers[name]}:{DOOR}"
                core["keys_file"] = str(pathlib.Path(folder) / "keys")
                pathlib.Path(core["keys_file"]).write_text(hashlib.sha256(KEY.encode()).hexdigest() + " tests\n")
                os.environ["PARLANDO_TEST_KEY"] = KEY
            config = {"service": SERVICES.get(role, role), "role": role, "core": core, "wire": {"connect": {r: addresses[r] for r in CALLS.get(role, [])}}}
            self.nodes.append(Node(parlando, folder, name, numbers[name], config))

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


async def trial(network, crowd, caller, callee, forth):
    """-> problems"""
    await crowd.wait_talking()
    one, other = await asyncio.gather(asyncio.to_thread(network.busiest, caller), asyncio.to_thread(network.busiest, callee))
    loser, unheard = (one, other) if forth else (other, one)
    strays, start = len(crowd.strays), time.monotonic()
    await asyncio.to_thread(loser.cut_from, unheard)
    await asyncio.sleep(a.seconds)
    await asyncio.to_thread(loser.heal, unheard)
    end = time.monotonic() + 1
    await asyncio.sleep(1)
    await crowd.wait_ended([t for t in crowd.under_way() if t.start < end])
    turns = [t for t in crowd.turns if t.start <= end and t.end is not None and t.end >= start]
    problems = [f"session {t.session}, '{t.said}': {p}" for t in turns for p in t.problems] + [text for _, text in crowd.strays[strays:]] + network.ended()
    answered = [t for t in turns if t.event.get("type") == "turn"]
    quietest = max(turns, key=lambda t: t.max_gap, default=None)
    name = f"{loser.name} -> {unheard.name}"
    if not answered:
        problems.append("nobody was answered")
    print(f"  {name:<28} {'FAIL' if problems else 'pass'}  {len(answered)} of {len(turns)} answered, {quietest.silence() if quietest else 'nobody talked'}", flush=True)
    return [f"{name}: {p}" for p in problems]


async def run(network, questions):
    crowd = Crowd(network, questions, a.sessions, a.talking)
    await crowd.start()
    problems = []
    for caller, callees in CALLS.items():
        for callee in callees:
            for forth in (True, False):
                wanted = a.only in (f"{caller} -> {callee}" if forth else f"{callee} -> {caller}")
                for _ in range(a.repeat if wanted else 0):
                    problems += await trial(network, crowd, caller, callee, forth)
    await crowd.stop()
    over, took = await asyncio.to_thread(network.above_baseline, RECOVERED_SECONDS)
    print(f"  the load ends: {'back at the baseline after %.1f s' % took if not over else 'still %s' % over}")
    return problems + [f"the load ends: {k} is {v}" for k, v in over.items()]


with tempfile.TemporaryDirectory(prefix="parlando-cut-") as folder:
    words = json.load(open(a.source / "models/nano/questions/questions.json"))
    recordings = {name: (question(a.source / "models/nano/questions" / name), said) for name, said in words.items()}
    network = Network(a.bin, a.source, folder)
    try:
        network.start()
        problems = asyncio.run(run(network, recordings))
        if problems:
            problems.append(network.said(8))
    finally:
        network.stop()
    print(*problems, sep="\n")
sys.exit(bool(problems))
