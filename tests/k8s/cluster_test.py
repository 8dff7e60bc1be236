"""The pods of k8s/overlays/dev as local processes, two replicas a role on four nodes, rolled, scaled, drained, killed, lost and given new keys while
people talk; every turn must be answered, whole and once.

`cluster_test.py BUILD_DIR SOURCE_DIR [--full] [--only TEXT] [--bin DIR …]`. The controllers are our own (local_cluster.py); with KUBE_BIN, a folder
with kube-apiserver, kube-controller-manager and kube-scheduler, and etcd in it or in PATH, they are Kubernetes' (api_cluster.py; README.md says
how to get them), and replicas also follow an autoscaler. Exit code 77 where namespaces of our own are not allowed. Short, for ctest: the roles
that hold sessions and one model are rolled; `--full`: every role, twice as many people.
"""
import argparse
import asyncio
import copy
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--bin", action="append", type=pathlib.Path)
parser.add_argument("--trees", type=pathlib.Path, help="of images.py, made before")
parser.add_argument("--full", action="store_true")
parser.add_argument("--only", default="", help="trials whose name contains this")
parser.add_argument("--sessions", type=int)
parser.add_argument("--talking", type=int)
parser.add_argument("--real", action="store_true", help="fail without KUBE_BIN")
a = parser.parse_args()
a.source = a.source.resolve()
sys.path[:0] = [str(a.source / p) for p in ("tests/support", "tests/chaos", "tests/k8s", "deploy")]
import sandbox  # noqa: E402

why = sandbox.enter()
if why:
    print(why)
    sys.exit(77)
import api_cluster  # noqa: E402
import images  # noqa: E402
import keys  # noqa: E402
from fleet import Child, Services  # noqa: E402
from kubelet import Kubelet, Names, Network  # noqa: E402
from local_cluster import LocalCluster, Refused, is_ready  # noqa: E402
from talkers import Crowd, heard, questions  # noqa: E402

SPACE = "parlando"
KEY = "key-of-these-tests"
NODES = ["node-1", "node-2", "node-3", "node-4"]
READY_SECONDS = 240
AFTERMATH_SECONDS = 1
# A gateway that vanishes without closing anything is given up after resume_ms (30 s); then its sessions wait for their clients (60 s).
SETTLE_SECONDS = 30 + 60 + 5
SILENCE_SECONDS = 2
STEP_LIMIT_MS = 15000  # what is rolled is tested here, not who is slow on a busy machine
REPLICAS = {"context": 1, "edge": 1}


class PodChild(Child):
    def __init__(self, pod, box):
        role = pod.labels["app.kubernetes.io/component"]
        super().__init__(box.pid, f"{role}-{pod.uid[:8]}", {"role": role, "wire": {"metrics": f"{pod.address}:9100"}})
        self.pod = pod


class PodFleet(Services):
    def __init__(self, cluster, kubelets):
        self.cluster, self.kubelets, self.baseline = cluster, kubelets, {}

    def pods(self, role=None):
        found = [p for k in self.kubelets if not k.stopping.is_set() for p in list(k.pods.values()) if not p.done.is_set()]
        return [p for p in found if role in (None, p.labels["app.kubernetes.io/component"])]

    def children(self, role=None):
        return [PodChild(p, p.box) for p in self.pods(role) if p.running and p.address]

    def gateways(self):
        return {p.name: (p.address, 7860) for p in self.pods("gateway") if p.ready}


class PodCrowd(Crowd):
    """Sockets of gateways that leave may close; a question that was said to its end is answered all the same, unless its gateway was killed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.leaving, self.killed, self.silent = set(), set(), set()

    def may_close(self, session):
        if self.stopping or session.gateway in self.killed:
            return True
        turn = session.turn
        return session.gateway in self.leaving and (turn is None or turn.speech_end is None or turn.end is not None)

    def may_lose(self, session):
        """A gateway that is gone without a word has its sessions until its link is given up (30 s), and a controller may have gone with it."""
        return session.gateway in self.silent


def make_trees(folder):
    out = a.trees or folder / "images"
    if not a.trees:
        bins = [w for b in a.bin or [a.build / "bin"] for w in ("--bin", b)]
        done = subprocess.run([sys.executable, a.source / "deploy/images.py", *bins, "--out", out, "--trees"], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
    return {i.name: (out / ("libraries-models" if i.libraries is images.MODEL_PROGRAMS else f"libraries-{i.name}"), out / i.name, f"/usr/bin/{i.program}") for i in images.IMAGES}


def documents():
    """The dev overlay with two replicas of what can have them, and with time for a busy machine."""
    out = json.loads((a.source / "k8s/rendered/dev.json").read_text())["items"]
    for d in out:
        if d["kind"] == "Deployment":
            d["spec"]["replicas"] = REPLICAS.get(d["metadata"]["name"], 2)
            # As in the prod overlays; `dev` is for one node.
            d["spec"]["template"]["spec"]["topologySpreadConstraints"] = [{"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
                                                                           "labelSelector": {"matchLabels": dict(d["spec"]["selector"]["matchLabels"])}}]
        if d["kind"] == "ConfigMap":
            for file, text in d["data"].items():
                config = json.loads(text)
                config["wire"] |= {"step_limit_ms": STEP_LIMIT_MS, "watchdog_ms": STEP_LIMIT_MS}
                d["data"][file] = json.dumps(config)
    return out


def secrets(root):
    return keys.secrets_of(root, SPACE)


class Trials:
    def __init__(self, fleet, crowd, cluster, root):
        self.fleet, self.crowd, self.cluster, self.root, self.problems, self.count = fleet, crowd, cluster, root, [], 0

    async def wait(self, what, good, seconds=READY_SECONDS):
        until = time.monotonic() + seconds
        while not await asyncio.to_thread(good):
            if time.monotonic() > until:
                raise RuntimeError(f"{what}: not within {seconds} s")
            await asyncio.sleep(0.2)

    def whole(self, *roles):
        return all(self.cluster.rolled_out(SPACE, r) for r in roles or [d for d in DEPLOYMENTS if d != "edge"])

    async def trial(self, name, action):
        if a.only not in name:
            return
        await self.crowd.wait_talking()
        strays, before = len(self.crowd.strays), {p.uid: p for p in self.fleet.pods()}
        ended = sum((k.problems for k in self.fleet.kubelets), [])
        start, problem, note = time.monotonic(), "", ""
        try:
            note = await action() or ""
        except (RuntimeError, OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        took = time.monotonic() - start
        end = time.monotonic() + AFTERMATH_SECONDS
        await asyncio.sleep(AFTERMATH_SECONDS)
        await self.crowd.wait_ended([t for t in self.crowd.under_way() if t.start < end])
        turns = [t for t in self.crowd.turns if t.start <= end and t.end is not None and t.end >= start]
        counted = [t for t in turns if not t.excused]
        found = [f"session {t.session} at {t.gateway}, '{t.said}': {p}" for t in turns for p in t.problems] + [text for _, text in self.crowd.strays[strays:]]
        found += [problem] if problem else []
        found += [p for k in self.fleet.kubelets for p in k.problems if p not in ended]
        # Those that were asked to end: did they, in time and by themselves?
        left = [p for p in before.values() if p.done.is_set() and not p.crashed]
        found += [f"{p.name} had to be killed after {p.ended_in:.0f} s: {p.log(5)}" for p in left if p.killed]
        found += [f"{p.name} ended with {p.ends[-1]}: {p.log(5)}" for p in left if p.ends and p.ends[-1] != 0 and not p.killed]
        if not counted and not problem:
            found.append("nobody talked meanwhile")
        self.crowd.leaving, self.crowd.killed, self.crowd.silent = set(), set(), set()
        self.count += 1
        answered = [t for t in counted if t.event.get("type") == "turn"]
        slowest = max((p.ended_in or 0 for p in left), default=0)
        drained = f", {len(left)} ended, the slowest within {slowest:.1f} s" if left else ""
        print(f"{self.count:>3}  {name:<26} {'FAIL' if found else 'pass':<5} {took:5.1f} s  {len(answered):>3} of {len(counted):<3} answered, {len(turns) - len(counted)} cut, {sum(t.resumed > 0 for t in counted)} resumed, "
              f"{heard(counted)}{drained}  {note}", flush=True)
        self.problems += [f"{name}: {text}" for text in found]

    # ---- what is done
    async def roll(self, role):
        old = [p for p in self.fleet.pods(role) if p.labels["parlando.dev/keys"] == "current"]
        if role == "gateway":
            self.crowd.leaving = {p.name for p in old}
        self.cluster.restart(SPACE, role)
        await self.wait(f"{role} rolls", lambda: all(p.done.is_set() for p in old) and self.whole(role))

    async def scale(self, role, *counts):
        for count in counts:
            self.cluster.scale(SPACE, role, count)
            await self.wait(f"{role} has {count} replicas", lambda: self.whole(role))
        return ", ".join(map(str, counts))

    async def kill(self, role):
        victim = await asyncio.to_thread(self.fleet.busiest, role)
        restarts = victim.pod.restarts
        if role == "gateway":
            self.crowd.killed.add(victim.pod.name)
        victim.signal(signal.SIGKILL)
        await self.wait(f"{victim.pod.name} starts again", lambda: victim.pod.restarts > restarts and victim.pod.ready)
        return victim.pod.name

    async def leave(self, pods):
        """Asks pods to leave, and asks again while a budget refuses. -> how often it did"""
        refused, until = 0, time.monotonic() + READY_SECONDS
        self.crowd.leaving = {p.name for p in pods}
        while left := [p for p in pods if not p.done.is_set()]:
            for p in left:
                if p.deleting.is_set():
                    continue
                try:
                    await asyncio.to_thread(self.cluster.evict, SPACE, p.name)
                except Refused:
                    refused += 1
            if time.monotonic() > until:
                raise RuntimeError(f"{[p.name for p in left]} do not leave")
            await asyncio.sleep(0.3)
        await self.wait("what left is back", self.whole)
        return refused

    async def drain(self, *nodes):
        """As `kubectl drain` of several at a time."""
        for node in nodes:
            self.cluster.cordon(node)
        pods = [p for k in self.fleet.kubelets if k.node in nodes for p in k.pods.values() if not p.done.is_set()]
        refused = await self.leave(pods)
        for node in nodes:
            self.cluster.uncordon(node)
        return f"{len(pods)} pods, {refused} times refused by a budget"

    async def budget(self, role):
        """Both replicas are asked to leave at once: the second may when the first has been replaced."""
        refused = await self.leave(self.fleet.pods(role))
        if refused == 0:
            raise RuntimeError(f"both replicas of {role} were let go at once")
        return f"{refused} times refused"

    async def lose(self):
        """The node with the most pods; nobody is on the way from one door to another."""
        await self.wait("everybody is back", lambda: all(s.ws is not None for s in self.crowd.sessions))
        kubelet = max((k for k in self.fleet.kubelets if not k.stopping.is_set()), key=lambda k: sum(not p.done.is_set() for p in k.pods.values()))
        node = kubelet.node
        lost = [p for p in kubelet.pods.values() if not p.done.is_set()]
        self.crowd.killed = self.crowd.silent = {p.name for p in lost}
        await asyncio.to_thread(kubelet.lose)
        # A machine that is gone closes no socket: clients that hear nothing for a while give theirs up.
        await asyncio.sleep(SILENCE_SECONDS)
        for session in self.crowd.sessions:
            if session.ws is not None and session.gateway in self.crowd.killed:
                session.ws.writer.transport.abort()
        await asyncio.to_thread(self.cluster.node_lost, node)
        await self.wait("what was lost is back", self.whole)
        for p in lost:  # as the runbook has it; nobody else will ever say that they are gone
            self.cluster.gone(p.manifest)
        return f"{len(lost)} pods, {len(self.crowd.not_kept)} sessions were not kept"

    async def rotate(self, role, callers, doors=()):
        """k8s/README.md, "Rotate keys", step by step. @param doors  who else has the pair; the last one is what callers meet"""
        meant = (doors or [role])[-1]
        keys.begin(self.root, role)
        self.cluster.apply(secrets(self.root))
        later = copy.deepcopy(next(d for d in documents() if d["kind"] == "Deployment" and d["metadata"]["name"] == meant))
        later["metadata"]["name"] = f"{meant}-next"
        for labels in (later["spec"]["selector"]["matchLabels"], later["spec"]["template"]["metadata"]["labels"]):
            labels["parlando.dev/keys"] = "next"
        next(v for v in later["spec"]["template"]["spec"]["volumes"] if v["name"] == "keys")["secret"]["secretName"] = f"parlando-keys-{role}-next"
        self.cluster.apply([later])
        await self.wait(f"{meant}-next is there", lambda: self.whole(f"{meant}-next"))
        keys.point(self.root, role)
        self.cluster.apply(secrets(self.root))
        await self.settle_secrets()
        for caller in callers:
            await self.roll(caller)
        keys.finish(self.root, role)
        self.cluster.apply(secrets(self.root))
        await self.settle_secrets()
        for holder in doors or [role]:
            await self.roll(holder)
        gone = [p for p in self.fleet.pods(meant) if p.labels["parlando.dev/keys"] == "next"]
        self.cluster.remove("Deployment", SPACE, f"{meant}-next")
        await self.wait(f"{meant}-next leaves", lambda: all(p.done.is_set() for p in gone))
        self.cluster.remove("Secret", SPACE, f"parlando-keys-{role}-next")
        keys.retire(self.root, role)
        self.cluster.apply(secrets(self.root))
        await self.settle_secrets()
        await asyncio.sleep(3)  # a key that is not admitted any more ends its connections within a second
        await self.wait("nobody was cut off", lambda: all(p.box.run("/usr/bin/parlando-pod", "probe", "127.0.0.1:9100/readyz").returncode == 0
                                                          for p in self.fleet.pods() if not p.done.is_set()))

    async def settle_secrets(self):
        """Until every pod's files are those of its Secret."""
        def settled():
            for p in self.fleet.pods():
                for place, kind, name, _, files in p.sources:
                    if files != self.cluster.volume_files(kind, SPACE, name):
                        return False
            return True
        await self.wait("keys arrive", settled, 30)

    async def names_away(self):
        """The name server is silent for a while; a tts starts meanwhile: who knows its callees goes on."""
        names = self.fleet.kubelets[0].names
        names.away = True
        await asyncio.sleep(8)
        names.away = False

    async def autoscale(self, role):
        """The autoscaler follows what an adapter tells of the load: up when it is above 0.7, down again."""
        low, high = 2, 4
        self.cluster.follow_load(SPACE, role, low, high)
        self.cluster.load[role] = 0.95
        await self.wait("more replicas", lambda: self.cluster.replicas(SPACE, role) > low and self.whole(role))
        most = self.cluster.replicas(SPACE, role)
        self.cluster.load[role] = 0.05
        await self.wait("fewer replicas", lambda: self.cluster.replicas(SPACE, role) == low and self.whole(role))
        self.cluster.remove("HorizontalPodAutoscaler", SPACE, role)
        return f"{low}, {most}, {low}"

    async def all(self):
        await self.trial("none", lambda: asyncio.sleep(4))
        for role in (["vad", "tokenizer", "llm-chat", "llm-tts", "tts", "context", "controller", "gateway"] if a.full else ["controller", "llm-chat", "gateway"]):
            await self.trial(f"roll {role}", lambda role=role: self.roll(role))
        await self.trial("scale tts", lambda: self.scale("tts", 3, 1, 2))
        if isinstance(self.cluster, api_cluster.ApiCluster):
            await self.trial("autoscale vad", lambda: self.autoscale("vad"))
        for role in (["vad", "tokenizer", "llm-chat", "llm-tts", "tts", "context", "controller", "gateway"] if a.full else ["controller"]):
            await self.trial(f"kill {role}", lambda role=role: self.kill(role))
        await self.trial("names away", self.names_away)
        await self.trial("keys of tts", lambda: self.rotate("tts", ["controller"]))
        await self.trial("keys of gateway", lambda: self.rotate("gateway", [], ["gateway", "edge"]))
        await self.trial("budget of llm-chat", lambda: self.budget("llm-chat"))
        await self.trial("drain two nodes", lambda: self.drain("node-1", "node-2"))
        await self.trial("lose a node", self.lose)


DEPLOYMENTS = [d["metadata"]["name"] for d in json.loads((a.source / "k8s/rendered/dev.json").read_text())["items"] if d["kind"] == "Deployment"]


async def run(fleet, cluster, root, recordings):
    crowd = PodCrowd(fleet, recordings, a.sessions or (20 if a.full else 6), a.talking or (4 if a.full else 2))
    trials = Trials(fleet, crowd, cluster, root)
    await trials.wait("all pods are ready", trials.whole)
    fleet.baseline = await asyncio.to_thread(fleet.settled, 10)
    print(f"{len(fleet.pods())} pods are ready, under {cluster.name}", flush=True)
    await crowd.start()
    try:
        await trials.all()
    finally:
        strays = len(crowd.strays)
        await crowd.stop()
    trials.problems += [text for _, text in crowd.strays[strays:]] + crowd.settle()
    over, took = await asyncio.to_thread(fleet.above_baseline, SETTLE_SECONDS)
    print(f"{len(crowd.turns)} turns, {trials.count} trials, {len(trials.problems)} problems; {'back at the baseline after %.1f s' % took if not over else 'still %s' % over}")
    return trials.problems + [f"the load ends: {k} is {v}" for k, v in over.items()]


def main():
    os.environ["PARLANDO_TEST_KEY"] = KEY
    kube = os.environ.get("KUBE_BIN")
    missing = api_cluster.missing(kube)
    if missing:
        print(f"under controllers of our own: {missing}")
        if a.real:
            sys.exit(1)
    with tempfile.TemporaryDirectory(prefix="parlando-k8s-") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        root = folder / "keys"
        keys.write(root / "gateway/api_keys", hashlib.sha256(KEY.encode()).hexdigest() + " tests\n")
        keys.make(root)
        trees = make_trees(folder)
        network = Network()
        cluster = LocalCluster(NODES) if missing else api_cluster.ApiCluster(pathlib.Path(kube), folder, NODES)
        names = Names(cluster)
        kubelets = [Kubelet(node, cluster, network, names, trees, folder) for node in NODES]
        problems = []
        fleet = PodFleet(cluster, kubelets)
        try:
            for kubelet in kubelets:
                kubelet.start()
            cluster.apply(documents())
            cluster.apply(secrets(root))
            problems = asyncio.run(run(fleet, cluster, root, questions(a.source)))
        except RuntimeError as error:
            problems = [str(error)]
        finally:
            if problems:
                for k in kubelets:
                    print(*k.problems, sep="\n")
                    for p in k.pods.values():
                        print(f"  {p.name} {'ready' if p.ready else 'not ready'} restarts {p.restarts} ends {p.ends}", *p.log(6 if not p.done.is_set() else 2), sep="\n    ")
            for k in kubelets:
                k.stop()
            cluster.stop()
    print(*problems, sep="\n")
    sys.exit(bool(problems))


main()
