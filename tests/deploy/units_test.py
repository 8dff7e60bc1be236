"""One host under systemd: deploy/host.py installs the engine, a real systemd starts parlando.target, and somebody talks to it; each role reads its own keys alone.

`units_test.py BIN SOURCE_DIR [TREES]`. systemd is the first process of namespaces of its own, over a copy of this machine's root in which the checkout, what it was
built with and /home are not there. Exit code 77 where there is no systemd, or no right to such namespaces; the units are verified without.
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

bins, source = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
sys.path[:0] = [str(source / "tests/support"), str(source / "deploy")]
import shutil  # noqa: E402

import host  # noqa: E402
import instances  # noqa: E402
import keys  # noqa: E402
import sandbox  # noqa: E402
from checks import check, finish  # noqa: E402
from engine import Client, pcm  # noqa: E402

READY_SECONDS, END_SECONDS = 90, 120
UNITS = [f"parlando@{role}.service" for role in instances.ROLES]
# The root that systemd is to see: this machine's, what was installed ($1/up) over it, and nothing of where it was built: $2…
BOOT = r"""
set -e
at=$1; shift
mkdir $at/work $at/root && r=$at/root
mount -t overlay none -o lowerdir=/,upperdir=$at/up,workdir=$at/work $r
for gone in "$@"; do mkdir -p $r$gone && mount -t tmpfs tmpfs $r$gone; done
mount -t proc proc $r/proc
for fresh in run tmp dev; do mount -t tmpfs tmpfs $r/$fresh; done
for name in null zero full random urandom; do touch $r/dev/$name && mount --bind /dev/$name $r/dev/$name; done
mkdir $r/dev/shm $r/dev/pts $r/dev/mqueue $r/dev/hugepages $r/run/log $r/old && mount -t devpts devpts $r/dev/pts && ln -s pts/ptmx $r/dev/ptmx
mount -t sysfs sysfs $r/sys && mount -t tmpfs tmpfs $r/sys/fs/cgroup
# A machine with the first kind of control groups has a tree for systemd beside the others; one with the second has one tree.
if [ -d /sys/fs/cgroup/systemd ]; then
  mkdir $r/sys/fs/cgroup/systemd $r/sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd cgroup $r/sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 $r/sys/fs/cgroup/unified || rmdir $r/sys/fs/cgroup/unified
else
  umount $r/sys/fs/cgroup && mount -t cgroup2 cgroup2 $r/sys/fs/cgroup
fi
cd $r && pivot_root . old && cd / && umount -l /old
exec env -i container=test PATH=/usr/bin:/usr/sbin systemd --system --unit=parlando.target --log-target=null --show-status=no
"""


def verify(root):
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{root / 'units'}:"}
    shutil.copytree(source / "deploy/systemd", root / "units")
    for file in (root / "units").rglob("*"):
        if file.suffix in (".service", ".conf"):
            file.write_text(file.read_text().replace("/usr/libexec/parlando/%i", "/usr/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "parlando.target", *UNITS], capture_output=True, text=True, env=environment)
    check("systemd takes the units", done.returncode == 0 and not done.stderr.strip(), done.stderr)
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", root / "units/parlando@.service"], capture_output=True, text=True)
    check("the units are shut in (exposure of at most 2 of 10)", done.returncode == 0, done.stdout.splitlines()[-1:] or done.stderr)


def check_words():
    template, controller = (source / "deploy/systemd/parlando@.service").read_text(), (source / "deploy/systemd/parlando@controller.service.d/order.conf").read_text()
    for name, text in (("a service", template), ("the controller", controller)):
        drain, stop = int(re.search(r"--drain-seconds (\d+)", text)[1]), int(re.search(r"TimeoutStopSec=(\d+)", text)[1])
        check(f"{name} may drain before it is killed", stop >= drain + 10, f"{drain} {stop}")
    wanted = re.findall(r"parlando@([\w-]+)\.service", (source / "deploy/systemd/parlando.target").read_text())
    check("the target wants every role", sorted(wanted) == sorted(instances.ROLES), str(wanted))
    made = re.findall(r"^u parlando-([\w-]+) ", (source / "deploy/systemd/sysusers.conf").read_text(), re.M)
    check("every role has a user", sorted(made) == sorted(instances.ROLES), str(made))


def install(folder):
    """-> the API key"""
    trees = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else folder / "trees"
    if not trees.exists():
        done = subprocess.run([sys.executable, source / "deploy/images.py", "--bin", bins, "--out", trees, "--trees"], capture_output=True, text=True)
        check("the trees are made", done.returncode == 0, done.stdout + done.stderr)
    (folder / "machine").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder / "machine"], check=True)  # it ends with this program
    root = folder / "machine/up"
    (root / "etc").mkdir(parents=True)
    for file in ("passwd", "group"):
        shutil.copy(f"/etc/{file}", root / "etc")
    done = subprocess.run([sys.executable, source / "deploy/host.py", "install", "--trees", trees, "--root", root], capture_output=True, text=True)
    key = re.search(r"API key, shown this once: (\S+)", done.stdout)
    check("the engine is installed, and the first key told", done.returncode == 0 and key, done.stdout + done.stderr)
    # Where nothing keeps a journal, logs go to files.
    keys.write(root / "etc/systemd/system/parlando@.service.d/log.conf", "[Service]\nStandardOutput=append:/run/log/%i\nStandardError=append:/run/log/%i\n")
    # Nothing else of this machine's is to start.
    for place in ("multi-user.target.wants", "sysinit.target.wants", "sockets.target.wants", "timers.target.wants"):
        (root / "etc/systemd/system" / place).mkdir(exist_ok=True)
    return key and key[1]


class Machine:
    """A systemd of our own."""

    def __init__(self, folder):
        hidden = sorted({"/home", "/root", str(source), str(bins.parent), str((source / ".deps").resolve())} & {p for p in map(str, [*pathlib.Path("/").iterdir(), source, bins.parent, (source / ".deps").resolve()])})
        hidden = [h for h in hidden if not any(h != o and h.startswith(o + "/") for o in hidden)]
        self.outer = subprocess.Popen(["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup", "--kill-child", "--propagation", "private", "sh", "-c", BOOT, "boot", folder / "machine", *hidden],
                                      stdin=subprocess.DEVNULL, stdout=open(folder / "boot.log", "w"), stderr=subprocess.STDOUT, preexec_fn=sandbox.die_with_parent)
        self.log, self.hidden = folder / "boot.log", hidden
        until = time.monotonic() + 20
        self.pid = None
        while time.monotonic() < until and self.outer.poll() is None:
            first = pathlib.Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text().split()
            if first and pathlib.Path(f"/proc/{first[0]}/comm").read_text() == "systemd\n" and self.run("systemctl", "is-system-running").stdout.strip() in ("running", "starting", "initializing", "degraded"):
                self.pid = int(first[0])
                return
            time.sleep(0.2)

    def first(self):
        return pathlib.Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text().split()[0]

    def run(self, *words, pid=None, user=None, timeout=150):
        inside = ["nsenter", "-t", str(pid or self.first()), "-m", "-p", "-r", "-w"]
        return subprocess.run([*inside, *(["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"] if user else []), *words],
                              capture_output=True, text=True, timeout=timeout)

    def of(self, unit, *fields):
        return dict(line.split("=", 1) for line in self.run("systemctl", "show", unit, *[f"--property={f}" for f in fields]).stdout.splitlines())

    def said(self, role):
        return f"{self.of(f'parlando@{role}.service', 'Result', 'ExecMainStatus', 'ExecStartPre')} {self.run('cat', f'/run/log/{role}').stdout[-500:]}"

    def end(self):
        if self.outer.poll() is None:
            self.outer.send_signal(signal.SIGKILL)  # and all that is in there with it
            self.outer.wait(10)


def wait_active(machine):
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        states = machine.run("systemctl", "is-active", *UNITS).stdout.split()
        ready = machine.run("sh", "-c", "for r in " + " ".join(f"{role}:{instances.LOCAL[role] + 100}" for role in instances.ROLES) + "; do curl -s -o /dev/null -w '%{http_code} ' 127.0.0.1:${r#*:}/readyz; done").stdout.split() \
            if states == ["active"] * len(UNITS) else states
        if "failed" in states:
            return str(states)
        if ready == ["200"] * len(UNITS):
            return ""
        time.sleep(0.5)
    return str(ready)


def check_secrets(machine):
    """With the rights of each role's process, in what it sees: whose keys can be read?"""
    pids = {role: machine.of(unit, "MainPID")["MainPID"] for role, unit in zip(instances.ROLES, UNITS)}
    for role, unit in zip(instances.ROLES, UNITS):
        # Its processes as they are numbered inside; seen from here they are children of the first.
        inner, outer = pids[role], outer_pid(machine, pids[role])
        status = dict(re.findall(r"^(\w+):\s*(.*)$", pathlib.Path(f"/proc/{outer}/status").read_text(), re.M))
        user = status["Uid"].split()[0]
        own = machine.run("cat", f"/etc/parlando/keys/{role}/secret_key", pid=outer, user=user)
        check(f"{role} reads its own key", own.returncode == 0 and len(own.stdout) == 40, own.stderr)
        listed = machine.run("ls", "/etc/parlando/keys", pid=outer, user=user).stdout.split()
        check(f"{role} sees no other's keys", listed == [role], str(listed))
        changed = machine.run("sh", "-c", f"echo other > /etc/parlando/keys/{role}/public_key || chmod u+w /etc/parlando/keys/{role}", user=user)
        check(f"{role} changes none of its own", changed.returncode != 0, changed.stdout)
        for other in instances.ROLES:
            if other == role:
                continue
            for path in (f"/etc/parlando/keys/{other}/secret_key", f"/proc/{pids[other]}/root/etc/parlando/keys/{other}/secret_key"):
                for where in (outer, None):
                    got = machine.run("cat", path, pid=where, user=user)
                    check(f"{role} does not read {path}{'' if where else ', nor outside of its unit'}", got.returncode != 0, got.stdout)
        check(f"{role} is nobody else, and has no capabilities", user not in ("0", str(sandbox.UID)) and int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1", str(status))
        check(f"{role} sees nothing of where it was built", not any(machine.run("ls", "-A", h, pid=outer).stdout.strip() for h in machine.hidden), str(machine.hidden))
        del inner


def outer_pid(machine, inner):
    """A process of the machine by its number there."""
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            found = re.search(r"^NSpid:\s+(.*)$", status.read_text(), re.M)
        except OSError:
            continue
        if found and found[1].split()[-2:-1] and found[1].split()[-1] == inner and os.readlink(status.parent / "ns/pid") == os.readlink(f"/proc/{machine.first()}/ns/pid"):
            return status.parent.name
    raise RuntimeError(f"process {inner} is gone")


def talk(key):
    os.environ["PARLANDO_TEST_KEY"] = key
    client = Client(instances.HTTP, speak=True)
    event = client.ask(pcm(source / "models/nano/questions/capital_of_france.wav"))
    client.ws.close()
    return event, len(client.audio)


def check_wrong_configuration(machine):
    """It is started once, and again as soon as it is right."""
    unit, file = "parlando@vad.service", "/etc/parlando/vad.json"
    machine.run("sh", "-c", f"cp {file} /run/vad.json && sed -i s/weights/waits/ {file}")
    machine.run("systemctl", "restart", unit)
    until = time.monotonic() + READY_SECONDS
    while (of := machine.of(unit, "ActiveState", "NRestarts", "ExecMainStatus"))["ActiveState"] != "failed" and time.monotonic() < until:
        time.sleep(0.5)
    check("a role whose configuration is wrong ends with 78 and is not started again", of == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "78"}, f"{of} {machine.said('vad')}")
    machine.run("cp", "/run/vad.json", file)
    done = machine.run("systemctl", "restart", unit)
    check("one that is right again starts at once", done.returncode == 0 and not wait_active(machine), f"{done.stderr} {machine.said('vad')}")


def check_rotation(machine):
    """As deploy/README.md says it of one host: files, whose they are, role and callers at once, and only then the end of the old pair."""
    root = pathlib.Path(f"/proc/{machine.first()}/root")
    folder = root / "etc/parlando/keys"
    old = (folder / "tts/public_key").read_text()
    for step in (keys.begin, keys.point, keys.finish):
        step(folder, "tts")
    host.own(root)
    done = machine.run("systemctl", "restart", "parlando@tts.service", "parlando@controller.service")
    check("role and callers start with the new pair", done.returncode == 0 and not wait_active(machine), done.stderr)
    keys.retire(folder, "tts")
    host.own(root)
    time.sleep(3)  # a key that is not admitted any more ends its connections within a second
    event, heard = talk(os.environ["PARLANDO_TEST_KEY"])
    check("behind the end of the old pair a question is answered", event["type"] == "turn" and heard > 10000 and old not in (folder / "llm-tts/callers").read_text(), f"{event} {heard}")


def check_host(folder):
    try:
        key = install(folder)
        if key:
            check_machine(Machine(folder), key)
    finally:
        subprocess.run(["umount", "-l", folder / "machine"])


def check_machine(machine, key):
    try:
        if machine.pid is None:
            finish([f"the units are not started: no systemd comes up in namespaces of our own: {machine.log.read_text()[-300:]}"])
        why = wait_active(machine)
        check("the engine starts", not why, why + "".join(f"\n{r}: {machine.said(r)}" for r in instances.ROLES))
        if why:
            return
        event, heard = talk(key)
        check("a question is answered", event["type"] == "turn" and event["assistant"] and heard > 10000, f"{event} {heard}")
        check_secrets(machine)
        before = machine.of("parlando@tts.service", "MainPID")
        done = machine.run("systemctl", "restart", "parlando@tts.service")
        after = machine.of("parlando@tts.service", "MainPID", "Result")
        check("a role is drained and started again", done.returncode == 0 and after["Result"] == "success" and after["MainPID"] != before["MainPID"], f"{done.stderr} {after}")
        check("all are ready again", not wait_active(machine), "")
        check_wrong_configuration(machine)
        check_rotation(machine)
        done = machine.run("systemctl", "stop", "parlando.target")
        until = time.monotonic() + END_SECONDS
        while True:
            ends = {u: machine.of(u, "ActiveState", "Result", "ExecMainStatus") for u in UNITS}
            if time.monotonic() > until or not any(e["ActiveState"] in ("active", "deactivating") for e in ends.values()):
                break
            time.sleep(0.5)
        check("all end when the target does, with nothing killed", all(e == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"} for e in ends.values()), f"{done.stderr} {ends}")
    finally:
        machine.end()


def main():
    if not shutil.which("systemd-analyze"):
        print("the units are not verified: there is no systemd-analyze (tools/setup.sh --test installs it)")
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix="parlando-units-") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        verify(folder)
        check_words()
        if os.geteuid() != 0:
            finish(["the units are not started: that needs root"])
        check_host(folder)
    finish()


why = sandbox.enter() if os.geteuid() == 0 and shutil.which("systemd-analyze") else ""
if why:
    print(why)
    sys.exit(77)
main()
