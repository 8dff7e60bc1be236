"""Cuts one service off from another, one way, while people talk: each instance has a network and a clock of its own, and what one sends to
the other is lost without a word for 3 s. Each pair of roles that call each other, each way; every turn must be answered, whole and once.

`partition.py BUILD_BIN SOURCE_DIR [--only TEXT] [--seconds 3]`. Exit code 77 without root or the tools (tests/chaos/networks.py).
"""
import argparse
import asyncio
import pathlib
import sys
import tempfile

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
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from networks import CALLS, Network, calm, enter, trial  # noqa: E402
from talkers import Crowd, questions  # noqa: E402

enter()
RECOVERED_SECONDS = 3


async def cut(network, crowd, caller, callee, forth):
    await crowd.wait_talking()
    one, other = await asyncio.gather(asyncio.to_thread(network.busiest, caller), asyncio.to_thread(network.busiest, callee))
    loser, unheard = (one, other) if forth else (other, one)

    async def fault():
        await asyncio.to_thread(loser.cut_from, unheard)
        await asyncio.sleep(a.seconds)
        await asyncio.to_thread(loser.heal, unheard)
    return await trial(network, crowd, f"{loser.name} -> {unheard.name}", fault())


async def run(network, recordings):
    crowd = Crowd(network, recordings, a.sessions, a.talking)
    await crowd.start()
    problems = []
    for caller, callees in CALLS.items():
        for callee in callees:
            for forth in (True, False):
                wanted = a.only in (f"{caller} -> {callee}" if forth else f"{callee} -> {caller}")
                for _ in range(a.repeat if wanted else 0):
                    problems += await cut(network, crowd, caller, callee, forth)
    return problems + await calm(network, crowd, RECOVERED_SECONDS)


with tempfile.TemporaryDirectory(prefix="parlando-cut-") as folder:
    network = Network(a.bin, a.source, folder)
    try:
        network.start()
        problems = asyncio.run(run(network, questions(a.source)))
        if problems:
            problems.append(network.said(8))
    finally:
        network.stop()
    print(*problems, sep="\n")
sys.exit(bool(problems))
