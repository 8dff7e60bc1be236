"""`parlando load` and `parlando chat`: against our own engine, and against servers that break.

`load_test.py BUILD_BIN SOURCE_DIR`
"""
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Engine, pcm  # noqa: E402

QUESTION = ROOT / "models/nano/questions/seven_plus_nine.wav"


def load(*args, env=None):
    done = subprocess.run([BIN / "parlando", "load", *map(str, args), "--json"], capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})})
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def frame(data, opcode=1):
    payload = data if isinstance(data, bytes) else json.dumps(data).encode()
    head = bytes([0x80 | opcode])
    return head + (bytes([len(payload)]) if len(payload) < 126 else bytes([126]) + struct.pack(">H", len(payload))) + payload


@contextlib.contextmanager
def server(answer, context=None):
    """Accepts WebSockets and gives each to `answer(socket)`; -> its port"""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(sock):
        with contextlib.suppress(OSError), sock:
            if context:
                sock = context.wrap_socket(sock, server_side=True)
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += sock.recv(4096) or b"\r\n\r\n"
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            answer(sock)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def against_our_engine(folder):
    key = "a-key-for-this-test"
    keys = folder / "keys"
    keys.write_text(hashlib.sha256(key.encode()).hexdigest() + " tester\n")
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", ":memory:", "--keys-file", keys)
    url = f"ws://127.0.0.1:{engine.port}"
    page = folder / "pictures" / "load.html"
    code, told, err = load(url, "--key", key, "--sessions", 2, "--duration", 12, "--html", page)
    check("two people are answered", code == 0 and told["turns"] >= 2 and told["sessions"] == {"wanted": 2, "opened": 2, "lost": 0}, f"{code} {told} {err}")
    check("what they waited is told", told["turn_latency_ms"]["n"] >= 2 and 0 < told["turn_latency_ms"]["p50"] < 20000 and told["audio_seconds"] > 0.5 and not told["errors"], told)
    check("every turn stands alone", len(told["all"]) == told["turns"] and {t["session"] for t in told["all"]} == {0, 1}, told["all"])
    text = page.read_text()
    check("pictures", text.count("<svg") == 2 and text.count("<circle") == told["turn_latency_ms"]["n"] and "http://" not in text and "https://" not in text, text[:300])
    code, told, err = load(url, "--sessions", 2, "--duration", 5, "--html", page, env={"PARLANDO_KEY": "another"})
    check("a wrong key is told with the server's reason", code == 1 and "401" in err and "401" in told["error"]["message"], f"{code} {told} {err}")
    code, told, err = load(url, "--key", key, "--duration", 6, "--html", page, "--say", QUESTION, "--voice", "nobody")
    check("a voice that is not there is an error, not a latency", code == 1 and told["turn_latency_ms"]["n"] == 0 and told["errors"], f"{code} {told} {err}")
    check("the engine ends", engine.stop() == 0)


def against_broken_servers(folder):
    page = folder / "load.html"

    def goes_away(sock):
        sock.sendall(frame({"type": "session.created"}))
        sock.sendall(frame(struct.pack(">H", 1011) + b"out of order", opcode=8))

    def refuses(sock):
        sock.sendall(frame({"type": "session.created"}))
        sock.sendall(frame({"type": "error", "error": {"type": "invalid_request_error", "message": "<b>no</b> such model"}}))
        sock.recv(1 << 20)

    def talks_nonsense(sock):
        sock.sendall(frame(b"\xff\xfe{") + frame([1, 2]) + b"\x81\xff" + b"\x7f" * 8)  # the last one is larger than anything
        sock.recv(1 << 20)

    for name, answer, word in (("goes away", goes_away, "1011 out of order"), ("refuses", refuses, "no</b> such model"), ("talks nonsense", talks_nonsense, "larger than is meant")):
        with server(answer) as port:
            code, told, err = load(f"ws://127.0.0.1:{port}/x", "--duration", 3, "--say", QUESTION, "--html", page)
            check(f"a server that {name}", code == 1 and told["sessions"]["lost"] == 1 and any(word in e for e in told["errors"]), f"{code} {told} {err}")
    with server(refuses) as port:
        load(f"ws://127.0.0.1:{port}/x", "--duration", 3, "--say", QUESTION, "--html", page)
        check("what a server says is text in the page", "<b>no</b>" not in page.read_text() and "&lt;b&gt;no" in page.read_text())
    code, told, err = load("ws://127.0.0.1:1", "--html", page)
    check("nobody there", code == 1 and "nothing listens at 127.0.0.1:1" in err, err)
    check("no address", load("example.org", "--html", page)[0] == 4)
    check("no recording", load("ws://127.0.0.1:1", "--say", folder / "none.wav", "--html", page)[0] == 3)


def over_tls(folder):
    """A certificate that is trusted, and one that is not."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heard = []

    def answer(sock):
        sock.sendall(frame({"type": "session.created"}))
        heard.append(sock.recv(1 << 16))
        sock.sendall(frame({"type": "session.updated"}))
        while data := sock.recv(1 << 16):
            heard.append(data)

    with server(answer, context) as port:
        args = (f"wss://localhost:{port}/v1/realtime", "--duration", 3, "--say", QUESTION, "--html", folder / "load.html")
        code, told, err = load(*args, env={"SSL_CERT_FILE": str(certificate)})
        check("a session over TLS", told.get("sessions", {}).get("opened") == 1 and told["sessions"]["lost"] == 0 and sum(map(len, heard)) > 50000, f"{code} {told} {err}")
        code, told, err = load(*args)
        check("a certificate that nobody knows", code == 4 and "not trusted" in err, f"{code} {err}")


def chat(*args, said="", env=None, **options):
    return subprocess.run([BIN / "parlando", "chat", *map(str, args)], input=said, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})}, **options)


def in_a_terminal(folder):
    done = chat(said="what is three plus four\n\nmy name is anna\nwhat is my name")
    check("typed questions are answered in their order", done.returncode == 0 and done.stdout.count("parlando: ") == 3 and "seven" in done.stdout.splitlines()[0] and "anna" in done.stdout.splitlines()[-1],
          done.stdout + done.stderr)
    # A microphone that says a recorded question, in real time, and a loudspeaker that keeps what it is given.
    (folder / "question.pcm").write_bytes(pcm(QUESTION) + bytes(2 * 16000 * 12))
    programs = folder / "bin"
    programs.mkdir()
    (programs / "arecord").write_text(f"#!{sys.executable}\nimport sys, time\ndata = open({str(folder / 'question.pcm')!r}, 'rb').read()\nstart = time.monotonic()\n"
                                      "for at in range(0, len(data), 640):\n    time.sleep(max(0, start + at / 32000 - time.monotonic()))\n    sys.stdout.buffer.write(data[at:at + 640])\n    sys.stdout.buffer.flush()\n")
    (programs / "aplay").write_text(f"#!/bin/sh\nexec cat > {folder}/heard.pcm\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    with subprocess.Popen([BIN / "parlando", "chat", "--listen"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **path}) as talk:
        out = talk.stdout.readline() + talk.stdout.readline()
        rest, err = talk.communicate(timeout=120)
    check("a spoken question is answered aloud", "you:      what is seven plus nine" in out and "parlando: " in out and (folder / "heard.pcm").stat().st_size > 20000, out + rest + err)
    check("a microphone that ends is told", talk.returncode == 1 and "arecord" in err, f"{talk.returncode} {err}")
    (programs / "arecord").write_text("#!/bin/sh\necho 'no soundcards found' >&2\nexit 1\n")
    done = chat("--listen", env=path)
    check("no microphone: what to do", done.returncode == 1 and "no soundcards found" in done.stderr and "type your questions" in done.stderr, done.stderr)
    empty = folder / "empty"
    empty.mkdir()
    done = chat("--speak", said="hello\n", env={"PATH": str(empty)})
    check("no aplay: what to do", done.returncode == 1 and "there is no program 'aplay'" in done.stderr and "alsa-utils" in done.stderr, done.stderr)
    # Ctrl-C at rest ends it.
    with subprocess.Popen([BIN / "parlando", "chat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as talk:
        talk.stdin.write("what is three plus four\n")
        talk.stdin.flush()
        line = talk.stdout.readline()
        talk.send_signal(signal.SIGINT)
        check("Ctrl-C ends a chat", talk.wait(timeout=60) == 0 and "seven" in line, line)
        talk.stdin.close()


def bench_of_turns(folder):
    """A short one; and one that is stopped, with what it has."""
    figures = folder / "turns" / "figures.json"
    command = [BIN / "parlando", "bench", "turn", "--turns", "4", "--json", "-o", figures]
    done = subprocess.run([*command, "--only", "synthesis", "overhead"], capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout)
    check("sentences and overhead are measured", told["synthesis_ms"]["n"] == 12 and told["overhead_ms"]["n"] > 50 and told["commit"] and told["machine"]["cores"] > 0, done.stdout + done.stderr)
    check("what was not measured is named, and absent", "live_sessions" in told["not_measured"] and "live_sessions" not in told and "silence" not in told, told)
    check("the file says the same", json.load(open(figures)) == told)
    with subprocess.Popen([*command, "--only", "overhead", "silence"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        for line in bench.stderr:  # the table; the engine runs behind its head
            if line.startswith("milliseconds"):
                break
        bench.send_signal(signal.SIGINT)
        out, err = bench.communicate(timeout=200)
    if bench.returncode >= 0:  # it was measuring; a signal before the engine stands ends it at once
        told = json.loads(out)
        check("a run that is stopped tells what it has", told["cut"] is True and "missed" in told and "not_measured" in told, out + err)
    else:
        check("a signal before it measures ends it", bench.returncode == -signal.SIGINT, f"{bench.returncode} {out} {err}")


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    against_our_engine(folder)
    against_broken_servers(folder)
    over_tls(folder)
    in_a_terminal(folder)
    bench_of_turns(folder)
finish()
