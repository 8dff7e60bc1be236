"""Stock clients of the realtime API, unmodified, against the running engine: spoken turn, typed turn, tool call, interruption, reconnect.

`realtime_clients_test.py BUILD_BIN SOURCE_DIR [CLIENT…]`; skipped (77) where no client is installed (tools/clients_requirements.txt;
pipecat and livekit: `make clients`).
"""
import array
import asyncio
import base64
import importlib.util
import json
import pathlib
import sys
import traceback

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tests/support"))
import clients  # noqa: E402
from checks import check, finish  # noqa: E402
from engine import Engine, pcm  # noqa: E402
from openai_schema import event_problems  # noqa: E402

clients.go_there(ROOT)
WAIT = 30  # seconds until something that must happen counts as missing
PARIS = "what is the capital of france"
TIME_TOOL = {"type": "function", "name": "get_time", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}}


def question(name):
    """A bundled question as 24 kHz PCM: every third output sample is an input sample, the others lie on the line between two."""
    source = array.array("h", pcm(ROOT / f"models/nano/questions/{name}.wav"))
    out = array.array("h")
    for i in range(0, len(source) - 2, 2):
        a, b, c = source[i:i + 3]
        out.extend((a, (a + 2 * b) // 3, (2 * b + c) // 3))
    return out.tobytes()


def silence(seconds):
    return bytes(int(48000 * seconds))


def same_words(a, b):
    plain = lambda text: "".join(c for c in text.lower() if c.isalnum() or c == " ").split()
    return plain(a) == plain(b)


# ------------------------------------------------------------------------------------------------ openai

class Raw:
    """The stock client's connection; keeps what came, and holds all of it against the schema."""

    def __init__(self, connection):
        self.connection, self.events, self.sound = connection, [], b""

    async def until(self, *types, but=()):
        try:
            async with asyncio.timeout(WAIT):
                return await self._until(types, but)
        except TimeoutError:
            raise RuntimeError(f"no {types} behind {[e['type'] for e in self.events[-8:]]}") from None

    async def _until(self, types, but):
        while True:
            event = json.loads(await self.connection.recv_bytes())
            wrong = event_problems(event)
            check(f"{event['type']} fits the schema", not wrong, wrong)
            self.events.append(event)
            if event["type"] == "response.output_audio.delta":
                self.sound += base64.b64decode(event["delta"])
            if event["type"] in types:
                return event
            if event["type"] == "error" and "error" not in but:
                raise RuntimeError(event)

    async def say(self, sound):
        for at in range(0, len(sound), 4800):
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(sound[at:at + 4800]).decode())

    async def type(self, text):
        await self.connection.conversation.item.create(item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})


async def openai_raw(port):
    from openai import AsyncOpenAI
    client = AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1")
    async with client.realtime.connect(model="parlando") as connection:
        raw = Raw(connection)
        check("openai: a session is told", (await raw.until("session.created"))["session"]["model"] == "parlando")
        await connection.session.update(session={"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"transcription": {"model": "whisper-1"}}}})
        await raw.until("session.updated")
        # A spoken turn: the server finds its end.
        await raw.say(question("capital_of_france") + silence(1.5))
        done = await raw.until("response.done")
        said = [e["transcript"] for e in raw.events if e["type"].endswith("input_audio_transcription.completed")]
        answer = done["response"]["output"][0]["content"][0]["transcript"] if done["response"]["output"] else ""
        check("openai: a spoken turn is understood", said and same_words(said[0], PARIS), said)
        check("openai: … and answered aloud", done["response"]["status"] == "completed" and "paris" in answer.lower() and len(raw.sound) > 24000, done)
        kinds = [e["type"] for e in raw.events]
        order = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed", "conversation.item.added", "response.created", "response.output_item.added", "response.output_audio.done", "response.done"]
        check("openai: in order", [kinds.index(k) for k in order] == sorted(kinds.index(k) for k in order), kinds)
        # Push to talk.
        await connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await raw.until("session.updated")
        await raw.say(question("capital_of_france"))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        done = await raw.until("response.done")
        check("openai: push to talk", done["response"]["status"] == "completed" and "paris" in json.dumps(done).lower(), done)
        # A typed turn, answered as text.
        await raw.type("what is the capital of france")
        await connection.response.create(response={"output_modalities": ["text"], "metadata": {"k": "v"}})
        done = await raw.until("response.done")
        content = done["response"]["output"][0]["content"][0]
        check("openai: a typed turn", content["type"] == "output_text" and "paris" in content["text"].lower() and done["response"]["metadata"] == {"k": "v"}, done)
        # A tool of the client's.
        await connection.session.update(session={"type": "realtime", "tools": [TIME_TOOL]})
        await raw.until("session.updated")
        await raw.type("what time is it")
        await connection.response.create()
        call = await raw.until("response.function_call_arguments.done")
        check("openai: a tool is called", call["name"] == "get_time", call)
        await raw.until("response.done")
        await connection.conversation.item.create(item={"type": "function_call_output", "call_id": call["call_id"], "output": '{"time": "10:30"}'})
        await connection.response.create()
        done = await raw.until("response.done")
        check("openai: its output is answered", done["response"]["status"] == "completed" and done["response"]["output"][-1]["type"] == "message", done)
        # Out of band, beside the conversation.
        await connection.response.create(response={"conversation": "none", "output_modalities": ["text"], "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": PARIS}]}]})
        done = await raw.until("response.done")
        check("openai: a response out of band", "paris" in json.dumps(done["response"]["output"]).lower() and "conversation_id" not in done["response"], done)
        # Cancelled by the client, then cut to what was heard.
        await raw.type("who wrote hamlet")
        await connection.response.create()
        started = await raw.until("response.output_audio.delta")
        await connection.response.cancel()
        done = await raw.until("response.done")
        check("openai: a cancelled response", done["response"]["status"] == "cancelled" and done["response"]["status_details"]["reason"] == "client_cancelled", done)
        await connection.conversation.item.truncate(item_id=started["item_id"], content_index=0, audio_end_ms=40)
        await raw.until("conversation.item.truncated")
        await connection.response.cancel()
        error = await raw.until("error", but=("error",))
        check("openai: nothing to cancel", error["error"]["code"] == "response_cancel_not_active", error)
        # Bad events end nothing.
        await connection.send_raw("{")
        await connection.send_raw('{"type": "dance", "event_id": "mine"}')
        errors = [await raw.until("error", but=("error",)) for _ in range(2)]
        check("openai: bad events are answered", errors[1]["error"]["event_id"] == "mine", errors)
        await raw.type(PARIS)
        await connection.response.create()
        check("openai: … and the session goes on", (await raw.until("response.done"))["response"]["status"] == "completed")
    # A transcription session, in G.711.
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        raw = Raw(connection)
        await raw.until("session.created")
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": None}}})
        await raw.until("session.updated")
        await raw.say(question("capital_of_france"))
        await connection.input_audio_buffer.commit()
        said = await raw.until("conversation.item.input_audio_transcription.completed")
        check("openai: a transcription session", same_words(said["transcript"], PARIS), said)
        check("openai: … answers nothing", not any(e["type"].startswith("response.") for e in raw.events))


# ------------------------------------------------------------------------------------------------ openai-agents

async def agents(port):
    from agents import function_tool, set_tracing_disabled
    from agents.realtime import RealtimeAgent, RealtimeRunner
    set_tracing_disabled(True)
    called = []

    @function_tool
    def get_time() -> str:
        """Tells the time."""
        called.append(1)
        return "10:30"

    runner = RealtimeRunner(RealtimeAgent(name="nano", instructions="Be brief.", tools=[get_time]))
    config = {"url": f"ws://127.0.0.1:{port}/v1/realtime?model=parlando", "api_key": "none",
              "initial_model_settings": {"turn_detection": {"type": "semantic_vad", "interrupt_response": True}}}

    async def until(session, *types):
        events = []
        async with asyncio.timeout(WAIT):
            async for event in session:
                events.append(event)
                if event.type in ("error",):
                    raise RuntimeError(event)
                if event.type in types:
                    return events
        return events

    async with await runner.run(model_config=config) as session:
        await session.send_audio(question("capital_of_france") + silence(5))
        events = await until(session, "agent_end")
        check("agents: a spoken turn", any(e.type == "audio" for e in events), [e.type for e in events])
        history = [json.dumps(h.model_dump()) for h in session._history]
        check("agents: … in its history", any("paris" in h.lower() for h in history), history)
        await session.send_message("what time is it")
        events = await until(session, "tool_end")
        await until(session, "agent_end")
        check("agents: a tool call", called, [e.type for e in events])
        await session.send_message("tell me a story")
        await until(session, "audio")
        await session.interrupt()
        await session.send_message(PARIS)
        events = await until(session, "agent_end")
        check("agents: goes on behind an interruption", True)
    async with await runner.run(model_config=config) as session:
        await session.send_message(PARIS)
        events = await until(session, "agent_end")
        check("agents: a second session", any(e.type == "audio" for e in events), [e.type for e in events])


# ------------------------------------------------------------------------------------------------ livekit

async def livekit(port):
    import aiohttp
    from livekit import rtc
    from livekit.agents import llm
    from livekit.plugins.openai.realtime import RealtimeModel

    @llm.function_tool
    async def get_time() -> str:
        """Tells the time."""
        return "10:30"

    async def heard(generation):
        """-> text, samples and calls of all that was generated"""
        text, samples, calls = "", 0, []
        async with asyncio.timeout(WAIT):
            async for message in generation.message_stream:
                async for part in message.text_stream:
                    text += part
                async for frame in message.audio_stream:
                    samples += frame.samples_per_channel
            async for call in generation.function_stream:
                calls.append(call)
        return text, samples, calls

    def push(session, sound):
        for at in range(0, len(sound), 4800):
            part = sound[at:at + 4800]
            session.push_audio(rtc.AudioFrame(data=part, sample_rate=24000, num_channels=1, samples_per_channel=len(part) // 2))

    async def tell(session, text):
        context = session.chat_ctx.copy()
        context.add_message(role="user", content=text)
        await session.update_chat_ctx(context)

    async with aiohttp.ClientSession() as http:
        model = RealtimeModel(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", model="parlando", http_session=http)
        session = model.session()
        generations, errors, heard_user = asyncio.Queue(), [], []
        session.on("generation_created", generations.put_nowait)
        session.on("error", errors.append)
        session.on("input_audio_transcription_completed", heard_user.append)
        await session.update_instructions("Be brief.")
        push(session, question("capital_of_france") + silence(5))
        text, samples, _ = await heard(await asyncio.wait_for(generations.get(), WAIT))
        check("livekit: a spoken turn", "paris" in text.lower() and samples > 12000, (text, samples, errors))
        check("livekit: … and its transcript", any(same_words(e.transcript, PARIS) for e in heard_user), heard_user)
        await tell(session, PARIS)
        text, samples, _ = await heard(await asyncio.wait_for(session.generate_reply(), WAIT))
        check("livekit: a typed turn", "paris" in text.lower() and samples > 12000, (text, samples, errors))
        await session.update_tools([get_time])
        await tell(session, "what time is it")
        _, _, calls = await heard(await asyncio.wait_for(session.generate_reply(), WAIT))
        check("livekit: a tool call", [c.name for c in calls] == ["get_time"], (calls, errors))
        if calls:
            context = session.chat_ctx.copy()
            context.items.append(llm.FunctionCallOutput(call_id=calls[0].call_id, name="get_time", output="10:30", is_error=False))
            await session.update_chat_ctx(context)
            text, samples, _ = await heard(await asyncio.wait_for(session.generate_reply(), WAIT))
            check("livekit: its output is answered", text and samples, (text, samples, errors))
        await tell(session, "tell me a story")
        generation = await asyncio.wait_for(session.generate_reply(), WAIT)
        message = await anext(aiter(generation.message_stream))
        await anext(aiter(message.audio_stream))
        session.interrupt()
        session.truncate(message_id=message.message_id, modalities=["audio"], audio_end_ms=50)
        await tell(session, PARIS)
        text, _, _ = await heard(await asyncio.wait_for(session.generate_reply(), WAIT))
        check("livekit: goes on behind an interruption", "paris" in text.lower() and not errors, (text, errors))
        await session.aclose()
        # A client that renews its connection brings its history along.
        model = RealtimeModel(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", model="parlando", http_session=http, max_session_duration=2)
        session, renewed = model.session(), asyncio.Event()
        session.on("error", errors.append)
        session.on("session_reconnected", lambda _: renewed.set())
        await tell(session, "my name is anna")
        await heard(await asyncio.wait_for(session.generate_reply(), WAIT))
        await asyncio.wait_for(renewed.wait(), WAIT)
        await tell(session, PARIS)
        text, _, _ = await heard(await asyncio.wait_for(session.generate_reply(), WAIT))
        check("livekit: goes on behind a reconnect", "paris" in text.lower() and not errors, (text, errors))
        await session.aclose()


# ------------------------------------------------------------------------------------------------ pipecat

async def pipecat(port):
    from loguru import logger
    logger.remove()
    from pipecat.frames.frames import EndFrame, ErrorFrame, InputAudioRawFrame, InterruptionFrame, LLMFullResponseEndFrame, LLMRunFrame, TTSAudioRawFrame, TTSTextFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import WorkerRunner
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

    called = []

    async def get_weather(params):
        called.append(params.arguments)
        await params.result_callback({"weather": "sunny"})

    class Ear(FrameProcessor):
        def __init__(self):
            super().__init__()
            self.text, self.bytes, self.errors, self.ends = "", 0, [], asyncio.Queue()

        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, TTSTextFrame):
                self.text += frame.text
            if isinstance(frame, TTSAudioRawFrame):
                self.bytes += len(frame.audio)
            if isinstance(frame, LLMFullResponseEndFrame):
                self.ends.put_nowait((self.text, self.bytes))
                self.text, self.bytes = "", 0
            if isinstance(frame, ErrorFrame):
                self.errors.append(frame.error)
            await self.push_frame(frame, direction)

    async def run(messages, script):
        """One session: what it says first, then the script."""
        ear = Ear()
        service = OpenAIRealtimeLLMService(api_key="none", base_url=f"ws://127.0.0.1:{port}/v1/realtime")
        service.register_function("get_weather", get_weather)
        from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
        context = LLMContext(messages, [FunctionSchema(name="get_weather", description="Tells the weather of a city.", properties={"city": {"type": "string"}}, required=["city"])])
        pair = LLMContextAggregatorPair(context)
        worker = PipelineWorker(Pipeline([pair.user(), service, ear, pair.assistant()]), cancel_on_idle_timeout=False, enable_rtvi=False)
        started = asyncio.Event()

        @worker.event_handler("on_pipeline_started")
        async def _(worker, frame):
            started.set()

        async def play():
            try:
                await asyncio.wait_for(started.wait(), WAIT)
                await script(worker, ear)
            finally:
                await worker.queue_frame(EndFrame())

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), play())

    async def end(ear):
        return await asyncio.wait_for(ear.ends.get(), WAIT)

    async def speak(worker, sound):
        for at in range(0, len(sound), 960):
            await worker.queue_frame(InputAudioRawFrame(audio=sound[at:at + 960], sample_rate=24000, num_channels=1))

    async def conversation(worker, ear):
        await worker.queue_frame(LLMRunFrame())
        text, sound = await end(ear)
        check("pipecat: a typed turn", "paris" in text.lower() and sound > 24000, (text, sound, ear.errors))
        await speak(worker, question("capital_of_france") + silence(2))
        text, sound = await end(ear)
        check("pipecat: a spoken turn", "paris" in text.lower() and sound > 24000, (text, sound, ear.errors))
        # A voice over the sound that is still being played.
        await worker.queue_frame(InterruptionFrame())
        await speak(worker, question("weather_in_paris") + silence(2))
        await end(ear)
        text, sound = await end(ear)
        check("pipecat: a tool call", called, (text, ear.errors))
        check("pipecat: nothing went wrong", not ear.errors, ear.errors)

    await run([{"role": "user", "content": PARIS}], conversation)

    async def again(worker, ear):
        await worker.queue_frame(LLMRunFrame())
        text, sound = await end(ear)
        check("pipecat: a second session", "paris" in text.lower() and sound > 24000, (text, sound, ear.errors))

    await run([{"role": "user", "content": PARIS}], again)


CLIENTS = {"openai": openai_raw, "agents": agents, "livekit": livekit, "pipecat": pipecat}
NEEDS = {"openai": "openai", "agents": "agents", "pipecat": "pipecat", "livekit": "livekit.agents"}


def is_installed(name):
    try:
        return importlib.util.find_spec(NEEDS[name]) is not None
    except ModuleNotFoundError:
        return False


wanted = [name for name in CLIENTS if is_installed(name) and (len(sys.argv) < 4 or name in sys.argv[3:])]
if not wanted:
    print("skipped: no client is installed")
    sys.exit(77)
engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", ":memory:")
for name in wanted:
    try:
        asyncio.run(CLIENTS[name](engine.port))
    except BaseException:  # noqa: BLE001
        check(f"{name} runs to its end", False, traceback.format_exc(limit=-4))
    print(f"{name}: done")
check("the engine ends cleanly", engine.stop() == 0)
finish()
