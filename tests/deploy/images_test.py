"""Makes the trees of all images, looks at what is in them, and starts them as a container runtime would: as their user, with a read-only root and
without capabilities; then somebody talks through them, and the turn reaches a collector of traces.

`images_test.py BUILD_DIR SOURCE_DIR [--bin DIR …] [--part boxes|build|lists]`. `build`: an engine (docker, podman, buildah) really builds an image,
twice, and its configuration is looked at. `lists`: the lists of parts against the schema of CycloneDX. Exit code 77 where what a part needs is not
there: namespaces of our own, an engine, the schema.
"""
import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("source", type=pathlib.Path)
parser.add_argument("--bin", action="append", type=pathlib.Path)
parser.add_argument("--part", choices=["boxes", "build", "lists"], default="boxes")
a = parser.parse_args()
sys.path[:0] = [str(a.source / "tests/support"), str(a.source / "deploy")]
import sandbox  # noqa: E402
from checks import check, finish  # noqa: E402

why = sandbox.enter() if a.part == "boxes" else ""
if why:
    print(why)
    sys.exit(77)
import images  # noqa: E402
import keys  # noqa: E402
from collector import Collector  # noqa: E402
from engine import Client, pcm  # noqa: E402

LIGHT = {"parlando-gateway", "parlando-controller", "parlando-vad", "parlando-context", "parlando-traces"}
KEY = "key-of-these-tests"
READY_SECONDS = 180
GRACE_SECONDS = 60
image_of = {i.name: i for i in images.IMAGES}
bins = [str(b) for b in a.bin or [a.build / "bin"]]


def make(out, *words):
    done = subprocess.run([sys.executable, a.source / "deploy/images.py", *[w for b in bins for w in ("--bin", b)], "--out", out, *words], capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout + done.stderr)
        sys.exit(1)
    return done.stdout


def fingerprint(*trees):
    out = hashlib.sha256()
    for tree in trees:
        for path in sorted(tree.rglob("*")):
            stat = path.lstat()
            out.update(f"{path.relative_to(tree)} {stat.st_mode} {stat.st_mtime_ns} {stat.st_uid}".encode())
            out.update(os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"")
    return out.hexdigest()


def look_at_elf(name, file):
    head = subprocess.run(["readelf", "-hld", file], capture_output=True, text=True).stdout
    check(f"{name} is position-independent", "DYN (" in head, "not DYN")
    check(f"{name} has read-only relocations", "GNU_RELRO" in head, "no GNU_RELRO")
    check(f"{name} binds at its start, so that relocations stay read-only", re.search(r"\(FLAGS(_1)?\).*NOW", head), "no NOW")
    imported = subprocess.run(["readelf", "-W", "--dyn-syms", file], capture_output=True, text=True).stdout
    check(f"{name} guards its stack", "__stack_chk_fail" in imported, "no __stack_chk_fail")
    # A program as small as `parlando-pod` has no call that could be checked.
    check(f"{name} checks the bounds of buffers", pathlib.Path(file).name == "parlando-pod" or re.search(r"__(mem\w+|str\w+|read|recv|fdelt|\w*printf)_chk", imported), "no fortified call")
    check(f"{name} does not tell where it was compiled", str(a.source.resolve()).encode() not in pathlib.Path(file).read_bytes(), str(a.source))
    check(f"{name} has a stack without code", re.search(r"GNU_STACK.*\n?.*RWE", head) is None, "GNU_STACK is RWE")
    paths = re.findall(r"(?:RPATH|RUNPATH)\).*\[(.*)\]", head)
    check(f"{name} finds libraries in the image alone", all(p == images.PRIVATE for p in paths), str(paths))


def look_at(name, libraries, tree):
    brought = {c["name"] for c in json.loads((tree / "usr/share/doc/parlando/sbom.cdx.json").read_text())["components"] if c["type"] == "library"}
    check(f"{name}: its list has the code of headers", name == "parlando-models-nano" or {"nlohmann-json3-dev", "cppzmq-dev", "libcli11-dev"} <= brought and any("boost" in b for b in brought), str(sorted(brought)))
    listed = {c["name"]: c["hashes"][0]["content"] for c in json.loads((tree / "usr/share/doc/parlando/sbom.cdx.json").read_text())["components"] if c["type"] == "file"}
    there = {"/" + p.relative_to(t).as_posix(): p for t in (libraries, tree) for p in t.rglob("*") if p.is_file() and not p.is_symlink()}
    unlisted = [p for p in there if not p.startswith(("/usr/share/doc/", "/var/lib/dpkg/")) and p not in listed]
    check(f"{name}: its list has every file", not unlisted, str(unlisted[:3]))
    program = next(p for p in there if p.startswith("/usr/bin/") and p != "/usr/bin/parlando-pod" or name == "parlando-models-nano" and p.startswith("/usr/bin/"))
    check(f"{name}: the list's digests are true", listed.get(program) == images.digest(there[program]), program)
    check(f"{name} has nothing setuid or writable by others", not any(p.stat().st_mode & 0o6022 for p in there.values()), "")
    if name in LIGHT:
        check(f"{name} has no shell", not any(images.SHELLS.search(p) for p in there), "")
    for path, file in there.items():
        if path.startswith("/usr/bin/"):
            look_at_elf(f"{name} {path}" if path != program else name, file)


def check_lists(folder):
    """Against the schema of the standard: a list with packages alone, and one with a wheel in it."""
    python = a.source / ".deps/deploy/bin/python"
    if subprocess.run([python, "-c", "import cyclonedx.validation.json"], capture_output=True).returncode != 0 if python.exists() else True:
        print("the lists of parts are not compared with the schema of CycloneDX: tools/setup.sh --test installs it")
        sys.exit(77)
    names = ("parlando-context", "parlando-tts")
    make(folder, "--trees", *(word for name in names for word in ("--only", name)))
    for name in names:
        cyclonedx(python, folder / f"{name}.cdx.json")


def cyclonedx(python, file):
    text = ("import sys; from cyclonedx.validation.json import JsonStrictValidator; from cyclonedx.schema import SchemaVersion\n"
            "error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()); print(error or 'valid')")
    done = subprocess.run([python, "-c", text, file], capture_output=True, text=True)
    check(f"{file.name} is CycloneDX", done.stdout.strip() == "valid", (done.stdout + done.stderr)[-500:])


ROLES = {"vad": ("parlando-vad", {"weights": "/usr/share/parlando/silero-vad/silero_vad.safetensors"}),
         "tokenizer": ("parlando-tokenizer", {"model": "/models/nano/Step-Audio-Tokenizer"}),
         "llm-chat": ("parlando-llm", {"model": "/models/nano/Step-Audio-Chat"}),
         "llm-tts": ("parlando-llm", {"model": "/models/nano/Step-Audio-TTS-3B"}),
         "tts": ("parlando-tts", {"model": "/models/nano/Step-Audio-TTS-3B"}),
         "context": ("parlando-context", {"store": "/data/context.sqlite"}),
         "controller": ("parlando-controller", {"tools": "demo", "history_turns": 1, "commit_queue_file": "/data/commits"}),
         "gateway": ("parlando-gateway", {"page": "/usr/share/parlando/page", "questions": "/usr/share/parlando/questions", "keys_file": "/etc/parlando/keys/api_keys"})}


def instance(role, addresses):
    core = dict(ROLES[role][1])
    if role == "gateway":
        core["listen"] = f"{addresses[role]}:7860"
    curve = {"secret_key_file": "/etc/parlando/keys/secret_key", "public_key_file": "/etc/parlando/keys/public_key", "keys_file": "/etc/parlando/keys/callers",
             "server_key_files": {r: f"/etc/parlando/keys/server-{r}" for r in keys.CALLS[role]}}
    wire = {"bind": f"tcp://{addresses[role]}:5555", "metrics": f"{addresses[role]}:9100", "curve": curve, "step_limit_ms": 30000, "watchdog_ms": 30000,
            "connect": {r: [f"tcp://{addresses[r]}:5555"] for r in keys.CALLS[role]}}
    return {"service": ROLES[role][0].removeprefix("parlando-"), "role": role, "wire": wire, "core": core}


def new_volume(at, layers, target):
    """What an engine makes of a named volume when its first container is made: owner and mode of the folder beneath it in the image, root's where
    there is none. -> at"""
    at.mkdir()
    beneath = next((layer / target.lstrip("/") for layer in reversed(layers) if (layer / target.lstrip("/")).is_dir()), None)
    at.chmod(beneath.stat().st_mode & 0o7777 if beneath else 0o755)
    if sandbox.real_root():
        os.chown(at, beneath.stat().st_uid if beneath else 0, beneath.stat().st_gid if beneath else 0)
    return at


def start_all(folder, made, models):
    """-> {role: (sandbox, address)}"""
    secrets = folder / "keys"
    keys.write(secrets / "gateway/api_keys", hashlib.sha256(KEY.encode()).hexdigest() + " tests\n")
    keys.make(secrets)
    addresses = {role: f"127.0.0.{10 + i}" for i, role in enumerate(ROLES)}
    boxes = {}
    for role in ROLES:
        config = folder / f"{role}-config"
        config.mkdir()
        shutil.copytree(secrets / role, config / "keys")
        (config / "instance.json").write_text(json.dumps(instance(role, addresses)))
        if sandbox.real_root():
            for path in [config, *config.rglob("*")]:
                os.chown(path, sandbox.UID, sandbox.UID)
        image = ROLES[role][0]
        volumes = [(config, "/etc/parlando", False), (models, "/models", False)]
        if "data" in image_of[image].writes:
            volumes.append((new_volume(folder / f"{role}-data", made[image], "/data"), "/data", True))
        box = sandbox.Sandbox([f"/usr/bin/{image}", "--config", "/etc/parlando/instance.json", "--drain-seconds", "20"], made[image], volumes,
                              log=open(folder / f"{role}.log", "w"), hostname=role, environment={"PATH": "/usr/bin", "OMP_NUM_THREADS": "1", "PARLANDO_LOG": "debug"})
        box.start()
        boxes[role] = (box, addresses[role])
    return boxes


def wait_ready(box, address):
    until, said = time.monotonic() + READY_SECONDS, ""
    while time.monotonic() < until and box.poll() is None:
        done = box.run("/usr/bin/parlando-pod", "probe", f"{address}:9100/readyz")
        if done.returncode == 0:
            return ""
        said = done.stderr.strip()
        time.sleep(0.2)
    return said or f"ended with {box.poll()}"


def look_at_process(role, box):
    status = dict(re.findall(r"^(\w+):\s*(.*)$", pathlib.Path(f"/proc/{box.pid}/status").read_text(), re.M))
    if sandbox.real_root():
        check(f"{role} is nobody", status["Uid"].split() == [str(sandbox.UID)] * 4 and status["Gid"].split() == [str(sandbox.UID)] * 4, status["Uid"])
    for field in ("CapEff", "CapPrm", "CapBnd"):
        check(f"{role} has no capabilities ({field})", int(status[field], 16) == 0, status[field])
    check(f"{role} gains no privileges", status["NoNewPrivs"] == "1", status["NoNewPrivs"])
    root = [line for line in pathlib.Path(f"/proc/{box.pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/"]
    check(f"{role} has a read-only root", bool(root) and "ro" in root[-1].split(" - ")[1].split()[2].split(",") + root[-1].split()[5].split(","), str(root))


def talk(address, source):
    os.environ["PARLANDO_TEST_KEY"] = KEY
    client = Client(7860, host=address, timeout=120, speak=True)
    event = client.ask(pcm(source / "models/nano/questions/capital_of_france.wav"))
    client.ws.close()
    return event, len(client.audio)


def look_for_secrets(boxes, folder, event):
    """Nothing secret and nothing that was said is in arguments, environments or logs, which tell all they can here."""
    check("logs tell all they can", any(" info " in (folder / f"{role}.log").read_text() for role in boxes), "no line below warnings")
    secrets = {f"the secret of {role}": (folder / f"keys/{role}/secret_key").read_text() for role in boxes} | {"an API key": KEY}
    words = {"what was understood": event["user"], "what was answered": event["assistant"]}
    for role, (box, _) in boxes.items():
        told = {"its arguments": pathlib.Path(f"/proc/{box.pid}/cmdline").read_bytes(), "its environment": pathlib.Path(f"/proc/{box.pid}/environ").read_bytes(),
                "its log": (folder / f"{role}.log").read_bytes()}
        for where, text in told.items():
            for what, secret in (secrets | words).items():
                check(f"{role}: {what} is not in {where}", secret.encode() not in text, "it is")


def bring_turns(folder, layers, controller, event):
    """The image that brings turns to a collector: its one turn arrives, without a word of it."""
    collector = Collector("127.0.0.30", 4318)
    box = sandbox.Sandbox(["/usr/bin/parlando-traces", "--controllers", f"http://{controller}:9100", "--collector", "http://127.0.0.30:4318/v1/traces", "--seconds", "1"],
                          layers, log=open(folder / "traces.log", "w"), hostname="traces")
    box.start()
    try:
        until = time.monotonic() + 20
        while not collector.requests and box.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        texts = [body.decode() for _, _, body in collector.requests]
        text = "".join(texts)
        spans = [s for t in texts for r in json.loads(t)["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]]
        check("the turn reaches a collector", len({s["traceId"] for s in spans}) == 1, f"{len(spans)} spans {(folder / 'traces.log').read_text()[-300:]}")
        check("no word of it does", event["user"] not in text and event["assistant"] not in text, text[:300])
        if box.poll() is None:
            look_at_process("traces", box)
        box.signal(signal.SIGTERM)
        check("traces ends when it is asked to", box.wait(GRACE_SECONDS) == 0, (folder / "traces.log").read_text()[-300:])
    finally:
        box.clean()
        collector.shutdown()


def configuration(archive):
    """-> an image's configuration, with the digests of its layers"""
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))[0]
        return json.load(tar.extractfile(manifest["Config"]))


def owners_in(archive):
    """-> {path in an image: (user, group)}"""
    with tarfile.open(archive) as tar:
        layers = json.load(tar.extractfile("manifest.json"))[0]["Layers"]
        return {m.name.strip("./"): (m.uid, m.gid) for layer in layers for m in tarfile.open(fileobj=tar.extractfile(layer))}


def really_build(folder):
    engine = next((e for e in ("docker", "podman") if shutil.which(e) and subprocess.run([e, "info"], capture_output=True).returncode == 0), "buildah" if shutil.which("buildah") else "")
    if not engine:
        print("no image is built: no docker and no podman answers, and there is no buildah (tools/setup.sh --test installs it)")
        sys.exit(77)
    archives = [folder / f"image-{n}/parlando-context.tar" for n in (1, 2)]
    for archive in archives:
        print(make(archive.parent, "--only", "parlando-context", "--engine", engine), end="")
    check("an image is the same when it is built again", images.digest(archives[0]) == images.digest(archives[1]), "its archives differ")
    c = configuration(archives[0])["config"]
    check("an image runs as nobody", c["User"] == "65532:65532", c["User"])
    check("an image starts its service", c["Entrypoint"] == ["/usr/bin/parlando-context"], str(c["Entrypoint"]))
    check("an image has a health check", c.get("Healthcheck", {}).get("Test", [])[:2] == ["CMD", "/usr/bin/parlando-pod"], str(c.get("Healthcheck")))
    owners = owners_in(archives[0])
    check("an image's folder for data is the service's", owners.get("data") == (sandbox.UID, sandbox.UID), str(owners.get("data")))
    check("and everything else in it is root's", {o for path, o in owners.items() if path != "data"} == {(0, 0)}, str({p: o for p, o in owners.items() if o != (0, 0)}))
    check("an image names its revision", len(c["Labels"].get("org.opencontainers.image.revision", "")) >= 7, str(c["Labels"]))


def check_boxes(folder):
    out = folder / "images"
    print(make(out, "--trees"), end="")
    made = {n: (out / ("libraries-models" if i.libraries is images.MODEL_PROGRAMS else f"libraries-{n}"), out / n, *([out / f"volumes-{n}"] if i.writes else [])) for n, i in image_of.items()}
    for name, layers in made.items():
        look_at(name, *layers[:2])
    make(folder / "again", "--trees", "--only", "parlando-context")
    check("the same programs make the same trees", fingerprint(*made["parlando-context"]) ==
          fingerprint(*(folder / "again" / layer.name for layer in made["parlando-context"])), "parlando-context differs")
    # The models come from their image, as an init container brings them.
    models = new_volume(folder / "models", made["parlando-models-nano"], "/volume")
    for n in (1, 2):
        box = sandbox.Sandbox(["/usr/bin/parlando-pod", "copy", "/models", "/volume"], made["parlando-models-nano"], [(models, "/volume", True)], log=sys.stderr)
        box.start()
        check(f"the models' image fills a volume ({n})", box.wait(60) == 0, "it failed")
        box.clean()
    boxes = start_all(folder, made, models)
    try:
        for role, (box, address) in boxes.items():
            why = wait_ready(box, address)
            check(f"{role} becomes ready", not why, why + (folder / f"{role}.log").read_text()[-500:])
            if not why:
                look_at_process(role, box)
        event, heard = talk(boxes["gateway"][1], a.source)
        check("a question is answered through the images", event["type"] == "turn" and bool(event["assistant"]) and heard > 10000, f"{event} {heard}")
        if event["type"] == "turn":
            look_for_secrets(boxes, folder, event)
            bring_turns(folder, made["parlando-traces"], boxes["controller"][1], event)
        for role, (box, _) in reversed(boxes.items()):
            box.signal(signal.SIGTERM)
            try:
                code = box.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                code = "nothing"
            check(f"{role} ends when it is asked to", code == 0, f"{code} {(folder / f'{role}.log').read_text()[-300:]}")
    finally:
        for box, _ in boxes.values():
            box.clean()


def main():
    with tempfile.TemporaryDirectory(prefix="parlando-images-") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        {"boxes": check_boxes, "build": really_build, "lists": check_lists}[a.part](folder)
    finish()


main()
