"""One host: compose.yaml, the configurations of all deployments and the keys. `host_test.py BIN SOURCE_DIR`, by the Python of .deps/deploy."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

bins, source = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path[:0] = [str(source / "tests/support"), str(source / "deploy")]
import host  # noqa: E402
import images  # noqa: E402
import instances  # noqa: E402
import keys  # noqa: E402
from checks import check, finish  # noqa: E402


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def drain_of(words):
    return int(words[words.index("--drain-seconds") + 1])


def check_compose():
    compose = yaml.safe_load((source / "deploy/compose.yaml").read_text())
    names = {i.name for i in images.IMAGES}
    services = compose["services"]
    check("compose has every role", set(instances.ROLES) | {"models"} == set(services), str(set(services)))
    for role, s in services.items():
        image, tag = s["image"].split(":", 1)
        check(f"{role} has an image of ours", image in names, image)
        check(f"{role} is read-only, nobody, without rights", s["read_only"] and s["user"] == "65532:65532" and s["cap_drop"] == ["ALL"] and "no-new-privileges:true" in s["security_opt"], str(s))
        if role == "models":
            continue
        check(f"{role} gets its configuration", f"./compose/{role}.json:/etc/parlando/instance.json:ro" in s["volumes"], str(s["volumes"]))
        check(f"{role} gets its keys alone", [v for v in s["volumes"] if "keys" in v] == [f"./keys/{role}:/etc/parlando/keys:ro"], str(s["volumes"]))
        check(f"{role} may drain before it is killed", seconds(s["stop_grace_period"]) >= min(drain_of(s["command"]) + 5, 110) or role == "context", str(s["stop_grace_period"]))
        check(f"{role} is bounded", "mem_limit" in s and "pids_limit" in s, "")
    check_volumes(compose)
    check("only the front door is shown", [r for r, s in services.items() if "ports" in s] == ["gateway"], "")
    check("the front door is shown to this host alone", all(p.startswith("127.0.0.1:") for p in services["gateway"]["ports"]), "")
    check("the others reach nobody outside", compose["networks"]["core"]["internal"] is True, "")


def check_volumes(compose):
    """An engine gives a new volume the owner of the image's folder beneath it, once a container: nobody but those who may write there are to do that."""
    of_image = {i.name: i for i in images.IMAGES}
    for role, s in compose["services"].items():
        for v in s.get("volumes", []):
            if isinstance(v, str):
                name, target, *mode = v.split(":")
                v = {"source": name, "target": target, "read_only": mode == ["ro"]}
            if v["source"] not in compose["volumes"]:
                continue
            prepared = not v.get("volume", {}).get("nocopy", False)
            may = v["target"].lstrip("/") in of_image[s["image"].split(":")[0]].writes
            check(f"{role} leaves volume {v['source']} to those who write it, or may write it", may if prepared else v["read_only"], str(v))


def check_configurations():
    done = subprocess.run([sys.executable, source / "deploy/instances.py", "--check"], capture_output=True, text=True)
    check("the configurations are those that instances.py writes", done.returncode == 0, done.stderr)
    with tempfile.TemporaryDirectory() as folder:
        secrets = pathlib.Path(folder) / "keys"
        keys.write(secrets / "gateway/api_keys", "0" * 64 + " tests\n")
        keys.make(secrets)
        for role in instances.ROLES:
            for where in ("dns", "local"):
                config = instances.instance(role, where, keys=str(secrets / role))
                file = pathlib.Path(folder) / "instance.json"
                file.write_text(json.dumps(config))
                done = subprocess.run([bins / f"parlando-{config['service']}", "--config", file, "--check-config"], capture_output=True, text=True)
                check(f"{role} takes its configuration ({where})", done.returncode == 0, done.stderr)
        check_keys(secrets)


def check_own(root):
    """What host.py gives to whom, as root; of a machine whose users have numbers of this test's."""
    if os.geteuid() != 0:
        print("whose keys are whose under systemd is not tried: that needs root")
        return
    with tempfile.TemporaryDirectory() as folder:
        machine = pathlib.Path(folder)
        place = machine / "etc/parlando/keys"
        shutil.copytree(root, place)
        (machine / "etc/passwd").write_text("".join(f"parlando-{role}:x:{70000 + n}:{80000 + n}::/:/bin/false\n" for n, role in enumerate([*keys.CALLS, "tts2"])))
        for name in ("tts2", "client-desk", "backup"):
            shutil.copytree(place / "tts", place / name)
        for path in [place, *place.rglob("*")]:
            os.chown(path, 70000, 70000)  # an old recipe gave all to one user
        host.own(machine)
        for n, role in enumerate([*keys.CALLS, "tts2"]):
            of = {path.name: path.stat() for path in [place / role, *(place / role).iterdir()]}
            right = all((s.st_uid, s.st_gid, s.st_mode & 0o777) == (0, 80000 + n, 0o550 if name == role else 0o440) for name, s in of.items())
            check(f"keys of {role} are root's, for its group to read", right, str(of))
        top = place.stat()
        check("no role puts another folder in the place of one", (top.st_uid, top.st_mode & 0o777) == (0, 0o711), str(top))
        rights = lambda name: (lambda s: (s.st_uid, s.st_gid, s.st_mode & 0o777))((place / name).stat())  # noqa: E731
        check("keys of a client are for root to hand out", (rights("client-desk"), rights("client-desk/secret_key")) == ((0, 0, 0o500), (0, 0, 0o400)), f"{rights('client-desk')}")
        check("what is nobody's stays as it is", rights("backup")[:2] == (70000, 70000), f"{rights('backup')}")
        (place / "tts/secret_key").unlink()
        target = machine / "other"
        target.write_text("")
        os.chown(target, 12345, 12345)
        (place / "tts/secret_key").symlink_to(target)
        os.chown(place / "context/secret_key", 70000, 70000)
        try:
            host.own(machine)
            refused = ""
        except SystemExit as error:
            refused = str(error)
        check("a link among the keys is refused, and what it leads to stays whose it is", "is a link" in refused and target.stat().st_uid == 12345, f"{refused} {target.stat()}")
        check("and then nothing is changed", rights("context/secret_key")[0] == 70000, f"{rights('context/secret_key')}")


def check_units():
    """What of the units holds without a systemd."""
    template = (source / "deploy/systemd/parlando@.service").read_text()
    check("a wrong configuration is not started again", "RestartPreventExitStatus=2 78" in template and "\nExecStartPre=" not in template, "")
    check("units reach loopback addresses alone", "IPAddressDeny=any\nIPAddressAllow=localhost\n" in template, "")
    for role in instances.ROLES:
        config = json.loads((source / f"deploy/systemd/{role}.json").read_text())
        places = re.findall(r'tcp://([^:"]+):|"(?:listen|metrics)": "([^:"]+):', json.dumps(config))
        check(f"{role} is and asks there", places and all("".join(p) == "127.0.0.1" for p in places), str(places))


def check_keys(root):
    admitted = lambda role: {line.split()[0]: line.split()[1] for line in keys.lines(root / role / "callers") if not line.startswith("# ")}  # noqa: E731
    public = lambda role: (root / role / "public_key").read_text()  # noqa: E731
    for role in keys.CALLS:
        expected = {public(c): c for c in keys.CALLERS[role]}
        check(f"{role} admits its callers alone", admitted(role) == expected, str(admitted(role)))
        check(f"the secret of {role} is its owner's alone", (root / role / "secret_key").stat().st_mode & 0o777 == 0o400, "")
    check("the graph is the same for keys and configurations", {k: v for k, v in keys.CALLS.items() if v} == {k: v for k, v in instances.CALLS.items() if k != "edge"}, "")
    check_own(root)
    shutil.rmtree(root / "tts")
    keys.make(root)
    believed = {caller: (root / caller / "server-tts").read_text() for caller in keys.CALLERS["tts"]}
    check("callers believe a pair that was made in the place of a lost one", set(believed.values()) == {public("tts")}, str(believed))
    lost = [line for line in keys.lines(root / "llm-tts/callers") if line.split()[1:] == ["tts"] and line.split()[0] != public("tts")]
    keys.retire(root, "tts")
    check("and `retire` shuts the lost one out", len(lost) == 1 and set(admitted("llm-tts")) == {public("tts")}, f"{lost} {admitted('llm-tts')}")
    # A rotation of one that calls and is called, step by step.
    old = public("tts")
    keys.begin(root, "tts")
    new = public("tts-next")
    check("step 1: both pairs of the caller are admitted", admitted("llm-tts") == {old: "tts", new: "tts"}, str(admitted("llm-tts")))
    check("step 1: nobody believes the new pair yet", (root / "controller/server-tts").read_text() == old, "")
    keys.point(root, "tts")
    keys.make(root)  # an installation in the middle of it
    check("step 2: callers believe the new pair", (root / "controller/server-tts").read_text() == new, "")
    keys.finish(root, "tts")
    check("step 3: the role has the new pair, the old one may end in peace", public("tts") == new and set(admitted("llm-tts")) == {old, new} and not (root / "tts-next").exists(), str(admitted("llm-tts")))
    keys.retire(root, "tts")
    check("step 4: the old pair is gone", admitted("llm-tts") == {new: "tts"} and admitted("tokenizer") == {new: "tts", public("controller"): "controller"}, str(admitted("tokenizer")))
    keys.client(root, "phone")
    check("a client is admitted by the gateway", admitted("gateway") == {public("client-phone"): "client"}, str(admitted("gateway")))
    # Of the gateway's pair, which edges have, too: whom clients believe is their folder's.
    old, believed = public("gateway"), lambda: (root / "client-phone/server-gateway").read_text()
    keys.begin(root, "gateway")
    new = public("gateway-next")
    check("gateway, step 1: controllers admit both pairs, clients believe the old one", set(admitted("controller")) == {old, new} and believed() == old, str(admitted("controller")))
    check("gateway, step 1: clients are admitted by both", admitted("gateway-next") == admitted("gateway"), str(admitted("gateway-next")))
    check("gateway, step 1: tokens of both are signed alike", (root / "gateway-next/session_secret").read_text() == (root / "gateway/session_secret").read_text(), "")
    try:
        keys.client(root, "early")
        refused = ""
    except SystemExit as error:
        refused = str(error)
    check("gateway, between two pairs: no client is made that would believe the old one", "expected `finish` first" in refused and not (root / "client-early").exists(), refused)
    keys.point(root, "gateway")
    check("gateway, step 2: clients believe the new pair", believed() == new, "")
    keys.finish(root, "gateway")
    keys.retire(root, "gateway")
    check("gateway, step 4: the old pair is gone", admitted("controller") == {new: "gateway"} and public("gateway") == new, str(admitted("controller")))


check_compose()
check_configurations()
check_units()
finish()
