"""The HTTP API as the stock `openai` client and raw HTTP see it; every answer is validated strictly, against the types of that package and the published schemas.

`openai_http_test.py BUILD_BIN SOURCE_DIR`; skipped (77) without the packages of tests/requirements.txt (`tools/setup.sh --test`).
"""
import base64
import hashlib
import http.client
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
try:
    import jsonschema
    import openai
except ImportError:
    python = ROOT / ".deps/clients/bin/python"
    if python.exists() and pathlib.Path(sys.executable) != python:
        os.execv(python, [str(python), *sys.argv])
    print("skipped: no openai package; tools/setup.sh --test installs it")
    sys.exit(77)
import pydantic  # noqa: E402
from openai.types import Model  # noqa: E402
from openai.types.audio import Transcription, TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent, TranscriptionVerbose  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Engine  # noqa: E402
from ws import WebSocket  # noqa: E402

SCHEMAS = json.load(open(ROOT / "tests/openai/http_schemas.json"))
QUESTIONS = ROOT / "models/nano/questions"
PARIS = (QUESTIONS / "capital_of_france.wav").read_bytes()
SAID = "what is the capital of france"
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "weather of a place", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
validated = 0


def extras(value, path="$"):
    """Fields that the package's types do not know."""
    if isinstance(value, pydantic.BaseModel):
        out = [f"{path}.{k}" for k in value.model_extra or {}]
        return out + [e for k in type(value).model_fields for e in extras(getattr(value, k), f"{path}.{k}")]
    if isinstance(value, list):
        return [e for i, x in enumerate(value) for e in extras(x, f"{path}[{i}]")]
    return []


def valid(name, data, schema=None, kind=None, may_have=()):
    """Counts one check: `data` is what the schema and the type say, exactly."""
    global validated
    validated += 1
    try:
        if schema is not None:
            jsonschema.validate(data, {"$ref": f"#/$defs/{schema}", **SCHEMAS})
        if kind is not None:
            unknown = [e for e in extras(pydantic.TypeAdapter(kind).validate_json(json.dumps(data), strict=True)) if e not in may_have]
            check(name, not unknown, f"unknown fields {unknown}")
        else:
            check(name, True)
    except (jsonschema.ValidationError, pydantic.ValidationError) as e:
        check(name, False, f"{str(e)[:600]} in {json.dumps(data)[:600]}")


class Raw:
    """HTTP without a library that knows the API."""

    def __init__(self, port, key=None):
        self.port, self.headers = port, {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
        connection.request(method, path, body, {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        return answer, answer.read()

    def refused(self, name, status, method, path, body=None, param=None, code=None, **headers):
        answer, data = self.ask(method, path, body, **headers)
        try:
            error = json.loads(data)
        except ValueError:
            return check(name, False, (answer.status, data[:200]))
        valid(f"{name}: form", error, "ErrorResponse" if "ErrorResponse" in SCHEMAS["$defs"] else None)
        error = error["error"]
        check(name, answer.status == status and set(error) == {"message", "type", "param", "code"} and (param is None or error["param"] == param) and (code is None or error["code"] == code), (answer.status, error))
        check(f"{name}: request id", answer.headers["x-request-id"], dict(answer.headers))
        return answer, error

    def events(self, path, body, **headers):
        """The data of server-sent events, as they stand there."""
        answer, data = self.ask("POST", path, body, **headers)
        assert answer.status == 200, (answer.status, data)
        assert data.endswith(b"\n\n"), data[-20:]
        lines = data.decode().split("\n\n")[:-1]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines), lines
        return answer, [line[6:] for line in lines]


def start(*arguments):
    """An engine that takes sessions."""
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", *arguments)
    raw, until = Raw(engine.port), time.monotonic() + 60
    while raw.ask("GET", "/readyz")[0].status != 200 and time.monotonic() < until:
        time.sleep(0.1)
    return engine


def wav_of(seconds, text=PARIS):
    """The question, silence, and the question again."""
    with wave.open(io.BytesIO(text)) as f:
        frames = f.readframes(f.getnframes())
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes(frames + bytes(int(seconds * 32000)) + frames)
    return out.getvalue()


def chat(client, raw):
    say = {"model": "parlando-chat", "messages": [{"role": "user", "content": SAID}]}
    _, data = raw.ask("POST", "/v1/chat/completions", say)
    valid("a completion", json.loads(data), "CreateChatCompletionResponse", ChatCompletion)
    whole = client.chat.completions.create(**say)
    text = whole.choices[0].message.content
    check("it answers", "paris" in text.lower() and whole.choices[0].finish_reason == "stop", whole)
    check("it counts", whole.usage.prompt_tokens > 0 and whole.usage.completion_tokens > 0 and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
    answer, events = raw.events("/v1/chat/completions", {**say, "stream": True, "stream_options": {"include_usage": True}})
    check("events have their type", answer.headers["content-type"].startswith("text/event-stream"), dict(answer.headers))
    check("[DONE] ends them", events[-1] == "[DONE]", events[-1])
    for event in events[:-1]:
        valid("a chunk", json.loads(event), "CreateChatCompletionStreamResponse", ChatCompletionChunk)
    chunks = list(client.chat.completions.create(**say, stream=True, stream_options={"include_usage": True}))
    check("the stream says the same", "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text, chunks)
    check("the last chunk has usage", chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens and all(c.usage is None for c in chunks[:-1]), chunks[-1])
    # What was said before is known, and another request knows nothing of it.
    past = [{"role": "system", "content": "be short"}, {"role": "user", "content": "my name is anna"}, {"role": "assistant", "content": "nice to meet you, anna."}]
    known = client.chat.completions.create(model="x", messages=past + [{"role": "user", "content": "what is my name"}])
    check("messages are its history", "anna" in known.choices[0].message.content.lower(), known)
    unknown = client.chat.completions.create(model="x", messages=[{"role": "user", "content": "what is my name"}])
    check("requests share nothing", "anna" not in unknown.choices[0].message.content.lower(), unknown)
    short = client.chat.completions.create(**say, max_completion_tokens=1)
    check("max tokens end it", short.choices[0].finish_reason == "length" and short.usage.completion_tokens <= 2, short)
    cut = client.chat.completions.create(**say, stop=text[-4:])
    check("a stop text ends it", cut.choices[0].message.content == text[:-4] and cut.choices[0].finish_reason == "stop", cut)


def tools(client, raw):
    ask = {"model": "x", "messages": [{"role": "user", "content": "what is the weather in paris"}], "tools": [WEATHER]}
    _, data = raw.ask("POST", "/v1/chat/completions", ask)
    called = json.loads(data)
    valid("a completion with calls", called, "CreateChatCompletionResponse", ChatCompletion)
    choice = called["choices"][0]
    check("a tool of the client is called", choice["finish_reason"] == "tool_calls" and choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather", called)
    if choice["finish_reason"] != "tool_calls":
        return
    call = choice["message"]["tool_calls"][0]
    check("its arguments are JSON", isinstance(json.loads(call["function"]["arguments"]), dict), call)
    _, events = raw.events("/v1/chat/completions", {**ask, "stream": True})
    for event in events[:-1]:
        valid("a chunk with calls", json.loads(event), "CreateChatCompletionStreamResponse", ChatCompletionChunk)
    streamed = [c["choices"][0]["delta"] for c in map(json.loads, events[:-1]) if c["choices"][0]["delta"].get("tool_calls")]
    check("the stream calls it, too", streamed and streamed[0]["tool_calls"][0]["function"] == call["function"], events)
    answered = client.chat.completions.create(model="x", tools=[WEATHER], messages=ask["messages"] + [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"condition": "rain", "temperature": 7})}])
    check("its output leads to the answer", answered.choices[0].finish_reason == "stop" and answered.choices[0].message.content, answered)


def aloud(client, raw):
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(PARIS).decode(), "format": "wav"}}
    heard = client.chat.completions.create(model="x", messages=[{"role": "user", "content": [part]}])
    check("sound is understood", "paris" in heard.choices[0].message.content.lower(), heard)
    ask = {"model": "x", "messages": [{"role": "user", "content": [part]}], "modalities": ["text", "audio"]}
    _, data = raw.ask("POST", "/v1/chat/completions", {**ask, "audio": {"voice": "alloy", "format": "wav"}})
    answer = json.loads(data)
    valid("a completion aloud", answer, "CreateChatCompletionResponse", ChatCompletion)
    audio = answer["choices"][0]["message"]["audio"]
    with wave.open(io.BytesIO(base64.b64decode(audio["data"]))) as f:
        check("the answer is heard", f.getframerate() == 24000 and f.getnframes() > 12000, f.getparams())
    check("and written", "paris" in audio["transcript"].lower() and audio["expires_at"] > time.time(), audio["transcript"])
    _, events = raw.events("/v1/chat/completions", {**ask, "audio": {"voice": "alloy", "format": "pcm16"}, "stream": True})
    for event in events[:-1]:
        valid("a chunk aloud", json.loads(event), "CreateChatCompletionStreamResponse", ChatCompletionChunk, may_have=("$.choices[0].delta.audio", ))
    parts = [c["choices"][0]["delta"].get("audio", {}) for c in map(json.loads, events[:-1]) if c["choices"]]
    sound = [base64.b64decode(p["data"]) for p in parts if "data" in p]
    check("sound is streamed in whole samples", len(sound) > 1 and all(len(s) % 2 == 0 for s in sound), [len(s) for s in sound])
    check("the same sound", abs(len(b"".join(sound)) - len(base64.b64decode(audio["data"]))) < 4800, (len(b"".join(sound)), len(audio["data"])))
    again = client.chat.completions.create(model="x", messages=[{"role": "user", "content": [part]}, {"role": "assistant", "audio": {"id": audio["id"]}}, {"role": "user", "content": "thank you"}])
    check("an answer aloud is known by its id", again.choices[0].message.content, again)
    silent = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav_of(0.5, silence_file())).decode(), "format": "wav"}}
    raw.refused("silence is no speech", 400, "POST", "/v1/chat/completions", {"model": "x", "messages": [{"role": "user", "content": [silent]}]}, param="messages[0].content[0]", code="no_speech")


def silence_file():
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes(bytes(16000))
    return out.getvalue()


def speech(client, raw):
    text = "The capital of France is Paris."
    magic = {"mp3": (b"\xff\xf3", b"\xff\xfb", b"\xff\xf2", b"ID3"), "opus": (b"OggS", ), "flac": (b"fLaC", ), "wav": (b"RIFF", ), "pcm": (b"", )}
    sizes = {}
    for form, starts in magic.items():
        with client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input=text, response_format=form) as answer:
            parts = list(answer.iter_bytes())
        sound = b"".join(parts)
        sizes[form] = len(sound)
        check(f"speech as {form}", sound.startswith(starts) and len(sound) > 2000 and len(parts) > 1, (sound[:8], len(sound), len(parts)))
    seconds = sizes["pcm"] / 48000
    check("speech has a length", 0.5 < seconds < 20, seconds)
    fast = len(client.audio.speech.create(model="x", voice={"id": "Ken"}, input=text, response_format="pcm", speed=2).content) / 48000
    check("speed makes it shorter", fast < 0.75 * seconds, (fast, seconds))
    answer, events = raw.events("/v1/audio/speech", {"model": "x", "voice": "Clara", "input": text, "response_format": "pcm", "stream_format": "sse", "instructions": "cheerful and happy"})
    told = [json.loads(e) for e in events]
    for event in told:
        valid("a speech event", event, "SpeechAudioDoneEvent" if event["type"].endswith("done") else "SpeechAudioDeltaEvent")
    check("speech ends with usage", told[-1]["usage"]["total_tokens"] > 0 and sum(len(base64.b64decode(e["audio"])) for e in told[:-1]) > 20000, told[-1])
    # Sound leaves while it is made: the first of a long text comes long before its last.
    long = "Here is one sentence. " * 12
    started, first = time.monotonic(), None
    with client.audio.speech.with_streaming_response.create(model="x", voice="Clara", input=long, response_format="pcm") as answer:
        for part in answer.iter_bytes():
            first = first or time.monotonic() - started
    whole = time.monotonic() - started
    check("the first sound comes early", first < whole / 2, (first, whole))
    raw.refused("aac", 400, "POST", "/v1/audio/speech", {"model": "x", "voice": "x", "input": text, "response_format": "aac"}, param="response_format")
    raw.refused("a voice that is none", 404, "POST", "/v1/audio/speech", {"model": "x", "voice": "Nobody", "input": text})


def transcription(client, raw):
    say = {"model": "whisper-1", "file": ("a.wav", PARIS)}
    told = client.audio.transcriptions.create(**say)
    check("a recording is understood", told.text == SAID, told)
    valid("a transcription", json.loads(told.to_json()), "CreateTranscriptionResponseJson", Transcription)
    check("as text", client.audio.transcriptions.create(**say, response_format="text").strip() == SAID)
    twice = {"model": "whisper-1", "file": ("upload", wav_of(2.5))}
    verbose = client.audio.transcriptions.create(**twice, response_format="verbose_json")
    valid("a verbose transcription", json.loads(verbose.to_json()), "CreateTranscriptionResponseVerboseJson", TranscriptionVerbose, may_have=("$.task", ))
    with wave.open(io.BytesIO(PARIS)) as f:
        length = f.getnframes() / 16000
    starts = [s.start for s in verbose.segments]
    check("silence splits it", verbose.text == f"{SAID} {SAID}" and len(starts) == 2 and abs(starts[1] - starts[0] - length - 2.5) < 0.2 and abs(verbose.duration - 2 * length - 2.5) < 0.01, verbose)
    srt = client.audio.transcriptions.create(**twice, response_format="srt")
    vtt = client.audio.transcriptions.create(**twice, response_format="vtt")
    check("as subtitles", srt.startswith("1\n00:00:0") and "\n2\n" in srt and srt.count(SAID) == 2, srt)
    check("as captions", vtt.startswith("WEBVTT\n\n00:00:0") and vtt.count(SAID) == 2, vtt)
    events = list(client.audio.transcriptions.create(**twice, stream=True))
    for event in events:
        done = event.type.endswith("done")
        valid("a transcription event", json.loads(event.to_json()), "TranscriptTextDoneEvent" if done else "TranscriptTextDeltaEvent", TranscriptionTextDoneEvent if done else TranscriptionTextDeltaEvent)
    check("in parts", [e.type for e in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"] and "".join(e.delta for e in events[:2]) == events[2].text == f"{SAID} {SAID}", events)
    spoken = client.audio.speech.create(model="x", voice="Clara", input="what time is it", response_format="flac").content
    for form in ("flac", "mp3", "opus"):
        sound = client.audio.speech.create(model="x", voice="Clara", input="what time is it", response_format=form).content
        check(f"{form} is read", isinstance(client.audio.transcriptions.create(model="x", file=("x", sound)).text, str))
    check("silence has no text", client.audio.transcriptions.create(model="x", file=("a.wav", silence_file())).text == "" and spoken)
    for name, refused in (("no sound", {"file": ("a.wav", b"this is text")}), ("a wrong format", {"response_format": "xml"}), ("words", {"response_format": "verbose_json", "timestamp_granularities": ["word"]})):
        try:
            client.audio.transcriptions.create(**{**say, **refused})
            check(f"{name} is refused", False)
        except openai.BadRequestError as e:
            check(f"{name} is refused", e.param or e.body.get("param"), e)
    try:
        client.audio.transcriptions.create(model="x", file=("a.wav", bytes(27 << 20)))
        check("26 MiB are refused", False)
    except openai.APIStatusError as e:
        check("26 MiB are refused", e.status_code == 413, e)


def own_voices(client, raw):
    """A voice from a recording, made, spoken with, and deleted."""
    speakers = ROOT / "models/nano/Step-Audio-TTS-3B/speakers"
    transcript = json.loads((speakers / "speakers_info.json").read_text())["Ken"]
    fields = {"name": "Somebody", "transcript": transcript, "consent": "a recording of the project"}

    def form(fields, recording):
        parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        parts += [b'--b\r\nContent-Disposition: form-data; name="audio_sample"; filename="v.wav"\r\n\r\n', recording, b"\r\n--b--\r\n"]
        return b"".join(parts)

    kind = {"Content_Type": "multipart/form-data; boundary=b"}
    answer, data = raw.ask("POST", "/v1/audio/voices", form(fields, (speakers / "Ken_prompt.wav").read_bytes()), **kind)
    check("a voice is made", answer.status == 200, data)
    voice = json.loads(data)
    valid("a voice", voice, "VoiceResource")
    raw.refused("a voice without consent", 400, "POST", "/v1/audio/voices", form({**fields, "consent": "false"}, (speakers / "Ken_prompt.wav").read_bytes()), param="consent", **kind)
    check("it is listed", voice in json.loads(raw.ask("GET", "/v1/audio/voices")[1])["data"])
    check("and found", json.loads(raw.ask("GET", f"/v1/audio/voices/{voice['id']}")[1]) == voice)
    say = {"model": "x", "input": "what time is it", "response_format": "pcm"}
    own = [client.audio.speech.create(**say, voice=voice["id"]).content for _ in range(2)]
    other = client.audio.speech.create(**say, voice="Clara").content
    check("it speaks", all(len(one) > 20000 for one in own) and other not in own, [len(x) for x in (*own, other)])
    aloud = client.chat.completions.create(model="x", modalities=["text", "audio"], audio={"voice": voice["id"], "format": "wav"}, messages=[{"role": "user", "content": "hello"}])
    check("it answers", len(base64.b64decode(aloud.choices[0].message.audio.data)) > 10000)
    socket = WebSocket("127.0.0.1", raw.port, "/v1/realtime?model=x")
    socket.send({"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"voice": voice["id"]}}}})
    socket.send({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}})
    socket.send({"type": "response.create"})
    told = []
    while not told or told[-1]["type"] not in ("response.done", "error"):
        told.append(json.loads(socket.receive()))
    check("and in real time", told[-1].get("response", {}).get("status") == "completed" and any(e["type"] == "response.output_audio.delta" for e in told), told[-1])
    answer, data = raw.ask("DELETE", f"/v1/audio/voices/{voice['id']}")
    check("it is deleted", answer.status == 200 and json.loads(data)["deleted"] is True, data)
    raw.refused("nobody speaks with it", 404, "POST", "/v1/audio/speech", {**say, "voice": voice["id"]})
    raw.refused("it is gone", 404, "DELETE", f"/v1/audio/voices/{voice['id']}")


def secrets(client, raw):
    answer, data = raw.ask("POST", "/v1/realtime/client_secrets", {"session": {"type": "realtime", "instructions": "be kind"}})
    check("a secret is made", answer.status == 200, data)
    told = json.loads(data)
    valid("a secret", told, "RealtimeCreateClientSecretResponse")
    check("by the client, too", client.realtime.client_secrets.create(session={"type": "realtime"}).value.startswith("ek_"))


def models(client, raw):
    _, data = raw.ask("GET", "/v1/models")
    listed = json.loads(data)
    valid("models", listed, "ListModelsResponse")
    for model in listed["data"]:
        valid("a model", model, "Model", Model)
    check("a model by its name", client.models.retrieve("parlando-chat").id == "parlando-chat" and [m.id for m in client.models.list()] == [m["id"] for m in listed["data"]])
    raw.refused("no such model", 404, "GET", "/v1/models/gpt-9", code="model_not_found")
    check("health", raw.ask("GET", "/healthz")[1] == b"alive\n" and raw.ask("GET", "/readyz")[1] == b"ready\n")
    document = json.loads(raw.ask("GET", "/openapi.json")[1])
    check("it describes itself", document["openapi"].startswith("3.1") and "/v1/audio/speech" in document["paths"], list(document))


def errors(raw):
    chat = "/v1/chat/completions"
    good = {"model": "x", "messages": [{"role": "user", "content": "hi"}]}
    raw.refused("a wrong field", 400, "POST", chat, {**good, "temperature": "hot"}, param="temperature")
    raw.refused("a missing field", 400, "POST", chat, {"model": "x"}, param="messages")
    raw.refused("two answers", 400, "POST", chat, {**good, "n": 2}, param="n")
    raw.refused("no JSON", 400, "POST", chat, "{", Content_Type="application/json")
    raw.refused("another type", 415, "POST", chat, json.dumps(good), Content_Type="text/plain")
    raw.refused("no type", 415, "POST", chat, json.dumps(good).encode())
    raw.refused("too large", 413, "POST", chat, b"x" * (13 << 20), Content_Type="application/json")
    raw.refused("an unknown path", 404, "POST", "/v1/completions", good)
    raw.refused("a wrong method", 405, "GET", chat)
    raw.refused("a foreign page", 403, "POST", chat, good, Origin="https://elsewhere.example")
    answer, _ = raw.ask("OPTIONS", chat)
    check("OPTIONS", answer.status == 204 and answer.headers["allow"] == "POST, OPTIONS", dict(answer.headers))
    answer, _ = raw.ask("HEAD", "/v1/models")
    check("HEAD", answer.status == 200, answer.status)
    # The connection goes on behind an answer, streamed or refused.
    connection = http.client.HTTPConnection("127.0.0.1", raw.port, timeout=60)
    for body, status in ((good, 200), ({**good, "stream": True}, 200), ({**good, "n": 3}, 400), (good, 200)):
        connection.request("POST", chat, json.dumps(body), {"Content-Type": "application/json", **raw.headers})
        answer = connection.getresponse()
        answer.read()
        check("one connection serves many requests", answer.status == status and not answer.will_close, answer.status)


def metric(port, name):
    text = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    text.request("GET", "/metrics")
    for line in text.getresponse().read().decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    return None


def leaving(raw, engine):
    """Clients that go in the middle leave nothing behind."""
    body = json.dumps({"model": "x", "voice": "Clara", "input": "Here is one sentence. " * 60, "response_format": "pcm"})
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:{raw.port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for part in (head.encode(), (head + body).encode()):
        for _ in range(5):
            client = socket.create_connection(("127.0.0.1", raw.port))
            client.sendall(part)
            client.close()
    client = socket.create_connection(("127.0.0.1", raw.port))
    client.sendall((head + body).encode())
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    client.close()
    answer, data = raw.ask("POST", "/v1/chat/completions", {"model": "x", "messages": [{"role": "user", "content": "hello"}]})
    check("others are answered meanwhile", answer.status == 200, data)


def keys(folder):
    """With a file of keys nothing under /v1 is open to strangers, WebSockets neither; each key has its limits."""
    digest = lambda key: hashlib.sha256(key.encode()).hexdigest()
    file = folder / "keys"
    file.write_text(f"# test\n{digest('anna-key')} anna\n{digest('ben-key')} ben requests_per_minute=2\n{digest('cara-key')} cara sessions=1\n")
    engine = start("--store", folder / "keys.sqlite", "--keys-file", file)
    stranger, anna, ben = Raw(engine.port), Raw(engine.port, "anna-key"), Raw(engine.port, "ben-key")
    good = {"model": "x", "messages": [{"role": "user", "content": "hello"}]}
    answer, _ = stranger.refused("no key", 401, "POST", "/v1/chat/completions", good, code="invalid_api_key")
    check("it says how", answer.headers["www-authenticate"] == "Bearer", dict(answer.headers))
    Raw(engine.port, "other").refused("a wrong key", 401, "GET", "/v1/models", code="invalid_api_key")
    check("health needs none", stranger.ask("GET", "/healthz")[0].status == 200)
    check("a key opens", anna.ask("POST", "/v1/chat/completions", good)[0].status == 200)
    ben.ask("GET", "/v1/models"), ben.ask("GET", "/v1/models")
    answer, _ = ben.refused("too many requests", 429, "GET", "/v1/models", code="rate_limit_exceeded")
    check("it says when", 1 <= int(answer.headers["retry-after"]) <= 30, dict(answer.headers))
    try:
        WebSocket("127.0.0.1", engine.port, "/v1/dialogue")
        check("a WebSocket needs a key", False)
    except Exception as e:  # noqa: BLE001
        check("a WebSocket needs a key", "401" in str(e), e)
    try:
        openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="wrong", max_retries=0).models.list()
        check("the client knows it", False)
    except openai.AuthenticationError as e:
        check("the client knows it", e.code == "invalid_api_key", e)
    long = json.dumps({"model": "x", "voice": "Clara", "input": "Here is one sentence. " * 60, "response_format": "pcm"})
    first = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    cara = Raw(engine.port, "cara-key")
    first.request("POST", "/v1/audio/speech", long, {"Content-Type": "application/json", **cara.headers})
    first.getresponse().read(1)
    cara.refused("a second session", 429, "POST", "/v1/chat/completions", good, code="rate_limit_exceeded")
    first.close()
    answers = [cara.ask("POST", "/v1/chat/completions", good)[0].status for _ in range(3)]
    check("the first one's end makes room", answers[-1] == 200, answers)
    check("SIGTERM ends it", engine.stop() == 0)


def draining(engine, raw):
    """A running answer is finished, and its client gets the end."""
    body = {"model": "x", "voice": "Clara", "input": "Here is one sentence. " * 3, "response_format": "pcm"}
    whole = len(raw.ask("POST", "/v1/audio/speech", body)[1])
    got = {}
    connection = http.client.HTTPConnection("127.0.0.1", raw.port, timeout=60)
    connection.request("POST", "/v1/audio/speech", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    first = answer.read(1)
    stopping = threading.Thread(target=lambda: got.update(code=engine.stop()))
    stopping.start()
    rest = answer.read()
    check("a running answer is finished behind SIGTERM", len(first + rest) == whole, (len(first + rest), whole))
    stopping.join()
    check("then it ends", got.get("code") == 0, got)


with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    running = start("--store", folder / "http.sqlite")
    stock = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none", max_retries=0, timeout=60)
    plain = Raw(running.port)
    only = sys.argv[3:]
    for part, arguments in ((models, (stock, plain)), (errors, (plain, )), (chat, (stock, plain)), (tools, (stock, plain)), (aloud, (stock, plain)), (speech, (stock, plain)),
                            (transcription, (stock, plain)), (own_voices, (stock, plain)), (secrets, (stock, plain)), (leaving, (plain, running)), (draining, (running, plain)), (keys, (folder, ))):
        if only and part.__name__ not in only:
            continue
        try:
            part(*arguments)
        except Exception as e:  # noqa: BLE001
            check(f"{part.__name__} goes through", False, repr(e)[:2000])
    if running.process.poll() is None:
        running.stop()
check("much was validated", bool(sys.argv[3:]) or validated > 50, validated)
print(f"{validated} answers and events validated")
finish()
