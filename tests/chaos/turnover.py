"""Sessions that come and go: so many are opened and closed through the gateways, some with a question, some without a good-bye; nothing may grow.

`turnover.py BUILD_BIN SOURCE_DIR [--sessions 10000] [--at_once 16]`. Memory, descriptors and threads of every service are read after a fifth of the
sessions and at the end; streams and gauges must be back at their baseline.
"""
import argparse
import asyncio
import glob
import json
import pathlib
import random
import re
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--sessions", type=int, default=10000)
parser.add_argument("--at_once", type=int, default=16)
parser.add_argument("--seed", type=int, default=1)
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from fleet import Fleet  # noqa: E402
from ws import AsyncWebSocket  # noqa: E402

GROWTH_MAX = 0.05            # of memory, between a fifth of the sessions and all of them
GROWTH_MIB_MIN = 3           # what allocators keep for themselves
SETTLE_SECONDS = 70          # sessions that left without a good-bye are held for a minute
ANSWER_SECONDS = 30
ASKS, BREAKS = 0.1, 0.3      # shares of the sessions


class Ways:
    """How often sessions ended how."""

    def __init__(self):
        self.closed = self.broken = self.asked = 0
        self.problems = []


async def one(host, port, dice, ways):
    ws = await AsyncWebSocket.connect(host, port, "/v1/dialogue", timeout=10)
    try:
        ws.send({"type": "open", "speak": False})
        event = json.loads(await asyncio.wait_for(ws.receive(), ANSWER_SECONDS))
        if event["type"] != "opened":
            ways.problems.append(f"not opened: {json.dumps(event)[:200]}")
            return
        if dice.random() < ASKS:
            ws.send({"type": "text", "text": "what is three plus four"})
            while event["type"] not in ("turn", "error"):
                event = json.loads(await asyncio.wait_for(ws.receive(), ANSWER_SECONDS))
            if event["type"] == "error":
                ways.problems.append(f"no answer: {json.dumps(event)[:200]}")
            ways.asked += 1
        if dice.random() < BREAKS:
            ways.broken += 1
            ws.writer.transport.abort()
            return
        ways.closed += 1
        ws.send({"type": "close"})
    except (asyncio.TimeoutError, ConnectionError, OSError) as error:
        ways.problems.append(repr(error))
    finally:
        ws.close()


async def many(fleet, count, dice, ways, began):
    doors = sorted(fleet.gateways().values())
    left = iter(range(count))

    async def worker():
        for n in left:
            await one(*doors[n % len(doors)], dice, ways)
            if n % 1000 == 999:
                memory = ", ".join(f"{name} {size[0]:.1f}" for name, size in (await asyncio.to_thread(sizes, fleet)).items() if name.startswith(("controller", "gateway", "context")))
                print(f"  {n + 1} more sessions, {time.monotonic() - began:.0f} s; MiB: {memory}", flush=True)
    await asyncio.gather(*(worker() for _ in range(a.at_once)))


def sizes(fleet):
    """-> {name: (resident MiB, descriptors, threads)}"""
    out = {}
    for child in fleet.children():
        status = dict(line.split(":", 1) for line in open(f"/proc/{child.pid}/status"))
        out[child.name] = (int(status["VmRSS"].split()[0]) / 1024, len(glob.glob(f"/proc/{child.pid}/fd/*")), int(status["Threads"]))
    return out


def kept_mib(fleet, source):
    """-> {name: MiB of the key/value cache that beginnings of prompts fill}: limited by the configuration, and touched when it is first used."""
    c = json.load(open(source / "models/nano/Step-Audio-Chat/config.json"))
    dims = -(-c["hidden_size"] // c["num_attention_heads"] // 64) * 64  # of a head, as wide as they are laid out at most
    block = 16 * c["num_hidden_layers"] * 2 * c["num_attention_groups"] * dims * 4
    blocks = lambda child: float(re.search(r"^parlando_llm_prefix_blocks (\S+)$", child.text(), re.M)[1])
    return {child.name: blocks(child) * block / 2**20 for role in ("llm-chat", "llm-tts") for child in fleet.children(role)}


with tempfile.TemporaryDirectory(prefix="parlando-turnover-") as folder:
    fleet = Fleet(a.bin, a.source, folder)
    problems, ways, dice, began = [], Ways(), random.Random(a.seed), time.monotonic()
    try:
        first = max(a.sessions // 5, 1000)
        asyncio.run(many(fleet, first, dice, ways, began))
        before, kept_before = sizes(fleet), kept_mib(fleet, a.source)
        asyncio.run(many(fleet, a.sessions - first, dice, ways, began))
        over, took = fleet.above_baseline(SETTLE_SECONDS)
        problems += [f"after {a.sessions} sessions {k} is {v}" for k, v in over.items()]
        kept = kept_mib(fleet, a.source)
        for name, (memory, files, threads) in sizes(fleet).items():
            was = before.get(name)
            if was is None:
                problems.append(f"{name} is a new process")
                continue
            print(f"  {name:<13} {was[0]:7.1f} -> {memory:7.1f} MiB, {was[1]} -> {files} descriptors, {was[2]} -> {threads} threads")
            memory -= max(0, kept.get(name, 0) - kept_before.get(name, 0))  # what is forgotten stays touched
            if memory - was[0] > max(GROWTH_MIB_MIN, GROWTH_MAX * was[0]):
                problems.append(f"{name} has grown from {was[0]:.1f} to {memory:.1f} MiB between {first} and {a.sessions} sessions")
            if files > was[1] or threads > was[2]:
                problems.append(f"{name} has {files} descriptors and {threads} threads, it had {was[1]} and {was[2]}")
        print(f"  {a.sessions} sessions: {ways.closed} closed, {ways.broken} broken off, {ways.asked} asked; back at the baseline after {took:.1f} s")
    finally:
        code = fleet.stop()
    problems += ways.problems[:10]
    if code != 0:
        problems.append(f"the engine ended with {code}")
    print(*problems, sep="\n")
sys.exit(bool(problems))
