// A voice from a recording made in the page.
import { headers } from "./key.js";
import { Microphone } from "./microphone.js";
import { say, t } from "./texts.js";
import { askServer, fillVoices, server } from "./voices.js";
import { toPcm, wav } from "./wav.js";

const $ = (id) => document.getElementById(id);
const RATE = 16000, SECONDS_MAX = 30;

export class Clone {
  constructor(notice) {
    this.notice = notice;
    this.parts = [];
    $("clone-record").addEventListener("click", () => (this.microphone ? this.#stop() : this.#record()));
    $("clone").addEventListener("submit", (e) => { e.preventDefault(); this.#create(); });
    $("clone").addEventListener("input", () => this.show());
    this.ask();
  }

  async ask() {
    await askServer();
    for (const select of document.querySelectorAll("select[data-voices]")) fillVoices(select, select.value);
    this.show();
  }

  get seconds() { return this.parts.reduce((n, p) => n + p.length, 0) / RATE; }

  async #record() {
    this.parts = [];
    this.#listenTo(null);
    const mine = this.microphone = new Microphone(RATE, (frame) => this.#frame(frame), () => this.#stop());
    this.show();
    try { await mine.open(); } catch (problem) {
      if (this.microphone === mine) this.microphone = null;
      this.notice(problem.message);
      this.show();
    }
  }

  #frame(frame) {
    this.parts.push(toPcm(frame));
    if (this.seconds >= SECONDS_MAX) return this.#stop();
    this.show();
  }

  #stop() {
    this.microphone?.close();
    this.microphone = null;
    if (this.parts.length > 0) this.#listenTo(wav(this.parts, RATE));
    this.show();
  }

  #listenTo(blob) {
    this.blob = blob;
    const audio = $("clone-audio");
    if (audio.src) URL.revokeObjectURL(audio.src);
    blob ? (audio.src = URL.createObjectURL(blob)) : audio.removeAttribute("src");
    audio.hidden = !blob;
  }

  get complete() { return this.blob && $("clone-name").value.trim() && $("clone-text").value.trim() && $("clone-consent").checked; }

  async #create() {
    if (!this.complete || this.creating) return;
    this.creating = true;
    this.show();
    const name = $("clone-name").value.trim(), form = new FormData();
    form.append("name", name);
    form.append("transcript", $("clone-text").value.trim());
    form.append("consent", t("consent"));
    form.append("file", this.blob, "voice.wav");
    const answer = await fetch("v1/audio/voices", { method: "POST", body: form, headers: headers() }).catch(() => null);
    const body = await answer?.json().catch(() => null);
    this.creating = false;
    if (!answer?.ok) {
      this.notice(body?.error?.message ?? t("lost"));
    } else {
      await this.ask();
      for (const select of document.querySelectorAll("select[data-voices]")) fillVoices(select, body?.id ?? "");
      say($("clone-state"), "created", { name });
    }
    this.show();
  }

  show() {
    $("clone-fields").disabled = !server.canClone;
    $("clone-fields").hidden = !server.canClone;
    $("clone-reason").hidden = server.canClone || server.status === null;
    if (!server.canClone && server.status !== null) say($("clone-reason"), "cloneMissing", { status: server.status });
    say($("clone-record-label"), this.microphone ? "stopRecording" : "record");
    $("clone-record").classList.toggle("on", Boolean(this.microphone));
    $("clone-seconds").hidden = this.parts.length === 0;
    say($("clone-seconds"), "recorded", { s: this.seconds.toFixed(1) });
    $("clone-create").disabled = !this.complete || Boolean(this.creating);
  }
}
