"""One list of cases (cases.json) for every client package, against the running engine with two gateways.

`contract_test.py BUILD_BIN SOURCE_DIR PYTHON DRIVER_CPP`: PYTHON has what sdk/python needs; DRIVER_CPP may be `-`.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

BIN, ROOT, PYTHON, DRIVER_CPP = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]
ONLY = sys.argv[5:]
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Engine  # noqa: E402

CASES = json.load(open(ROOT / "tests/sdk/cases.json"))
RATE = 22050


def pids(engine):
    """Of the gateways, by name; children that were started again count."""
    listing = {}
    for line in list(engine.all):
        if line.startswith("child gateway") and " pid " in line:
            listing.setdefault("all", []).append(int(line.split()[-1]))
    return [p for p in listing["all"] if alive(p)]


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def pid_at(engine, endpoint):
    """Of the gateway that listens there: its configuration names the endpoint."""
    for pid in pids(engine):
        try:
            words = open(f"/proc/{pid}/cmdline").read().split("\0")
        except OSError:
            continue
        file = words[words.index("--config") + 1]
        if json.load(open(file))["wire"]["bind"] == endpoint:
            return pid
    raise RuntimeError(f"no gateway listens at {endpoint}")


class Package:
    """A package under test, behind its driver."""

    def __init__(self, name, command, **env):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})

    def do(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        timer = threading.Timer(180, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            raise RuntimeError(f"the driver of {self.name} ended at {command}")
        return json.loads(line)

    def stop(self):
        self.do(do="quit")
        self.process.stdin.close()
        return self.process.wait(timeout=20)


def fits(name, want, told, kept):
    """What is expected of an answer: equal, `>` greater, `~` contains, `!~` does not; `whole_sound`: all of it was heard."""
    if name == "whole_sound":
        had = kept[want[1:]]["samples"] if isinstance(want, str) else 0
        return abs((told["samples"] + had) / RATE - told["audio_seconds"]) < 1e-6
    if name.endswith("!~"):
        return want not in told[name[:-2]]
    if name.endswith("~"):
        return want in told[name[:-1]]
    if name.endswith(">"):
        return told[name[:-1]] > want
    return told.get(name) == want


def expand(value, kept):
    if isinstance(value, str) and value.startswith("$"):
        return kept[value[1:]]["token"]
    if isinstance(value, dict) and "repeat" in value:
        return value["repeat"] * value["count"]
    if isinstance(value, dict):
        return {name: expand(one, kept) for name, one in value.items()}
    return value


def kill(engine, package, number=signal.SIGKILL):
    pid = pid_at(engine, package.do(do="endpoint")["endpoint"])
    os.kill(pid, number)
    return pid


def both_ready(engine, count):
    """The supervisor has brought back what was killed."""
    for _ in range(600):
        if len(pids(engine)) >= count and sum("gateway listens" in line for line in engine.all) >= sum(
                line.startswith("child gateway") and " pid " in line for line in engine.all):
            return
        time.sleep(0.05)  # outside of the engine: nothing else tells
    raise RuntimeError("a gateway did not come back")


def run_case(engine, package, case):
    kept = {}
    for step in case["steps"]:
        step = dict(step)
        what, want, keep = step["do"], step.pop("expect", {}), step.pop("keep", None)
        if what == "kill":
            kill(engine, package, getattr(signal, step.get("signal", "SIGKILL")))
            continue
        if what == "kill_and":
            pid = pid_at(engine, package.do(do="endpoint")["endpoint"])
            os.kill(pid, signal.SIGSTOP)  # it reads no more, and then it dies: what is said now is lost for sure
            told = package.do(**step["then"])
            os.kill(pid, signal.SIGKILL)
        elif what == "stop_all":
            stopped = pids(engine)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(step["seconds"])  # that is the case
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            continue
        else:
            if "file" in step:
                step["file"] = str(ROOT / f"models/nano/questions/{step['file']}.wav")
            told = package.do(**{k: expand(v, kept) for k, v in step.items()})
        if keep:
            kept[keep] = told
        if "error" in told and "error" not in want:
            return check(f"{package.name}: {case['name']}: {what}", False, told)
        for name, value in want.items():
            if not (name.rstrip("~>!") in told or name in ("whole_sound", "ended")) or not fits(name, value, told, kept):
                return check(f"{package.name}: {case['name']}: {what}: {name} {value}", False, {k: v for k, v in told.items() if k != "events"})
    check(f"{package.name}: {case['name']}", True)
    package.do(do="close")


def run(engine, package):
    for case in CASES:
        if ONLY and not any(word in case["name"] for word in ONLY):
            continue
        both_ready(engine, 2)
        try:
            run_case(engine, package, case)
        except Exception as e:
            check(f"{package.name}: {case['name']}", False, repr(e))
            if package.process.poll() is not None:
                return
    check(f"{package.name} ends", package.stop() == 0)


def packages():
    os.environ["PYTHONPATH"] = str(ROOT / "sdk/python")
    yield "python", [PYTHON, ROOT / "tests/sdk/driver.py", "sync"]
    yield "python aio", [PYTHON, ROOT / "tests/sdk/driver.py", "aio"]
    if DRIVER_CPP != "-":
        yield "c++", [DRIVER_CPP]


def keys(folder):
    """Who may call over tcp is said by keys."""
    make = "import zmq, sys; [sys.stdout.write(k.decode() + ' ') for n in range(4) for k in zmq.curve_keypair()]"
    words = subprocess.run([PYTHON, "-c", make], capture_output=True, text=True, check=True).stdout.split()
    pairs = {name: words[2 * n:2 * n + 2] for n, name in enumerate(("gateway", "anna", "other", "stranger"))}
    for name, (public, secret) in pairs.items():
        (folder / f"{name}.public").write_text(public)
        (folder / f"{name}.secret").write_text(secret)
    (folder / "keys").write_text(f"{pairs['anna'][0]} client anna\n{pairs['other'][0]} controller\n")


def identity(folder, engine, command, name):
    config = folder / "public.json"
    config.write_text(json.dumps({"wire": {
        "bind": "tcp://127.0.0.1:*", "connect": {"controller": ["ipc://" + str(folder / "run/controller-1")]},
        "curve": {"secret_key_file": str(folder / "gateway.secret"), "public_key_file": str(folder / "gateway.public"), "keys_file": str(folder / "keys")}},
        "core": {"listen": "", "page": "", "questions": "", "streams_per_client_max": 2}}))
    gateway = subprocess.Popen([BIN / "parlando-gateway", "--config", config], stdout=subprocess.PIPE, text=True)
    endpoint = gateway.stdout.readline().split("listens at ")[1].split(",")[0]
    for who, as_name, error in (("anna", "anna", None), ("anna", "bert", "invalid_argument"), ("other", "client", "invalid_argument"), ("stranger", "client", "unavailable")):
        package = Package(name, command)
        package.do(do="connect", endpoints=[endpoint], name=as_name, keys=[str(folder / f"{who}.public"), str(folder / f"{who}.secret"), str(folder / "gateway.public")])
        told = package.do(do="open", timeout=3, speak=False)
        check(f"{name}: the key of {who} as {as_name}", told.get("error") == error, told)
        if error is None:
            package.do(do="say", text="hello")
            check(f"{name}: a turn over CURVE", package.do(do="turn").get("number") == 1)
            check(f"{name}: a second conversation of two", "error" not in package.do(do="open", **{"as": "b"}, speak=False))
            began = time.monotonic()
            told = package.do(do="open", **{"as": "c"}, speak=False)
            took = time.monotonic() - began
            check(f"{name}: one too many is refused at once, with the reason", told.get("error") == "overloaded" and took < 5, (told, took))
        package.stop()
    gateway.send_signal(signal.SIGTERM)
    check(f"{name}: a gateway of clients alone ends cleanly", gateway.wait(timeout=30) == 0)


with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", folder / "s.sqlite", "--processes", "--run-folder", folder / "run", "--replicas", "gateway=2")
    engine.wait_line("also: ws://")
    keys(folder)
    for name, command in packages():
        package = Package(name, command)
        package.do(do="connect", endpoints=[f"ipc://{folder}/run/gateway-1", f"ipc://{folder}/run/gateway-2"])
        run(engine, package)
        if not ONLY:
            identity(folder, engine, command, name)
    check("the engine ends cleanly", engine.stop() == 0)
finish()
