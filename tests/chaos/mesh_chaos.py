"""Stops, kills, scales and rolls real services while people talk to them; every turn must be answered, whole and once.

`mesh_chaos.py BUILD_BIN SOURCE_DIR [--full]`. Short, for ctest: 6 sessions of which 3 talk at a time, one fault of every role. Full: 20 of
which 6 talk, every role stopped for 0.4, 1 and 5 s and killed, tts 1 -> 3 -> 1, controllers rolled. `--roll`: every role in turn is rolled while all of
20 talk. Two replicas of every role. Exit code 1 when a turn was lost, repeated or cut (behind a gateway that was killed it goes on at another one), or when streams and gauges are not back at their baseline 3 s after the load;
77 when all went well and a fault was left out for lack of time.
"""
import argparse
import asyncio
import pathlib
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--full", action="store_true")
parser.add_argument("--roll", action="store_true")
parser.add_argument("--lead-ms", type=int, default=400, help="of sound that clients are ahead of their loudspeakers")
parser.add_argument("--sessions", type=int)
parser.add_argument("--talking", type=int)
parser.add_argument("--only", help="faults whose name contains this")
parser.add_argument("--budget", type=float, help="no fault begins after so many seconds of load; default 240, in full none")
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from fleet import ROLES, Fleet  # noqa: E402
from talkers import Crowd, questions  # noqa: E402
from trials import Trials, kill, roll, scale_tts, stop  # noqa: E402


def faults():
    """-> lists of faults; behind each list the load ends and the baseline is looked at"""
    if a.roll:
        groups = [[roll(role, f" under {a.talking or 20}") for role in ROLES]]
    elif a.full:
        groups = [[stop(role, seconds) for seconds in (0.4, 1, 5)] + [kill(role)] for role in ROLES] + [[scale_tts], [roll("controller")]]
    else:
        # One of every role, both of those that hold sessions; what is most likely to break comes first.
        groups = [[kill("controller"), stop("gateway", 1), stop("llm-chat", 1), kill("tts"), kill("vad"), stop("controller", 1), stop("llm-tts", 1), kill("context"),
                   stop("tokenizer", 1), kill("gateway")]]
    return [[f for f in group if not a.only or a.only in f.__name__] for group in groups]


async def run(fleet, recordings):
    crowd = Crowd(fleet, recordings, a.sessions or (20 if a.full or a.roll else 6), a.talking or (20 if a.roll else 6 if a.full else 3), a.lead_ms)
    trials = Trials(fleet, crowd)
    began, skipped = time.monotonic(), []
    budget = a.budget or (float("inf") if a.full or a.roll else 240)
    for group in [g for g in faults() if g]:
        await crowd.start()
        await crowd.wait_talking()
        if trials.count == 0:
            # Without any fault: what the others are compared with.
            first = list(crowd.under_way())
            await crowd.wait_ended(first)
            problems = [p for t in first for p in t.problems]
            trials.row("none", not problems, first)
            trials.problems += [f"none: {p}" for p in problems]
        for fault in group:
            if time.monotonic() - began > budget:
                skipped.append(fault.__name__)
            else:
                await trials.trial(fault)
        died = any("kill" in fault.__name__ and "gateway" in fault.__name__ for fault in group)
        await trials.calm("the load ends", died)
    trials.problems += crowd.settle()
    print(f"{len(crowd.turns)} turns, {trials.count} trials, {len(trials.problems)} problems; the clients' own clock was late by at most {1000 * crowd.late:.0f} ms")
    if skipped:
        print(f"left out for lack of time: {', '.join(skipped)}")
    return trials.problems, crowd.history, skipped


with tempfile.TemporaryDirectory(prefix="parlando-chaos-") as folder:
    fleet = Fleet(a.bin, a.source, folder)
    try:
        problems, history, skipped = asyncio.run(run(fleet, questions(a.source)))
        problems += history.problems(fleet.store, lost_with_owner=2 * (a.sessions or (20 if a.full or a.roll else 6)))
    finally:
        code = fleet.stop()
    if code != 0:
        problems.append(f"the engine ended with {code}")
    for problem in problems:
        print(f"  {problem}")
    if problems:
        print("the engine's last lines:", *fleet.said(), sep="\n    ")
sys.exit(1 if problems else 77 if skipped else 0)
