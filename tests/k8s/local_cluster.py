"""The smallest cluster that rolls, scales, drains and loses nodes: objects in memory and the rules of Deployments (RollingUpdate, Recreate),
disruption budgets and Endpoints, for machines without kube-apiserver. The same words as api_cluster.py.
"""
import copy
import hashlib
import json
import threading
import time
import uuid

from kubelet import files_of

NODE_LOST_SECONDS = 3  # without a heartbeat of its kubelet; a real cluster takes 40 s and then 5 min
TICK = 0.1


class Refused(Exception):
    """A disruption budget says no."""


def matches(selector, labels):
    return selector.items() <= labels.items()


def is_ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))


class LocalCluster:
    name = "controllers of our own"

    def __init__(self, nodes):
        self.lock = threading.RLock()
        self.objects, self.pods_by_uid, self.heartbeats = {}, {}, {}
        self.nodes, self.cordoned, self.turn = list(nodes), set(), 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self):
        self.stopping.set()
        self.thread.join()

    # ---- what an operator does
    def apply(self, documents):
        with self.lock:
            for d in documents:
                self.objects[(d["kind"], d["metadata"].get("namespace", ""), d["metadata"]["name"])] = copy.deepcopy(d)

    def get(self, kind, namespace, name):
        with self.lock:
            return copy.deepcopy(self.objects.get((kind, namespace, name)))

    def remove(self, kind, namespace, name):
        with self.lock:
            self.objects.pop((kind, namespace, name), None)

    def scale(self, namespace, name, replicas):
        with self.lock:
            self.objects[("Deployment", namespace, name)]["spec"]["replicas"] = replicas

    def restart(self, namespace, name):
        """As `kubectl rollout restart`."""
        with self.lock:
            meta = self.objects[("Deployment", namespace, name)]["spec"]["template"]["metadata"]
            meta.setdefault("annotations", {})["kubectl.kubernetes.io/restartedAt"] = str(time.time())

    def cordon(self, node):
        self.cordoned.add(node)

    def uncordon(self, node):
        self.cordoned.discard(node)

    def evict(self, namespace, name):
        """@raise Refused"""
        with self.lock:
            pod = next((p for p in self.pods_by_uid.values() if p["metadata"]["name"] == name), None)
            if pod is None:
                return
            for (kind, space, _), budget in self.objects.items():
                if kind != "PodDisruptionBudget" or space != namespace or not matches(budget["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]):
                    continue
                mine = [p for p in self.pods_by_uid.values() if matches(budget["spec"]["selector"]["matchLabels"], p["metadata"]["labels"])]
                healthy = sum(is_ready(p) and "deletionTimestamp" not in p["metadata"] for p in mine)
                wanted = sum(d["spec"].get("replicas", 1) for (k, _, _), d in self.objects.items()
                             if k == "Deployment" and matches(budget["spec"]["selector"]["matchLabels"], d["spec"]["template"]["metadata"]["labels"]))
                low = wanted - budget["spec"]["maxUnavailable"] if "maxUnavailable" in budget["spec"] else -(-wanted * int(str(budget["spec"]["minAvailable"]).rstrip("%")) // 100)
                if is_ready(pod) and healthy - 1 < low:
                    raise Refused(f"{name}: {healthy} of {wanted} are healthy, {low} must be")
            self.delete_pod(pod)

    def rolled_out(self, namespace, name):
        """Are all replicas there, ready, and of the newest kind, and is nothing of the others left?"""
        with self.lock:
            deployment = self.objects[("Deployment", namespace, name)]
            mine = self.pods_of(deployment)
            new = [p for p in mine if p["metadata"]["labels"]["pod-template-hash"] == self.digest(deployment)]
            return len(mine) == len(new) == deployment["spec"].get("replicas", 1) and all(is_ready(p) and "deletionTimestamp" not in p["metadata"] for p in new)

    def all_pods(self):
        with self.lock:
            return copy.deepcopy(list(self.pods_by_uid.values()))

    # ---- what kubelets ask and tell
    def pods(self, node):
        with self.lock:
            return [copy.deepcopy(p) for p in self.pods_by_uid.values() if p["spec"].get("nodeName") == node]

    def volume_files(self, kind, namespace, name):
        with self.lock:
            found = self.objects.get(("Secret" if kind == "secret" else "ConfigMap", namespace, name))
            return None if found is None else files_of(kind, found)

    def report(self, manifest, status):
        with self.lock:
            if manifest["metadata"]["uid"] in self.pods_by_uid:
                self.pods_by_uid[manifest["metadata"]["uid"]]["status"] = status

    def gone(self, manifest):
        with self.lock:
            self.pods_by_uid.pop(manifest["metadata"]["uid"], None)

    def heartbeat(self, node):
        self.heartbeats[node] = time.monotonic()

    def addresses(self, namespace, service):
        """What its name stands for; None: there is no such name."""
        with self.lock:
            found = self.objects.get(("Service", namespace, service))
            if found is None:
                return None
            spec = found["spec"]
            return [p["status"]["podIP"] for p in self.pods_by_uid.values()
                    if matches(spec["selector"], p["metadata"]["labels"]) and p.get("status", {}).get("podIP") and (spec.get("publishNotReadyAddresses") or is_ready(p))]

    def node_lost(self, node):
        """Until that was noticed by its heartbeats."""
        until = time.monotonic() + 10 * NODE_LOST_SECONDS
        while self.pods(node) and time.monotonic() < until:
            time.sleep(TICK)

    # ---- what controllers do
    def run(self):
        while not self.stopping.wait(TICK):
            with self.lock:
                self.forget_lost_nodes()
                for (kind, _, _), d in list(self.objects.items()):
                    if kind == "Deployment":
                        self.follow(d)
                self.end_orphans()

    def live_nodes(self):
        return [n for n in self.nodes if n in self.heartbeats and time.monotonic() - self.heartbeats[n] < NODE_LOST_SECONDS]

    def forget_lost_nodes(self):
        lost = set(self.heartbeats) - set(self.live_nodes())
        for uid, p in list(self.pods_by_uid.items()):
            if p["spec"]["nodeName"] in lost:
                del self.pods_by_uid[uid]

    @staticmethod
    def digest(deployment):
        return hashlib.sha256(json.dumps(deployment["spec"]["template"], sort_keys=True).encode()).hexdigest()[:10]

    def pods_of(self, deployment):
        return [p for p in self.pods_by_uid.values() if p["metadata"].get("ownerName") == (deployment["metadata"]["namespace"], deployment["metadata"]["name"])]

    def end_orphans(self):
        for p in list(self.pods_by_uid.values()):
            if ("Deployment", *p["metadata"]["ownerName"]) not in self.objects:
                self.delete_pod(p)

    def delete_pod(self, pod):
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = time.time()
            pod["metadata"]["deletionGracePeriodSeconds"] = pod["spec"].get("terminationGracePeriodSeconds", 30)

    def follow(self, deployment):
        wanted, digest = deployment["spec"].get("replicas", 1), self.digest(deployment)
        mine = self.pods_of(deployment)
        live = [p for p in mine if "deletionTimestamp" not in p["metadata"]]
        new = [p for p in live if p["metadata"]["labels"]["pod-template-hash"] == digest]
        old = [p for p in live if p["metadata"]["labels"]["pod-template-hash"] != digest]
        if deployment["spec"].get("strategy", {}).get("type") == "Recreate":
            for p in old:
                self.delete_pod(p)
            surge = 0 if len(mine) == len(new) else -wanted
        else:
            surge = 1 if old else 0
        if len(new) < wanted and len(live) < wanted + surge:
            self.create_pod(deployment, digest)
        ready = sum(map(is_ready, live))
        # Replicas that are not ready go first: nobody misses them.
        spare = sorted(old, key=is_ready) if old else sorted(new, key=lambda p: (is_ready(p), -p["metadata"]["number"]))[:max(0, len(new) - wanted)]
        for p in spare:
            if not is_ready(p) or ready > wanted or len(new) > wanted:
                self.delete_pod(p)
                ready -= is_ready(p)
                break

    def create_pod(self, deployment, digest):
        nodes = [n for n in self.live_nodes() if n not in self.cordoned]
        if not nodes:
            return
        self.turn += 1
        mine = [p["spec"]["nodeName"] for p in self.pods_of(deployment)]
        node = min(nodes, key=lambda n: (mine.count(n), (nodes.index(n) + self.turn) % len(nodes)))
        template, meta = copy.deepcopy(deployment["spec"]["template"]), deployment["metadata"]
        uid = str(uuid.uuid4())
        self.pods_by_uid[uid] = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"] | {"nodeName": node}, "status": {"phase": "Pending"},
                                 "metadata": {"name": f"{meta['name']}-{digest}-{uid[:5]}", "namespace": meta["namespace"], "uid": uid, "number": self.turn,
                                              "labels": template["metadata"]["labels"] | {"pod-template-hash": digest}, "ownerName": (meta["namespace"], meta["name"])}}
