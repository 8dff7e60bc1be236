"""A kubelet whose containers are local processes: it runs the pods that a cluster gives to its node, in networks of their own, as their user,
with a read-only root made of the image's layers, and does to them what a kubelet does: init containers, volumes, probes, restarts, `preStop`,
SIGTERM, grace, SIGKILL. Beside it the network that pods meet in, and a name server for the cluster's Services.

A cluster (local_cluster.py, api_cluster.py) answers `pods(node)`, `volume_files(kind, namespace, name)`, `addresses(namespace, service)` and takes
`report(pod, status)` and `gone(pod)`.
"""
import base64
import datetime
import http.client
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import sandbox

GATE = "10.88.0.1"  # of the bridge, in the network of the test: where names are asked and probes come from
DOMAIN = "cluster.local"
TICK = 0.1
BACK_OFF_MAX = 10


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Network:
    """A bridge; each pod hangs on it by one address."""

    def __init__(self):
        self.count, self.lock = 0, threading.Lock()
        for words in (["link", "add", "bridge", "type", "bridge"], ["addr", "add", f"{GATE}/16", "dev", "bridge"], ["link", "set", "bridge", "up"]):
            subprocess.run(["ip", *words], check=True)

    def join(self, pid):
        """-> (address, name of our end of the cable)"""
        with self.lock:
            self.count += 1
            number = self.count
        address, cable = f"10.88.{1 + number // 250}.{1 + number % 250}", f"pod{number}"
        subprocess.run(["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid)], check=True)
        subprocess.run(["ip", "link", "set", cable, "master", "bridge", "up"], check=True)
        inside = ["nsenter", "-t", str(pid), "-n", "ip"]
        for words in (["addr", "add", f"{address}/16", "dev", "eth0"], ["link", "set", "lo", "up"], ["link", "set", "eth0", "up"]):
            subprocess.run([*inside, *words], check=True)
        return address, cable

    def cut(self, cable):
        subprocess.run(["ip", "link", "set", cable, "down"], capture_output=True)


class Names:
    """Answers A questions for `SERVICE.NAMESPACE.svc.cluster.local` with the addresses that the cluster says, and that nothing else exists."""

    def __init__(self, cluster):
        self.cluster, self.away = cluster, False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((GATE, 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def resolver(self, namespace):
        return f"nameserver {GATE}\nsearch {namespace}.svc.{DOMAIN} svc.{DOMAIN}\noptions ndots:5 timeout:1 attempts:2\n"

    def serve(self):
        while True:
            question, sender = self.socket.recvfrom(4096)
            if not self.away:
                try:
                    self.socket.sendto(self.answer(question), sender)
                except (OSError, IndexError, struct.error, RuntimeError):
                    pass  # no answer: who asks goes on with what it knows

    def answer(self, question):
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1:at + 1 + question[at]].decode().lower())
            at += 1 + question[at]
        kind = struct.unpack(">H", question[at + 1:at + 3])[0]
        asked = question[12:at + 5]
        suffix = ["svc", *DOMAIN.split(".")]
        found = self.cluster.addresses(labels[1], labels[0]) if len(labels) == 5 and labels[2:] == suffix else None
        if found is None:
            return question[:2] + struct.pack(">HHHHH", 0x8583, 1, 0, 0, 0) + asked
        records = [b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(a) for a in found] if kind == 1 else []
        return question[:2] + struct.pack(">HHHHH", 0x8580, 1, len(records), 0, 0) + asked + b"".join(records)


class Probe:
    """One of a container's probes: whether it is due, and what it has come to."""

    def __init__(self, spec, address, ports):
        get = spec["httpGet"]
        port = get["port"] if isinstance(get["port"], int) else ports[get["port"]]
        self.url, self.timeout = f"http://{address}:{port}{get['path']}", spec.get("timeoutSeconds", 1)
        self.period, self.failures_max = spec.get("periodSeconds", 10), spec.get("failureThreshold", 3)
        self.due, self.failures, self.good = 0.0, 0, False

    def look(self, at):
        """-> whether it was asked"""
        if at < self.due:
            return False
        self.due = at + self.period
        try:
            self.good = urllib.request.urlopen(self.url, timeout=self.timeout).status == 200
        except (urllib.error.URLError, OSError):
            self.good = False
        self.failures = 0 if self.good else self.failures + 1
        return True

    @property
    def failed(self):
        return self.failures >= self.failures_max


class Pod(threading.Thread):
    def __init__(self, kubelet, manifest):
        super().__init__(daemon=True)
        self.kubelet, self.manifest = kubelet, manifest
        meta = manifest["metadata"]
        self.name, self.namespace, self.uid, self.labels = meta["name"], meta["namespace"], meta["uid"], meta.get("labels", {})
        self.folder = kubelet.folder / self.uid
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.address = self.cable = self.box = None
        self.started = self.ready = self.running = False
        self.restarts, self.ends, self.grace = 0, [], None
        self.deleting, self.killed, self.done, self.crashed = threading.Event(), False, threading.Event(), False
        self.ended_in, self.begun = None, now()

    # ---- what others ask for
    def delete(self, grace):
        """From then on its container may take so many seconds."""
        if self.grace is None:
            self.grace = grace
            self.deleting.set()

    def crash(self):
        """The node is gone: nothing is told any more."""
        self.crashed = True
        if self.cable:
            self.kubelet.network.cut(self.cable)
        if self.box and self.box.pid:  # one that is just being made finds out by itself
            self.box.signal(signal.SIGKILL)
        self.deleting.set()

    # ---- its life
    def run(self):
        try:
            self.live()
        except Exception as error:  # noqa: BLE001  a pod's thread must tell what it died of
            self.kubelet.problems.append(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self.running = self.ready = False
            if self.box:
                self.box.clean()
            self.done.set()
            if not self.crashed:
                self.report()
                self.kubelet.cluster.gone(self.manifest)
            shutil.rmtree(self.folder / "volumes", ignore_errors=True)

    def live(self):
        spec = self.manifest["spec"]
        self.make_volumes(spec["volumes"] if "volumes" in spec else [])
        for container in spec.get("initContainers", []):
            while not self.deleting.is_set():
                box = self.sandbox(container)
                box.start()
                if not box.spec["net"]:
                    code = box.wait(120)
                else:
                    box.go()
                    code = box.wait(120)
                box.clean()
                if code == 0:
                    break
                self.restarts += 1
                self.deleting.wait(1)
        container = spec["containers"][0]
        back_off = 0.2
        while not self.deleting.is_set():
            began = time.monotonic()
            self.start_container(container)
            code = self.watch(container)
            if self.deleting.is_set():
                break
            self.ends.append(code)
            self.restarts += 1
            self.report()
            back_off = 0.2 if time.monotonic() - began > 10 else min(2 * back_off, BACK_OFF_MAX)
            self.deleting.wait(back_off)

    def sandbox(self, container):
        image = container["image"].split(":")[0].rsplit("/", 1)[-1]
        libraries, tree, entry = self.kubelet.images[image]
        command = container.get("command") or [entry]
        volumes = [(self.folder / "volumes" / m["name"], m["mountPath"], not m.get("readOnly", False)) for m in container.get("volumeMounts", [])]
        environment = {"PATH": "/usr/bin"} | {e["name"]: e["value"] for e in container.get("env", [])}
        log = open(self.folder / f"{container['name']}.log", "a")
        return sandbox.Sandbox([*command, *container.get("args", [])], (libraries, tree), volumes, environment, log, net=True, hostname=self.name[:60],
                               resolver=self.kubelet.names.resolver(self.namespace))

    def start_container(self, container):
        self.box = self.sandbox(container)
        self.box.start()
        self.address, self.cable = self.kubelet.network.join(self.box.pid)
        self.box.go()
        self.started, self.running = False, True
        ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
        self.probes = {kind: Probe(container[kind], self.address, ports) for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container}
        self.report()

    def watch(self, container):
        """Until it has ended, by itself or because it is to. -> exit code"""
        while True:
            code = self.box.poll()
            if code is not None:
                self.running = self.ready = False
                return code
            if self.deleting.wait(TICK):
                return self.terminate(container)
            at = time.monotonic()
            startup = self.probes.get("startupProbe")
            if startup and not self.started:
                if startup.look(at) and startup.failed:
                    self.box.signal(signal.SIGKILL)
                if not startup.good:
                    continue
            self.started = True
            readiness, liveness = self.probes.get("readinessProbe"), self.probes.get("livenessProbe")
            if readiness and readiness.look(at):
                ready = readiness.good or (self.ready and not readiness.failed)
                if ready != self.ready:
                    self.ready = ready
                    self.report()
            if liveness and liveness.look(at) and liveness.failed:
                self.box.signal(signal.SIGKILL)
            self.refresh_volumes()

    def terminate(self, container):
        if self.crashed:
            return self.box.wait(10)
        until = time.monotonic() + self.grace
        began = time.monotonic()
        self.ready = False
        self.report()
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook and self.running and self.grace > 0:
            try:
                self.box.run(*hook, timeout=self.grace)
            except subprocess.TimeoutExpired:
                pass
        self.box.signal(signal.SIGTERM)
        try:
            code = self.box.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.killed = True
            self.box.signal(signal.SIGKILL)
            code = self.box.wait(10)
        self.ended_in = time.monotonic() - began
        self.ends.append(code)
        return code

    # ---- volumes
    def make_volumes(self, volumes):
        (self.folder / "volumes").mkdir()
        self.sources = []
        for v in volumes:
            place = self.folder / "volumes" / v["name"]
            if "persistentVolumeClaim" in v:
                claim = self.kubelet.folder.parent / "claims" / v["persistentVolumeClaim"]["claimName"]
                claim.mkdir(parents=True, exist_ok=True)
                self.own(claim)
                place.symlink_to(claim)
                continue
            place.mkdir()
            self.own(place)
            for kind, key in (("configMap", "name"), ("secret", "secretName")):
                if kind in v:
                    self.sources.append([place, kind, v[kind][key], v[kind].get("defaultMode", 0o644), None])
        while not self.refresh_volumes() and not self.deleting.is_set():
            self.deleting.wait(0.2)

    def refresh_volumes(self):
        """Files that changed are renamed into their place, as a kubelet would have them after a while. -> whether all sources are there"""
        for source in self.sources:
            place, kind, name, mode, before = source
            files = self.kubelet.cluster.volume_files(kind, self.namespace, name)
            if files is None:
                return False
            if files == before:
                continue
            source[4] = files
            for file, content in files.items():
                part = place / f".{file}"
                part.write_bytes(content)
                part.chmod(mode)
                self.own(part)
                part.rename(place / file)
        return True

    @staticmethod
    def own(path):
        if sandbox.real_root():
            os.chown(path, sandbox.UID, sandbox.UID)

    # ---- what is told
    def report(self):
        if self.crashed:
            return
        self.kubelet.cluster.report(self.manifest, self.status())

    def status(self):
        container = self.manifest["spec"]["containers"][0]
        state = {"running": {"startedAt": self.begun}} if self.running else {"terminated": {"exitCode": self.ends[-1] if self.ends else 0, "reason": "Completed"}} if self.deleting.is_set() else {
            "waiting": {"reason": "ContainerCreating"}}
        condition = lambda kind, good: {"type": kind, "status": "True" if good else "False", "lastTransitionTime": now()}  # noqa: E731
        out = {"phase": "Running" if self.running or self.restarts else "Pending", "startTime": self.begun, "hostIP": GATE,
               "conditions": [condition("Initialized", True), condition("PodScheduled", True), condition("ContainersReady", self.ready), condition("Ready", self.ready)],
               "containerStatuses": [{"name": container["name"], "image": container["image"], "imageID": container["image"], "ready": self.ready, "started": self.started,
                                      "restartCount": self.restarts, "state": state}]}
        if self.done.is_set():
            out["phase"] = "Succeeded" if not self.ends or self.ends[-1] == 0 else "Failed"
        if self.address:
            out |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return out

    def log(self, lines=15):
        file = self.folder / "service.log"
        return [line for line in file.read_text(errors="replace").splitlines() if " ends a turn " not in line][-lines:] if file.exists() else []


class Kubelet(threading.Thread):
    """One node. @param images  name -> (layer of libraries, layer of the service, entry point)"""

    def __init__(self, node, cluster, network, names, images, folder):
        super().__init__(daemon=True)
        self.node, self.cluster, self.network, self.names, self.images = node, cluster, network, names, images
        self.folder = pathlib.Path(folder) / node
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.pods, self.problems, self.stopping = {}, [], threading.Event()

    def run(self):
        while not self.stopping.wait(TICK):
            try:
                self.pass_once()
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                self.problems.append(f"{self.node}: {type(error).__name__} {error}")

    def pass_once(self):
        wanted = {m["metadata"]["uid"]: m for m in self.cluster.pods(self.node)}
        for uid, manifest in wanted.items():
            deleted = manifest["metadata"].get("deletionTimestamp")
            if uid not in self.pods:
                if deleted:
                    self.cluster.gone(manifest)
                    continue
                pod = self.pods[uid] = Pod(self, manifest)
                pod.start()
            elif deleted:
                self.pods[uid].delete(manifest["metadata"].get("deletionGracePeriodSeconds", 30))
        for uid, pod in self.pods.items():
            if uid not in wanted:
                pod.delete(0)  # it was removed without asking us
        self.cluster.heartbeat(self.node)

    def lose(self):
        """The machine is gone, with everything on it."""
        self.stopping.set()
        for pod in list(self.pods.values()):
            pod.crash()

    def stop(self):
        self.stopping.set()
        for pod in list(self.pods.values()):
            if not pod.done.is_set():
                pod.crash()
        for pod in list(self.pods.values()):
            pod.join(10)


def files_of(kind, object_):
    """-> {file: bytes} of a ConfigMap or Secret"""
    if kind == "secret":
        return {name: base64.b64decode(value) for name, value in object_.get("data", {}).items()}
    return {name: value.encode() for name, value in object_.get("data", {}).items()}
