"""What clients were told, against what lies in the store: read from the file, by no code of the engine."""
import contextlib
import json
import sqlite3


class History:
    """Of all sessions. A turn that was told as durable is in the store as it was told, at its place, and nothing is twice."""

    def __init__(self):
        self.told = {}      # session -> [event of a turn]
        self.durable = self.degraded = 0

    def tell(self, session, event):
        self.told.setdefault(session, []).append(event)

    def problems(self, file, lost_with_owner=0):
        """@param lost_with_owner  turns that were told as degraded and may be gone with the controller that kept them"""
        found, gone = [], 0
        self.durable = self.degraded = 0
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            for session, events in sorted(self.told.items()):
                records = {turn: json.loads(record) for turn, record in store.execute("SELECT turn, record FROM turns WHERE session = ?", (session,))}
                (epoch, turns), = store.execute("SELECT epoch, turns FROM sessions WHERE id = ?", (session,)).fetchall() or [(0, 0)]
                if sorted(records) != list(range(1, turns + 1)):
                    found.append(f"session {session}: the store says {turns} turns and holds {sorted(records)}")
                if epoch < 1:
                    found.append(f"session {session}: nobody ever owned it")
                numbers = [e["turn"] for e in events]
                if numbers != sorted(set(numbers)):
                    found.append(f"session {session}: turns were told as {numbers}")
                for event in events:
                    record, degraded = records.get(event["turn"]), event.get("degraded", False)
                    self.degraded += degraded
                    self.durable += not degraded
                    if record is None and degraded:
                        gone += 1
                    elif record is None:
                        found.append(f"session {session}: turn {event['turn']} was told as durable and is not in the store")
                    elif (record["user"], record["assistant"]) != (event["user"], event["assistant"]):
                        found.append(f"session {session}: turn {event['turn']} was told as {event['user']!r}, {event['assistant']!r}; stored is {record['user']!r}, {record['assistant']!r}")
        if gone > lost_with_owner:
            found.append(f"{gone} turns that were told as degraded never came to the store, expected at most {lost_with_owner}")
        print(f"  the store holds {self.durable} of {self.durable} turns that were told as durable, {self.degraded} waited, {gone} were lost with their owner" if not found
              else f"  the store: {len(found)} problems", flush=True)
        return found
