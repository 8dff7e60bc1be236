// Voice studio: text to speech on a conversation of its own, played while it is made; and voices made from a recording.
import { Clone } from "./clone.js";
import { protocols } from "./key.js";
import { Speaker } from "./speaker.js";
import { kept, label, make, say, t } from "./texts.js";
import { KNOWN, STYLES } from "./voices.js";
import { save, stamp, wav } from "./wav.js";

const $ = (id) => document.getElementById(id);
const PEAKS_PER_SECOND = 50, SECONDS_MAX = 600, NO_SOUND_MS = 60000;
const TRIES_MAX = 3, RETRY_MS_MAX = 2000;
const SAMPLES = ["today in paris it is sunny, twenty degrees.", "seven plus nine is sixteen.", "la la la, this is my little song."];

/// Chosen tags as what the engine is told. One is a style, for all that is said; several stand in front of the text, in their order.
export function styled(tags, text) {
  return tags.length > 1 ? { style: tags[0], text: tags.map((tag) => `(${tag})`).join("") + text } : { style: tags[0] ?? "", text };
}

export class Studio {
  /// @param notice  (text) => shows what went wrong
  constructor(notice) {
    this.parts = [];
    this.samples = 0;
    this.rate = 22050;
    this.peaks = [];
    this.speaker = new Speaker(() => this.show());
    this.clone = new Clone(notice);
    this.#styles();
    this.#listen();
    this.show();
  }

  // ---------------------------------------------------------------------------------------------- choices

  #styles() {
    for (const [group, tags] of Object.entries(STYLES)) {
      const legend = make("legend"), set = make("fieldset", "styles", legend);
      say(legend, group);
      for (const tag of ["", ...tags]) {
        const input = make("input"), name = make("span"), id = `style-${group}-${tag || "plain"}`;
        Object.assign(input, { type: "radio", name: `style-${group}`, value: tag, id, checked: tag === "" });
        say(name, tag ? `tag.${tag}` : `plain${group[0].toUpperCase()}${group.slice(1)}`);
        const chip = make("label", "chip choice", input, name);
        if (tag && !KNOWN.has(tag)) chip.dataset.official = "1";
        set.append(chip);
      }
      $("styles").append(set);
    }
    for (const text of SAMPLES) {
      const button = make("button", "chip", text);
      button.type = "button";
      button.addEventListener("click", () => { $("say").value = text; this.show(); });
      $("say-samples").append(button);
    }
    $("all-tags").checked = kept.get("allTags", false);
    this.#offer();
  }

  /// What the model that is loaded does not know cannot be chosen; it says why.
  #offer() {
    const all = $("all-tags").checked;
    for (const chip of document.querySelectorAll("[data-official]")) {
      const input = chip.querySelector("input");
      input.disabled = !all;
      if (!all && input.checked) chip.parentElement.querySelector("input").checked = true;
      all ? chip.removeAttribute("title") : label(chip, "official", "tip");
      if (all) delete chip.dataset.tip;
    }
    $("official-note").hidden = all;
  }

  get tags() {
    const chosen = (group) => document.querySelector(`input[name="style-${group}"]:checked`)?.value;
    return Object.keys(STYLES).map(chosen).filter(Boolean);
  }

  // ---------------------------------------------------------------------------------------------- speaking

  speak() {
    const said = $("say").value.trim();
    if (!said) return $("say").focus();
    this.cancel();
    this.parts = [], this.peaks = [], this.samples = 0, this.first = null, this.problem = null;
    const { style, text } = styled(this.tags, said), begun = performance.now();
    const socket = this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/dialogue`, protocols());
    socket.binaryType = "arraybuffer";
    const speaker = $("studio-voice").value, speed = Number($("speed").value), volume = Number($("volume").value);
    const open = { type: "open", speak: true, stored: false, speed, volume, ...(speaker && { speaker }), ...(style && { style }) };
    const again = () => { if (this.socket === socket && socket.readyState === 1) socket.send(JSON.stringify(open)); };
    this.open = { tries: TRIES_MAX, again };
    socket.onopen = again;
    socket.onclose = () => { if (this.socket === socket) this.#end(t("lost")); };
    socket.onmessage = ({ data }) => {
      if (this.socket !== socket) return;
      if (typeof data !== "string") return this.#sound(new Int16Array(data), begun);
      let event = { type: "error", message: t("badJson") };
      try { event = JSON.parse(data); } catch { /* told as it stands */ }
      this.#event(event, text);
    };
    this.timer = setTimeout(() => { if (this.socket === socket && this.samples === 0) this.#end(t("lost")); }, NO_SOUND_MS);
    this.show();
  }

  #event(e, text) {
    if (e.type === "error" && e.retry_ms && this.open && this.open.tries-- > 0) {
      setTimeout(this.open.again, Math.min(e.retry_ms, RETRY_MS_MAX));  // nothing takes it at this moment
      return;
    }
    if (e.type === "opened") {
      this.open = null;
      this.rate = e.rate;
      this.speaker.start(e.rate);
      this.speaker.wake();
      this.socket.send(JSON.stringify({ type: "utter", text }));
    }
    if (e.type === "turn") this.#end();
    if (e.type === "error") this.#end(e.message);
    if (e.type === "cancelled") this.#end();
  }

  #sound(pcm, begun) {
    this.first ??= performance.now() - begun;
    if (this.samples + pcm.length > SECONDS_MAX * this.rate) return this.#end();
    this.parts.push(pcm);
    this.#peaksOf(pcm);
    this.samples += pcm.length;
    this.speaker.play(pcm, "studio");
    this.show();
  }

  #peaksOf(pcm) {
    const step = this.rate / PEAKS_PER_SECOND;
    for (let i = 0; i < pcm.length; ++i) {
      const at = Math.floor((this.samples + i) / step);
      this.peaks[at] = Math.max(this.peaks[at] ?? 0, Math.abs(pcm[i]) / 32768);
    }
  }

  #end(problem) {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    this.problem = problem ?? this.problem;
    socket?.close();
    this.show();
  }

  cancel() {
    if (this.socket) this.#end();
    this.speaker.stop();
    this.show();
  }

  toggle() {
    if (this.speaker.held) this.speaker.release();
    else if (this.speaker.active) this.speaker.hold();
    else { this.speaker.wake(); for (const part of this.parts) this.speaker.play(part, "studio"); }
    this.show();
  }

  // ---------------------------------------------------------------------------------------------- what is shown

  get seconds() { return this.samples / this.rate; }

  show() {
    const making = Boolean(this.socket);
    $("speak").disabled = $("say").value.trim() === "" && !making;
    say($("speak-label"), making ? "stopSpeaking" : "speak");
    $("speak").classList.toggle("on", making);
    $("studio-play").disabled = this.parts.length === 0;
    const playing = this.speaker.active && !this.speaker.held;
    say($("studio-play-label"), playing ? "pause" : "play");
    $("studio-play").querySelector("use").setAttribute("href", playing ? "#i-pause" : "#i-play");
    $("studio-save").disabled = this.parts.length === 0 || making;
    const status = $("studio-state"), s = this.seconds.toFixed(1);
    status.classList.toggle("bad", Boolean(this.problem) && !making);
    if (making) say(status, "making", { s });
    else if (this.problem) { delete status.dataset.text; status.textContent = this.problem; }
    else if (this.samples > 0) say(status, "made", { s, ms: this.first.toFixed(0) });
    else say(status, "nothingYet");
    for (const slider of ["speed", "volume"]) say($(`${slider}-value`), "times", { n: Number($(slider).value).toFixed(2) });
    if (!this.drawing) this.#draw();
  }

  /// The waveform with what has been heard of it; draws on while something moves.
  #draw() {
    const canvas = $("waveform"), scale = Math.min(3, devicePixelRatio || 1), width = canvas.clientWidth, height = canvas.clientHeight;
    this.drawing = false;
    if (width === 0) return;
    if (canvas.width !== Math.round(width * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const g = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, width, height);
    const bars = Math.floor(width / 5), room = Math.max(this.peaks.length, PEAKS_PER_SECOND * 3);
    const loudest = this.peaks.reduce((most, peak) => Math.max(most, peak), 0.3);
    const heard = this.samples > 0 ? (this.seconds - this.speaker.ahead("studio")) * PEAKS_PER_SECOND : 0;
    for (let i = 0; i < bars; ++i) {
      const from = Math.floor((i / bars) * room), to = Math.max(from + 1, Math.floor(((i + 1) / bars) * room));
      let peak = 0;
      for (let p = from; p < to; ++p) peak = Math.max(peak, this.peaks[p] ?? 0);
      const h = Math.max(2, (peak / loudest) * (height - 8));
      g.fillStyle = from >= this.peaks.length ? colour("line") : from <= heard ? colour("accent") : colour("accent-soft");
      g.beginPath();
      g.roundRect(i * 5 + 1, (height - h) / 2, 3, h, 1.5);
      g.fill();
    }
    if (!this.socket && !this.speaker.active) return;
    this.drawing = true;
    requestAnimationFrame(() => this.#draw());
  }

  #listen() {
    $("speak").addEventListener("click", () => (this.socket ? this.cancel() : this.speak()));
    $("say").addEventListener("input", () => this.show());
    $("say").addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) this.speak(); });
    $("studio-play").addEventListener("click", () => this.toggle());
    $("studio-save").addEventListener("click", () => save(wav(this.parts, this.rate), `parlando-speech-${stamp()}.wav`));
    $("all-tags").addEventListener("change", (e) => { kept.set("allTags", e.target.checked); this.#offer(); });
    for (const id of ["speed", "volume"]) $(id).addEventListener("input", () => this.show());
    new ResizeObserver(() => { if (!this.drawing) this.#draw(); }).observe($("waveform"));
  }
}
