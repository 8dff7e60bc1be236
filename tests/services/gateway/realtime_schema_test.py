"""Every event that realtime_test has emitted, strictly against the published schema and the types of the stock client.

`realtime_schema_test.py EVENTS_FILE SOURCE_DIR`; EVENTS_FILE has one event a line.
"""
import collections
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(sys.argv[2]) / "tests/support"))
import clients  # noqa: E402
from checks import check, finish  # noqa: E402
from openai_schema import EVENTS, event_problems  # noqa: E402

clients.go_there(sys.argv[2])
events = [json.loads(line) for line in open(sys.argv[1])]
check("there are events", len(events) > 1000, len(events))
wrong = collections.Counter()
for event in events:
    for problem in event_problems(event):
        wrong[f"{event['type']}: {problem}"] += 1
check("all fit the published schema", not wrong, wrong.most_common(10))

# What the API has beside: other transports, tools that a server executes itself, names that are out of use.
NOT_OURS = ("mcp", "output_audio_buffer", "dtmf", "timeout_triggered", "conversation.created", "conversation.item.created", "transcription_session", "transcription.segment")
missing = [t for t in EVENTS if t not in {e["type"] for e in events} and not any(part in t for part in NOT_OURS)]
check("every event of the API was seen", not missing, missing)
check("the checker finds what is wrong", event_problems({"type": "error", "event_id": 7, "error": {"type": "x", "extra": 1}, "more": 2}) != [] and event_problems({"type": "dance"}) != [] and
      len(event_problems({"type": "response.done", "event_id": "e", "response": {"status": "odd", "usage": {"total_tokens": 1.5}}})) == 2)

try:
    from pydantic import TypeAdapter
    from openai.types.realtime import RealtimeServerEvent
except ImportError:
    print("the stock client is not installed: its types were not asked")
else:
    adapter = TypeAdapter(RealtimeServerEvent)
    refused = collections.Counter()
    for event in events:
        try:
            read = adapter.validate_json(json.dumps(event), strict=True)
            if type(read).__name__ == "ConversationCreatedEvent" or read.type != event["type"]:
                refused[f"{event['type']} is read as {type(read).__name__}"] += 1
        except Exception as e:  # noqa: BLE001
            refused[f"{event['type']}: {e}"] += 1
    check("the stock client's types take all", not refused, refused.most_common(5))
    print(f"{len(events)} events held against the schema and the stock client's types")
finish()
