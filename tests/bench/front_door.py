"""What the front door costs, on the engine with the bundled model: `front_door.py BUILD_BIN SOURCE_DIR [--sessions N] [--seconds S] [--only PART]`.

sessions  N realtime sessions send frames of 20 ms, one in twenty asks a question again and again and is answered aloud. A probe beside them sends a frame and a
          wish that its controller refuses at once: the way there and back, which is more than the frame's way to the controller. How late the client itself
          was, how long the threads work on a message (from their own histograms), turns and errors; the session beyond the last place; then all are cut off
          at once: how long until sessions, streams and memory are back where they were, read from metrics.
speech    first byte of /v1/audio/speech for a sentence of 12 words, answers one after the other.
transcribe  a recording of many questions with pauses: how many times real time.
chat      /v1/chat/completions of one token against the same turn on a conversation that is open already: what the HTTP request costs.
slow      a reader at 64 kbit/s beside one that is quick: what the quick one gets per second, alone and with it.

Figures of a busy machine say little: the least of many is told beside the median. The last lines compare with the goals; a goal that is missed does not fail the
run, but a session that is not answered, not refused or not cleaned up does. All of it takes less than three minutes.
"""
import argparse
import array
import asyncio
import base64
import http.client
import json
import multiprocessing
import pathlib
import socket
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request

args = argparse.ArgumentParser()
args.add_argument("bin")
args.add_argument("source")
args.add_argument("--sessions", type=int, default=200)
args.add_argument("--seconds", type=int, default=20)
args.add_argument("--runs", type=int, default=20)
args.add_argument("--only", choices=("sessions", "speech", "chat", "slow", "transcribe"))
args = args.parse_args()
ROOT = pathlib.Path(args.source)
sys.path.insert(0, str(ROOT / "tests/support"))
from engine import Engine, pcm  # noqa: E402
from ws import CLOSE_FRAME, WebSocket, frame_of, request_of  # noqa: E402

FRAME_MS, RATE = 20, 24000
CYCLE = 500  # frames from one question to the next
ANSWER_WAIT = 40  # seconds that answers under way are waited for
GOALS = []


def goal(what, value, most, unit="ms"):
    GOALS.append(f"  {'met   ' if value <= most else 'missed'} {what}: {value:.1f} {unit}, at most {most:g}")


def until(so, seconds, step=0.02):
    """Asks until it is so. -> whether it came to be in time"""
    end = time.perf_counter() + seconds
    while not so():
        if time.perf_counter() > end:
            return False
        time.sleep(step)
    return True
SENTENCE = "today in paris it is sunny, twenty degrees, and good for walking."


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def append(sound):
    return frame_of({"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()})


class Metrics:
    """Of all services, by their names."""

    def __init__(self, ports):
        self.ports = ports

    def read(self):
        out = {}
        for port in self.ports:
            for line in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    out[name] = float(value)
        return out


def configuration(sessions):
    config = json.load(open(ROOT / "configs/dev.json"))
    port, metrics = free_port(), []
    for one in config["instances"]:
        metrics.append(free_port())
        one["wire"]["metrics"] = f"127.0.0.1:{metrics[-1]}"
        for name, value in list(one["core"].items()):
            if isinstance(value, str) and (ROOT / value).exists():
                one["core"][name] = str(ROOT / value)
        if one["service"] == "controller":
            one["core"]["sessions_max"] = sessions + 1  # the probe
        if one["service"] == "context":
            one["core"]["store"] = ":memory:"
        if one["service"] == "gateway":
            one["core"].update(listen=f"127.0.0.1:{port}", connections_max=4 * sessions, connections_per_address_max=0)
    file = tempfile.NamedTemporaryFile("w", suffix=".json", delete=False)
    json.dump(config, file)
    file.close()
    return file.name, port, Metrics(metrics)


def at_24_khz(sound):
    """From 16 kHz, along straight lines: good enough for a question."""
    given = array.array("h", sound) + array.array("h", [0])
    out = array.array("h", (0 for _ in range((len(given) - 1) * 3 // 2)))
    for n in range(len(out)):
        at, part = divmod(2 * n, 3)
        out[n] = (given[at] * (3 - part) + given[at + 1] * part) // 3
    return out.tobytes()


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(p * len(values)))] if values else float("nan")


def quantile(before, after, name, p):
    """Upper edge of the bucket that holds the quantile, from what was counted in between."""
    edges = []
    for key, value in after.items():
        if key.startswith(name + "_bucket") and 'le="' in key:
            edge = key.split('le="')[1].split('"')[0]
            edges.append((float("inf") if edge == "+Inf" else float(edge), value - before.get(key, 0)))
    edges.sort()
    total = edges[-1][1] if edges else 0
    return next((edge for edge, count in edges if total and count >= p * total), float("nan"))


# ------------------------------------------------------------------------------------------------ sessions

class Session:
    def __init__(self, port):
        self.port, self.events, self.turns, self.sounds, self.errors = port, 0, 0, 0, []

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request_of("127.0.0.1", self.port, "/v1/realtime?model=m"))
        self.status = int((await self.reader.readuntil(b"\r\n\r\n")).split()[1])
        return self

    async def read(self):
        try:
            while True:
                head = await self.reader.readexactly(2)
                n = head[1] & 127
                if n == 126:
                    n = int.from_bytes(await self.reader.readexactly(2), "big")
                elif n == 127:
                    n = int.from_bytes(await self.reader.readexactly(8), "big")
                body = await self.reader.readexactly(n)
                self.events += 1
                self.turns += b'"type":"response.done"' in body and b'"status":"completed"' in body
                self.sounds += b'"type":"response.output_audio.delta"' in body
                if b'"type":"error"' in body:
                    self.errors.append(body[:300])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass


def probe(port, seconds, pipe):
    """In a process of its own, so that the other clients do not delay it. Tells when it has its place, then the seconds from each frame to the answer of
    its controller."""
    talk = WebSocket("127.0.0.1", port, "/v1/dialogue")
    talk.send({"type": "open", "speak": False, "stored": False, "detection": {"type": "none"}})
    opened = json.loads(talk.receive())
    assert opened["type"] == "opened", opened
    pipe.send(opened["session"])
    frame, wish, took = frame_of(bytes(640)), frame_of({"type": "text", "text": ""}), []
    begun = due = time.perf_counter()
    end = begun + seconds
    while begun < end:
        talk.sock.sendall(frame + wish)
        answer = json.loads(talk.receive())
        if answer.get("code") != "invalid_argument":
            return pipe.send(answer)
        took.append(time.perf_counter() - begun)
        due += FRAME_MS / 1e3
        time.sleep(max(0.0, due - time.perf_counter()))  # as a microphone does
        begun = time.perf_counter()
    talk.sock.sendall(CLOSE_FRAME)
    pipe.send(took)


async def sessions(port, metrics):
    silence = append(b"\0\0" * (RATE * FRAME_MS // 1000))
    asked = at_24_khz(pcm(ROOT / "models/nano/questions/capital_of_france.wav"))
    step = 2 * RATE * FRAME_MS // 1000
    question = [append(asked[at:at + step]) for at in range(0, len(asked), step)]
    before = metrics.read()
    all_ = [await Session(port).open() for _ in range(args.sessions)]
    assert all(s.status == 101 for s in all_), [s.status for s in all_]
    readers = [asyncio.create_task(s.read()) for s in all_]
    ours, its = multiprocessing.Pipe()
    probing = multiprocessing.get_context("fork").Process(target=probe, args=(port, args.seconds, its))
    probing.start()
    its.close()
    assert await asyncio.to_thread(ours.poll, 60), "the probe found no place"
    ours.recv()
    begun = time.perf_counter()
    beyond = await Session(port).open()
    refused_ms = 1e3 * (time.perf_counter() - begun)
    reason = await beyond.reader.read()
    speakers = [s for n, s in enumerate(all_) if n % 20 == 0]
    late, tick, asked_of = [], 0, [0] * len(speakers)
    full = await asyncio.to_thread(metrics.read)
    at = time.perf_counter()

    def answered():
        return all(s.turns >= asked for s, asked in zip(speakers, asked_of))

    # What was asked is also answered: behind the time of the run silence is sent until it is.
    while tick * FRAME_MS < 1e3 * args.seconds or (not answered() and tick * FRAME_MS < 1e3 * (args.seconds + ANSWER_WAIT)):
        asks = tick * FRAME_MS < 1e3 * args.seconds
        for n, session in enumerate(all_):
            frame = silence
            if n % 20 == 0:
                # A question, then silence for the answer, of each at another time and with its first sample first.
                turn, place = divmod(tick - (n // 20) * CYCLE // max(1, len(speakers)), CYCLE)
                if turn >= 0 and place < len(question) and (asks or place > 0 and asked_of[n // 20] > turn):
                    frame = question[place]
                    asked_of[n // 20] = turn + 1
            session.writer.write(frame)
        tick += 1
        due = at + tick * FRAME_MS / 1e3
        if asks:
            late.append(max(0.0, time.perf_counter() - due))
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    loaded = await asyncio.to_thread(metrics.read)
    assert await asyncio.to_thread(ours.poll, 60), "the probe did not end"
    told = ours.recv()
    probing.join()
    assert isinstance(told, list), f"the probe was told {told}"
    took = [1e3 * t for t in told]
    turns, asked_all = sum(s.turns for s in speakers), sum(asked_of)
    all_answered = answered() and asked_all >= len(speakers) and all(s.sounds for s in speakers)
    print(f"sessions: {args.sessions} for {args.seconds} s, events {sum(s.events for s in all_)}, {len(speakers)} answering: {asked_all} questions, "
          f"{turns} answers, "
          f"{sum(s.sounds for s in speakers)} pieces of sound, errors {sum(len(s.errors) for s in all_)} {[e for s in all_ for e in s.errors][:2]}")
    print(f"  frame to controller and back: p50 {percentile(took, .5):.1f} ms, p99 {percentile(took, .99):.1f} ms, least {min(took):.1f} ms, {len(took)} frames")
    goal("p99 of a frame to its controller (and back)", percentile(took, .99), 10)
    goal("refusal of the session beyond the last place", refused_ms, 50)
    print(f"  the client was late by p50 {1e3 * percentile(late, .5):.1f} ms, p99 {1e3 * percentile(late, .99):.1f} ms")
    for service, what in (("gateway", "handle"), ("gateway", "step"), ("controller", "handle"), ("controller", "step")):
        name = f"parlando_{service}_{what}_seconds"
        if any(k.startswith(name + "_bucket") for k in loaded):
            print(f"  {name}: p99 below {1e3 * quantile(full, loaded, name, .99):g} ms")
    print(f"  the session beyond the last place: {beyond.status} in {refused_ms:.1f} ms, {reason[-200:]!r}")
    # All at once, without a goodbye.
    for s in all_:
        s.writer.transport.abort()
    cut = time.perf_counter()
    for r in readers:
        r.cancel()
    watched = [k for k in before if k.split("{")[0].endswith(("_sessions", "_sockets", "_streams", "_load", "_large_bytes", "_cache_tokens_used"))]
    left = dict.fromkeys(watched, 0.0)
    now = before
    while time.perf_counter() - cut < 60:
        now = await asyncio.to_thread(metrics.read)  # meanwhile the loop closes what was cut off
        left = {k: (now.get(k, 0), before[k]) for k in watched if now.get(k, 0) > before[k]}
        if not left:
            break
    rss = {k: (before[k], now[k]) for k in before if k.startswith("process_resident_memory_bytes")}
    print(f"  cut off: {'back at the baseline' if not left else left} after {time.perf_counter() - cut:.1f} s; watched {len(watched)}: {watched}; memory {rss}")
    return not left and beyond.status == 503 and all_answered


# ------------------------------------------------------------------------------------------------ speech, chat

def post(connection, path, body, first_only=False):
    begun = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read(1)
    first = time.perf_counter() - begun
    rest = answer.read()
    assert answer.status == 200, (answer.status, rest[:300])
    return first, time.perf_counter() - begun


def speech(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"model": "m", "voice": "Clara", "input": SENTENCE, "response_format": "pcm"}
    post(connection, "/v1/audio/speech", body)
    firsts = [1e3 * post(connection, "/v1/audio/speech", body)[0] for _ in range(args.runs)]
    goal("first byte of speech, p50", statistics.median(firsts), 80)
    print(f"speech: first byte for {len(SENTENCE.split())} words: p50 {statistics.median(firsts):.1f} ms, least {min(firsts):.1f} ms, {args.runs} runs")


def chat(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    talk = WebSocket("127.0.0.1", port, "/v1/dialogue")

    def until(kind):
        while True:
            event = json.loads(talk.receive())
            if event["type"] == kind:
                return

    talk.send({"type": "open", "speak": False, "stored": False, "max_tokens": 1, "detection": {"type": "none"}})
    until("opened")
    both = []
    for _ in range(args.runs + 1):
        whole = post(connection, "/v1/chat/completions", body)[1]
        begun = time.perf_counter()
        talk.send({"type": "text", "text": "hello"})
        until("turn")
        both.append((1e3 * whole, 1e3 * (time.perf_counter() - begun)))
    http_ms, turn_ms = zip(*both[1:])
    goal("chat beside the turn alone, of the medians", statistics.median(http_ms) - statistics.median(turn_ms), 3)
    print(f"chat: request p50 {statistics.median(http_ms):.1f} ms, least {min(http_ms):.1f} ms; the turn alone p50 {statistics.median(turn_ms):.1f} ms, least {min(turn_ms):.1f} ms;"
          f" difference of the least {min(http_ms) - min(turn_ms):.1f} ms")


def transcribe(port):
    """Two minutes: far more than what is taken at once."""
    import io
    import wave
    sound = b"".join(pcm(f) + bytes(32000) for f in sorted((ROOT / "models/nano/questions").glob("*.wav")))
    sound = (sound * (1 + 120 * 32000 // len(sound)))[:120 * 32000]
    file = io.BytesIO()
    with wave.open(file, "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes(sound)
    body = (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
            + file.getvalue() + b"\r\n--b--\r\n")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("POST", "/v1/audio/transcriptions", body, {"Content-Type": "multipart/form-data; boundary=b"})
    answer = connection.getresponse()
    text = json.loads(answer.read())
    took = time.perf_counter() - begun
    assert answer.status == 200, text
    print(f"transcribe: {len(sound) / 32000:.0f} s of sound in {took:.1f} s: {len(sound) / 32000 / took:.1f} times real time, {len(text['text'].split())} words")


def slow(port):
    """The quick one asks for speech again and again; beside it somebody takes 8 kB a second of an endless answer."""
    def rate():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        took = [post(connection, "/v1/audio/speech", {"model": "m", "voice": "Clara", "input": SENTENCE, "response_format": "pcm"})[1] for _ in range(5)]
        return statistics.median(took)

    alone = rate()
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.sendall(request_of("127.0.0.1", port, "/v1/realtime?model=m"))
    raw.sendall(frame_of({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what is the capital of france"}]}}))
    raw.sendall(frame_of({"type": "response.create"}))
    import threading
    stop = threading.Event()

    def trickle():
        raw.settimeout(0.5)
        while not stop.wait(0.1):
            try:
                raw.recv(800)
            except TimeoutError:
                pass
            except OSError:
                return
    thread = threading.Thread(target=trickle)
    thread.start()
    beside = rate()
    stop.set()
    thread.join()
    print(f"slow: speech in {1e3 * alone:.0f} ms alone, {1e3 * beside:.0f} ms beside a reader at 64 kbit/s")


config, port, metrics = configuration(args.sessions)
engine = Engine(pathlib.Path(args.bin) / "parlando", "--config", config, command="up")
good = True
try:
    def is_ready():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30).status == 200
        except urllib.error.URLError:
            return False
    assert until(is_ready, 120), engine.all[-5:]
    if args.only in (None, "speech"):
        speech(port)
    if args.only in (None, "chat"):
        chat(port)
    if args.only in (None, "slow"):
        slow(port)
    if args.only in (None, "transcribe"):
        transcribe(port)
    if args.only in (None, "sessions"):
        good = asyncio.run(sessions(port, metrics))
finally:
    engine.stop()
    pathlib.Path(config).unlink()
print("goals, on a quiet machine:", *GOALS, sep="\n")
sys.exit(0 if good else 1)
