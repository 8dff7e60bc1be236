"""Alerts, rules and the dashboard: every metric they name is told by a real engine, promtool takes the rules and they fire when they should, and a
real Prometheus that scrapes the engine evaluates all of them and every panel without an error. Turns as traces, to a collector.

`observability_test.py BIN SOURCE_DIR`, by the Python of .deps/deploy. Where promtool or prometheus is not installed (tools/setup.sh --test does that)
their parts are left out, with a line, and the exit code is 77 when nothing else is wrong.
"""
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import jsonschema
import yaml

bins, source = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path[:0] = [str(source / p) for p in ("tests/support", "tests/chaos")]
from checks import check, finish  # noqa: E402
from collector import Collector  # noqa: E402
from engine import Client, Engine, pcm  # noqa: E402
from fleet import free_ports  # noqa: E402

ROLES = ["vad", "tokenizer", "llm-chat", "llm-tts", "tts", "context", "controller", "gateway"]
MONITORING = source / "k8s/components/monitoring"
RULES = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]
DASHBOARD = json.loads((MONITORING / "dashboards/parlando.json").read_text())
RECORDED = {r["record"] for g in RULES["groups"] for r in g["rules"] if "record" in r}
NAME = r"parlando_[a-z0-9_]+(?::[a-z0-9]+)?"


left_out = []  # why parts were


def expressions():
    """-> (where, PromQL) of everything that is shown or watched"""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule.get('alert', rule.get('record'))}", rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"panel '{panel['title']}'", target["expr"].replace("$namespace", "parlando")


def check_names(told):
    for where, expression in expressions():
        patterns = re.findall(r'__name__=~"([^"]+)"', expression)
        plain = re.sub(r'"[^"]*"', '""', expression)
        for name in set(re.findall(NAME, plain)):
            check(f"{where}: {name} is told by the engine", name in told or name in RECORDED, "no such metric")
        for pattern in patterns:
            check(f"{where}: something matches {pattern}", any(re.fullmatch(pattern, n) for n in told), "nothing does")


def check_pages():
    readme = (source / "k8s/README.md").read_text()
    chapters = set(re.findall(r"^### ([a-z-]+)$", readme, re.M))
    for group in RULES["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                check(f"{rule['alert']} has a chapter in the runbook", rule["annotations"]["runbook"].removeprefix("k8s/README.md#") in chapters and rule["annotations"]["runbook"].startswith("k8s/") and f"*{rule['alert']}.*" in readme, rule["annotations"]["runbook"])
                check(f"{rule['alert']} says how bad it is", rule["labels"]["severity"] in ("page", "ticket"), "")
    ids = [p["id"] for p in DASHBOARD["panels"]]
    check("every panel has a number of its own", len(ids) == len(set(ids)), "")
    for p in DASHBOARD["panels"]:
        check(f"panel '{p['title']}' lies on the grid", p["gridPos"]["x"] + p["gridPos"]["w"] <= 24, str(p["gridPos"]))


def rule_tests():
    """For promtool: when each alert fires, and that it does not at rest."""
    k = 'namespace="parlando"'

    def case(alert, series, at="20m", fires=True, labels=None, more=()):
        alerts = [] if not fires else [{"exp_labels": {"severity": severity(alert)} | other} for other in more] + [{"exp_labels": {"severity": severity(alert)} | ({"namespace": "parlando"} if labels is None else labels)}]
        return {"interval": "15s", "input_series": [{"series": s, "values": v} for s, v in series], "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": alerts}], "name": alert}
    turns, errors = f'parlando_controller_turns_total{{{k},pod="c"}}', f'parlando_controller_turn_errors_total{{{k},pod="c",code="internal"}}'
    ready = [(f'parlando_{(r if r != "edge" else "gateway").replace("-", "_")}_ready{{{k},pod="{r}",component="{r}"}}', "1x100") for r in ["edge", *ROLES]]
    without = lambda *roles: [r for r in ready if not any(f'component="{role}"' in r[0] for role in roles)]  # noqa: E731
    load = lambda n, most=100, role="vad": [(f'parlando_{role}_load{{{k},pod="v",component="{role}"}}', f"{n}x100"), (f'parlando_{role}_slots{{{k},pod="v",component="{role}"}}', f"{most - n}x100")]  # noqa: E731
    slow = [(f'parlando_controller_first_audio_seconds_bucket{{{k},pod="c",le="{le}"}}', f"0+{step}x100") for le, step in (("1", 0), ("2", 10), ("+Inf", 10))]
    fast = [(f'parlando_controller_first_audio_seconds_bucket{{{k},pod="c",le="{le}"}}', f"0+{step}x100") for le, step in (("1", 10), ("2", 10), ("+Inf", 10))]
    vad = {"namespace": "parlando", "component": "vad"}
    counted = lambda name, pod="p", more="": f'parlando_{name}{{{k},pod="{pod}"{more}}}'  # noqa: E731
    return [case("ParlandoTurnsFail", [(turns, "0+10x100"), (errors, "0+1x100")]), case("ParlandoTurnsFail", [(turns, "0+1000x100"), (errors, "0+1x100")], fires=False),
            case("ParlandoAnswersLate", slow), case("ParlandoAnswersLate", fast, fires=False),
            case("ParlandoRoleMissing", ready, fires=False), case("ParlandoRoleMissing", ready[:-1] + [(ready[-1][0], "1x20 0x80")]), case("ParlandoRoleMissing", [(s, "0x100") for s, _ in ready]),
            # A live edge does not stand for the gateways, nor they for it; nor does silence for health.
            case("ParlandoRoleMissing", without("gateway")), case("ParlandoRoleMissing", without("edge")), case("ParlandoRoleMissing", without("gateway") + [(ready[-1][0], "0x100")]),
            case("ParlandoRoleMissing", [(s, "1x40 stale") for s, _ in ready] + [('parlando_controller_ready{namespace="other",component="controller"}', "0x100")],
                 more=[{"namespace": "other"}]), case("ParlandoRoleMissing", [(s, "1x300 stale") for s, _ in ready], at="3h", labels={}), case("ParlandoRoleMissing", [], labels={}),
            case("ParlandoReplicaNotReady", [(ready[1][0], "0x100")], labels=vad | {"pod": "vad"}), case("ParlandoReplicaNotReady", [(ready[0][0], "1x100")], fires=False),
            case("ParlandoCommitsWait", [(counted("controller_commits_waiting"), "2x100")]), case("ParlandoCommitsWait", [(counted("controller_commits_waiting"), "0x100")], fires=False),
            case("ParlandoCommitsLost", [(counted("controller_commits_lost_total"), "0x70 1x30")]), case("ParlandoStoreErrors", [(counted("context_store_errors_total"), "0+1x100")]),
            case("ParlandoFull", load(95), labels=vad), case("ParlandoFull", load(50), fires=False),
            case("ParlandoFull", load(512, 512, "gateway"), labels={"namespace": "parlando", "component": "gateway"}),
            case("ParlandoModelNumbers", [(counted("llm_bad_logits_total"), "0+1x100")], labels={"namespace": "parlando", "pod": "p"}),
            case("ParlandoReplicasHang", [(counted("vad_peers_hung_total"), "0+1x100"), (counted("tts_peers_hung_total", "q"), "0+1x100")]),
            case("ParlandoHandovers", [(counted("gateway_handovers_total", more=',reason="down"'), "0+10x100")]),
            case("ParlandoHandovers", [(counted("gateway_handovers_total", more=',reason="draining"'), "0+10x100")], fires=False),
            case("ParlandoSoundRunsDry", [(counted("gateway_underruns_total"), "0+1x100"), (turns, "0+10x100")]),
            case("ParlandoKeysRefused", [(counted("vad_hello_refused_total", more=',component="vad"'), "0+1x100")], labels=vad),
            case("ParlandoClientsRefused", [(counted("gateway_api_unauthorised_total"), "0+30x100")]),
            case("ParlandoExceptions", [(counted("vad_failures_total", more=',component="vad"'), "0+1x100")], labels=vad)]


def severity(alert):
    return next(r["labels"]["severity"] for g in RULES["groups"] for r in g["rules"] if r.get("alert") == alert)


def check_rules(folder):
    if not shutil.which("promtool"):
        left_out.append("the rules are not tried: there is no promtool (Debian: prometheus)")
        return
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(RULES))
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True)
    check("promtool takes the rules", done.returncode == 0, done.stdout + done.stderr)
    tested = set()
    for n, case in enumerate(rule_tests()):
        # What a text says is not tested, only that it fires: without annotations promtool compares labels alone.
        silent = json.loads(json.dumps(RULES))
        for group in silent["groups"]:
            for rule in group["rules"]:
                rule.pop("annotations", None)
        rules.write_text(yaml.safe_dump(silent))
        tests = folder / f"tests-{n}.yaml"
        tests.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "15s", "tests": [case]}))
        done = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True)
        fires = bool(case["alert_rule_test"][0]["exp_alerts"])
        check(f"{case['name']} {'fires' if fires else 'keeps quiet'} ({n})", done.returncode == 0, (done.stdout + done.stderr)[-800:])
        tested.add(case["name"])
    alerts = {r["alert"] for g in RULES["groups"] for r in g["rules"] if "alert" in r}
    check("every alert was tried", tested == alerts, str(alerts - tested))


def ask(port, path, **query):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)


def check_prometheus(folder, metrics):
    """A real one: it scrapes the engine, and everything that is shown or watched is evaluated over that."""
    if not shutil.which("prometheus"):
        left_out.append("no Prometheus scrapes the engine: it is not installed (Debian: prometheus)")
        return
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    # One process has no edge; in a cluster a second gateway tells the same.
    targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "parlando", "component": role, "pod": f"{role}-1"}} for role, port in [*metrics.items(), ("edge", metrics["gateway"])]]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(folder / "rules.yaml")],
                                                            "scrape_configs": [{"job_name": "parlando", "static_configs": targets}]}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = open(folder / "prometheus.log", "w")
    server = subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        def wait(what, good, seconds=60):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                try:
                    if good():
                        return True
                except (urllib.error.URLError, OSError):
                    pass
                time.sleep(0.3)
            check(what, False, f"not within {seconds} s: {(folder / 'prometheus.log').read_text()[-1500:]}")
            return False
        if not wait("Prometheus scrapes every service", lambda: len([t for t in ask(port, "/api/v1/targets")["data"]["activeTargets"] if t["health"] == "up"]) == len(targets)):
            return
        wait("the load is computed for every service", lambda: len(ask(port, "/api/v1/query", query="parlando_load_ratio")["data"]["result"]) == len(targets))
        groups = ask(port, "/api/v1/rules")["data"]["groups"]
        wait("every rule was evaluated", lambda: all(r["health"] != "unknown" for g in ask(port, "/api/v1/rules")["data"]["groups"] for r in g["rules"]))
        groups = ask(port, "/api/v1/rules")["data"]["groups"]
        for rule in (r for g in groups for r in g["rules"]):
            check(f"Prometheus evaluates {rule['name']}", rule["health"] == "ok", rule.get("lastError", ""))
        silent = 0
        for where, expression in expressions():
            try:
                silent += not ask(port, "/api/v1/query", query=expression)["data"]["result"]
            except urllib.error.HTTPError as error:
                check(f"{where} can be asked", False, error.read().decode()[-300:])
                continue
            check(f"{where} can be asked", True)
        firing = {a["labels"]["alertname"] for a in ask(port, "/api/v1/alerts")["data"]["alerts"] if a["state"] == "firing"}
        check("nothing fires for an engine that is well", not firing, str(firing))
        turns = float(ask(port, "/api/v1/query", query="sum(parlando_controller_turns_total)")["data"]["result"][0]["value"][1])
        check("the question was counted", turns >= 1, str(turns))
    finally:
        server.terminate()
        server.wait(20)


# Of the OpenTelemetry protocol in JSON: what is required of a request to /v1/traces, and nothing that is not in it.
TEXT, HEX = {"type": "string", "minLength": 1}, lambda n: {"type": "string", "pattern": f"^[0-9a-f]{{{n}}}$", "not": {"pattern": "^0+$"}}  # noqa: E731
VALUE = {"oneOf": [{"type": "object", "properties": {k: t}, "required": [k], "additionalProperties": False} for k, t in
                   (("stringValue", {"type": "string"}), ("intValue", {"type": "string", "pattern": "^-?[0-9]+$"}), ("boolValue", {"type": "boolean"}), ("doubleValue", {"type": "number"}))]}


def shape(required, optional=None):
    return {"type": "object", "properties": required | (optional or {}), "required": list(required), "additionalProperties": False}


ATTRIBUTES = {"type": "array", "items": shape({"key": TEXT, "value": VALUE})}
SPAN = shape({"traceId": HEX(32), "spanId": HEX(16), "name": TEXT, "kind": {"enum": [1, 2, 3, 4, 5]}, "startTimeUnixNano": {"type": "string", "pattern": "^[0-9]{16,20}$"},
              "endTimeUnixNano": {"type": "string", "pattern": "^[0-9]{16,20}$"}}, {"parentSpanId": HEX(16), "attributes": ATTRIBUTES, "status": shape({}, {"code": {"enum": [0, 1, 2]}, "message": TEXT})})
REQUEST = shape({"resourceSpans": {"type": "array", "minItems": 1, "items": shape(
    {"resource": shape({"attributes": ATTRIBUTES}), "scopeSpans": {"type": "array", "minItems": 1, "items": shape({"scope": shape({"name": TEXT}), "spans": {"type": "array", "minItems": 1, "items": SPAN}})}})}})


def check_traces(controller, said):
    """The engine's turns reach a collector, which is away at first, once each and in the protocol's form."""
    server = Collector("127.0.0.1", refuse=1)
    program = next(b for b in (bins / "parlando-traces", source / "build/bin/parlando-traces") if b.exists())
    sender = subprocess.Popen([program, "--controllers", f"http://127.0.0.1:{controller}", "--collector", f"http://127.0.0.1:{server.server_port}/v1/traces", "--seconds", "1"],
                              stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not server.requests and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2.5)  # another look at the same turns
    sender.terminate()
    told, code = sender.communicate(timeout=20)[1], sender.returncode
    server.shutdown()
    check("the sender ends when it is asked to", code == 0, told)
    check("it says that the collector was away", "503" in told, told)
    if not server.requests:
        return check("turns reach the collector", False, told)
    spans = []
    for path, kind, text in server.requests:
        body = json.loads(text)
        check("they go where collectors listen", path == "/v1/traces" and kind == "application/json", f"{path} {kind}")
        problems = [f"{list(e.absolute_path)}: {e.message}"[:200] for e in jsonschema.Draft202012Validator(REQUEST).iter_errors(body)]
        check("they have the protocol's form", not problems, str(problems[:3]))
        spans += [s for r in body["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]]
    roots = [s for s in spans if "parentSpanId" not in s]
    check("every turn comes once", len(roots) == 1 and len({s["spanId"] for s in spans}) == len(spans), f"{len(roots)} roots, {len(spans)} spans")
    parts = {s["name"]: (int(s["endTimeUnixNano"]) - int(s["startTimeUnixNano"])) / 1e6 for s in spans if "parentSpanId" in s}
    trace = said["trace"]
    check("its parts are those that the client was told", set(parts) == {p["name"] for p in trace["parts"]} and all(abs(parts[p["name"]] - p["ms"]) <= 1 for p in trace["parts"]), f"{parts} {trace}")
    check("it has the trace that the client was told", roots[0]["traceId"].endswith(trace["id"]), roots[0]["traceId"])
    check("nothing that was said is in it", said["user"] not in json.dumps(spans) and said["assistant"] not in json.dumps(spans), "")


def main():
    base = free_ports(16)
    engine = Engine(bins / "parlando", "--listen", f"127.0.0.1:{base}", "--metrics-port", base + 1, "--store", ":memory:")
    try:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            client = Client(engine.port, speak=True)
            event = client.ask(pcm(source / "models/nano/questions/capital_of_france.wav"))
            check("a question is answered", event["type"] == "turn", str(event))
            metrics, told = {}, set()
            for port in range(base + 1, base + 1 + len(ROLES)):
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
                role = re.search(r"^parlando_(gateway|controller|vad|tokenizer|llm_chat|llm_tts|tts|context)_ready ", text, re.M)[1]
                metrics[role.replace("_", "-")] = port
                told |= set(re.findall(rf"^({NAME})", text, re.M))
            check("every role tells metrics", set(metrics) == set(ROLES), str(metrics))
            check_names(told)
            check_pages()
            check_rules(folder)
            check_prometheus(folder, metrics)
            check_traces(metrics["controller"], event)
            client.ws.close()
    finally:
        check("the engine ends well", engine.stop() == 0, engine.all[-3:])
    finish(left_out)


main()
