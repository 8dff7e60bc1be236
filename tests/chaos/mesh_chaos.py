"""Stops, kills, scales and rolls real services while people talk to them; every turn must be answered, whole and once.

`mesh_chaos.py BUILD_BIN SOURCE_DIR [--full]`. Short, for ctest: 6 sessions of which 3 talk at a time, one fault of every role. Full: 20 of
which 6 talk, every role stopped for 0.4, 1 and 5 s and killed, tts 1 -> 3 -> 1, controllers rolled. Two replicas of every role. Exit code 1
when a turn was lost, repeated or cut, or when streams and gauges are not back at their baseline 3 s after the load.
"""
import argparse
import asyncio
import json
import pathlib
import signal
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--full", action="store_true")
parser.add_argument("--sessions", type=int)
parser.add_argument("--talking", type=int)
parser.add_argument("--only", help="faults whose name contains this")
parser.add_argument("--budget", type=float, help="no fault begins after so many seconds of load; default 55, in full none")
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from fleet import ROLES, Fleet  # noqa: E402
from talkers import Crowd, question  # noqa: E402

SETTLE_SECONDS = 3      # the design says 2; polling and the gauges' own period take the third
DETACHED_SECONDS = 60   # for which controllers keep the sessions of a gateway that died, for their clients to resume
LEAK_SECONDS = 40       # after which what is not back is lost for good
AFTERMATH_SECONDS = 1   # turns that begin so soon after a fault are its as well
READY_SECONDS = 90      # of a replica that is started again, by a loaded machine


def stop(role, seconds):
    async def fault(fleet, crowd):
        victim = await asyncio.to_thread(fleet.busiest, role)
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            victim.signal(signal.SIGCONT)
        return f"{victim.name} pid {victim.pid}"
    fault.__name__ = f"stop {seconds:g} s {role}"
    return fault


async def replace(fleet, crowd, victim, number):
    """Ends a process by a signal and waits for the one that the supervisor starts in its place. -> a problem, or ''"""
    crowd.closing = victim.name if victim.role == "gateway" else None
    count = len(await asyncio.to_thread(fleet.children, victim.role))
    victim.signal(number)
    back = await asyncio.to_thread(fleet.wait_ready, victim.role, count, [victim.pid], READY_SECONDS)
    return "" if back else f"{victim.name} is not back within {READY_SECONDS} s"


def kill(role):
    async def fault(fleet, crowd):
        victim = await asyncio.to_thread(fleet.busiest, role)
        problem = await replace(fleet, crowd, victim, signal.SIGKILL)
        if problem:
            raise RuntimeError(problem)
        return f"{victim.name} pid {victim.pid}"
    fault.__name__ = f"kill -9 {role}"
    return fault


async def roll_controllers(fleet, crowd):
    for victim in await asyncio.to_thread(fleet.children, "controller"):
        problem = await replace(fleet, crowd, victim, signal.SIGTERM)
        if problem:
            raise RuntimeError(problem)
    return "both, one after the other"


async def scale_tts(fleet, crowd):
    for count in (1, 3, 1, 2):
        done = await asyncio.to_thread(fleet.scale, "tts", count)
        if done is not True:
            raise RuntimeError(f"parlando scale: {done}")
        if not await asyncio.to_thread(fleet.wait_ready, "tts", count, (), READY_SECONDS):
            raise RuntimeError(f"there are not {count} tts within {READY_SECONDS} s")
        await asyncio.sleep(2)
    return "1, 3, 1, 2"


def faults():
    """-> lists of faults; behind each list the load ends and the baseline is looked at"""
    if a.full:
        groups = [[stop(role, seconds) for seconds in (0.4, 1, 5)] + [kill(role)] for role in ROLES] + [[scale_tts], [roll_controllers]]
    else:
        # One of every role, both of those that hold sessions; what is most likely to break comes first.
        groups = [[kill("controller"), stop("gateway", 1), stop("llm-chat", 1), kill("tts"), kill("vad"), stop("controller", 1), stop("llm-tts", 1), kill("context"),
                   stop("tokenizer", 1), kill("gateway")]]
    return [[f for f in group if not a.only or a.only in f.__name__] for group in groups]


class Trials:
    def __init__(self, fleet, crowd):
        self.fleet, self.crowd, self.problems, self.count = fleet, crowd, [], 0

    def row(self, name, passed, turns=(), note=""):
        self.count += 1
        quietest = max(turns, key=lambda t: t.max_gap, default=None)
        answered = [t for t in turns if t.event.get("type") == "turn"]
        heard = sum(t.event.get("user") == t.said for t in answered)
        note += "".join(f"; heard {t.event.get('user')!r} for {t.said!r}" for t in answered if t.event.get("user") != t.said)
        print(f"{self.count:>3}  {name:<22} {'pass' if passed else 'FAIL':<5} {len(answered):>3} of {len(turns):<3} answered, {heard:>3} understood, "
              f"{quietest.silence() if quietest else 'nobody talked'}  {note}", flush=True)

    async def trial(self, fault):
        await self.crowd.wait_talking()
        strays = len(self.crowd.strays)
        start, problem = time.monotonic(), ""
        try:
            note = await fault(self.fleet, self.crowd)
        except (RuntimeError, OSError, ValueError) as error:
            note = problem = f"{type(error).__name__}: {error}"
        end = time.monotonic() + AFTERMATH_SECONDS
        await asyncio.sleep(AFTERMATH_SECONDS)
        await self.crowd.wait_ended([t for t in self.crowd.under_way() if t.start < end])
        self.crowd.closing = None
        turns = [t for t in self.crowd.turns if t.start <= end and t.end is not None and t.end >= start]
        found = [f"session {t.session} at {t.gateway}, '{t.said}': {p}" for t in turns for p in t.problems] + [text for _, text in self.crowd.strays[strays:]]
        found += [problem] if problem else []
        counted = [t for t in turns if not t.excused]
        if not counted and not problem:
            found.append("nobody talked meanwhile")
        self.row(fault.__name__, not found, counted, note)
        self.problems += [f"{fault.__name__}: {text}" for text in found]

    async def calm(self, name, gateway_died):
        """The load ends; what it held is given back."""
        limit = SETTLE_SECONDS + (DETACHED_SECONDS if gateway_died else 0)
        strays = len(self.crowd.strays)
        await self.crowd.stop()
        over, took = await asyncio.to_thread(self.fleet.above_baseline, limit)
        found = [f"{key} is {value}" for key, value in sorted(over.items())] + [text for _, text in self.crowd.strays[strays:]]
        note = f"back at the baseline after {took:.1f} s"
        if over:
            # How long it really takes tells a leak from a long wait.
            still, later = await asyncio.to_thread(self.fleet.above_baseline, LEAK_SECONDS)
            note = f"not back after {limit} s, {'nor' if still else 'but'} after {limit + later:.0f} s"
        self.row(name, not found, note=note)
        self.problems += [f"{name}: {text}" for text in found]


async def run(fleet, questions):
    crowd = Crowd(fleet, questions, a.sessions or (20 if a.full else 6), a.talking or (6 if a.full else 3))
    trials = Trials(fleet, crowd)
    began, skipped = time.monotonic(), []
    budget = a.budget or (float("inf") if a.full else 55)
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
    print(f"{len(crowd.turns)} turns, {trials.count} trials, {len(trials.problems)} problems; the clients' own clock was late by at most {1000 * crowd.late:.0f} ms")
    if skipped:
        print(f"left out for lack of time: {', '.join(skipped)}")
    return trials.problems, crowd.history


with tempfile.TemporaryDirectory(prefix="parlando-chaos-") as folder:
    words = json.load(open(a.source / "models/nano/questions/questions.json"))
    recordings = {name: (question(a.source / "models/nano/questions" / name), said) for name, said in words.items()}
    fleet = Fleet(a.bin, a.source, folder)
    try:
        problems, history = asyncio.run(run(fleet, recordings))
        problems += history.problems(fleet.store, lost_with_owner=2 * (a.sessions or 6))
    finally:
        code = fleet.stop()
    if code != 0:
        problems.append(f"the engine ended with {code}")
    for problem in problems:
        print(f"  {problem}")
    if problems:
        print("the engine's last lines:", *fleet.said(), sep="\n    ")
sys.exit(bool(problems))
