"""The running engine: in one process and as supervised children, as a client of its WebSocket sees it.

`engine_test.py BUILD_BIN SOURCE_DIR`
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Client, Engine, pcm  # noqa: E402
from ws import WebSocket  # noqa: E402

QUESTIONS = json.load(open(ROOT / "models/nano/questions/questions.json"))
def question(name):
    return pcm(ROOT / f"models/nano/questions/{name}.wav")


def needs_no_libtorch():
    for service in ("gateway", "controller", "vad", "context"):
        libraries = subprocess.run(["ldd", BIN / f"parlando-{service}"], capture_output=True, text=True).stdout
        check(f"parlando-{service} does not reach libtorch", "libtorch" not in libraries and "libc10" not in libraries, libraries)
    libraries = subprocess.run(["ldd", BIN / "parlando-llm"], capture_output=True, text=True).stdout
    check("parlando-llm does", "libtorch_cpu" in libraries)
    for program in BIN.glob("parlando*"):
        libraries = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        check(f"{program.name} starts without CUDA", "libtorch_cuda" not in libraries and "libcublas" not in libraries)


def one_process(folder):
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", folder / "one.sqlite", "--record", folder / "recordings")
    client = Client(engine.port, speak=True)
    heard = 0
    for name, said in QUESTIONS.items():
        turn = client.ask(pcm(ROOT / "models/nano/questions" / name))
        check(f"{name} is answered aloud", turn["type"] == "turn" and turn["assistant"] and len(client.audio) > 10000, turn)
        if turn["type"] != "turn":
            continue
        heard += turn["user"] == said
        stages = turn["stages"]
        check(f"stages of {name}", 0 < stages["tokenizer_ms"] <= stages["transcript_ms"] <= stages["text_ms"] <= stages["total_ms"] and stages["first_text_ms"] <= stages["first_audio_ms"], stages)
        check(f"audio of {name}", abs(len(client.audio) / 2 / 22050 - turn["audio_seconds"]) < 0.001, (len(client.audio), turn))
    check("most transcripts are right", heard >= len(QUESTIONS) * 2 // 3, f"{heard} of {len(QUESTIONS)}")
    kinds = [e["type"] for e in client.events]
    check("a turn's events come in order", kinds[1:4] == ["speech_started", "speech_ended", "text"], kinds[:6])
    # An end of speech found by the detector instead of the client.
    silence = bytes(2 * 16000)
    turn = client.ask(question("capital_of_france") + silence, flush=False)
    check("silence ends a turn", turn["type"] == "turn" and turn["user"] == "what is the capital of france", turn)
    # Context: a name said in one turn is known in the next; typed turns.
    client.say("my name is anna")
    check("a name is remembered", "anna" in client.say("what is my name")["assistant"], client.events[-1])
    again = Client(engine.port, speak=False)
    turn = again.say("what time is it")
    check("a tool is called", [c["name"] for c in turn["tool_calls"]] == ["get_time"] and not again.audio, turn)
    check("sessions do not share their history", "anna" not in again.say("what is my name")["assistant"])
    # Bad input gets an error and ends nothing.
    check("silence is no speech", again.ask(bytes(32000))["code"] == "no_speech", again.events[-1])
    check("an empty turn", (again.ws.send({"type": "flush"}), again.wait("error"))[1]["code"] == "no_speech")
    check("an empty text", again.say("")["code"] == "invalid_argument")
    for bad, code in (("{", "bad_json"), ('{"type":"dance"}', "unknown_type")):
        again.ws.send(bad)
        check(f"{bad} is refused", again.wait("error")["code"] == code, again.events[-1])
    again.ws.send(b"odd")
    check("an odd number of bytes is refused", again.wait("error")["code"] == "bad_frame")
    try:
        again.ws.receive()
        check("three strikes close the socket", False)
    except ConnectionError:
        check("three strikes close the socket", True)
    for bad in ({"speak": "yes"}, {"speaker": 7}, {"sneaker": "Clara"}):
        wrong = WebSocket("127.0.0.1", engine.port, "/v1/dialogue")
        wrong.send(json.dumps({"type": "open", **bad}))
        told = json.loads(wrong.receive())
        check(f"open with {bad} is refused", told["code"] == "invalid_argument" and next(iter(bad)) in told["message"], told)
    early = WebSocket("127.0.0.1", engine.port, "/v1/dialogue")
    early.send(bytes(640))
    check("audio before open is refused", json.loads(early.receive())["code"] == "not_ready")
    page = urllib.request.urlopen(f"http://127.0.0.1:{engine.port}/").read().decode()
    check("the page is served", "parlando" in page and "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page)
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{engine.port}/../CMakeLists.txt")
        check("nothing else is served", False)
    except urllib.error.HTTPError as e:
        check("nothing else is served", e.code == 404)
    check("the engine still answers", client.say("hello")["type"] == "turn")
    check("SIGTERM ends it cleanly", engine.stop() == 0)
    recordings = list((folder / "recordings").iterdir())
    check("the controller was recorded", len(recordings) == 1, recordings)
    again = subprocess.run([BIN / "parlando", "replay", recordings[0], "--json"], capture_output=True, text=True)
    told = json.loads(again.stdout)
    check("every decision is made again", again.returncode == 0 and told["identical"] and told["messages"] > 300, again.stdout)


def child(engine, role):
    """The pid of the latest child of a role, from what the supervisor has printed."""
    return int([line for line in engine.all if line.startswith(f"child {role} pid")][-1].split()[-1])


def resume_elsewhere(engine, client, samples):
    """gateway-1 dies when an answer has begun to sound; gateway-2 goes on behind the last sample that the client has read."""
    whole = len(client.audio)
    opened = client.events[0]
    turn = [e for e in client.events if e["type"] == "turn"][-1]["turn"] + 1
    client.audio, at = b"", len(client.events)
    for start in range(0, len(samples), 640):
        client.ws.send(samples[start:start + 640])
    client.ws.send({"type": "flush"})
    while not client.audio:
        data = client.ws.receive()
        if isinstance(data, bytes):
            client.audio += data
        else:
            client.events.append(json.loads(data))
    os.kill(int([line for line in engine.all if line.startswith("child gateway pid")][0].split()[-1]), signal.SIGKILL)
    texts = lambda kind: sum(len(e["text"].encode()) for e in client.events[at:] if e["type"] == "text" and e["kind"] == kind)
    had = {"turn": turn, "samples": len(client.audio) // 2, "reply_bytes": texts("text"), "transcript_bytes": texts("transcript")}
    port = int([line for line in engine.all if line.startswith("also: ws://")][0].rsplit(":", 1)[1].split("/")[0])
    asked = {"type": "resume", "session": opened["session"], "token": opened["resume_token"], **had}
    back = Client(port, asked)
    done = back.wait("turn", "error")
    told = back.events[0]
    check("a session is resumed at another gateway", told.get("resumed") is True and told["session"] == opened["session"] and told["resume_token"] != opened["resume_token"], told)
    heard = len(client.audio) + len(back.audio)
    check("no sample is heard twice and none is missing", done["type"] == "turn" and done["turn"] == turn and heard == whole and abs(heard / 2 / 22050 - done["audio_seconds"]) < 1e-6, (done, len(client.audio), len(back.audio), whole))
    said = "".join(e["text"] for e in client.events[at:] + back.events if e["type"] == "text" and e["kind"] == "text")
    check("no word either", said.strip() == done["assistant"].strip(), (said, done))
    check("the conversation goes on there", back.ask(samples)["type"] == "turn")
    replay = Client(port, asked, first="error")
    check("a token counts once", replay.events[-1]["code"] == "not_found", replay.events)


def processes(folder):
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", folder / "many.sqlite", "--processes", "--run-folder", folder / "run", "--replicas", "vad=2", "--replicas", "tokenizer=2", "--replicas", "tts=2", "--replicas", "llm-chat=2", "--replicas", "gateway=2")
    engine.wait_line("also: ws://")
    client = Client(engine.port, speak=True)
    first = client.ask(question("capital_of_france"))
    check("a turn across processes", first["type"] == "turn" and first["user"] == "what is the capital of france", first)
    sound = len(client.audio)
    samples = question("capital_of_france")
    half = len(samples) // 1280 * 640
    for role in ("vad", "tokenizer"):
        # Every replica of the role dies in the middle of the question; the supervisor brings them back and the turn's audio is replayed.
        client.audio = b""
        for at in range(0, half, 640):
            client.ws.send(samples[at:at + 640])
        for line in [x for x in engine.all if x.startswith(f"child {role} pid")][-2:]:
            os.kill(int(line.split()[-1]), signal.SIGKILL)
        for at in range(half, len(samples), 640):
            client.ws.send(samples[at:at + 640])
        client.ws.send({"type": "flush"})
        turn = client.wait("turn", "error")
        check(f"kill -9 of {role} in the middle of a question", turn["type"] == "turn" and turn["user"] == first["user"] and turn["assistant"] == first["assistant"], turn)
        engine.wait_line(f"{role} ended")
    # Both tts die when the answer has begun to sound.
    client.audio = b""
    for at in range(0, len(samples), 640):
        client.ws.send(samples[at:at + 640])
    client.ws.send({"type": "flush"})
    while not client.audio:
        data = client.ws.receive()
        if isinstance(data, bytes):
            client.audio += data
        else:
            client.events.append(json.loads(data))
    for line in [x for x in engine.all if x.startswith("child tts pid")][-2:]:
        os.kill(int(line.split()[-1]), signal.SIGKILL)
    turn = client.wait("turn", "error")
    check("kill -9 of tts in the middle of an answer", turn["type"] == "turn" and len(client.audio) == sound, (turn, len(client.audio), sound))
    check("the conversation goes on", client.ask(samples)["type"] == "turn")
    run_folder(folder)
    check("the conversation goes on beside a second engine that was refused", client.ask(samples)["type"] == "turn")
    resume_elsewhere(engine, client, samples)
    check("SIGTERM ends all children", engine.stop() == 0)
    # The folder of an engine that was killed names a number that somebody else has by now.
    bystander = subprocess.Popen(["sleep", "60"])
    (folder / "run" / "pid").write_text(str(bystander.pid))
    code, said = parlando("scale", "--run-folder", folder / "run", "tts=1")
    check("nobody is signalled by an old number", code != 0 and "no engine runs" in said and bystander.poll() is None, said)
    bystander.kill()
    bystander.wait()


def parlando(*args):
    done = subprocess.run([BIN / "parlando", *args], capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stderr + done.stdout


def run_folder(folder):
    """A folder belongs to one engine."""
    code, said = parlando("up", "--processes", "--run-folder", folder / "run", "--listen", "127.0.0.1:0", "--store", folder / "second.sqlite")
    check("a second engine in a run folder is refused", code != 0 and "runs in" in said, said)
    code, said = parlando("scale", "--run-folder", folder / "run", "tts=2x")
    check("a count that is none is refused", code == 2 and "tts=2x" in said, said)


def configurations(folder):
    def run(program, text, *args):
        file = folder / "c.json"
        file.write_text(text)
        done = subprocess.run([BIN / program, "--config", file, *args], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr + done.stdout
    code, said = run("parlando-vad", '{"wire": {"bind": "inproc://x"}}', "--check-config")
    check("a good configuration", code == 0, said)
    code, said = run("parlando-vad", '{"wire": {"bind": "udp://x", "misses_max": 0, "colour": 1}, "core": {"turn": {"silence_ms": "long"}, "sessions_max": 0}, "x": 1}', "--check-config")
    check("all problems at once", code == 78 and all(p in said for p in ("wire.bind", "misses_max", "wire.colour", "silence_ms", "sessions_max", ".x is not")), said)
    for text in ("", "[]", "{", '{"wire": 3}', '{"service": "llm"}', '{"wire": {"connect": {"vad": ["tcp://x:1"]}}}', '{"wire": {"curve": {"secret_key_file": "a"}}}'):
        code, said = run("parlando-vad", text, "--check-config")
        check(f"configuration {text!r}", code == 78 and said.startswith("parlando: "), said)
    code, said = run("parlando-tokenizer", '{"wire": {"bind": "inproc://x"}, "core": {"model": "/nowhere"}}')
    check("a missing model", code == 78 and "/nowhere" in said, said)
    code, said = run("parlando-controller", '{"wire": {"bind": "inproc://x"}, "core": {"likely_silence_ms": 479}}', "--check-config")
    check("a likely end before the second look", code == 78 and "core.likely_silence_ms is 479, expected at least judge_again_ms, which is 480" in said, said)
    file = folder / "both.json"
    again = "core.turn.pause_again_ms of vad, which is"
    for told, look, likely, expected in (
            (480, 480, 700, ()), (0, 480, 700, ()), (480, 480, 605, ()), (800, 0, 700, ()),
            (320, 480, 700, (f"judge_again_ms is 480, expected at most {again} 320",)),
            (640, 800, 900, (f"judge_again_ms is 800, expected at most {again} 640",)),
            (480, 320, 400, ("likely_silence_ms is 400, expected at least 605: vad tells a pause again behind core.turn.pause_again_ms of 480",)),
            (480, 480, 604, ("likely_silence_ms is 604, expected at least 605: vad",)),
            (800, 480, 924, ("likely_silence_ms is 924, expected at least 925: vad",)), (800, 480, 925, ()),
            (0, 480, 400, ("core.likely_silence_ms is 400, expected at least judge_again_ms, which is 480",)),
            (450, 480, 500, (f"judge_again_ms is 480, expected at most {again} 450", "likely_silence_ms is 500, expected at least 605: vad"))):
        file.write_text(json.dumps({"instances": [
            {"service": "vad", "role": "vad", "wire": {"bind": "inproc://v"}, "core": {"turn": {"pause_again_ms": told}}},
            {"service": "controller", "role": "controller", "wire": {"bind": "inproc://c"}, "core": {"judge_again_ms": look, "likely_silence_ms": likely}}]}))
        done = subprocess.run([BIN / "parlando", "up", "--config", file, "--check-config"], capture_output=True, text=True)
        said = done.stderr + done.stdout
        good = all(problem in said for problem in expected) and said.count(", expected at ") == len(expected)
        check(f"told again after {told} ms, judged after {look}, likely after {likely}", done.returncode == (78 if expected else 0) and good, said)
    for cores, good in ((0, True), (1024, True), (1025, False), (-1, False), ("two", False), (1.5, False)):
        file.write_text(json.dumps({"cores": cores, "instances": [{"service": "vad", "role": "vad", "wire": {"bind": "inproc://v"}}]}))
        done = subprocess.run([BIN / "parlando", "up", "--config", file, "--check-config"], capture_output=True, text=True)
        check(f"cores: {cores}", done.returncode == (0 if good else 78) and ("cores" in done.stderr + done.stdout) != good, done.stderr + done.stdout)
    file.write_text(json.dumps({"cores": 2, "instances": [{"service": "vad", "role": "vad", "wire": {"bind": "ipc://./v"}}]}))
    done = subprocess.run([BIN / "parlando", "up", "--processes", "--config", file, "--check-config"], capture_output=True, text=True)
    check("cores of several processes", done.returncode == 78 and "cores" in done.stderr + done.stdout, done.stderr + done.stdout)
    done = subprocess.run([BIN / "parlando-vad"], capture_output=True, text=True)
    check("no configuration is wrong usage", done.returncode == 2)
    for file in sorted((ROOT / "configs").glob("*.json")):
        done = subprocess.run([BIN / "parlando", "up", "--config", file, "--check-config"], capture_output=True, text=True, cwd=ROOT)
        check(f"{file.name} is good", done.returncode == 0, done.stderr)


def health(folder):
    file = folder / "v.json"
    file.write_text(json.dumps({"wire": {"bind": f"ipc://{folder}/vad", "metrics": "127.0.0.1:0"}, "core": {"weights": str(ROOT / "models/silero-vad/silero_vad.safetensors")}}))
    process = subprocess.Popen([BIN / "parlando-vad", "--config", file], stdout=subprocess.PIPE, text=True)
    port = int(process.stdout.readline().split()[-1])
    get = lambda path: urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read().decode()
    check("health", get("/healthz") == "alive\n")
    for _ in range(200):
        try:
            if get("/readyz") == "ready\n":
                break
        except urllib.error.HTTPError:
            pass
    check("readiness", get("/readyz") == "ready\n")
    metrics = get("/metrics")
    check("metrics", "# HELP parlando_vad_frames_total" in metrics and "parlando_vad_ready 1" in metrics, metrics[:300])
    own = {line.split()[0]: float(line.split()[1]) for line in metrics.splitlines() if line.startswith("process_")}
    check("metrics of the process", own.get("process_resident_memory_bytes", 0) > 1 << 20 and own.get("process_cpu_seconds_total", -1) >= 0
          and own.get("process_open_fds", 0) > 3 and abs(own.get("process_start_time_seconds", 0) - time.time()) < 600, own)
    code, said = parlando("top", "--once", "--json", "--seconds", "0.2", f"127.0.0.1:{port}", "127.0.0.1:1")
    rows = {row["name"]: row for row in json.loads(said)["services"]} if code == 0 else {}
    check("top", rows.get(f"127.0.0.1:{port}", {}).get("role") == "vad" and rows[f"127.0.0.1:{port}"]["memory_mib"] > 1
          and rows.get("127.0.0.1:1", {}).get("state") == "away", said)
    code, said = parlando("top", "--run-folder", folder / "nowhere")
    check("top of nothing", code == 3 and "nowhere" in said, said)
    process.send_signal(signal.SIGTERM)
    check("SIGTERM", process.wait(timeout=30) == 0)


def one_pool(folder):
    """Four models with four threads each: the helpers are the process's, one less than its cores, and at rest they use no processor."""
    counts = {}
    for cores in (1, 3):
        plan = json.load(open(ROOT / "configs/dev.json")) | {"cores": cores}
        for one in plan["instances"]:
            one["wire"].pop("metrics", None)
            core = one.setdefault("core", {})
            core |= {key: str(ROOT / core[key]) for key in ("model", "weights") if key in core}
            if one["service"] in ("tokenizer", "llm", "tts"):
                core["threads"] = 4
            if one["service"] == "context":
                core["store"] = ":memory:"
            if one["service"] == "gateway":
                core |= {"listen": "127.0.0.1:0", "api_listen": "", "page": "", "questions": ""}
        file = folder / f"cores{cores}.json"
        file.write_text(json.dumps(plan))
        engine = Engine(BIN / "parlando", "--config", file)
        tasks = list(pathlib.Path(f"/proc/{engine.process.pid}/task").iterdir())
        helpers = [task for task in tasks if (task / "comm").read_text().strip() == "compute"]
        check(f"{cores} cores: helpers", len(helpers) == cores - 1, len(helpers))

        def used():
            """Milliseconds of a processor."""
            return sum(int((task / "schedstat").read_text().split()[0]) for task in helpers) / 1e6
        before = used()
        check(f"{cores} cores: a turn", Client(engine.port).ask(question("seven_plus_nine"))["type"] == "turn")
        if helpers:
            check(f"{cores} cores: helpers help", used() - before > 1, used() - before)
        counts[cores] = len(list(pathlib.Path(f"/proc/{engine.process.pid}/task").iterdir()))
        before = used()
        time.sleep(1)  # a team that spins would have used a second for each helper
        check(f"{cores} cores: helpers at rest", used() - before <= 20, used() - before)
        engine.stop()
    check("nothing else is started for threads", counts[3] - counts[1] == 2, counts)


with tempfile.TemporaryDirectory() as temporary:
    for part in (needs_no_libtorch, ):
        part()
    for part in (configurations, health, one_process, one_pool, processes):
        part(pathlib.Path(temporary))
finish()
