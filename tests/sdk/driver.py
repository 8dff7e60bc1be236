"""Does with the Python package what it is told, a JSON object a line; answers a line each. `driver.py sync` or `driver.py aio`.
tests/sdk/README.md lists the commands; sdk/cpp/tests/driver.cpp is the same for C++.
"""
import asyncio
import dataclasses
import inspect
import json
import pathlib
import sys
import wave

import numpy as np
import parlando


def sound_of(path):
    with wave.open(path) as f:
        return np.frombuffer(f.readframes(f.getnframes()), "<i2")


class Driver:
    def __init__(self, client_class):
        self.client_class = client_class
        self.client = None
        self.talks = {}

    async def do(self, c):
        what = c.pop("do")
        talk = self.talks.get(c.pop("talk", "a"))
        name = c.pop("as", "a")

        async def got(value):
            return await value if inspect.isawaitable(value) else value
        if what == "connect":
            keys = c.pop("keys", None)
            self.client = self.client_class(c.pop("endpoints"), keys=parlando.Keys.read(*keys) if keys else None, **c)
            return {}
        if what in ("open", "resume"):
            c.update(c.pop("again", {}))
            c["tools"] = [parlando.Tool(tool, lambda output=output, **_: output, f"{tool}.") for tool, output in c.pop("client_tools", {}).items()]
            talk = self.talks[name] = await got(self.client.resume(c["token"], c["tools"]) if what == "resume" else self.client.open(**c))
            return {"session": talk.session, "rate": talk.rate}
        if what == "session_token":
            return {"token": talk.session_token()}
        if what == "erase":
            return {"turns": await got(talk.erase())}
        if what == "erase_session":
            return {"turns": await got(self.client.erase(c["token"]))}
        if what == "audio":
            samples = sound_of(c["file"])
            await got(talk.send_audio(samples[c.get("from", 0):c.get("to", len(samples))]))
            return {"samples": len(samples)}
        if what == "silence":
            await got(talk.send_audio(np.zeros(c["samples"], np.int16)))
            return {}
        if what == "bytes":
            await got(talk.send_audio(bytes(c["count"])))
            return {}
        if what == "turn":
            turn = await got(talk.turn())
            return {"number": turn.number, "user": turn.user, "assistant": turn.assistant, "samples": len(turn.sound), "audio_seconds": turn.record["audio_seconds"],
                    "tools": [t["name"] for t in turn.tool_calls], "events": [e.type for e in turn.events]}
        if what == "wait":
            samples = 0
            while True:
                event = await got(talk.next_event(60))
                if event is None:
                    return {"ended": True, "samples": samples}
                samples += len(event.samples) if event.type == "sound" else 0
                if event.type == c["type"]:
                    return {"type": event.type, "samples": samples, **({"code": event["code"]} if event.type == "error" else {})}
        if what == "close":
            token = talk.resume_token()
            await got(talk.close(**c))
            return {"token": token}
        if what == "endpoint":
            return {"endpoint": talk.endpoint}
        if what == "metrics":
            m = talk.metrics
            return {k: v for k, v in dataclasses.asdict(m).items() if isinstance(v, (int, float))} | {
                "first_text_ms": m.first_text.quantile_ms(0.5), "first_sound_ms": m.first_sound.quantile_ms(0.5), "whole_turn_ms": m.whole_turn.quantile_ms(0.5)}
        if what == "quit":
            await got(self.client.close())
            return {}
        await got(getattr(talk, what)(**c))
        return {}


async def main(driver):
    for line in sys.stdin:
        try:
            out = await driver.do(json.loads(line))
        except parlando.ParlandoError as e:
            out = {"error": e.code, "message": e.message}
        print(json.dumps(out), flush=True)


asyncio.run(main(Driver(parlando.aio.Client if sys.argv[1] == "aio" else parlando.Client)))
