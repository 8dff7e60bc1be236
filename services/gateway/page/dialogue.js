// A conversation on /v1/dialogue. A socket that is lost is not its end: for a minute the session waits for its token, at any gateway.
import { Claim } from "./claim.js";
import { isRefused, protocols } from "./key.js";

export const LEAD_MS = 400;  // the gateway sends sound no further ahead, so that it can stop
export const RATE = 16000;   // of what is said to it
const RESUME_MS = 60000, AGAIN_MS = 1000, PART = 8000;

export class Dialogue {
  /// @param options  () => fields of `open`
  /// @param on  {opened(event), event(event), sound(Int16Array), lost(sessionIsOver), refused()}: the last for want of a key
  constructor(options, on) {
    this.options = options;
    this.on = on;
    this.ready = false;
    this.session = null;
    this.sent = 0;        // samples of this session
    this.sentAt = 0;      // when the last of them left, ms
    this.lostAt = 0;
    this.#connect();
  }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = this.socket = new WebSocket(`${scheme}://${location.host}/v1/dialogue`, protocols());
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => { opened = true; this.session ? this.#resume() : this.#open(); };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      if (this.ready) this.lostAt = performance.now();
      this.ready = false;
      if (this.session && performance.now() - this.lostAt > RESUME_MS) this.session = null;
      this.on.lost(!this.session);
      // A browser does not say why a socket was refused.
      if (!opened) isRefused().then((refused) => { if (refused) this.on.refused?.(); });
      this.timer = setTimeout(() => this.#connect(), AGAIN_MS);
    };
    socket.onmessage = ({ data }) => {
      if (this.socket !== socket) return;
      if (typeof data !== "string") return this.#sound(new Int16Array(data));
      let event = null;
      try { event = JSON.parse(data); } catch { /* told below */ }
      event && typeof event === "object" ? this.#event(event) : this.on.event({ type: "error", code: "bad_json", message: "" });
    };
  }

  #open() { this.#say({ type: "open", lead_ms: LEAD_MS, ...this.options() }); }
  #resume() {
    const { id, token, claim } = this.session;
    this.#say({ type: "resume", session: id, token, lead_ms: LEAD_MS, ...claim.fields });
  }
  #say(message) { if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message)); }

  #event(e) {
    if (e.type === "opened") return this.#opened(e);
    if (e.type === "error") return this.#failed(e);
    this.session?.claim.event(e);
    this.on.event(e);
  }

  #opened(e) {
    this.ready = true;
    if (!e.resumed) this.sent = 0;
    else this.sent = e.input_samples ?? this.sent;
    const claim = e.resumed ? this.session.claim : new Claim(e.turns + 1);
    if (e.resumed) claim.resumed(e.turn);
    this.session = { id: e.session, token: e.resume_token, claim };
    this.on.opened(e);
  }

  #failed(e) {
    // What has the session is silent, and may let it go.
    const waits = !this.ready && this.session && e.code === "unavailable" && performance.now() - this.lostAt <= RESUME_MS;
    if (waits) { this.timer = setTimeout(() => this.#resume(), e.retry_ms ?? AGAIN_MS); return; }
    const over = e.session_ended || !this.ready;
    if (over) this.session = null;
    else this.session.claim.event(e);
    this.ready = !over;
    this.on.event(e);
    if (over) this.timer = setTimeout(() => this.#open(), e.retry_ms ?? AGAIN_MS);
  }

  #sound(pcm) {
    if (!this.session) return;
    this.session.claim.sound(pcm.length);
    this.on.sound(pcm);
  }

  tell(message) { if (this.ready) this.#say(message); }

  /// @param pcm  s16le at RATE
  hear(pcm) {
    if (!this.ready || this.socket.readyState !== WebSocket.OPEN) return;
    for (let at = 0; at < pcm.length; at += PART) this.socket.send(pcm.slice(at, at + PART));
    this.sent += pcm.length;
    this.sentAt = performance.now();
  }

  /// When a sample of what was said was there, on the page's clock, ms.
  timeOf(sample) { return this.sentAt - ((this.sent - sample) / RATE) * 1000; }

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = { readyState: WebSocket.CLOSED };
    this.ready = false;
    this.session = null;
    socket.close();
  }

  /// Another conversation; nothing of the former one is told any more.
  restart() {
    this.close();
    this.#connect();
  }
}
