"""Sessions that are stored, as their owner sees them: opened again behind a restart of the engine, and deleted for good.

`stored_sessions_test.py BUILD_BIN SOURCE_DIR`
"""
import http.client
import json
import os
import pathlib
import sqlite3
import stat
import sys
import tempfile

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Client, Engine, pcm  # noqa: E402


def delete(engine, session, token):
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    connection.request("DELETE", f"/v1/sessions/{session}", headers={"X-Session-Token": token})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def records(store, session):
    """What the file has of it, read as anybody would who has the disk."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
        return database.execute("SELECT count(*) FROM turns WHERE session = ?", (session,)).fetchone()[0]


def again(engine, opened, **settings):
    return Client(engine.port, session=opened["session"], token=opened["session_token"], **settings)


with tempfile.TemporaryDirectory() as temporary:
    store = pathlib.Path(temporary) / "s.sqlite"
    start = lambda: Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", store)
    engine = start()
    secret = pathlib.Path(f"{store}.secret")
    check("what signs tokens is kept beside the store, for its user alone", stat.S_IMODE(os.stat(secret).st_mode) == 0o600 and len(secret.read_bytes()) >= 32)

    # A stock client opens, talks and deletes; the store is empty.
    client, other = Client(engine.port, speak=False), Client(engine.port, speak=False)
    mine, others = client.events[0], other.events[0]
    check("a turn", client.say("my name is anna")["type"] == "turn")
    check("somebody else's turn", other.say("my name is maria")["type"] == "turn")
    check("it is stored", records(store, mine["session"]) == 1)
    for what, session, token in (("another session's token", mine["session"], others["session_token"]), ("no token", mine["session"], ""), ("the resume token", mine["session"], mine["resume_token"]),
                                 ("another session", others["session"], mine["session_token"]), ("no session", "0" * 32, mine["session_token"])):
        status, said = delete(engine, session, token)
        check(f"{what} deletes nothing", status == 404 and said["error"]["code"] == "not_found" and records(store, mine["session"]) == records(store, others["session"]) == 1, said)
    status, said = delete(engine, mine["session"], mine["session_token"])
    check("a session is deleted", status == 200 and said == {"object": "session.deleted", "id": mine["session"], "deleted": True, "turns": 1}, said)
    check("nothing of it is left", records(store, mine["session"]) == 0)
    check("its client is told", client.wait("error")["code"] == "not_found" and client.events[-1]["session_ended"], client.events[-1])
    for _ in range(2):
        status, said = delete(engine, mine["session"], mine["session_token"])
        check("a repetition finds nothing", status == 404 and said["error"]["code"] == "not_found", said)
    check("and nobody goes on with it", again(engine, mine, first="error", speak=False).events[0]["code"] == "not_found")
    check("others are as they were", records(store, others["session"]) == 1 and other.say("what is my name")["type"] == "turn")

    # Hours later: another process, which has the store and what signs its tokens.
    third = Client(engine.port, speak=False)
    kept = third.events[0]
    third.say("my name is anna")
    third.ws.close()
    check("the engine ends", engine.stop() == 0)
    engine = start()
    back = again(engine, kept, speak=True)
    check("a stored session is opened again", back.events[0]["turns"] == 1 and back.events[0]["session"] == kept["session"], back.events[0])
    turn = back.say("what is my name")
    check("its turns are known", turn.get("turn") == 2 and "anna" in turn["assistant"], turn)
    turn = back.ask(pcm(ROOT / "models/nano/questions/capital_of_france.wav"))
    check("and it hears", turn.get("turn") == 3 and turn["user"] == "what is the capital of france" and len(back.audio) > 10000, turn)
    # In its own conversation.
    back.ws.send({"type": "erase"})
    check("a conversation erases itself", back.wait("erased", "error")["turns"] == 3, back.events[-1])
    check("nothing of that is left", records(store, kept["session"]) == 0)
    back.ws.send({"type": "open", "speak": False})
    check("another one may follow on its socket", back.wait("opened", "error")["type"] == "opened")
    check("the engine ends again", engine.stop() == 0)
finish()
