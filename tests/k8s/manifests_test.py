"""The manifests of k8s/: strictly against the schemas of three Kubernetes versions and our own ones, and for what they promise: locks, networks,
grace, autoscalers, configurations. No cluster and no network. `manifests_test.py BIN SOURCE_DIR`, by the Python of .deps/deploy.

What is checked is k8s/rendered (`make manifests` writes it). `--rendered`: whether that is what kubectl makes of k8s/ now; exit code 77 where there is no kubectl.
"""
import copy
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

bins, source = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path[:0] = [str(source / "tests/support"), str(source / "deploy"), str(source / "k8s")]
import images  # noqa: E402
import instances  # noqa: E402
import keys  # noqa: E402
import render  # noqa: E402
from checks import check, finish  # noqa: E402

VERSIONS = ["1.31", "1.34", "1.37"]
REPLICAS_MAX = 50  # what a cell is for (k8s/README.md)
K8S = source / "k8s"
OURS = {file.stem: json.loads(file.read_text()) for file in (K8S / "schemas").glob("*.json")}


def load(file):
    return [d for d in yaml.safe_load_all(file.read_text()) if d]


def name_of(d):
    return f"{d['kind']} {d['metadata']['name']}"


def problem_of(d, version):
    try:
        kubernetes_validate.validate(d, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{list(error.path)}: {error.message}"[:300]
    return ""


def check_schemas(variant, documents):
    for d in documents:
        own = OURS.get(d["kind"].lower())
        if own:
            problems = [e.message for e in jsonschema.Draft202012Validator(own).iter_errors(d)]
            check(f"{variant}: {name_of(d)} against our schema", not problems, str(problems)[:300])
            continue
        for version in VERSIONS:
            problem = problem_of(d, version)
            check(f"{variant}: {name_of(d)} against {version}", not problem, problem)


def pod_specs(documents):
    """-> (name, labels, spec of a pod) of everything that makes pods"""
    for d in documents:
        if d["kind"] in ("Deployment", "StatefulSet"):
            yield name_of(d), d["spec"]["template"]["metadata"]["labels"], d["spec"]["template"]["spec"]
        if d["kind"] == "LeaderWorkerSet":
            for part in ("leaderTemplate", "workerTemplate"):
                template = d["spec"]["leaderWorkerTemplate"][part]
                yield f"{name_of(d)} {part}", template["metadata"]["labels"], template["spec"]


def check_locks(variant, name, labels, spec):
    """What the admission level `restricted` asks for, and a little more."""
    pod = spec["securityContext"]
    check(f"{variant}: {name} is nobody", pod["runAsNonRoot"] is True and pod["runAsUser"] == 65532 and pod["seccompProfile"]["type"] == "RuntimeDefault", str(pod))
    check(f"{variant}: {name} has no token and no host", spec["automountServiceAccountToken"] is False and not any(spec.get(k) for k in ("hostNetwork", "hostPID", "hostIPC")), "")
    known = {i.name for i in images.IMAGES}
    for c in spec["containers"] + spec.get("initContainers", []):
        s = c["securityContext"]
        check(f"{variant}: {name}/{c['name']} is shut in", s["allowPrivilegeEscalation"] is False and s["readOnlyRootFilesystem"] is True and s["capabilities"] == {"drop": ["ALL"]}, str(s))
        check(f"{variant}: {name}/{c['name']} has an image of ours with a tag", c["image"].split(":")[0] in known and ":" in c["image"] and not c["image"].endswith(":latest"), c["image"])
        r = c["resources"]
        check(f"{variant}: {name}/{c['name']} asks for what it needs and is bounded", {"cpu", "memory"} <= set(r["requests"]) and "memory" in r["limits"], str(r))
    for v in spec.get("volumes", []):
        check(f"{variant}: {name} mounts nothing of the host ({v['name']})", set(v) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, str(v))
    problem = problem_of({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": labels}, "spec": spec}, VERSIONS[-1])
    check(f"{variant}: {name} is a pod", not problem, problem)


def check_times(variant, name, labels, spec, configs):
    container = spec["containers"][0]
    role = pathlib.Path(container["args"][container["args"].index("--config") + 1]).stem
    check(f"{variant}: {name} takes a configuration that is there", role in configs, role)
    drain = int(container["args"][container["args"].index("--drain-seconds") + 1])
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    before = int(hook[2]) if hook else 0
    check(f"{variant}: {name} may drain before it is killed", spec["terminationGracePeriodSeconds"] >= before + drain + 5, f"{before} + {drain}, then {spec['terminationGracePeriodSeconds']}")
    if role in ("gateway", "edge"):
        check(f"{variant}: {name} waits for load balancers", before >= 5, str(hook))
        core = configs[role]["core"]
        check(f"{variant}: {name} counts the places of the door it has", ("bind" in configs[role]["wire"]) == (core.get("streams_max", 512) > 0) == (core["listen"] == ""), str(configs[role]))
        check(f"{variant}: {name} does not take an ingress for one person", core["listen"] == "" or core.get("connections_per_address_max", 256) == 0, str(core))
        check(f"{variant}: {name} drains for as long as its core wants to", drain >= configs[role]["core"]["drain_seconds_max"] + 5, str(drain))
    if role == "controller":
        core = configs[role]["core"]
        check(f"{variant}: {name} lets a turn end", drain >= core.get("turn_seconds_max", 30) + core.get("reply_seconds_max", 60), str(drain))
    # Who answers for others stays within reach when one of them is missing; it has met them once.
    paths = ("/readyz", "/healthz") if role in ("gateway", "edge", "controller") else ("/healthz", "/readyz")
    for probe, path in zip(("startupProbe", "readinessProbe", "livenessProbe"), (*paths, "/healthz")):
        check(f"{variant}: {name} has a {probe}", container[probe]["httpGet"] == {"path": path, "port": "metrics"}, str(container.get(probe)))
    patience = {probe: container[probe]["periodSeconds"] * container[probe]["failureThreshold"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    check(f"{variant}: {name} has time to load its model, is out of the way soon, and is not killed at once",
          patience["startupProbe"] >= 300 and patience["readinessProbe"] <= 10 and patience["livenessProbe"] >= 20, str(patience))
    check(f"{variant}: {name} shows its ports", {"name": "metrics", "containerPort": 9100} in container["ports"], "")
    # What a configuration names must be mounted.
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    paths = re.findall(r'"(/(?:models|data|etc/parlando/[a-z]+)[/"])', json.dumps(configs[role]))
    for path in {p.rstrip('/"') for p in paths} | ({"/etc/parlando/store"} if "/etc/parlando/store" in json.dumps(configs[role]) else set()):
        check(f"{variant}: {name} mounts {path}", path in mounts, str(sorted(mounts)))
    empty = {v["name"] for v in spec.get("volumes", []) if "emptyDir" in v}
    if "/models" in mounts and mounts["/models"]["name"] in empty:
        filled = {m["name"] for c in spec.get("initContainers", []) for m in c.get("volumeMounts", [])}
        check(f"{variant}: {name} brings its model", mounts["/models"]["name"] in filled, str(sorted(filled)))


def check_network(variant, documents):
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    check(f"{variant}: nobody may talk to anybody", policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, str(policies.get("default-deny")))

    def ends(policy, direction, way):
        return {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for rule in policy.get(direction, []) for peer in rule.get(way, []) if "podSelector" in peer}
    for role in [*instances.ROLES, "edge"]:
        policy = policies[role]
        called = set(instances.CALLS.get(role, []))
        callers = {c for c, others in instances.CALLS.items() if role in others}
        check(f"{variant}: {role} reaches whom it calls alone", ends(policy, "egress", "to") == called, str(policy))
        check(f"{variant}: {role} is reached by its callers alone", ends(policy, "ingress", "from") == callers, str(policy))
        check(f"{variant}: {role} is shut where nothing is said", ("Ingress" in policy["policyTypes"]) == bool(policy.get("ingress")) and ("Egress" in policy["policyTypes"]) == bool(policy.get("egress")), "")
    doors = [n for n, p in policies.items() if any("from" not in rule for rule in p.get("ingress", []))]
    check(f"{variant}: only the front doors are open to everybody", sorted(doors) == ["edge", "gateway"], str(doors))


def check_references(variant, documents, configs):
    """Selectors, targets, claims, config maps: what is named is there."""
    labels = {name: l for name, l, _ in pod_specs(documents)}
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for d in documents:
        spec = d.get("spec", {})
        if d["kind"] in ("Service", "PodDisruptionBudget"):
            selector = spec["selector"] if d["kind"] == "Service" else spec["selector"]["matchLabels"]
            found = [n for n, l in labels.items() if selector.items() <= l.items()]
            check(f"{variant}: {name_of(d)} finds pods", len(found) >= 1, str(selector))
        if d["kind"] in ("Deployment", "StatefulSet"):
            check(f"{variant}: {name_of(d)} knows its pods", spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items(), "")
        if d["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
            check(f"{variant}: {name_of(d)} scales what is there", target in there, str(target))
            low, high = spec.get("minReplicas", spec.get("minReplicaCount")), spec.get("maxReplicas", spec.get("maxReplicaCount"))
            role = d["metadata"]["name"]
            key = instances.SLOTS[role][0]
            check(f"{variant}: {role} says how much a replica holds, which its autoscaler goes by", key in configs[role]["core"], f"no {key}")
            check(f"{variant}: {name_of(d)} has room, and an end", 2 <= low < high <= REPLICAS_MAX, f"{low} {high}")
            scaled = next(x for x in documents if (x["kind"], x["metadata"]["name"]) == target)
            check(f"{variant}: {name_of(d)} alone says how many", scaled["kind"] == "LeaderWorkerSet" or "replicas" not in scaled["spec"], "")
    for name, _, spec in pod_specs(documents):
        for v in spec.get("volumes", []):
            for kind, key, field in (("ConfigMap", "configMap", "name"), ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName")):
                if key in v:
                    own = (kind, v[key][field]) in there
                    # Filled before anything is applied, so no overlay may make it; the recipe says so.
                    given = (kind, v[key][field]) == ("PersistentVolumeClaim", "models") and not own and "create claim `models`" in (K8S / "README.md").read_text()
                    check(f"{variant}: {name} finds {v[key][field]}", given if v[key][field] == "models" else own, str(v))
            if "secret" in v:
                secret = v["secret"]["secretName"]
                check(f"{variant}: {name} has keys that keys.py makes", secret.removeprefix("parlando-keys-") in keys.CALLS or secret == "parlando-store", secret)
                check(f"{variant}: {name} shows its keys to its group at most", v["secret"]["defaultMode"] == 0o440, str(v["secret"]["defaultMode"]))


def healthy_least(spec, wanted):
    """How many of `wanted` pods a budget wants: Kubernetes rounds the percentages of both up."""
    def part(value):
        return -(-wanted * int(value.rstrip("%")) // 100) if isinstance(value, str) else value
    return wanted - part(spec["maxUnavailable"]) if "maxUnavailable" in spec else part(spec["minAvailable"])


def check_budgets(variant, documents):
    """A node can be drained at any size, the least one among them: of every budget's pods one may go."""
    scaled = {(d["spec"]["scaleTargetRef"]["kind"], d["spec"]["scaleTargetRef"]["name"]): d["spec"] for d in documents if d["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")}
    sizes = {}  # pods' component -> how many there may be
    for d in documents:
        if d["kind"] in ("Deployment", "StatefulSet", "LeaderWorkerSet"):
            by = scaled.get((d["kind"], d["metadata"]["name"]))
            low = by.get("minReplicas", by.get("minReplicaCount")) if by else d["spec"].get("replicas", 1)
            high = by.get("maxReplicas", by.get("maxReplicaCount")) if by else low
            for name, labels, _ in pod_specs([d]):
                sizes[labels["app.kubernetes.io/component"]] = range(low, high + 1)
    budgets = {d["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: d["spec"] for d in documents if d["kind"] == "PodDisruptionBudget"}
    check(f"{variant}: every role has a budget", set(budgets) >= {*instances.ROLES, "edge"}, str(sorted(budgets)))
    for role, spec in budgets.items():
        stuck = [n for n in sizes[role] if healthy_least(spec, n) > n - 1]
        check(f"{variant}: a node with {role} on it can be drained", not stuck, f"none of {stuck} may go")


def check_values(variant, documents, configs):
    """What no schema knows: ports, names of metrics, aims of autoscalers, places, and whose keys somebody has."""
    store = re.match(r"postgresql://[^/]*:(\d+)/", configs["context"]["core"]["store"])
    meant_by_name = {"dns": {("UDP", 53), ("TCP", 53)}, "metrics": {("TCP", instances.METRICS)}, "store": {("TCP", int(store[1]))} if store else set()}
    shown = {}  # component -> {name of a port: number}
    for name, labels, spec in pod_specs(documents):
        role = labels["app.kubernetes.io/component"]
        shown.setdefault(role, {}).update({p["name"]: p["containerPort"] for c in spec["containers"] for p in c.get("ports", [])})
        for v in spec.get("volumes", []):
            if v.get("secret", {}).get("secretName", "").startswith("parlando-keys-"):
                own = {"edge": "gateway"}.get(role, role.removesuffix("-rank"))
                check(f"{variant}: {name} has its own keys", v["secret"]["secretName"] == f"parlando-keys-{own}", v["secret"]["secretName"])
    known = {"mesh": instances.PORT, "metrics": instances.METRICS, "http": instances.HTTP}
    for role, ports in shown.items():
        check(f"{variant}: {role} listens where its configuration says", all(known.get(n, p) == p for n, p in ports.items()), str(ports))
    for d in documents:
        spec = d.get("spec", {})
        if d["kind"] == "Service":
            there = shown.get(spec.get("selector", {}).get("app.kubernetes.io/component"), {})
            check(f"{variant}: {name_of(d)} leads to ports that are there", all(p["targetPort"] in there for p in spec["ports"]), str(spec["ports"]))
            if d["metadata"]["name"] in {r for called in instances.CALLS.values() for r in called}:
                check(f"{variant}: {name_of(d)} tells every address", spec.get("clusterIP") == "None" and spec.get("publishNotReadyAddresses") is True, str(spec))
        if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] in {*instances.ROLES, "edge"}:
            meant = instances.HTTP if d["metadata"]["name"] == "gateway" else instances.PORT
            for rule in spec.get("ingress", []):
                check(f"{variant}: {name_of(d)} opens the port that is meant", {p["port"] for p in rule["ports"]} == {meant}, str(rule))
            for rule in spec.get("egress", []):
                if any("podSelector" in peer for peer in rule.get("to", [])):
                    check(f"{variant}: {name_of(d)} reaches the mesh", {p["port"] for p in rule["ports"]} == {instances.PORT}, str(rule))
        if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] in meant_by_name:
            rules = spec.get("ingress", spec.get("egress"))
            of = {(p["protocol"], p["port"]) for rule in rules for p in rule["ports"]}
            check(f"{variant}: {name_of(d)} opens the port that is meant", of == meant_by_name[d["metadata"]["name"]], str(of))
        if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "metrics":
            of = [peer.get("namespaceSelector", {}).get("matchLabels") for rule in spec["ingress"] for peer in rule["from"]]
            check(f"{variant}: {name_of(d)} lets in whoever the runbook puts Prometheus with", of == [{"kubernetes.io/metadata.name": "monitoring"}], str(of))
        if d["kind"] == "HorizontalPodAutoscaler":
            of = [(m["pods"]["metric"]["name"], m["pods"]["target"]["averageValue"]) for m in spec["metrics"]]
            check(f"{variant}: {name_of(d)} follows the load", of == [("parlando_load_ratio", "700m")], str(of))
            check(f"{variant}: {name_of(d)} is slow to go down", spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 600, str(spec["behavior"]))
        if d["kind"] == "ScaledObject":
            of = [(t["metadata"]["query"], t["metadata"]["threshold"]) for t in spec["triggers"]]
            check(f"{variant}: {name_of(d)} follows its own load", of == [(f'sum(parlando_load_ratio{{namespace="parlando",component="{d["metadata"]["name"]}"}})', "0.7")], str(of))
        if d["kind"] == "Deployment" and "rollingUpdate" in spec.get("strategy", {}):
            check(f"{variant}: {name_of(d)} rolls one more, then one less", spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}, str(spec["strategy"]))
        if d["kind"] == "ServiceMonitor":
            check(f"{variant}: {name_of(d)} asks the port for metrics", all(e["port"] == "metrics" for e in spec["endpoints"]), str(spec["endpoints"]))
            component = {"sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"], "targetLabel": "component"}
            check(f"{variant}: {name_of(d)} tells the component, which rules and autoscalers go by", all(component in e.get("relabelings", []) for e in spec["endpoints"]), str(spec["endpoints"]))
    for role, config in configs.items():
        wanted = instances.instance(role)["wire"].get("connect", {})
        check(f"{variant}: {role} asks for whom it calls by the names of their Services", config["wire"].get("connect", {}) == wanted, str(config["wire"].get("connect")))
        if role in instances.SLOTS:
            key, places = instances.SLOTS[role]
            check(f"{variant}: {role} has the places that autoscalers and the simulator go by", config["core"].get(key) == places, str(config["core"].get(key)))


def check_rotation(variant, documents):
    """Who has a role's keys is restarted by the recipe that rotates them."""
    recipe = re.search(r"## Rotate keys\n(.*?)\n## ", (K8S / "README.md").read_text(), re.S)[1]
    holders = {}
    for name, _, spec in pod_specs(documents):
        for v in spec.get("volumes", []):
            if v.get("secret", {}).get("secretName", "").startswith("parlando-keys-"):
                holders.setdefault(v["secret"]["secretName"].removeprefix("parlando-keys-"), set()).add(name.split()[1])
    for role, deployments in holders.items():
        named = [set(re.findall(r"deployment/([\w-]+)", line)) for line in recipe.splitlines() if "rollout restart" in line]
        check(f"{variant}: the recipe restarts all who have the keys of {role}", len(deployments) == 1 or deployments in named, f"{sorted(deployments)} {named}")


def check_runbook(documents):
    """What is to be typed can be: `top` asks ports that are within reach of whoever has the command."""
    readme = (K8S / "README.md").read_text()
    runs_in_a_pod = any(i.program == "parlando" for i in images.IMAGES)
    asked = re.findall(r"parlando top ([^`\n;]+)", readme)
    check("the runbook says how to see all replicas", bool(asked), "")
    check("nothing but this machine's ports is asked by `top`", runs_in_a_pod or not any("dns:" in a or "controller" in a for a in asked), str(asked))
    labels = dict(re.findall(r"(app\.kubernetes\.io/[a-z-]+)=([a-z]+)", re.search(r"get pods -l '([^']+)'", readme)[1].replace("!=", "!")))
    missing = [n for n, l, spec in pod_specs(documents) if any(p.get("containerPort") == 9100 for c in spec["containers"] for p in c.get("ports", [])) and not labels.items() <= l.items()]
    check("its recipe finds every pod that has metrics", not missing, str(missing))


def check_configs(variant, documents, folder):
    """-> {role: configuration}, each taken by its program"""
    data = next(d["data"] for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith("parlando-config"))
    configs = {}
    for file, text in data.items():
        role = file.removesuffix(".json")
        configs[role] = json.loads(text)
        own = "gateway" if role == "edge" else role
        (folder / "instance.json").write_text(text.replace("/etc/parlando/keys", str(folder / "keys" / own)))
        done = subprocess.run([bins / f"parlando-{configs[role]['service']}", "--config", folder / "instance.json", "--check-config"], capture_output=True, text=True)
        check(f"{variant}: {role} takes its configuration", done.returncode == 0, done.stderr)
    return configs


def configs_of(documents):
    data = next(d["data"] for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith("parlando-config"))
    return {file.removesuffix(".json"): json.loads(text) for file, text in data.items()}


def check_promises(variant, documents, configs):
    for name, labels, spec in pod_specs(documents):
        check_locks(variant, name, labels, spec)
        if not name.endswith(("workerTemplate", " traces")):
            check_times(variant, name, labels, spec, configs)
    check_network(variant, documents)
    check_references(variant, documents, configs)
    check_budgets(variant, documents)
    check_values(variant, documents, configs)
    check_rotation(variant, documents)
    check_runbook(documents)


# ---- the checks themselves
def named(documents, kind, name):
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"].startswith(name))


def container_of(documents, name):
    return named(documents, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]


def text(kind, name, before, after):
    """-> a fault: other text in an object"""
    def fault(documents):
        d = named(documents, kind, name)
        changed = json.loads(json.dumps(d).replace(before, after))
        if changed == d:
            raise ValueError(f"'{before}' is not in {kind} {name}")
        documents[documents.index(d)] = changed
    return fault


# All of them are valid by the schemas. -> (variant, fault)
FAULTS = {
    "a policy's port of the mesh": ("prod-cpu", text("NetworkPolicy", "controller", '"port": 5555', '"port": 5556')),
    "the port of names": ("prod-cpu", text("NetworkPolicy", "dns", "53", "54")),
    "the port of metrics": ("prod-cpu", text("NetworkPolicy", "metrics", "9100", "9101")),
    "who may read metrics": ("prod-cpu", text("NetworkPolicy", "metrics", "monitoring", "default")),
    "the port of the store": ("prod-cpu", text("NetworkPolicy", "store", "5432", "5433")),
    "the port of the front door": ("prod-cpu", text("NetworkPolicy", "gateway", "7860", "7861")),
    "a policy for everybody": ("prod-cpu", lambda ds: named(ds, "NetworkPolicy", "vad")["spec"]["ingress"][0].pop("from")),
    "a metric misspelt": ("prod-cpu", text("HorizontalPodAutoscaler", "tts", "parlando_load_ratio", "parlando_load_rato")),
    "an autoscaler's aim": ("prod-cpu", text("HorizontalPodAutoscaler", "tts", "700m", "7")),
    "an autoscaler without an end": ("prod-cpu", lambda ds: named(ds, "HorizontalPodAutoscaler", "tts")["spec"].update(maxReplicas=2000)),
    "an autoscaler that goes down at once": ("prod-cpu", text("HorizontalPodAutoscaler", "gateway", '"stabilizationWindowSeconds": 600', '"stabilizationWindowSeconds": 0')),
    "another role's load": ("prod-cpu-keda", text("ScaledObject", "tts", 'component=\\"tts\\"', 'component=\\"vad\\"')),
    "a Service's port": ("dev", text("Service", "gateway", '"targetPort": "http"', '"targetPort": "htp"')),
    "a Service that hides who is not ready": ("dev", lambda ds: named(ds, "Service", "tts")["spec"].pop("publishNotReadyAddresses")),
    "a Service with one address": ("dev", lambda ds: named(ds, "Service", "tts")["spec"].pop("clusterIP")),
    "a budget that lets nobody go": ("prod-cpu", text("PodDisruptionBudget", "tts", '"maxUnavailable": 1', '"maxUnavailable": 0')),
    "the port that is scraped": ("prod-cpu", text("ServiceMonitor", "parlando", '"port": "metrics"', '"port": "metric"')),
    "metrics without a component": ("prod-cpu", lambda ds: named(ds, "ServiceMonitor", "parlando")["spec"]["endpoints"][0].pop("relabelings")),
    "readiness every ten minutes": ("dev", lambda ds: container_of(ds, "tts")["readinessProbe"].update(periodSeconds=600)),
    "no time to load": ("dev", lambda ds: container_of(ds, "llm-chat")["startupProbe"].update(failureThreshold=1)),
    "killed at once": ("dev", lambda ds: container_of(ds, "tts")["livenessProbe"].update(periodSeconds=1, failureThreshold=1)),
    "another role's keys": ("dev", text("Deployment", "tts", "parlando-keys-tts", "parlando-keys-controller")),
    "no model": ("dev", lambda ds: named(ds, "Deployment", "llm-chat")["spec"]["template"]["spec"].pop("initContainers")),
    "a name that nobody has": ("dev", text("ConfigMap", "parlando-config", "dns:tcp://tokenizer:5555", "dns:tcp://tokeniser:5555")),
    "other places than are scaled by": ("prod-cpu", text("ConfigMap", "parlando-config", 'connections_max\\": 512', 'connections_max\\": 5000')),
    "one less in a roll": ("dev", lambda ds: named(ds, "Deployment", "tts")["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1)),
    "no wait for load balancers": ("dev", lambda ds: container_of(ds, "edge").pop("lifecycle")),
    "too short a drain": ("dev", text("Deployment", "controller", '"100"]', '"60"]')),
}


def check_checks():
    """Each fault in a copy has to be found by one of the checks at least, as it is found in nothing that is right."""
    global check
    real, of_pods, found = check, problem_of, []
    check = lambda name, good, detail="": None if good else found.append(name)  # noqa: E731
    globals()["problem_of"] = lambda d, version: ""  # schemas find none of these
    results = {}
    for name, (variant, fault) in FAULTS.items():
        documents = copy.deepcopy(json.loads((K8S / f"rendered/{variant}.json").read_text())["items"])
        fault(documents)
        found.clear()
        check_promises(variant, documents, configs_of(documents))
        results[name] = list(found)
    check, globals()["problem_of"] = real, of_pods
    for name, of in results.items():
        check(f"a fault is found: {name}", bool(of), "no check fails")


def check_rendered():
    if not shutil.which("kubectl") or not render.can_render():
        print("the rendered manifests are not made again: there is no kubectl with kustomize 5")
        sys.exit(77)
    for variant in render.VARIANTS:
        check(f"k8s/rendered/{variant}.json is what `make manifests` writes", (K8S / f"rendered/{variant}.json").read_text() == render.render(variant), "")


def main():
    if "--rendered" in sys.argv:
        check_rendered()
        finish()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        keys.write(folder / "keys/gateway/api_keys", "0" * 64 + " tests\n")
        keys.make(folder / "keys")
        for variant in render.VARIANTS:
            documents = json.loads((K8S / f"rendered/{variant}.json").read_text())["items"]
            check_schemas(variant, documents)
            check_promises(variant, documents, check_configs(variant, documents, folder))
            namespace = next(d for d in documents if d["kind"] == "Namespace")
            check(f"{variant}: the namespace is restricted", namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted", "")
            check(f"{variant}: no secret stands in the repository", not any(d["kind"] == "Secret" for d in documents), "")
    for file in sorted((K8S / "chaos").glob("*.yaml")):
        documents = load(file)
        check_schemas(file.name, documents)
        roles = {l for d in documents for l in [d["spec"]["selector"]["labelSelectors"]["app.kubernetes.io/component"]]}
        check(f"{file.name} hits roles that exist", roles <= {*instances.ROLES, "edge"}, str(roles))
    # The schemas do find what is wrong.
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 1}], "selektor": {}}}
    check("a misspelt field is found", problem_of(wrong, VERSIONS[0]) != "", "it passed")
    check_checks()
    finish()


main()
