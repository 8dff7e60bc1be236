"""What goes wrong on the way between services while people talk: bits that turn over, delay, little room, connections that are reset.

`wire.py BUILD_BIN SOURCE_DIR [--only TEXT] [--full]`. Every turn must be answered, whole and once; damaged messages must be noticed. Callers reach
everybody through `Way`s of tests/chaos/networks.py; in the clear, because with CURVE a damaged message never arrives (a reset, of which there
is a trial). Exit code 77 without root or the tools.
"""
import argparse
import asyncio
import pathlib
import sys
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--only", default="", help="trials whose name contains this")
parser.add_argument("--full", action="store_true", help="each at all ways instead of one of a kind")
parser.add_argument("--repeat", type=int, default=1)
parser.add_argument("--sessions", type=int, default=4)
parser.add_argument("--talking", type=int, default=2)
parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from networks import Network, calm, enter, trial  # noqa: E402
from talkers import Crowd, questions  # noqa: E402

enter()
RECOVERED_SECONDS = 3
FAULT_SECONDS = 3
FLIP_EVERY = 20_000          # bytes
SLOW_BYTES = 80_000          # a second: less than two answers are long, more than one
DELAYS = (0.04, 0.08, 0.2)   # seconds, one way; a quarter of it is jitter
RESETS = 6
DAMAGED = ("frames_malformed_total", "link_resets_total", "socket_errors_total", "links_resumed_total")


def noticed(network):
    """Of all instances: what counts messages that could not be read, and links made anew."""
    return sum(child.gauge(name) or 0 for child in network.children() for name in DAMAGED)


async def flip(ways, network):
    before, counted = sum(w.flipped for w in ways), await asyncio.to_thread(noticed, network)
    for way in ways:
        way.flip_every = FLIP_EVERY
    await asyncio.sleep(FAULT_SECONDS)
    for way in ways:
        way.clear()
    flipped = sum(w.flipped for w in ways) - before
    # The last of them may not have been read yet.
    for _ in range(50):
        more = await asyncio.to_thread(noticed, network) - counted
        if more:
            break
        await asyncio.sleep(0.1)
    if flipped and not more:
        raise RuntimeError(f"{flipped} bits turned over and nobody noticed one")
    return f"{flipped} bits turned over, {more:.0f} times noticed"


async def slow(ways, network):
    for way in ways:
        way.bytes_per_second = SLOW_BYTES
    await asyncio.sleep(FAULT_SECONDS)
    for way in ways:
        way.clear()


async def late(ways, network, seconds):
    for way in ways:
        way.delay, way.jitter = seconds, seconds / 4
    await asyncio.sleep(FAULT_SECONDS)
    for way in ways:
        way.clear()


async def reset(ways, network):
    for _ in range(RESETS):
        for way in ways:
            way.reset()
        await asyncio.sleep(FAULT_SECONDS / RESETS)


def trials(network):
    """-> name, ways, fault"""
    pairs = sorted({(w.caller, w.callee.rsplit("-", 1)[0]) for w in network.ways})
    kinds = [("flip", flip), ("slow", slow), *((f"late {1000 * d:.0f} ms", lambda ways, network, d=d: late(ways, network, d)) for d in DELAYS), ("reset", reset)]
    one_of_a_kind = {"flip": ("controller", "tts"), "slow": ("controller", "tts"), "late 40 ms": None, "late 80 ms": None, "late 200 ms": ("controller", "tokenizer"),
                     "reset": ("gateway", "controller")}
    for kind, fault in kinds:
        for pair in [*pairs, None] if a.full else [one_of_a_kind[kind]]:
            ways = [w for w in network.ways if pair in (None, (w.caller, w.callee.rsplit("-", 1)[0]))]
            yield f"{kind} {'everywhere' if pair is None else f'{pair[0]} - {pair[1]}'}", ways, fault


async def run(network, recordings):
    crowd = Crowd(network, recordings, a.sessions, a.talking)
    await crowd.start()
    problems = []
    for name, ways, fault in (t for _ in range(a.repeat) for t in trials(network)):
        if a.only not in name:
            continue
        try:
            problems += await trial(network, crowd, name, fault(ways, network))
        except RuntimeError as error:
            print(f"  {name:<28} FAIL  0 of 0 answered  {error}", flush=True)
            problems.append(f"{name}: {error}")
    return problems + await calm(network, crowd, RECOVERED_SECONDS)


with tempfile.TemporaryDirectory(prefix="parlando-wire-") as folder:
    network = Network(a.bin, a.source, folder, with_ways=True)
    try:
        network.start()
        problems = asyncio.run(run(network, questions(a.source)))
        if problems:
            problems.append(network.said(8))
    finally:
        network.stop()
    print(*problems, sep="\n")
sys.exit(bool(problems))
