// One turn: what is known of it, and its card in the conversation.
import { isTag, label, make, say } from "./texts.js";
import { spans, strip, waterfall } from "./waterfall.js";

/// What of an answer is words: a tag of a style in front of it is none. One that is not complete yet is not shown.
export function spokenPart(text) {
  const tag = text.match(/^[（(]([^()（）]*)(?:[)）]|$)/);
  return tag && (isTag(tag[1]) || tag[0] === text) ? { tag: tag[1], words: text.slice(tag[0].length) } : { tag: "", words: text };
}

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/// Name and value pairs of an object, or the value as it is.
function fields(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [make("dd", "", plain(value ?? ""))];
  return Object.entries(value).flatMap(([k, v]) => [make("dt", "", k), make("dd", "", plain(v))]);
}

export function toolCard(call) {
  const card = make("div", "tool"), name = make("span", "tool-name", call.name ?? "?"), kind = make("span", "tool-kind");
  say(kind, "tool");
  card.append(make("div", "tool-head", kind, name));
  for (const [key, value] of [["arguments", call.arguments], ["result", call.result]]) {
    if (key === "arguments" && (value === undefined || Object.keys(value ?? {}).length === 0)) continue;
    const title = make("span", "tool-part");
    say(title, key);
    const list = make("dl", key);
    if (value === undefined) { const dd = make("dd"); say(dd, "running"); list.append(dd); } else list.append(...fields(value));
    card.append(title, list);
  }
  return card;
}

export class Turn {
  /// @param kind  spoken, typed or file   @param replay  called with the turn
  constructor(kind, replay) {
    this.kind = kind;
    this.replay = replay;
    this.number = null;     // until the server names it
    this.state = "open";    // done, failed, cancelled
    this.user = "";
    this.assistant = "";
    this.heard = null;      // of an interrupted answer
    this.cut = null;        // interrupted, stopped
    this.calls = [];
    this.parts = [];        // of its sound
    this.samples = 0;
    this.stages = {};
    this.zero = null;       // end of the user's speech, ms on the page's clock
    this.page = {};
    this.#build();
  }

  #build() {
    const row = (who) => {
      const name = make("span", "who"), words = make("p", "words");
      say(name, who);
      const out = make("div", `row ${who}`, name, words);
      out.hidden = true;
      return { out, words };
    };
    const user = row("you"), answer = row("assistant");
    this.userRow = user.out, this.userWords = user.words, this.answerRow = answer.out, this.answerWords = answer.words;
    this.tools = make("div", "tools");
    this.foot = make("div", "foot");
    this.badges = make("div", "badges");
    this.element = make("li", "turn", this.userRow, this.tools, this.answerRow, this.badges, this.foot);
  }

  get isOpen() { return this.state === "open"; }

  setUser(text) {
    this.user = text;
    this.userWords.textContent = text;
    // Somebody is speaking: what they say is not known yet.
    const pending = text === "" && this.isOpen && this.kind !== "typed";
    this.userRow.classList.toggle("pending", pending);
    this.userRow.hidden = text === "" && !pending;
  }

  setAnswer(text) {
    this.assistant = text;
    this.answerWords.textContent = this.words;
    this.answerRow.hidden = this.words === "";
  }

  get words() { return spokenPart(this.assistant).words; }

  call(call) {
    const known = this.calls.findIndex((c) => call.id !== undefined && c.id === call.id);
    if (known < 0) this.calls.push(call);
    else this.calls[known] = call;
    this.tools.replaceChildren(...this.calls.map(toolCard));
  }

  mark(name, at) {
    if (this.zero !== null && this.page[name] === undefined) this.page[name] = Math.max(0, at - this.zero);
  }

  /// @param cut  interrupted or stopped   @param heard  what of the text was heard; left out: unknown
  cutOff(cut, heard) {
    this.cut = cut;
    this.element.dataset.interrupted = "1";
    if (heard !== undefined) {
      const words = this.words, begin = spokenPart(heard).words;
      this.heard = begin;
      this.answerWords.replaceChildren(begin, make("span", "unheard", words.startsWith(begin) ? words.slice(begin.length) : ""));
      this.answerRow.hidden = words === "" && begin === "";
    }
    this.#draw();
  }

  finish(event) {
    this.state = "done";
    this.stages = event.stages ?? {};
    this.degraded = Boolean(event.degraded);
    if (!this.cut) {
      if (typeof event.user === "string" && event.user) this.setUser(event.user);
      if (typeof event.assistant === "string") this.setAnswer(event.assistant);
    }
    this.element.dataset.turn = event.turn;
    this.element.dataset.done = "1";
    this.element.dataset.audio = event.audio_seconds ?? 0;
    this.#draw();
  }

  end(state) {
    this.state = state;
    this.element.dataset.done = "1";
    this.#draw();
  }

  fail(message) {
    this.element.querySelector(".problem")?.remove();
    this.element.insertBefore(make("p", "problem", message), this.badges);
    this.end("failed");
  }

  forget() {
    this.element.dataset.replaced = "1";
    this.#draw();
  }

  dropSound() {
    this.parts = [];
    this.#draw();
  }

  #draw() {
    if (this.isOpen) return;
    if (this.user === "") this.userRow.hidden = true;
    const open = this.foot.querySelector("details")?.open ?? Turn.opened;
    const { tag } = spokenPart(this.assistant), state = this.cut ?? (this.state !== "done" && this.state);
    const keys = [isTag(tag) && `tag.${tag}`, this.element.dataset.replaced && "replaced", this.degraded && "degraded", state];
    this.badges.replaceChildren(...keys.filter(Boolean).map((key) => {
      const badge = make("span", "badge");
      say(badge, key);
      return badge;
    }));
    const rows = spans(this.stages, this.page);
    this.foot.replaceChildren(...(rows.length > 0 ? [this.#latency(rows, open)] : []), ...(this.parts.length > 0 ? [this.#replay()] : []));
  }

  #replay() {
    const button = make("button", "quiet icon replay", icon("play"));
    button.type = "button";
    for (const attribute of ["label", "tip"]) label(button, "replay", attribute);
    button.addEventListener("click", () => this.replay(this));
    return button;
  }

  #latency(rows, open) {
    const sound = rows.find((r) => r.key === "played") ?? rows.find((r) => r.key === "firstAudio");
    const words = make("span"), out = make("details", "latency", make("summary", "", words, strip(rows)));
    sound ? say(words, "latency", { time: `${(sound.to / 1000).toFixed(2)} s` }) : say(words, "latencyNone");
    out.open = open;
    out.append(waterfall(rows));
    out.addEventListener("toggle", () => { Turn.opened = out.open; });
    return out;
  }

  /// For the download.
  record() {
    const { number, kind, state, user, assistant, heard, cut, calls, stages, samples, page } = this;
    const here = { first_sound_received_ms: page.received, first_sound_played_ms: page.played };
    const replaced = Boolean(this.element.dataset.replaced);
    return { turn: number, kind, state, user, assistant, heard, cut, replaced, tool_calls: calls, stages, page: here, audio_samples: samples };
  }
}

Turn.opened = matchMedia("(min-width: 60rem)").matches;

/// A picture of the sprite in index.html.
export function icon(name) {
  const ns = "http://www.w3.org/2000/svg", out = document.createElementNS(ns, "svg"), use = document.createElementNS(ns, "use");
  out.setAttribute("class", "i");
  out.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  out.append(use);
  return out;
}
