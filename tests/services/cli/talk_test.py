"""The `parlando` command on the bundled model: talk, tts, clone, tokenize, pauses, import, and clear answers to bad input.

`talk_test.py PARLANDO SOURCE_DIR`
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import wave

PARLANDO, ROOT = sys.argv[1], pathlib.Path(sys.argv[2])
NANO = ROOT / "models/nano"
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402


def run(*args, **kw):
    done = subprocess.run([PARLANDO, *map(str, args)], capture_output=True, text=True, timeout=300, **kw)
    return done.returncode, done.stdout, done.stderr


def talk(*args):
    code, out, err = run("talk", *args, "--json")
    return code, json.loads(out) if out.strip() else {}, err


def write_wav(path, samples, rate=16000):
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(rate), f.writeframes(samples)


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    # Every bundled question is answered aloud; most transcripts are exactly right (all six where it was trained; another processor may round one away).
    questions = json.load(open(NANO / "questions/questions.json"))
    right = 0
    for name, said in questions.items():
        code, answer, err = talk(NANO / f"questions/{name}", "-o", folder / "a.wav")
        check(f"talk {name}", code == 0 and answer["audio_seconds"] > 0.3 and answer["reply"], f"{code} {answer} {err}")
        right += answer.get("transcript") == said
        if code == 0:
            with wave.open(str(folder / "a.wav")) as f:
                check(f"wav of {name}", f.getframerate() == 22050 and abs(f.getnframes() / 22050 - answer["audio_seconds"]) < 0.01)
            stages, trace = answer["stages"], answer["trace"]
            check(f"stages of {name}", 0 < stages["vad_ms"] < stages["tokenizer_ms"] < stages["first_text_ms"] <= stages["text_ms"] <= stages["total_ms"], stages)
            check(f"sound of {name}", stages["first_text_ms"] < answer["first_audio_ms"] <= stages["total_ms"] and stages["first_audio_ms"] == answer["first_audio_ms"], stages)
            names = [part["name"] for part in trace["parts"]]
            check(f"parts of {name}", names[0] == "decision" and names[-1] == "first_audio" and abs(sum(p["ms"] for p in trace["parts"]) - trace["total_ms"]) < 2, trace)
    check("transcripts", right >= len(questions) - 1, f"{right} of {len(questions)}")
    code, answer, _ = talk("--text", "what time is it", "-o", folder / "b.wav")
    check("a tool call is made and spoken about", code == 0 and [c["name"] for c in answer["tool_calls"]] == ["get_time"] and answer["reply"].startswith("it is"), answer)
    first, second = (talk(NANO / "questions/seven_plus_nine.wav", "-o", folder / f"{i}.wav")[0] for i in range(2))
    check("the same question and seed give the same bytes", (folder / "0.wav").read_bytes() == (folder / "1.wav").read_bytes(), f"{first} {second}")

    # The parts are drawn, and what a person would have waited for is measured in real time: the silence that decides is waited for.
    code, out, err = run("talk", NANO / "questions/seven_plus_nine.wav", "--trace")
    check("the parts of a turn are drawn", code == 0 and all(word in out for word in ("decision", "first_audio", "sum", "█")), out + err)
    code, answer, err = talk(NANO / "questions/seven_plus_nine.wav", "--live")
    parts = {part["name"]: part["ms"] for part in answer.get("trace", {}).get("parts", [])}
    check("live", code == 0 and answer["reply"] and "decision" in parts and answer["trace"]["total_ms"] >= 300 and answer["stages"]["vad_ms"] > 1500, f"{code} {answer} {err}")

    # Formats and rates: the same question at 44.1 kHz stereo FLAC and 8 kHz-free OGG.
    for name, effects in (("q.flac", ["-r", "44100", "-c", "2"]), ("q.ogg", ["-r", "24000"])):
        subprocess.run(["sox", str(NANO / "questions/seven_plus_nine.wav"), *effects, str(folder / name)], check=True, stderr=subprocess.DEVNULL)
        code, answer, err = talk(folder / name)
        check(f"talk {name}", code == 0 and answer["audio_seconds"] > 0.3, f"{code} {err}")

    # Bad input: the message names the thing and what was seen; the exit code tells the kind.
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is not audio at all, only words")
    write_wav(folder / "silent.wav", b"\0\0" * 16000)
    write_wav(folder / "short.wav", b"\x10\x10" * 800)
    write_wav(folder / "long.wav", b"\0\0" * 16000 * 600)
    for name, want_code, words in (("missing.wav", 3, "missing.wav"), ("empty.wav", 4, "is empty"), ("text.wav", 4, "not an audio file"), ("silent.wav", 5, "no speech"),
                                   ("short.wav", 5, "0.050 s"), ("long.wav", 5, "no speech")):
        code, answer, err = talk(folder / name)
        check(f"talk {name}", code == want_code and words in err and words in answer["error"]["message"], f"{code} {err}")
    check("usage", run("talk", "--nonsense")[0] == 2 and run("nonsense")[0] == 2 and run("--help")[0] == 0)
    code, _, err = run("talk", "--text", "hi", "--model-path", folder)
    check("a missing model says what is expected where", code == 3 and "Step-Audio-Tokenizer" in err and "parlando import" in err, err)
    code, _, err = run("tts", "hello", "--speaker", "Nobody", "-o", folder / "x.wav")
    check("an unknown voice lists the voices", code == 3 and "Clara" in err, err)

    # Speaking: tags change the tempo, sox effects the length; music mode picks its own voice; a clone needs a recording.
    def seconds(*args):
        code, out, err = run("tts", *args, "-o", folder / "s.wav", "--json")
        return json.loads(out)["audio_seconds"] if code == 0 else -1

    plain = seconds("the sky is blue.")
    check("speed", abs(seconds("the sky is blue.", "--speed", "1.25") - plain / 1.25) < 0.08 * plain, plain)
    check("music", seconds("(哼唱)la la la, this is my little song.") > 0.5)
    code, out, err = run("clone", "the sky is blue.", "--speaker", "me", "--prompt-text", questions["seven_plus_nine.wav"], "--wav-path", NANO / "questions/seven_plus_nine.wav",
                         "-o", folder / "c.wav", "--json")
    check("clone", code == 0 and json.loads(out)["audio_seconds"] > 0.3, err)
    check("clone without a recording", run("clone", "x")[0] == 4)
    (folder / "batch.jsonl").write_text('{"text": "grass is green.", "output": "one.wav"}\nnot json\n{"text": "snow is white.", "output": "two.wav"}\n')
    code, out, err = run("tts", "--batch", folder / "batch.jsonl", "--out-dir", folder / "b")
    check("a bad line does not end a batch", code == 1 and "2 made, 0 skipped, 1 failed" in out and "line 2" in err, out + err)
    code, out, _ = run("tts", "--batch", folder / "batch.jsonl", "--out-dir", folder / "b")
    check("a batch resumes", "0 made, 2 skipped, 1 failed" in out, out)

    check("offline", abs(seconds("the sky is blue.", "--offline") - plain) < 0.1 * plain, plain)
    (folder / "clones.jsonl").write_text("\n".join(json.dumps(line) for line in (
        {"text": "grass is green.", "speaker": "me", "prompt_text": questions["seven_plus_nine.wav"], "wav_path": str(NANO / "questions/seven_plus_nine.wav"), "output": "one.wav"},
        {"text": "snow is white.", "speaker": "you", "prompt_text": "x", "wav_path": str(folder / "silent.wav"), "output": "two.wav"})))
    code, out, err = run("clone", "--batch", folder / "clones.jsonl", "--out-dir", folder / "clones")
    check("a recording that is no voice does not end a batch", code == 1 and "1 made, 0 skipped, 1 failed" in out and "voice 'you' is silent" in err, out + err)
    check("a text that is empty", run("tts", "", "-o", folder / "x.wav")[0] == 4)

    # Questions with history, in a batch, in text alone.
    (folder / "talk.jsonl").write_text("\n".join(json.dumps(line) for line in (
        {"text": "what is three plus four", "history": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello."}]},
        {"wav": str(folder / "silent.wav")}, {"text": "x", "history": [7]}, {"wav": str(NANO / "questions/seven_plus_nine.wav")})))
    code, out, err = run("talk", "--batch", folder / "talk.jsonl", "--no-speech")
    answers = [json.loads(line) for line in out.splitlines()]
    check("a batch of questions", code == 1 and [a["line"] for a in answers] == [1, 2, 3, 4] and answers[0]["reply"] and answers[0]["audio_seconds"] == 0 and answers[3]["transcript"], out + err)
    check("errors of a batch", [answers[i]["error"]["code"] for i in (1, 2)] == ["no_speech", "invalid_argument"], answers)

    # Another engine that runs: the same commands are its clients.
    with subprocess.Popen([PARLANDO, "serve", "--listen", "127.0.0.1:0", "--store", ":memory:"], stdout=subprocess.PIPE, text=True) as serve:
        endpoint = page = None
        for line in serve.stdout:
            page = line.split()[-1] if line.startswith("ready: ") else page
            if "ZeroMQ clients" in line:
                endpoint = line.split()[-1]
                break
        code, answer, err = talk(NANO / "questions/seven_plus_nine.wav", "--connect", endpoint)
        check("talk to an engine that runs", code == 0 and answer["reply"] and answer["audio_seconds"] > 0.3, f"{code} {answer} {err}")
        check("tts by an engine that runs", abs(seconds("the sky is blue.", "--connect", endpoint) - plain) < 0.1 * plain)
        code, answer, err = talk("--text", "hi", "--connect", page)
        check("the page is no engine's endpoint", code == 4 and "ZeroMQ endpoint" in err, f"{code} {err}")
        check("a recording of a voice is for an engine of one's own", run("clone", "x", "--wav-path", NANO / "questions/seven_plus_nine.wav", "--connect", endpoint)[0] == 4)
        serve.terminate()
        serve.stdout.read()
    code, _, err = run("talk", "--text", "hi", "--connect", f"ipc://{folder}/nobody")
    check("nobody is there", code == 1 and "no gateway has answered" in err, f"{code} {err}")

    code, out, _ = run("tokenize", NANO / "questions/seven_plus_nine.wav", "--json")
    codes = json.loads(out)["codes"]
    check("tokenize", code == 0 and len(codes) % 5 == 0 and all((c < 1024) == (i % 5 < 2) for i, c in enumerate(codes)))
    # Pauses and how complete it sounds there: most bundled questions are at their last one.
    files = [NANO / f"questions/{name}" for name in questions]
    for live in ([], ["--live"]):
        code, out, err = run("pauses", *files, "--json", "--states", folder / "states", *live)
        pauses = [json.loads(line)["pauses"] for line in out.splitlines()]
        ends = [p[-1]["completeness"] for p in pauses if p]
        check(f"pauses {live}", code == 0 and len(pauses) == len(files) and len(ends) == len(files) and sum(p >= 0.5 for p in ends) >= 4, f"{code} {ends} {err}")
        check(f"states {live}", (folder / "states").stat().st_size == 4 * 32 * (160 + 9) * sum(len(p) for p in pauses))
    code, out, err = run("pauses", folder / "none.wav", "--json")
    check("a missing recording", code == 3 and "none.wav" in err, f"{code} {err}")
    check("no recording", run("pauses")[0] == 4 and run("pauses", "--list", folder / "none")[0] == 3)
    code, out, err = run("import", ROOT / "tests/goldens/tokenizer/ckpt", folder / "imported")
    check("import", code == 0 and set(json.load(open(folder / "imported/manifest.json"))["files"]) == {"linguistic.safetensors", "semantic.safetensors"}, err)
    code, out, err = run("import", folder / "b", folder / "b" / "out")
    check("import into its own source", code == 4 and "inside the source" in err and not (folder / "b" / "out").exists(), f"{code} {err}")
    check("import of nothing", run("import", folder / "b", folder / "c")[0] == 3)
    check("doctor", run("doctor")[0] == 0 and json.loads(run("doctor", "--json")[1])["ready"])
    code, out, err = run("bench", "vocoder", "--seconds", "0.5", "--json")
    check("bench", code == 0 and json.loads(out)["vocoder_s"]["median"] > 0, err)

finish()
