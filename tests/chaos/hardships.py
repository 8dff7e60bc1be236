"""What the machine does to an engine while people talk: a full disk, a wall clock that jumps, no descriptors left, a role that is away altogether,
services that die at random.

`hardships.py BUILD_BIN SOURCE_DIR [--only TEXT] [--minutes M]`. `--minutes`: how long services die at random (default half a minute). Exit code 77
without root or unshare: the disk is a small file system of this program's own, which ends with it; and when all went well, and the clock's jumps were left out for lack of libfaketime.
"""
import argparse
import asyncio
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--only", default="", help="trials whose name contains this")
parser.add_argument("--minutes", type=float, default=0.5)
parser.add_argument("--repeat", type=int, default=1)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--sessions", type=int, default=4)
parser.add_argument("--talking", type=int, default=2)
parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "tests/chaos")]
from fleet import ROLES, Fleet  # noqa: E402
from talkers import Crowd, heard, questions  # noqa: E402
from trials import away  # noqa: E402

if os.geteuid() != 0 or not shutil.which("unshare"):
    print("needs root and unshare")
    sys.exit(77)
if not a.inside:
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode != 0:
        print("file systems of our own are not allowed here")
        sys.exit(77)
    os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv, "--inside"])

DISK = "8m"
FULL_SECONDS = 12
DISK_SETTLES = 3         # seconds: what waits is tried again once a second, and goes first
AWAY_SECONDS = 6
HOUR = 3600
DEATHS_SECONDS = 5       # two services at random, so often
SETTLE_SECONDS = 70      # sessions of a gateway that died are kept for a minute
READY_SECONDS = 90
DESCRIPTORS_LEFT = 4
CLOCKS = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1")


class Setting:
    """The engine, who talks to it, and what may be done to both."""

    def __init__(self, fleet, crowd, disk, clock):
        self.fleet, self.crowd, self.disk, self.clock = fleet, crowd, disk, clock
        self.dice = random.Random(a.seed)  # one for all repeats: each has other victims

    async def full_disk(self):
        """Turns go on and are told as degraded, at most two a session; a third is refused. What waited is written when there is room again."""
        filler = self.disk / "filler"
        with open(filler, "wb", buffering=0) as f:
            try:
                while f.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        await asyncio.sleep(FULL_SECONDS)
        filler.unlink()
        return f"{FULL_SECONDS} s without room"

    async def jumping_clock(self):
        for offset in (HOUR, -HOUR, 0):
            self.clock.write_text(f"{offset:+d}\n")
            await asyncio.sleep(2)
        return "an hour forth, two back"

    async def no_descriptors(self):
        """The gateway that most talk to has hardly a descriptor left, and more clients come than it has."""
        victim = await asyncio.to_thread(self.fleet.busiest, "gateway")
        host, port = (await asyncio.to_thread(self.fleet.gateways))[victim.name]
        used = max(int(n) for n in os.listdir(f"/proc/{victim.pid}/fd"))
        was = resource_limit(victim.pid, used + 1 + DESCRIPTORS_LEFT)
        clients = []
        try:
            for _ in range(5 * DESCRIPTORS_LEFT):
                clients.append(socket.create_connection((host, port), timeout=2))
            await asyncio.sleep(2)
        finally:
            for client in clients:
                client.close()
            resource_limit(victim.pid, was)
        # It takes new ones again.
        until = time.monotonic() + 3
        while True:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
                writer.write(f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                answer = await asyncio.wait_for(reader.read(), 2)
                writer.close()
                if answer.startswith(b"HTTP/1.1 200"):
                    return f"{len(clients)} clients for {DESCRIPTORS_LEFT} descriptors"
            except (OSError, asyncio.TimeoutError):
                pass
            if time.monotonic() > until:
                raise RuntimeError(f"{victim.name} takes no new clients within 3 s after descriptors are free")
            await asyncio.sleep(0.1)

    async def role_away(self):
        return await away("tts", AWAY_SECONDS)(self.fleet, self.crowd)

    async def random_deaths(self):
        end, count = time.monotonic() + 60 * a.minutes, 0
        roles = [r for r in ROLES if r != "gateway"]  # whose clients would have to come again; it has trials of its own
        while time.monotonic() < end:
            alive = [c for c in await asyncio.to_thread(self.fleet.children) if c.role in roles]
            for victim in self.dice.sample(alive, 2):
                victim.signal(signal.SIGKILL)
                count += 1
            await asyncio.sleep(DEATHS_SECONDS)
        for role in roles:
            if not await asyncio.to_thread(self.fleet.wait_ready, role, 2, (), READY_SECONDS):
                raise RuntimeError(f"{role} is not whole again within {READY_SECONDS} s")
        return f"{count} killed, seed {a.seed}"


def resource_limit(pid, files):
    """Sets how many descriptors a process may have. -> how many it might before"""
    import resource
    before, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, hard))
    return before


async def trial(setting, name, fault, may_fail, settle):
    """@param may_fail  how turns may end until `settle` seconds behind the fault; from then on all must be answered again"""
    crowd = setting.crowd
    await crowd.wait_talking()
    strays, start, found, note = len(crowd.strays), time.monotonic(), [], ""
    try:
        note = await fault() or ""
    except (RuntimeError, OSError) as error:
        found.append(f"{type(error).__name__}: {error}")
    end = time.monotonic() + settle
    await asyncio.sleep(settle)
    await crowd.wait_ended([t for t in crowd.under_way() if t.start < end])
    # Everybody talks on: a whole turn of each behind the fault.
    after = time.monotonic()
    await asyncio.sleep(0)
    await crowd.wait_turns_since(after, crowd.wanted)
    turns = [t for t in crowd.turns if t.start <= end and t.end is not None and t.end >= start]
    later = [t for t in crowd.turns if t.start >= after and t.end is not None]
    found += [f"session {t.session}, '{t.said}': {p}" for t in turns if not t.failed_as(may_fail) for p in t.problems]
    for t in later:
        found += [f"behind the fault: session {t.session}, '{t.said}': {p}" for p in t.problems]
    found += [text for _, text in crowd.strays[strays:]]  # sessions stay, whatever becomes of their turns
    missing = {s.number for s in crowd.sessions} - {t.session for t in later}
    if missing:
        found.append(f"sessions {sorted(missing)} said nothing more within a minute")
    answered = [t for t in turns if t.event.get("type") == "turn"]
    degraded = sum(bool(t.event.get("degraded")) for t in answered)
    print(f"  {name:<28} {'FAIL' if found else 'pass'}  {len(answered)} of {len(turns)} answered, {heard(turns)}  {note}"
          f"{f', {degraded} degraded' if degraded else ''}", flush=True)
    return [f"{name}: {p}" for p in found]


async def run(setting):
    crowd, trials = setting.crowd, [("disk full", setting.full_disk, ("overloaded", "unavailable", "io"), DISK_SETTLES), ("clock jumps", setting.jumping_clock, (), 1),
                                    ("descriptors gone", setting.no_descriptors, (), 1), ("role away", setting.role_away, ("unavailable", "deadline_exceeded"), 1),
                                    ("random deaths", setting.random_deaths, ("unavailable", "overloaded", "deadline_exceeded"), 1)]
    trials = [t for t in trials if t[0] not in left_out]
    await crowd.start()
    problems = []
    for name, fault, may_fail, settle in a.repeat * trials:
        if a.only in name:
            problems += await trial(setting, name, fault, may_fail, settle)
    await crowd.stop()
    over, took = await asyncio.to_thread(setting.fleet.above_baseline, SETTLE_SECONDS)
    print(f"  the load ends: {'back at the baseline after %.1f s' % took if not over else 'still %s' % over}")
    # A controller that is killed while the disk is full would take two turns of each session with it; none is here.
    return problems + [f"the load ends: {k} is {v}" for k, v in over.items()] + crowd.settle() + crowd.history.problems(setting.disk / "store.sqlite", 2 * crowd.wanted if not a.only or "random" in a.only else 0)


with tempfile.TemporaryDirectory(prefix="parlando-hard-") as folder:
    disk = pathlib.Path(folder) / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], check=True)
    clock, left_out = None, []
    if library := next((c for c in CLOCKS if pathlib.Path(c).exists()), None):
        clock = pathlib.Path(folder) / "clock"
        clock.write_text("+0\n")
        os.environ |= {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}
    elif a.only in "clock jumps":
        left_out = ["clock jumps"]
    fleet = Fleet(a.bin, a.source, folder, store=disk / "store.sqlite")
    for key in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
        os.environ.pop(key, None)
    try:
        problems = asyncio.run(run(Setting(fleet, Crowd(fleet, questions(a.source), a.sessions, a.talking), disk, clock)))
    finally:
        code = fleet.stop()
        subprocess.run(["umount", disk])
    if code != 0:
        problems.append(f"the engine ended with {code}")
    print(*problems, sep="\n")
    if problems:
        print("the engine's last lines:", *fleet.said(), sep="\n    ")
    if left_out:
        print(f"left out: {', '.join(left_out)} (C1): libfaketime is not installed (tools/setup.sh --test)")
sys.exit(1 if problems else 77 if left_out else 0)
