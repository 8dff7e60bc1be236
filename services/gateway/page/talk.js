// The conversation: what the user does, what the server tells, and what of both is shown.
import { Captions, heardUntil } from "./captions.js";
import { Dialogue, RATE } from "./dialogue.js";
import { Microphone } from "./microphone.js";
import { Speaker } from "./speaker.js";
import { kept, label, make, say, t } from "./texts.js";
import { Turn } from "./turn.js";
import { decode, save, stamp, toPcm, wav } from "./wav.js";

const $ = (id) => document.getElementById(id);
const TURNS_MAX = 200, KEPT_SECONDS_MAX = 600, FILE_BYTES_MAX = 32 << 20, FILE_MINUTES_MAX = 5, PAUSE_S = 0.4;
const CHARACTERS_PER_SECOND = 15;
const TAKES_SPACE = "input, textarea, select, button, summary, a, label";

/// Settings of a conversation as `open` and `configure` take them.
export function settings() {
  const chosen = kept.get("settings", {});
  return { speak: true, system: chosen.system ?? "", speaker: chosen.speaker ?? "", detection: { type: chosen.detection ?? "silence" } };
}

export class Talk {
  /// @param notice  (text) => shows what went wrong outside of a turn
  constructor(notice) {
    this.notice = notice;
    this.turns = [];
    this.speech = null;       // {ended}: what the detector says of the user's voice
    this.microphone = null;   // hands-free
    this.holding = null;      // while the button is held
    this.sending = false;     // a file
    this.speaker = new Speaker(() => this.show());
    this.captions = new Captions({ box: $("captions"), user: $("caption-user"), answer: $("caption-answer"), live: $("live") });
    this.dialogue = new Dialogue(() => this.#openFields(), {
      opened: (e) => this.#opened(e), event: (e) => this.#event(e), sound: (pcm) => this.#sound(pcm), lost: (over) => this.#lost(over),
      refused: () => dispatchEvent(new Event("keyneeded")),
    });
    this.#listen();
    this.show();
  }

  /// Defaults are left to the engine.
  #openFields() {
    const { system, speaker, detection, speak } = settings();
    return { speak, ...(system && { system }), ...(speaker && { speaker }), ...(detection.type !== "silence" && { detection }) };
  }

  // ---------------------------------------------------------------------------------------------- turns

  get last() { return this.turns.at(-1); }
  /// Of an answer that is under way or being heard.
  get answering() {
    const speaks = (turn) => this.speaker.ahead(turn) > 0 || (turn.isOpen && (turn.assistant !== "" || turn.samples > 0));
    return this.turns.findLast((turn) => turn.state !== "failed" && !turn.cut && speaks(turn));
  }
  get busy() { return this.turns.some((turn) => turn.isOpen); }

  #begin(kind, text = "") {
    const turn = new Turn(kind, (which) => this.#replay(which));
    turn.setUser(text);
    this.turns.push(turn);
    $("turns").prepend(turn.element);
    while (this.turns.length > TURNS_MAX) this.turns.shift().element.remove();
    document.body.dataset.conversation = "1";
    return turn;
  }

  /// The turn of a number: known, or the oldest one that has none yet, or one that began with somebody's voice.
  #turnOf(number) {
    // The number of a turn that has failed may be another one's.
    const open = this.turns.filter((turn) => turn.isOpen);
    const known = open.find((turn) => turn.number === number) ?? open.find((turn) => turn.number === null);
    const turn = known ?? this.#begin("spoken");
    turn.number ??= number;
    if (!known && this.speech?.ended) turn.zero = this.speech.ended;
    return turn;
  }

  #remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    turn.element.remove();
    if (this.turns.length === 0) delete document.body.dataset.conversation;
  }

  // ---------------------------------------------------------------------------------------------- what is told

  #opened(e) {
    this.speaker.start(e.rate);
    if (!e.resumed) {
      // What was under way belongs to a session that is over.
      for (const turn of this.turns.filter((turn) => turn.isOpen)) turn.fail(t("lost"));
      if (this.turns.some((turn) => turn.number !== null)) this.notice(t("restarted"));
      this.turns.forEach((turn) => { turn.number = null; });
      this.speech = null;
    } else if (e.turn === undefined) {
      for (const turn of this.turns.filter((turn) => turn.isOpen)) turn.fail(t("lost"));
    } else if (this.turns.some((turn) => turn.isOpen && turn.kind === "spoken") && !this.microphone && !this.holding) {
      this.dialogue.tell({ type: "flush" });  // the first one may have been lost
    }
    this.show();
  }

  #lost(over) {
    if (over) for (const turn of this.turns.filter((turn) => turn.isOpen)) turn.fail(t("lost"));
    this.sending = false;
    this.show();
  }

  #event(e) {
    const handlers = {
      speech_started: () => this.#speechStarted(), speech_ended: () => this.#speechEnded(e), noted: () => this.#noted(e),
      text: () => this.#text(e), turn: () => this.#done(e), cancelled: () => this.#cancelled(e), error: () => this.#error(e),
      hold: () => this.speaker.hold(), release: () => this.speaker.release(), interrupted: () => this.#interrupted(e),
    };
    handlers[e.type]?.();
    this.show();
  }

  #speechStarted() {
    this.speech = { ended: null };
    if (!this.answering && !this.busy) this.#begin("spoken");
  }

  #speechEnded(e) {
    const zero = this.dialogue.timeOf(e.sample);
    this.speech = { ended: zero };
    const turn = this.turns.find((turn) => turn.isOpen && turn.kind !== "typed" && !turn.assistant);
    if (turn) turn.zero = zero;
  }

  #text(e) {
    const turn = this.#turnOf(e.turn);
    if (e.kind === "transcript") turn.setUser(turn.user + e.text);
    if (e.kind === "text" && !turn.cut) turn.setAnswer(turn.assistant + e.text);
    if (e.kind !== "tool_call") return;
    let call = null;
    try { call = JSON.parse(e.text); } catch { /* shown as it is */ }
    turn.call(call && typeof call === "object" ? call : { name: e.text });
  }

  #noted(e) {
    const turn = this.turns.find((turn) => turn.isOpen && turn.kind !== "typed" && turn.number === null) ?? this.#begin("spoken");
    turn.setUser(e.text);
    turn.end("noted");
  }

  #done(e) {
    this.#turnOf(e.turn).finish(e);
    this.#limitSound();
  }

  /// Of the answer only what was heard remains. What the user says now is the next turn.
  #interrupted(e) {
    this.speaker.stop();
    this.speaker.release();
    this.turns.findLast((turn) => turn.number === e.turn)?.cutOff("interrupted", e.heard);
    if (this.speech && !this.speech.ended && !this.turns.some((turn) => turn.number === null && turn.isOpen)) this.#begin("spoken");
  }

  #cancelled(e) {
    const open = this.turns.filter((turn) => turn.isOpen);
    (open.find((turn) => turn.number === e.turn) ?? open.find((turn) => turn.cut))?.end("cancelled");
  }

  #error(e) {
    const text = e.code === "bad_json" && !e.message ? t("badJson") : e.message;
    // A message that the server does not take ends no turn.
    const refused = !e.turn && /\b(configure|forget|truncate|cancel)\b/.test(e.message ?? "");
    const all = this.turns.filter((turn) => turn.isOpen);
    const open = (e.turn && all.find((turn) => turn.number === e.turn)) || all.find((turn) => turn.number === null);
    if (refused || !open) {
      if (e.code !== "no_speech") this.notice(text);
    } else if (e.code === "no_speech" && open.kind === "spoken" && this.microphone) {
      this.#remove(open);  // somebody coughed
    } else {
      open.number ??= e.turn ?? null;
      open.fail(text);
    }
    if (e.session_ended) for (const turn of this.turns.filter((turn) => turn.isOpen)) turn.fail(text);
  }

  #sound(pcm) {
    const turn = this.turns.find((turn) => turn.isOpen && turn.number !== null && !turn.cut);
    if (!turn) return;  // of an answer that was stopped here
    if (turn.samples === 0) {
      turn.mark("received", performance.now());
      if (this.speaker.active) this.speaker.stop();  // a replay
    }
    turn.parts.push(pcm);
    turn.samples += pcm.length;
    const at = this.speaker.play(pcm, turn);
    turn.mark("played", at);
  }

  /// Sound is kept for the download and for playing it again, up to a limit; the oldest goes first.
  #limitSound() {
    let samples = this.turns.reduce((n, turn) => n + turn.parts.reduce((m, p) => m + p.length, 0), 0);
    for (const turn of this.turns) {
      if (samples <= KEPT_SECONDS_MAX * this.speaker.rate) return;
      if (turn.parts.length > 0 && !turn.isOpen) { samples -= turn.samples; turn.dropSound(); this.soundDropped = true; }
    }
  }

  // ---------------------------------------------------------------------------------------------- what the user does

  /// The answer ends here: the server learns how much of it was heard.
  stop() {
    const turn = this.answering;
    if (turn) this.#cutOff(turn);
    this.speaker.stop();
    this.show();
  }

  #cutOff(turn) {
    const samples = turn.samples - Math.round(this.speaker.ahead(turn) * this.speaker.rate), named = turn.number !== null;
    if (turn.isOpen) this.dialogue.tell({ type: "cancel", ...(named && { turn: turn.number }) });
    else if (named) this.dialogue.tell({ type: "truncate", turn: turn.number, samples });
    turn.cutOff("stopped", turn.words.slice(0, heardUntil(turn.words, this.#part(turn))));
  }

  ask(text) {
    if (this.answering) this.stop();
    this.speaker.wake();
    const turn = this.#begin("typed", text);
    turn.zero = performance.now();
    this.dialogue.tell({ type: "text", text });
    this.show();
  }

  /// The same words again; the model is not told of the first time.
  again() {
    const turn = this.turns.findLast((turn) => turn.user && !turn.isOpen && !turn.element.dataset.replaced);
    if (!turn || this.busy) return;
    if (this.answering) this.stop();
    if (turn.number !== null && turn.state === "done") this.dialogue.tell({ type: "forget", turn: turn.number, part: "all" });
    turn.forget();
    this.ask(turn.user);
  }

  async sendFile(file) {
    if (this.sending || this.busy) return;
    this.speaker.wake();
    if (this.answering) this.stop();
    this.sending = true;
    this.show();
    let samples = null;
    try {
      if (file.size > FILE_BYTES_MAX) throw new RangeError();
      samples = await decode(await file.arrayBuffer(), RATE);
      if (samples.length > FILE_MINUTES_MAX * 60 * RATE) throw new RangeError();
    } catch (problem) {
      this.notice(problem instanceof RangeError ? t("longFile", { n: FILE_MINUTES_MAX }) : t("badFile"));
    }
    if (samples && this.dialogue.ready) {
      this.#begin("file");
      this.dialogue.hear(samples);
      this.dialogue.tell({ type: "flush" });
    }
    this.sending = false;
    this.show();
  }

  #newMicrophone(onLost) {
    return new Microphone(RATE, (frame) => { if (!this.sending) this.dialogue.hear(toPcm(frame)); }, onLost);
  }

  async #open(microphone) {
    await microphone.open();
    this.show();
  }

  /// When somebody speaks over an open microphone, and whether an answer is interrupted, is the engine's to say.
  async setMicrophone(on) {
    this.microphone?.close();
    this.microphone = null;
    if (on) {
      this.speaker.wake();
      const mine = this.microphone = this.#newMicrophone(() => {
        this.setMicrophone(false);
        this.notice(t("micLost"));
      });
      try { await this.#open(mine); } catch (problem) {
        if (this.microphone === mine) this.microphone = null;
        this.notice(problem.message);
      }
    } else if (this.speech && !this.speech.ended) {
      this.dialogue.tell({ type: "flush" });
    }
    this.#keepAwake();
    this.show();
  }

  /// A phone whose screen goes dark takes the microphone away.
  async #keepAwake() {
    try {
      if (this.microphone) this.lock ??= await navigator.wakeLock?.request("screen");
      else { await this.lock?.release(); this.lock = null; }
    } catch { this.lock = null; }
  }

  async startTalking() {
    if (this.holding || !this.dialogue.ready || this.sending) return;
    const over = this.answering;
    if (over && settings().detection.type === "none") this.stop();
    if (!over && !this.busy) this.#begin("spoken");
    const mine = this.holding = { microphone: this.microphone ? null : this.#newMicrophone(() => this.stopTalking()) };
    this.show();
    if (!mine.microphone) return;
    if (!this.speaker.active) this.speaker.wake();
    try { await this.#open(mine.microphone); } catch (problem) {
      if (this.holding === mine) this.holding = null;
      const turn = this.turns.find((turn) => turn.isOpen && turn.number === null && !turn.user);
      if (turn) this.#remove(turn);
      this.notice(problem.message);
      this.show();
    }
  }

  stopTalking() {
    if (!this.holding) return;
    this.holding.microphone?.close();
    this.holding = null;
    this.dialogue.tell({ type: "flush" });
    this.show();
  }

  /// A new session: nothing of this one is told to the model any more.
  clear() {
    this.speaker.stop();
    this.turns.forEach((turn) => turn.element.remove());
    this.turns = [];
    this.speech = null;
    this.soundDropped = false;
    delete document.body.dataset.conversation;
    this.dialogue.restart();
    $("text").focus();
    this.show();
  }

  configure() {
    this.dialogue.tell({ type: "configure", ...settings() });
    this.show();
  }

  #replay(turn) {
    if (this.busy) return;
    this.speaker.stop();
    this.speaker.wake();
    for (const part of turn.parts) this.speaker.play(part, "replay");
    this.show();
  }

  saveText() {
    const turns = this.turns.map((turn) => turn.record()), saved = new Date().toISOString();
    const conversation = { session: this.dialogue.session?.id, saved, rate: this.speaker.rate, settings: settings(), turns };
    save(new Blob([JSON.stringify(conversation, null, 2)], { type: "application/json" }), `parlando-${stamp()}.json`);
  }

  saveSound() {
    const rate = this.speaker.rate, pause = new Int16Array(PAUSE_S * rate);
    const parts = this.turns.filter((turn) => turn.parts.length > 0).flatMap((turn) => [...turn.parts, pause]);
    if (this.soundDropped) this.notice(t("soundDropped"));
    save(wav(parts, rate), `parlando-${stamp()}.wav`);
  }

  // ---------------------------------------------------------------------------------------------- what is shown

  get mode() {
    if (!this.dialogue?.ready) return this.dialogue?.session || this.turns.length > 0 ? "offline" : "connecting";
    if (this.sending) return "sending";
    if (this.speaker.held) return "held";
    if (this.holding) return "listening";
    if (this.speaker.active || this.turns.some((turn) => turn.isOpen && turn.samples > 0 && !turn.cut)) return "speaking";
    if (this.speech && !this.speech.ended && this.busy) return "listening";
    if (this.busy) return "thinking";
    return this.microphone ? "waitingForYou" : "ready";
  }

  /// For the orb.
  look() {
    const mode = this.mode;
    this.#followSound();
    return { mode, mic: (this.holding?.microphone ?? this.microphone)?.analyser ?? null, out: this.speaker.analyser ?? null };
  }

  #followSound() {
    const turn = this.answering ?? this.last ?? null;
    this.captions.show(turn, turn ? this.#part(turn) : 0);
  }

  /// How much of an answer has been heard, 0…1. While it is still made its length is a guess from that of its text.
  #part(turn) {
    const seconds = turn.samples / (this.speaker.rate || 1);
    const whole = turn.isOpen ? Math.max(seconds, turn.words.length / CHARACTERS_PER_SECOND) : seconds;
    return whole > 0 ? Math.min(1, (seconds - this.speaker.ahead(turn)) / whole) : turn.isOpen ? 0 : 1;
  }

  show() {
    if (!this.dialogue) return;
    const mode = this.mode, ready = this.dialogue.ready, hold = settings().detection.type === "none";
    document.body.dataset.mode = mode;
    say($("state"), mode);
    say($("hint"), hold ? "hintHold" : "hintMic");
    const microphone = $("microphone");
    microphone.setAttribute("aria-pressed", String(Boolean(this.microphone)));
    label(microphone, this.microphone ? "closeMic" : "openMic");
    microphone.disabled = (!ready && !this.microphone) || hold;
    microphone.hidden = hold;
    if (hold && this.microphone) this.setMicrophone(false);
    $("hold").disabled = !this.holding && (!ready || this.sending || (this.busy && !this.answering && !this.microphone));
    $("hold").classList.toggle("on", Boolean(this.holding));
    $("hold").classList.toggle("primary", hold && !this.holding);
    $("controls").dataset.alone = hold ? "1" : "";
    say($("hold-label"), this.holding ? "holding" : "hold");
    this.#offerStop(Boolean(this.answering) || this.speaker.active);
    $("send").disabled = !ready;
    const free = ready && !this.sending && !this.busy;
    for (const e of [$("file"), ...$("examples").querySelectorAll("button")]) e.disabled = !free;
    $("again").disabled = !free || !this.turns.some((turn) => turn.user && !turn.isOpen);
    $("save-sound").disabled = !this.turns.some((turn) => turn.parts.length > 0);
    $("save-text").disabled = this.turns.length === 0;
    this.#followSound();
  }

  /// What has the focus does not vanish under it.
  #offerStop(on) {
    const stop = $("stop"), focused = document.activeElement === stop;
    stop.hidden = !on;
    if (focused && !on) ($("microphone").hidden ? $("hold") : $("microphone")).focus();
  }

  #listen() {
    $("microphone").addEventListener("click", () => this.setMicrophone(!this.microphone));
    $("stop").addEventListener("click", () => this.stop());
    const hold = $("hold");
    hold.addEventListener("pointerdown", (e) => {
      if (e.button !== 0) return;
      this.toggled = false;
      hold.setPointerCapture(e.pointerId);
      this.startTalking();
    });
    const release = () => { if (!this.toggled) this.stopTalking(); };
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) hold.addEventListener(type, release);
    hold.addEventListener("contextmenu", (e) => e.preventDefault());
    addEventListener("blur", () => this.stopTalking());
    addEventListener("keydown", (e) => this.#key(e, true));
    addEventListener("keyup", (e) => this.#key(e, false));
    $("file").addEventListener("change", (e) => { const f = e.target.files[0]; if (f) this.sendFile(f); e.target.value = ""; });
    $("composer").addEventListener("submit", (e) => {
      e.preventDefault();
      const text = $("text").value.trim();
      if (!text || !this.dialogue.ready) return;
      $("text").value = "";
      this.ask(text);
    });
    $("again").addEventListener("click", () => this.again());
    $("fresh").addEventListener("click", () => this.clear());
    $("save-text").addEventListener("click", () => this.saveText());
    $("save-sound").addEventListener("click", () => this.saveSound());
    addEventListener("pointerdown", () => this.speaker.wake());
  }

  /// The space bar is the button, wherever it means nothing else; Enter on the button begins and ends; Escape stops the answer.
  #key(e, down) {
    const at = document.activeElement, own = at === $("hold");
    if (document.querySelector("dialog[open]") || $("view-talk").hidden) return;
    if (e.code === "Escape" && down && !$("stop").hidden) return this.stop();
    if (e.code === "Enter" && own) {
      e.preventDefault();
      if (!down || e.repeat) return;
      this.toggled = !this.holding;
      return this.holding ? this.stopTalking() : this.startTalking();
    }
    if (e.code !== "Space" || (!own && at?.matches(TAKES_SPACE))) return;
    e.preventDefault();
    if (down && !e.repeat) { this.toggled = false; this.startTalking(); }
    if (!down && !this.toggled) this.stopTalking();
  }
}

/// Questions that come with the engine.
export async function examples(talk) {
  const answer = await fetch("questions/questions.json").catch(() => null);
  if (!answer?.ok) return;
  for (const [file, said] of Object.entries(await answer.json())) {
    const button = make("button", "chip", String(said));
    button.type = "button";
    button.addEventListener("click", async () => {
      const recording = await fetch(`questions/${encodeURIComponent(file)}`).catch(() => null);
      recording?.ok ? talk.sendFile(await recording.blob()) : talk.notice(t("badFile"));
    });
    $("examples").append(button);
  }
  talk.show();
}
