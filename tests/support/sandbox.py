"""Starts a process as a container runtime would: layers as a read-only root, volumes, user 65532, no capabilities, no new privileges, its own
processes, mounts and, if wanted, network. Linux, as root (of a user namespace, too: then it stays the one user there is).

    box = Sandbox(["/usr/bin/parlando-vad", "--config", "/etc/parlando/instance.json"], layers=[libraries, tree],
                  volumes=[(folder, "/etc/parlando", False)], log=open("vad.log", "w"))
    box.start(); box.signal(signal.SIGTERM); box.wait(20)
"""
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

UID = 65532
NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
libc = ctypes.CDLL(None, use_errno=True)


def enter():
    """Re-runs the calling program in a network (and, without root, a user namespace) of its own. -> why it cannot be, or '' once inside"""
    if os.environ.get("PARLANDO_SANDBOX") == "inside":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return ""
    if not all(shutil.which(tool) for tool in ("ip", "nsenter", "unshare")):
        return "needs ip, nsenter and unshare"
    words = ["unshare", "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    done = subprocess.run([*words, "sh", "-c", "mkdir -p $0/a $0/b $0/c && mount -t overlay none -o lowerdir=$0/a:$0/b $0/c", tempfile.mkdtemp()], capture_output=True, text=True)
    if done.returncode != 0:
        return f"namespaces of our own are not allowed here: {done.stderr.strip()}"
    os.execvpe(words[0], [*words, sys.executable, *sys.argv], os.environ | {"PARLANDO_SANDBOX": "inside"})


class Sandbox:
    """@param layers  folders, the lowest first; none: the machine's own root, read-only   @param volumes  (from, to, writable)
    @param net  a network of its own: `start` ends when it is there, the program begins with `go`"""

    def __init__(self, command, layers=(), volumes=(), environment=None, log=None, net=False, hostname="box", resolver=None):
        self.spec = {"command": command, "layers": [str(p) for p in layers], "volumes": [(str(f), t, w) for f, t, w in volumes], "net": net, "hostname": hostname,
                     "environment": environment or {"PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}, "resolver": resolver, "root": None}
        self.log, self.outer, self.pid = log, None, None

    def start(self):
        self.spec["root"] = tempfile.mkdtemp(prefix="parlando-box-")
        self.outer = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, start_new_session=True, preexec_fn=die_with_parent)
        self.outer.stdin.write(json.dumps(self.spec).encode() + b"\n")
        self.outer.stdin.flush()
        line = self.outer.stdout.readline()
        if not line:
            raise RuntimeError(f"the sandbox of {self.spec['command'][0]} ended with {self.outer.wait()} before it began")
        self.pid = int(line)
        if not self.spec["net"]:
            self.go()

    def go(self):
        self.outer.stdin.write(b"go\n")
        self.outer.stdin.close()

    def signal(self, number):
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def poll(self):
        return self.outer.poll()

    def wait(self, seconds):
        """-> exit code, 128 + number for a signal; raises subprocess.TimeoutExpired"""
        return self.outer.wait(seconds)

    def run(self, *command, timeout=10):
        """A command inside, as `exec` probes and hooks are. -> subprocess.CompletedProcess"""
        uid = str(UID if real_root() else 0)
        words = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-r", "-w", "--setuid", uid, "--setgid", uid]
        return subprocess.run([*words, *command], capture_output=True, text=True, timeout=timeout)

    def clean(self):
        if self.outer is not None:
            if self.outer.poll() is None:
                self.signal(signal.SIGKILL)
                self.outer.wait(10)
            self.outer.stdout.close()
        if self.spec["root"]:
            shutil.rmtree(self.spec["root"], ignore_errors=True)


def die_with_parent():
    """For `preexec_fn`: a test that is killed leaves nothing behind."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def real_root():
    """Can we become another user?"""
    return pathlib.Path("/proc/self/uid_map").read_text().split()[2:3] != ["1"]


# ---------------------------------------------------------------------------------------------------------------- inside
def call(function, *args):
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)} {args}")


def mount(source, target, kind, flags=0, data=None):
    call(libc.mount, source.encode(), str(target).encode(), kind.encode() if kind else None, flags, data.encode() if data else None)


def build_root(spec):
    work = pathlib.Path(spec["root"])
    mount("none", "/", None, REC | PRIVATE)
    mount("tmpfs", work, "tmpfs")
    root, points = work / "root", work / "points"
    root.mkdir()
    targets = [t for _, t, _ in spec["volumes"]]
    for folder in ["proc", "dev", "tmp", "etc", *[t.lstrip("/") for t, (f, _, _) in zip(targets, spec["volumes"]) if os.path.isdir(f)]]:
        (points / folder).mkdir(parents=True, exist_ok=True)
    (points / "etc/resolv.conf").write_text(spec["resolver"] or "")
    layers = spec["layers"] or ["/"]
    if spec["layers"]:
        mount("overlay", root, "overlay", NODEV | NOSUID | RDONLY, "lowerdir=" + ":".join([*reversed(layers), str(points)] if not spec["resolver"] else [str(points), *reversed(layers)]))
    else:
        mount("/", root, None, BIND | REC)
        mount("none", root, None, BIND | REMOUNT | RDONLY | NOSUID)
        mount("tmpfs", root / "tmp", "tmpfs", NOSUID | NODEV)
        if spec["resolver"]:
            mount(str(points / "etc/resolv.conf"), root / "etc/resolv.conf", None, BIND)
    mount("proc", root / "proc", "proc", NOSUID | NODEV)
    if spec["layers"]:
        mount("tmpfs", root / "dev", "tmpfs", NOSUID)
        for name in ("null", "zero", "random", "urandom"):
            (root / "dev" / name).touch()
            mount(f"/dev/{name}", root / "dev" / name, None, BIND)
        mount("none", root / "dev", None, REMOUNT | RDONLY | NOSUID)
    for source, target, writable in spec["volumes"]:
        place = root / target.lstrip("/")
        mount(source, place, None, BIND)
        if not writable:
            mount("none", place, None, BIND | REMOUNT | RDONLY | NOSUID | NODEV)
    return root


def become_nobody(root, uid):
    os.chroot(root)
    os.chdir("/")
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        call(libc.capset, header, (ctypes.c_uint32 * 6)())
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def inside():
    spec = json.loads(sys.stdin.readline())
    uid = UID if real_root() else 0
    call(libc.unshare, NEWNS | NEWUTS | NEWIPC | NEWPID | (NEWNET if spec["net"] else 0))
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.close(begin)
        os.read(begun, 1)
        libc.sethostname(spec["hostname"].encode(), len(spec["hostname"]))
        become_nobody(build_root(spec), uid)
        os.dup2(2, 1)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.closerange(3, 64)
        os.execve(spec["command"][0], spec["command"], spec["environment"])
    os.close(begun)
    print(child, flush=True)
    if sys.stdin.readline() == "go\n":
        os.write(begin, b"!")
    else:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    sys.exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


if __name__ == "__main__":
    inside()
