"""Faults of a fleet, and trials of them: what people heard meanwhile is judged and told as a row."""
import asyncio
import random
import signal
import time

from talkers import heard

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


async def replace(fleet, crowd, victim, number, count):
    """Ends a process by a signal and waits for the one that the supervisor starts in its place. @param count  of the role's replicas. -> a problem, or ''"""
    crowd.closing = victim.name if victim.role == "gateway" else None
    victim.signal(number)
    back = await asyncio.to_thread(fleet.wait_ready, victim.role, count, [victim.pid], READY_SECONDS)
    if not back:
        return f"{victim.name} is not back within {READY_SECONDS} s"
    end = await asyncio.to_thread(fleet.end_of, victim) if number == signal.SIGTERM else ""
    return f"{victim.name} was to drain and ended otherwise: {end}" if end not in ("", "exit 0") else ""


def kill(role, asking=False):
    """The replica that has most to do; a gateway while somebody hears an answer there, or asks a question, so that a turn is cut in its middle and has to be resumed."""
    async def fault(fleet, crowd):
        there = await asyncio.to_thread(fleet.children, role)
        victim = await asyncio.to_thread(fleet.busiest, role)
        if role == "gateway":
            busy = await (crowd.wait_asking() if asking else crowd.wait_hearing())
            victim = next((c for c in there if c.name == busy), victim)
        problem = await replace(fleet, crowd, victim, signal.SIGKILL, len(there))
        if problem:
            raise RuntimeError(problem)
        return f"{victim.name} pid {victim.pid}"
    fault.__name__, fault.resumes = f"kill -9 {role}{' in a question' if asking else ''}", role == "gateway"
    return fault


def roll(role, while_=""):
    """@param while_  what its name says of the load"""
    async def fault(fleet, crowd):
        victims = await asyncio.to_thread(fleet.children, role)
        for victim in victims:
            problem = await replace(fleet, crowd, victim, signal.SIGTERM, len(victims))
            if problem:
                raise RuntimeError(problem)
        return "all, one after the other"
    fault.__name__ = f"roll {role}{while_}"
    return fault


def away(role, seconds):
    """All replicas of a role at once: turns may be refused, no longer than it lasts."""
    async def fault(fleet, crowd):
        victims = await asyncio.to_thread(fleet.children, role)
        for victim in victims:
            victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            for victim in victims:
                victim.signal(signal.SIGCONT)
        return f"all {role} for {seconds:g} s"
    fault.__name__, fault.may_fail = f"role away {role}", ("unavailable", "deadline_exceeded")
    return fault


def two_deaths(seed):
    """Two services at once, of any roles but the gateway, whose clients would have to come again."""
    async def fault(fleet, crowd):
        victims = random.Random(seed).sample([c for c in await asyncio.to_thread(fleet.children) if c.role != "gateway"], 2)
        # While one replica of each role is left, answers are promised.
        fault.may_fail = ("unavailable", "overloaded", "deadline_exceeded") if victims[0].role == victims[1].role else ()
        for victim in victims:
            victim.signal(signal.SIGKILL)
        for victim in victims:
            if not await asyncio.to_thread(fleet.wait_ready, victim.role, 2, [v.pid for v in victims], READY_SECONDS):
                raise RuntimeError(f"{victim.role} is not whole again within {READY_SECONDS} s")
        return " and ".join(v.name for v in victims)
    fault.__name__ = "random deaths"
    return fault


async def scale_tts(fleet, crowd):
    for count in (1, 3, 1, 2):
        done = await asyncio.to_thread(fleet.scale, "tts", count)
        if done is not True:
            raise RuntimeError(f"parlando scale: {done}")
        if not await asyncio.to_thread(fleet.wait_ready, "tts", count, (), READY_SECONDS):
            raise RuntimeError(f"there are not {count} tts within {READY_SECONDS} s")
        await asyncio.sleep(2)
    return "1, 3, 1, 2"


class Trials:
    def __init__(self, fleet, crowd):
        self.fleet, self.crowd, self.problems, self.count = fleet, crowd, [], 0
        self.cut = 0  # turns of the last trial that went with their gateway
        self.resumed = {}  # fault in which turns have to be resumed -> how many were, of all its trials

    def row(self, name, passed, turns=(), note="", cut=0):
        """@param cut  turns that went with their gateway and could not be resumed: not among `turns`, nor judged"""
        self.count += 1
        answered = [t for t in turns if t.event.get("type") == "turn"]
        understood = sum(t.event.get("user") == t.said for t in answered)
        note += "".join(f"; heard {t.event.get('user')!r} for {t.said!r}" for t in answered if t.event.get("user") != t.said)
        resumed = sum(t.resumed > 0 for t in turns)
        print(f"{self.count:>3}  {name:<22} {'pass' if passed else 'FAIL':<5} {len(answered):>3} of {len(turns):<3} answered, {cut} cut, {resumed} resumed, {understood:>3} understood, {heard(turns)}  {note}", flush=True)

    async def trial(self, fault):
        await self.crowd.wait_talking()
        await self.crowd.look()  # people know where gateways are before one dies
        strays = len(self.crowd.strays)
        start, problem = time.monotonic(), ""
        try:
            note = await fault(self.fleet, self.crowd)
        except (RuntimeError, OSError, ValueError) as error:
            note = problem = f"{type(error).__name__}: {error}"
        over = time.monotonic()
        end = over + AFTERMATH_SECONDS
        await asyncio.sleep(AFTERMATH_SECONDS)
        await self.crowd.wait_ended([t for t in self.crowd.under_way() if t.start < end])
        self.crowd.closing = None
        turns = [t for t in self.crowd.turns if t.start <= end and t.end is not None and t.end >= start]
        may_fail = getattr(fault, "may_fail", ())
        found = [f"session {t.session} at {t.gateway}, '{t.said}': {p}" for t in turns
                 if not (t.start <= over and t.failed_as(may_fail)) for p in t.problems] + [text for _, text in self.crowd.strays[strays:]]
        found += [problem] if problem else []
        counted = [t for t in turns if not t.excused]
        if not counted and not problem:
            found.append("nobody talked meanwhile")
        self.cut = len(turns) - len(counted)
        if getattr(fault, "resumes", False):
            self.resumed[fault.__name__] = self.resumed.get(fault.__name__, 0) + sum(t.resumed > 0 for t in counted)
        self.row(fault.__name__, not found, counted, note, self.cut)
        self.problems += [f"{fault.__name__}: {text}" for text in found]
        return counted, not found

    def not_tried(self):
        """What was to be tried and was not, in any trial. -> problems"""
        return [f"{name}: no turn was resumed in all its trials" for name, count in self.resumed.items() if count == 0]

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
        self.problems += [f"{name}: {text}" for text in found] + self.not_tried()
        self.resumed = {}
