"""A real control plane without a cluster: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes of this test, for kubelets
that are no containers' (kubelet.py). It says the same words as local_cluster.py. What is of a later API than the server's is brought down to it.
"""
import copy
import http.client
import http.server
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import threading
import time
import urllib.parse

import sandbox
from kubelet import GATE, files_of, now
from local_cluster import Refused, is_ready

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
PORT, METRICS_PORT = 6443, 9443
TOKEN = "token-of-these-tests"
START_SECONDS = 120
CACHE_SECONDS = 0.2
# Kind -> where the server has it: group and version, plural, whether it lies in a namespace.
KINDS = {"Namespace": ("api/v1", "namespaces", False), "Node": ("api/v1", "nodes", False), "Service": ("api/v1", "services", True), "Endpoints": ("api/v1", "endpoints", True),
         "ConfigMap": ("api/v1", "configmaps", True), "Secret": ("api/v1", "secrets", True), "ServiceAccount": ("api/v1", "serviceaccounts", True), "Pod": ("api/v1", "pods", True),
         "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims", True), "PersistentVolume": ("api/v1", "persistentvolumes", False),
         "Deployment": ("apis/apps/v1", "deployments", True), "StatefulSet": ("apis/apps/v1", "statefulsets", True),
         "PodDisruptionBudget": ("apis/policy/v1beta1", "poddisruptionbudgets", True), "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies", True),
         "PriorityClass": ("apis/scheduling.k8s.io/v1", "priorityclasses", False), "Lease": ("apis/coordination.k8s.io/v1", "leases", True),
         "HorizontalPodAutoscaler": ("apis/autoscaling/v2beta2", "horizontalpodautoscalers", True), "APIService": ("apis/apiregistration.k8s.io/v1", "apiservices", False)}
OLDER = {"policy/v1": "policy/v1beta1", "autoscaling/v2": "autoscaling/v2beta2"}


def missing(folder):
    """-> what is not there, or ''"""
    if not folder:
        return "KUBE_BIN names no folder with a control plane (tests/k8s/README.md)"
    absent = [p for p in PROGRAMS if not (pathlib.Path(folder) / p).exists()]
    absent += [] if (pathlib.Path(folder) / "etcd").exists() or shutil.which("etcd") else ["etcd"]
    return f"{folder} lacks {absent}" if absent else ""


class ApiCluster:
    def __init__(self, programs, folder, nodes):
        self.folder, self.nodes, self.local = folder / "control-plane", list(nodes), threading.local()
        self.folder.mkdir()
        self.tls = ssl._create_unverified_context()  # its certificate is made at its start, and the network is our own
        self.lock, self.cached, self.beats, self.lost, self.load, self.watched = threading.RLock(), {}, {}, set(), {}, {}
        self.processes = []
        try:
            self.start(programs)
            version = self.ask("GET", "version")
            self.name = f"kube-apiserver, kube-controller-manager and kube-scheduler {version['gitVersion']}"
            for node in self.nodes:
                self.add_node(node)
            self.serve_metrics()
        except BaseException:
            self.stop()
            raise

    # ---- its processes
    def start(self, programs):
        f = self.folder
        subprocess.run(["openssl", "genrsa", "-out", f / "accounts.key", "2048"], check=True, capture_output=True)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f / "metrics.key", "-out", f / "metrics.crt", "-days", "2", "-subj", "/CN=metrics"], check=True, capture_output=True)
        (f / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        (f / "kubeconfig").write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{PORT}", "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "admin"}}]}))
        etcd = programs / "etcd" if (programs / "etcd").exists() else shutil.which("etcd")
        self.spawn("etcd", etcd, "--data-dir", f / "etcd", "--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
                   "--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync")
        self.spawn("apiserver", programs / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--cert-dir={f}/certificates", f"--token-auth-file={f}/tokens.csv",
                   f"--secure-port={PORT}", f"--advertise-address={GATE}", "--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubernetes.default.svc",
                   f"--service-account-key-file={f}/accounts.key", f"--service-account-signing-key-file={f}/accounts.key", "--enable-aggregator-routing=true",
                   # Without it pods tolerate a lost node for 5 min.
                   "--disable-admission-plugins=DefaultTolerationSeconds")
        self.wait("the API server", lambda: self.ask("GET", "readyz", raw=True) == b"ok")
        self.spawn("controllers", programs / "kube-controller-manager", f"--kubeconfig={f}/kubeconfig", "--leader-elect=false", f"--service-account-private-key-file={f}/accounts.key",
                   "--node-monitor-period=1s", "--node-monitor-grace-period=5s", "--horizontal-pod-autoscaler-sync-period=2s", f"--cert-dir={f}/certificates-c")
        self.spawn("scheduler", programs / "kube-scheduler", f"--kubeconfig={f}/kubeconfig", "--leader-elect=false", f"--cert-dir={f}/certificates-s")

    def spawn(self, name, *words):
        log = open(self.folder / f"{name}.log", "w")
        self.processes.append((name, subprocess.Popen([str(w) for w in words], stdout=log, stderr=subprocess.STDOUT, preexec_fn=sandbox.die_with_parent)))

    def wait(self, what, good):
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                if good():
                    return
            except (OSError, http.client.HTTPException, RuntimeError):
                pass
            ended = [name for name, p in self.processes if p.poll() is not None]
            if ended or time.monotonic() > until:
                logs = {name: (self.folder / f"{name}.log").read_text()[-1500:] for name, _ in self.processes}
                raise RuntimeError(f"{what} does not come up; ended: {ended}: {logs}")
            time.sleep(0.2)

    def stop(self):
        if hasattr(self, "metrics"):
            self.metrics.shutdown()
        for _, process in reversed(self.processes):
            process.terminate()
        if os.environ.get("PARLANDO_TEST_KEEP"):
            shutil.copytree(self.folder, os.environ["PARLANDO_TEST_KEEP"], ignore=shutil.ignore_patterns("etcd"), dirs_exist_ok=True)
        for _, process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    # ---- requests
    def ask(self, method, path, body=None, kind="application/json", raw=False, may=()):
        """-> the answer, or its status if that is one of `may`"""
        if method != "GET":
            self.cached = {}  # what is read behind this is not older
        for attempt in (1, 2):
            connection = getattr(self.local, "connection", None)
            if connection is None:
                connection = self.local.connection = http.client.HTTPSConnection("127.0.0.1", PORT, context=self.tls, timeout=20)
            try:
                connection.request(method, "/" + path, None if body is None else json.dumps(body), {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind})
                answer = connection.getresponse()
                data = answer.read()
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                self.local.connection = None
                if attempt == 2:
                    raise
        if answer.status in may:
            return answer.status
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data.decode(errors='replace')[:500]}")
        return data if raw else json.loads(data)

    def path(self, kind, namespace=None, name=None, more=""):
        group, plural, inside = KINDS[kind]
        return group + (f"/namespaces/{namespace}" if inside and namespace else "") + f"/{plural}" + (f"/{urllib.parse.quote(name)}" if name else "") + more

    # ---- what an operator does
    def apply(self, documents):
        """As `kubectl apply --server-side`."""
        for d in documents:
            d = copy.deepcopy(d)
            d["apiVersion"] = OLDER.get(d["apiVersion"], d["apiVersion"])
            self.name_protocols(d)
            meta = d["metadata"]
            self.ask("PATCH", self.path(d["kind"], meta.get("namespace"), meta["name"], "?fieldManager=tests&force=true"), d, "application/apply-patch+yaml")
            if d["kind"] == "PersistentVolumeClaim":
                self.give_volume(meta["namespace"], meta["name"])

    def name_protocols(self, value):
        """This version's server-side apply knows no default for what is a key of a list."""
        if isinstance(value, dict):
            for port in value.get("ports") or []:
                if "containerPort" in port or "port" in port:
                    port.setdefault("protocol", "TCP")
            value = list(value.values())
        for item in value if isinstance(value, list) else []:
            self.name_protocols(item)

    def give_volume(self, namespace, name):
        """A volume by hand, as nobody here makes volumes: the scheduler waits for a claim that is bound."""
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"volume-{name}"},
                  "spec": {"capacity": {"storage": "100Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "", "hostPath": {"path": "/nowhere"},
                           "claimRef": {"namespace": namespace, "name": name}}}
        self.ask("PATCH", self.path("PersistentVolume", None, f"volume-{name}", "?fieldManager=tests&force=true"), volume, "application/apply-patch+yaml")

    def get(self, kind, namespace, name):
        found = self.ask("GET", self.path(kind, namespace, name), may=(404,))
        return None if found == 404 else found

    def remove(self, kind, namespace, name):
        self.ask("DELETE", self.path(kind, namespace, name), {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}, may=(404,))

    def scale(self, namespace, name, replicas):
        self.merge("Deployment", namespace, name, {"spec": {"replicas": replicas}}, "/scale")

    def merge(self, kind, namespace, name, patch, more=""):
        return self.ask("PATCH", self.path(kind, namespace, name, more), patch, "application/merge-patch+json")

    def restart(self, namespace, name):
        self.merge("Deployment", namespace, name, {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": str(time.time())}}}}})

    def cordon(self, node, wanted=True):
        self.merge("Node", None, node, {"spec": {"unschedulable": wanted}})

    def uncordon(self, node):
        self.cordon(node, False)

    def evict(self, namespace, name):
        """@raise Refused"""
        body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        if self.ask("POST", self.path("Pod", namespace, name, "/eviction"), body, may=(429, 404)) == 429:
            raise Refused(name)

    def rolled_out(self, namespace, name):
        d = self.get("Deployment", namespace, name)
        if d is None:
            return False
        s, wanted = d.get("status", {}), d["spec"]["replicas"]
        if s.get("observedGeneration", 0) < d["metadata"]["generation"] or not all(s.get(k, 0) == wanted for k in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")):
            return False
        labels = d["spec"]["selector"]["matchLabels"]
        mine = [p for p in self.all_pods() if labels.items() <= p["metadata"].get("labels", {}).items() and p["spec"].get("nodeName") not in self.lost]
        return len(mine) == wanted and all(is_ready(p) and "deletionTimestamp" not in p["metadata"] for p in mine)

    def replicas(self, namespace, name):
        return self.get("Deployment", namespace, name)["spec"]["replicas"]

    def all_pods(self):
        return self.list("Pod")

    # ---- what kubelets ask and tell
    def list(self, kind):
        """Of all namespaces, at most CACHE_SECONDS old."""
        with self.lock:
            at, found = self.cached.get(kind, (0, []))
            if time.monotonic() - at > CACHE_SECONDS:
                found = self.ask("GET", self.path(kind))["items"]
                self.cached[kind] = (time.monotonic(), found)
            return found

    def pods(self, node):
        return [p for p in self.list("Pod") if p["spec"].get("nodeName") == node]

    def volume_files(self, kind, namespace, name):
        found = next((o for o in self.list("Secret" if kind == "secret" else "ConfigMap") if (o["metadata"]["namespace"], o["metadata"]["name"]) == (namespace, name)), None)
        return None if found is None else files_of(kind, found)

    def report(self, manifest, status):
        meta = manifest["metadata"]
        self.ask("PATCH", self.path("Pod", meta["namespace"], meta["name"], "/status"), {"metadata": {"uid": meta["uid"]}, "status": status}, "application/merge-patch+json", may=(404, 409))

    def gone(self, manifest):
        meta = manifest["metadata"]
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
        self.ask("DELETE", self.path("Pod", meta["namespace"], meta["name"]), body, may=(404, 409))

    def addresses(self, namespace, service):
        found = next((o for o in self.list("Endpoints") if (o["metadata"]["namespace"], o["metadata"]["name"]) == (namespace, service)), None)
        return None if found is None else [a["ip"] for subset in found.get("subsets") or [] for a in subset.get("addresses") or []]

    def add_node(self, node):
        self.ask("POST", self.path("Node"), {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}}})
        room = {"cpu": "64", "memory": "256Gi", "pods": "110", "ephemeral-storage": "500Gi"}
        self.merge("Node", None, node, {"status": {"capacity": room, "allocatable": room, "addresses": [{"type": "InternalIP", "address": GATE}]}}, "/status")
        self.heartbeat(node)

    def heartbeat(self, node):
        if time.monotonic() - self.beats.get(node, 0) < 1:
            return
        self.beats[node] = time.monotonic()
        self.ask("PATCH", self.path("Node", None, node, "/status"), {"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now(), "lastTransitionTime": now()}]}}, "application/strategic-merge-patch+json")

    def node_lost(self, node):
        """What the runbook says of a lost node: its pods are deleted by force, once the controllers have seen it and made others."""
        self.lost.add(node)
        self.wait("the node counts as lost", lambda: any(c["type"] == "Ready" and c["status"] != "True" for c in self.get("Node", None, node)["status"]["conditions"]))

    # ---- the autoscaler's figures
    def follow_load(self, namespace, role, low, high):
        """The autoscaler that k8s/components/hpa has for the role, between other bounds and with less patience."""
        source = pathlib.Path(__file__).resolve().parents[2] / "k8s/rendered/prod-cpu.json"
        d = next(copy.deepcopy(o) for o in json.loads(source.read_text())["items"] if o["kind"] == "HorizontalPodAutoscaler" and o["metadata"]["name"] == role)
        d["spec"] |= {"minReplicas": low, "maxReplicas": high}
        d["spec"]["behavior"]["scaleDown"] |= {"stabilizationWindowSeconds": 5, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]}
        self.apply([d])

    def serve_metrics(self):
        """custom.metrics.k8s.io as an adapter would serve it: `load[role]` for each pod of the role."""
        cluster = self

        class Adapter(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                path, _, query = self.path.partition("?")
                root = "/apis/custom.metrics.k8s.io/v1beta1"
                out = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "custom.metrics.k8s.io/v1beta1",
                       "resources": [{"name": "pods/parlando_load_ratio", "singularName": "", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}]}
                if path != root:
                    selector = urllib.parse.parse_qs(query).get("labelSelector", [""])[0]
                    wanted = dict(word.split("=", 1) for word in selector.split(",") if "=" in word)
                    items = [{"describedObject": {"kind": "Pod", "namespace": p["metadata"]["namespace"], "name": p["metadata"]["name"], "apiVersion": "v1"}, "metricName": "parlando_load_ratio",
                              "timestamp": now(), "value": f"{int(1000 * cluster.load.get(p['metadata']['labels'].get('app.kubernetes.io/component'), 0))}m", "selector": None}
                             for p in cluster.all_pods() if wanted.items() <= p["metadata"].get("labels", {}).items()]
                    out = {"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta1", "metadata": {}, "items": items}
                body = json.dumps(out).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.metrics = http.server.ThreadingHTTPServer((GATE, METRICS_PORT), Adapter)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "metrics.crt", self.folder / "metrics.key")
        self.metrics.socket = context.wrap_socket(self.metrics.socket, server_side=True)
        threading.Thread(target=self.metrics.serve_forever, daemon=True).start()
        self.apply([{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics", "namespace": "kube-system"}, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": METRICS_PORT}]}},
                    {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "metrics", "namespace": "kube-system"},
                     "subsets": [{"addresses": [{"ip": GATE}], "ports": [{"name": "https", "port": METRICS_PORT}]}]}])
        # This version cannot apply one.
        self.ask("POST", self.path("APIService"), {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.custom.metrics.k8s.io"}, "spec": {
            "group": "custom.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True,
            "service": {"name": "metrics", "namespace": "kube-system", "port": 443}}})
