// The page of the gateway: microphone, file or text in; transcript, reply, sound and the turn's timings out.
const $ = (id) => document.getElementById(id);
const RATE = 16000, FRAME = 320;
const LEAD_MS = 400;  // the gateway sends sound no further ahead, so that it can stop
let socket, rate = 22050, ready = false, busy = false, turn = null, context = null;
let recorder = null, microphone = null;  // while the button is held; while the microphone is open

const audio = () => (context ??= new AudioContext());

function state(text) { $("state").textContent = text; }

function enable() {
  const can = ready && !busy;
  for (const e of document.querySelectorAll("button, input")) e.disabled = !can;
  enableTalk();
  $("open").disabled = !ready && !microphone;
  if (can) state("ready");
}

// Who is spoken to may speak.
function enableTalk() { $("talk").disabled = !recorder && !(ready && (!busy || playing.size > 0)); }

// A socket that is lost is not the end: for a minute the session waits for its token, at any gateway.
const RESUME_MS = 60000;
let session = null, lostAt = 0;

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/dialogue`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => (session ? resumeSession() : openSession());
  socket.onclose = () => {
    if (ready) lostAt = performance.now();
    ready = false;
    if (session && performance.now() - lostAt > RESUME_MS) forget();
    if (!session) busy = false;
    enable();
    state("disconnected; trying again…");
    setTimeout(connect, 1000);
  };
  socket.onmessage = ({ data }) => (typeof data === "string" ? event(JSON.parse(data)) : play(new Int16Array(data)));
}

const tell = (message) => socket.readyState === WebSocket.OPEN && socket.send(message);
const openSession = () => tell(JSON.stringify({ type: "open", speak: true, lead_ms: LEAD_MS }));
const resumeSession = () => tell(JSON.stringify({ type: "resume", session: session.id, token: session.token, lead_ms: LEAD_MS, ...session.had }));

// What was got of the turn that has no end yet.
const nothingOf = (turn) => ({ turn, samples: 0, transcript_bytes: 0, reply_bytes: 0, tool_calls: 0 });
const bytes = (text) => new TextEncoder().encode(text).length;

function forget() {
  session = null;
  if (busy && turn) line("error", "the connection was lost", "error");
  busy = false;
}

function opened(e) {
  ready = true;
  context?.resume();
  rate = e.rate;
  session = { id: e.session, token: e.resume_token, had: e.resumed ? session.had : nothingOf(e.turns + 1) };
  if (!e.resumed) return enable();
  if (busy && !recorder && session.had.turn > e.turns) {
    if (e.turn === undefined) busy = false;  // nothing of it has arrived: it may be said again
    else tell(JSON.stringify({ type: "flush" }));  // the first one may have been lost
  }
  enable();
}

function line(who, text = "", kind = "") {
  const p = document.createElement("p");
  p.className = kind;
  const label = document.createElement("span");
  label.className = "who";
  label.textContent = who;
  const value = document.createElement("span");
  value.textContent = text;
  p.append(label, value);
  turn.append(p);
  return value;
}

function begin() {
  busy = true;
  turn = document.createElement("li");
  turn.samples = 0;
  $("turns").prepend(turn);
  enable();
}

// The turn that is told of: with an open microphone it begins with its first word.
const current = () => (turn && !turn.dataset.done ? turn : (begin(), turn));
// Of a number: those that are over know theirs, the other is the one under way.
const item = (number) => [...$("turns").children].find((li) => li.dataset.turn === String(number)) ?? (turn?.dataset.done ? null : turn);

function event(e) {
  if (e.type === "opened") return opened(e);
  if (e.type === "hold") { context?.suspend(); return state("listening…"); }
  if (e.type === "release") { context?.resume(); return state("speaking…"); }
  if (e.type === "interrupted") return interrupted(e);
  if (e.type === "speech_started") return state("listening…");
  if (e.type === "speech_ended") return state("thinking…");
  if (e.type === "error") return failed(e);
  if (e.type === "turn") session.had = nothingOf(e.turn + 1);
  if (e.type === "cancelled") session.had = nothingOf(session.had.turn);
  if (e.type === "text" && e.kind === "tool_call") ++session.had.tool_calls;
  else if (e.type === "text") session.had[e.kind === "text" ? "reply_bytes" : "transcript_bytes"] += bytes(e.text);
  if ((e.type === "text" && e.text) || e.type === "turn") current();
  if (!turn) return;
  if (e.type === "cancelled") { silence(); line("cancelled"); busy = false; return enable(); }
  if (e.type === "text" && e.kind === "transcript") line("you", e.text);
  if (e.type === "text" && e.kind === "tool_call") line("tool", e.text, "tool");
  if (e.type === "text" && e.kind === "text" && !turn.dataset.interrupted) { (turn.reply ??= line("parlando")).textContent += e.text; state("speaking…"); }
  if (e.type === "turn") { timings(e.stages ?? {}); turn.dataset.turn = e.turn; turn.dataset.done = "1"; turn.dataset.audio = turn.samples / rate; busy = false; enable(); }
}

// Of the answer only what was heard remains.
function interrupted(e) {
  silence();
  context?.resume();
  const li = item(e.turn);
  if (!li) return;
  li.dataset.interrupted = "1";
  if (li.reply) li.reply.textContent = `${e.heard} —`;
}

// The turn is over. When the session is, too, another one is opened on the same socket.
function failed(e) {
  if (e.code === "no_speech" && !busy) return;  // a flush that was said twice
  if (e.session_ended || !ready) session = null;
  else session.had = nothingOf(session.had.turn);
  if (busy || !e.session_ended) {
    if (!turn || (microphone && turn.dataset.done)) begin();
    line("error", e.message, "error");
  }
  busy = false;
  ready = ready && !e.session_ended;
  enable();
  if (ready) return;
  state(`${e.message}; trying again…`);
  setTimeout(openSession, e.retry_ms ?? 1000);
}

// Chunks are played back to back; the first one starts a little late so that it starts whole.
const playing = new Set();
let playAt = 0;

function silence() {
  for (const source of playing) source.stop();
  playing.clear();
  playAt = 0;
}

function play(pcm) {
  const c = audio(), buffer = c.createBuffer(1, pcm.length, rate), out = buffer.getChannelData(0);
  for (let i = 0; i < pcm.length; ++i) out[i] = pcm[i] / 32768;
  const source = c.createBufferSource();
  source.buffer = buffer;
  source.connect(c.destination);
  if (playAt < c.currentTime) playAt = c.currentTime + 0.03;
  source.start(playAt);
  playing.add(source);
  source.onended = () => { playing.delete(source); enableTalk(); };
  enableTalk();
  playAt += buffer.duration;
  session.had.samples += pcm.length;
  if (turn) turn.samples += pcm.length;
}

// Marks on one line, milliseconds from the end of speech.
function timings(stages) {
  const names = { tokenizer_ms: "tokens", transcript_ms: "transcript", first_text_ms: "first text", text_ms: "text", first_audio_ms: "first audio", total_ms: "all audio" };
  const marks = Object.entries(names).filter(([k]) => k in stages).map(([k, name]) => [name, stages[k]]);
  const end = Math.max(...marks.map((m) => m[1]), 1), ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", `0 0 700 ${marks.length * 18 + 4}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", marks.map(([n, v]) => `${n} ${v.toFixed(0)} ms`).join(", "));
  marks.forEach(([name, value], i) => {
    const put = (tag, attributes, text) => { const e = document.createElementNS(ns, tag); for (const k in attributes) e.setAttribute(k, attributes[k]); if (text) e.textContent = text; svg.append(e); };
    put("text", { x: 0, y: i * 18 + 13 }, name);
    put("rect", { x: 90, y: i * 18 + 4, width: Math.max(1, (value / end) * 520), height: 10, rx: 2 });
    put("text", { x: 96 + (value / end) * 520, y: i * 18 + 13 }, `${value.toFixed(0)} ms`);
  });
  turn.append(svg);
}

const pcm16 = (samples) => Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767);

async function sendFile(bytes) {
  begin();
  state("sending…");
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  const offline = new OfflineAudioContext(1, Math.ceil(decoded.duration * RATE), RATE), source = offline.createBufferSource();
  source.buffer = decoded;
  source.connect(offline.destination);
  source.start();
  const samples = pcm16((await offline.startRendering()).getChannelData(0));
  for (let at = 0; at < samples.length; at += FRAME * 25) tell(samples.slice(at, at + FRAME * 25));
  tell(JSON.stringify({ type: "flush" }));
}

// What is played here must not be heard by the microphone: the browser takes it out.
const HEAR = { channelCount: 1, echoCancellation: true, noiseSuppression: true };

async function record(r) {
  r.stream = await navigator.mediaDevices.getUserMedia({ audio: HEAR });
  r.context = new AudioContext({ sampleRate: RATE });
  await r.context.audioWorklet.addModule("recorder.js");
  const node = new AudioWorkletNode(r.context, "recorder");
  node.port.onmessage = ({ data }) => { if (!r.stopped && ready) tell(pcm16(data)); };
  r.context.createMediaStreamSource(r.stream).connect(node);
  if (r.stopped) stopRecorder(r);
}

function stopRecorder(r) {
  r.stopped = true;
  r.stream?.getTracks().forEach((t) => t.stop());
  if (r.context && r.context.state !== "closed") r.context.close();
}

const unusable = (problem) => `the microphone cannot be used: ${problem.message}`;

async function startTalking() {
  if ($("talk").disabled || recorder) return;
  if (!busy) begin();  // else it is over an answer, and the engine says what becomes of that
  state("listening…");
  $("talk").classList.add("on");
  recorder = { stopped: false };
  const mine = recorder;
  if (microphone) return;
  try {
    if (playing.size === 0) audio().resume();
    await record(mine);
  } catch (problem) {
    line("error", unusable(problem), "error");
    recorder = null;
    busy = false;
    $("talk").classList.remove("on");
    enable();
  }
}

// An open microphone: when somebody speaks, and whether an answer is interrupted, is the engine's to say.
async function setMicrophone(on) {
  if (microphone) stopRecorder(microphone);
  microphone = on ? { stopped: false } : null;
  if (!on) return;
  const mine = microphone;
  try {
    audio().resume();
    await record(mine);
  } catch (problem) {
    state(unusable(problem));
    stopRecorder(mine);
    if (microphone === mine) microphone = null;
    $("open").checked = false;
  }
}

function stopTalking() {
  if (!recorder) return;
  stopRecorder(recorder);
  recorder = null;
  $("talk").classList.remove("on");
  tell(JSON.stringify({ type: "flush" }));
  state("thinking…");
  enable();
}

$("talk").addEventListener("pointerdown", startTalking);
addEventListener("pointerup", stopTalking);
$("talk").addEventListener("keydown", (e) => { if (e.code === "Space" && !e.repeat) startTalking(); });
$("talk").addEventListener("keyup", (e) => { if (e.code === "Space") stopTalking(); });
$("open").addEventListener("change", (e) => setMicrophone(e.target.checked));
$("file").addEventListener("change", async (e) => { const f = e.target.files[0]; if (f) sendFile(await f.arrayBuffer()); e.target.value = ""; });
$("form").addEventListener("submit", (e) => {
  e.preventDefault();
  const text = $("text").value.trim();
  if (!text || busy) return;
  begin();
  line("you", text);
  audio().resume();
  tell(JSON.stringify({ type: "text", text }));
  $("text").value = "";
  enable();
});
fetch("questions/questions.json").then((r) => (r.ok ? r.json() : {})).then((all) => {
  for (const [file, said] of Object.entries(all)) {
    const b = document.createElement("button");
    b.textContent = `“${said}”`;
    b.addEventListener("click", async () => { audio().resume(); sendFile(await (await fetch(`questions/${file}`)).arrayBuffer()); enable(); });
    $("examples").append(b, " ");
  }
  enable();
});
connect();
