"""A night of faults: 20 people talk for two hours, two or three faults a minute, each of every kind of a shuffled deck in turn.

`soak.py BUILD_BIN SOURCE_DIR [--minutes M] [--json FILE]`. What must hold: every turn is answered, whole and once; every session talks on to the end; what was told as durable is in
the store; memory, descriptors and threads at the end are those behind the first tenth (within 5 % and a few descriptors; in runs of ten minutes and more); behind the load all gauges are back at
their baseline; recovery of each kind of fault that has a goal is within it at the 99th percentile, and so is, for vad, tokenizer and tts, what a loudspeaker misses within the lead. Every process is killed or rolled some ten times in two hours, so of what a service
leaks the growth within about ten minutes is seen; the supervisor lives from the beginning to the end. Exit code 1 when one does not hold. The last lines are a table: trials, passes and recovery for each fault.

Recovery is what a fault costs whoever talks: the longest silence of the trial less the median of trials without a fault; for a killed gateway the time until its clients have a session
at another one.
"""
import argparse
import asyncio
import json
import os
import pathlib
import random
import re
import statistics
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--minutes", type=float, default=120)
parser.add_argument("--sessions", type=int, default=20)
parser.add_argument("--talking", type=int, default=3)
parser.add_argument("--every", type=float, default=24, help="seconds between the beginnings of two faults")
parser.add_argument("--lead-ms", type=int, default=400, help="of sound that clients are ahead of their loudspeakers")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--only", help="faults whose name contains this, and none for comparison")
parser.add_argument("--json", type=pathlib.Path, help="samples and trials as they come, one object a line")
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from fleet import ROLES, Fleet  # noqa: E402
from suite import fault_of, percentile  # noqa: E402
from talkers import Crowd, questions  # noqa: E402
from trials import DETACHED_SECONDS, Trials, away, kill, roll, scale_tts, stop, two_deaths  # noqa: E402

SAMPLE_SECONDS = 20
WARM_SHARE, LAST_SHARE = 0.1, 0.25   # of the time: what is not looked at, and what is compared with as much behind it
FLAT = 0.05
SPARE_DESCRIPTORS = 24               # of all processes together: connections that a restarted neighbour has not opened again yet
SPARE_THREADS = 4
DRY = ("P3", "P4", "P6")             # faults that nobody is to hear in an answer that plays: its gap stays within the lead
RECOVERY_SECONDS = {"P1": 2, "P2": 1, "P3": 2, "P4": 2, "P5": 5, "P6": 2, "P7": 2}


async def nothing(fleet, crowd):
    await asyncio.sleep(3)
    return ""
nothing.__name__ = "none"


def deck(dice):
    """One of every kind, in any order."""
    out = [nothing, *(kill(role) for role in ROLES), kill("gateway", asking=True), stop(dice.choice(ROLES), dice.choice((0.4, 1, 5))), roll(dice.choice(ROLES)), scale_tts,
           away(dice.choice(("tts", "llm-chat")), 4), two_deaths(dice.random())]
    out = [fault for fault in out if not a.only or fault is nothing or a.only in fault.__name__]
    dice.shuffle(out)
    return out


def sizes(fleet):
    """-> proportional memory, descriptors and threads of the supervisor and all its services"""
    memory = descriptors = threads = 0
    for pid in [fleet.engine.process.pid, *(c.pid for c in fleet.children())]:
        try:
            memory += int(re.search(r"^Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read(), re.M)[1]) / 1024
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            threads += len(os.listdir(f"/proc/{pid}/task"))
        except (OSError, TypeError):
            continue  # it has just ended
    return {"mib": memory, "descriptors": descriptors, "threads": threads}


class Soak:
    def __init__(self, fleet, crowd, out):
        self.fleet, self.crowd, self.out = fleet, crowd, out
        self.trials, self.rows, self.samples, self.alive = Trials(fleet, crowd), [], [], 0
        self.between, self.strays = [], 0  # what went wrong while there was no fault

    def tell(self, **fields):
        if self.out:
            print(json.dumps(fields), file=self.out, flush=True)

    async def one(self, fault):
        began = time.monotonic()
        self.quiet("between two faults")
        turns, passed = await self.trials.trial(fault)
        self.strays = len(self.crowd.strays)
        id_, what = fault_of(fault.__name__)
        again = [seconds for when, seconds in self.crowd.came_again if when >= began]
        silence = max((t.max_gap for t in turns), default=0)
        self.rows.append({"id": id_, "what": what, "name": fault.__name__, "passed": passed, "turns": len(turns), "answered": sum(t.event.get("type") == "turn" for t in turns),
                          "silence_ms": 1000 * silence, "cut": self.trials.cut, "resumed": sum(t.resumed > 0 for t in turns), "dry_ms": 1000 * max((t.dry for t in turns), default=0), "again_ms": 1000 * max(again) if again else None, "at_s": began})
        self.tell(trial=self.rows[-1])

    def quiet(self, when):
        self.between += [f"{when}: {text}" for _, text in self.crowd.strays[self.strays:]]

    async def sample(self):
        """Between two faults everything is there: a process that is about to be replaced counts twice or not at all."""
        if self.samples and time.monotonic() < self.samples[-1]["at"] + min(SAMPLE_SECONDS, a.every):
            return
        if len(await asyncio.to_thread(self.fleet.children)) == 2 * len(ROLES):
            self.samples.append({"at": time.monotonic(), **await asyncio.to_thread(sizes, self.fleet)})
            self.tell(sample=self.samples[-1])

    async def run(self):
        dice, start = random.Random(a.seed), time.monotonic()
        end, pending = start + 60 * a.minutes, []
        await self.crowd.start()
        while time.monotonic() < end:
            began = time.monotonic()
            pending = pending or deck(dice)
            await self.one(pending.pop())
            await self.sample()
            await asyncio.sleep(max(0, min(end, began + a.every) - time.monotonic()))
        # Who lives on says one thing more.
        since = time.monotonic()
        await self.crowd.wait_turns_since(since, self.crowd.wanted, 60 + 4 * self.crowd.wanted)
        last = [t for t in self.crowd.turns if t.start >= since and t.end is not None]
        self.alive = len({t.session for t in last if t.event.get("type") == "turn"})
        self.quiet("behind the last fault")
        self.between += [f"behind the last fault: session {t.session} at {t.gateway}, '{t.said}': {p}" for t in last for p in t.problems]
        await self.trials.calm("the load ends", gateway_died=True)
        return self.trials.problems + self.between + self.crowd.settle() + ([] if self.alive == self.crowd.wanted else [f"{self.alive} of {self.crowd.wanted} sessions talk at the end"]) + self.growth(start, end)

    def growth(self, start, end):
        """What is larger at the end than behind the beginning."""
        if not self.samples:
            return ["the fleet was never whole between two faults"]
        if a.minutes < 10:
            print(f"  {len(self.samples)} samples, the last one {self.samples[-1]}: too short to compare")
            return []
        between = lambda low, high, key: [s[key] for s in self.samples if start + low * (end - start) <= s["at"] <= start + high * (end - start)]
        if min(len(between(WARM_SHARE, WARM_SHARE + LAST_SHARE, "mib")), len(between(1 - LAST_SHARE, 1, "mib"))) < 3:
            return ["there are not three samples of memory behind the beginning and before the end"]
        found = []
        for key, allowed in (("mib", lambda v: v * (1 + FLAT)), ("descriptors", lambda v: v + SPARE_DESCRIPTORS), ("threads", lambda v: v + SPARE_THREADS)):
            first, last = (statistics.median(between(*share, key)) for share in ((WARM_SHARE, WARM_SHARE + LAST_SHARE), (1 - LAST_SHARE, 1)))
            print(f"  {key}: median {first:.0f} behind the first {WARM_SHARE:.0%}, {last:.0f} at the end ({len(self.samples)} samples)")
            if last > allowed(first):
                found.append(f"{key} grew from {first:.0f} to {last:.0f}")
        return found

    def table(self):
        """-> what took longer than its goal"""
        missed = []
        calm = statistics.median([r["silence_ms"] for r in self.rows if r["id"] == "–"] or [0])
        print(f"\n| id | fault | trials | passed | turns answered | cut | resumed | audible gap, p99 | recovery, median | p99 | goal |\n|---|---|---|---|---|---|---|---|---|---|---|   (silence without a fault: {calm:.0f} ms)")
        for id_, what in sorted({(r["id"], r["what"]) for r in self.rows}):
            rows = [r for r in self.rows if r["id"] == id_]
            cost = [r["again_ms"] for r in rows if r["again_ms"]] if id_ == "P1" else [max(0.0, r["silence_ms"] - calm) for r in rows]
            goal = RECOVERY_SECONDS.get(id_)
            dry = [r["dry_ms"] for r in rows]
            if goal and a.minutes >= 10 and percentile(cost, 0.99) > 1000 * goal:
                missed.append(f"{id_}: {what}: recovery takes {percentile(cost, 0.99):.0f} ms at the 99th percentile of {len(cost)}, expected at most {goal} s")
            if id_ in DRY and a.lead_ms and a.minutes >= 10 and percentile(dry, 0.99) > a.lead_ms:
                missed.append(f"{id_}: {what}: an answer that played had a gap of {percentile(dry, 0.99):.0f} ms, expected at most the lead, {a.lead_ms} ms")
            print(f"| {id_} | {what} | {len(rows)} | {sum(r['passed'] for r in rows)} | {sum(r['answered'] for r in rows)} of {sum(r['turns'] for r in rows)} | "
                  f"{sum(r['cut'] for r in rows)} | {sum(r['resumed'] for r in rows)} | {percentile(dry, 0.99):.0f} ms | {percentile(cost, 0.5):.0f} ms | "
                  f"{percentile(cost, 0.99):.0f} ms | {f'{goal} s' if goal else '–'} |")
        return missed


with tempfile.TemporaryDirectory(prefix="parlando-soak-") as folder:
    fleet = Fleet(a.bin, a.source, folder)
    out = open(a.json, "w") if a.json else None
    soak = Soak(fleet, Crowd(fleet, questions(a.source), a.sessions, a.talking, a.lead_ms), out)
    try:
        problems = asyncio.run(soak.run())
        problems += soak.crowd.history.problems(fleet.store, lost_with_owner=2 * a.sessions)
    finally:
        code = fleet.stop()
    problems += soak.table()
    back = [1000 * seconds for _, seconds in soak.crowd.came_again]
    if back:
        print(f"  {len(back)} times a client was back behind the death of its gateway, {soak.crowd.resumed} of them in its session: median {percentile(back, 0.5):.0f} ms, p99 {percentile(back, 0.99):.0f} ms")
    if code != 0:
        problems.append(f"the engine ended with {code}")
    print(f"{len(soak.crowd.turns)} turns, {len(soak.rows)} trials, {len(problems)} problems; {soak.alive} of {a.sessions} sessions talk at the end")
    print(*(f"  {p}" for p in problems), sep="\n")
sys.exit(bool(problems))
