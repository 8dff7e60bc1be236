// The latency picture of a turn: what happened between the end of the user's speech and the first sound.
import { make, say } from "./texts.js";

const NS = "http://www.w3.org/2000/svg", ROW = 22, LABEL = 150, VALUE = 74;

/// @param stages  of the `turn` event, ms from the end of speech   @param page  {received, played}, the same, measured here
/// @return [{key, from, to, after}], `after`: of what goes on behind the first sound
export function spans(stages, page = {}) {
  const ms = (name) => (Number.isFinite(stages[`${name}_ms`]) ? stages[`${name}_ms`] : undefined);
  const out = [];
  const put = (key, from, to, after = false) => {
    if (to !== undefined) out.push({ key, from: Math.max(0, Math.min(from ?? 0, to)), to, after });
  };
  const decided = ms("decision"), ahead = ms("trial");
  // An answer that was thought through in the pause began before the end was decided.
  const begun = ahead > 0 ? Math.max(0, decided - ahead) : decided ?? 0;
  put("decision", 0, decided);
  if (ahead > 0) put("trial", begun, decided);
  put("tokenizer", begun, ms("tokenizer"));
  put("transcript", ms("tokenizer") ?? begun, ms("transcript"));
  put("firstText", ms("transcript") ?? ms("tokenizer") ?? begun, ms("first_text"));
  put("firstAudio", ms("first_text") ?? begun, ms("first_audio"));
  put("received", ms("first_audio"), page.received);
  put("played", page.received, page.played);
  put("text", ms("first_text"), ms("text"), true);
  put("total", ms("first_audio"), ms("total"), true);
  return out;
}

/// @param text  [key, values] of the table
const svg = (tag, attributes, text) => {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text) say(e, ...text);
  return e;
};

/// Waiting for the end of speech, the engine's work, the way to the loudspeaker, or what goes on behind the first sound.
const kind = ({ key, after }) => (after ? "after" : key === "decision" ? "wait" : key === "received" || key === "played" ? "here" : "work");

const rounded = (n) => (n < 10 ? n.toFixed(1) : n.toFixed(0));

function draw(host, rows) {
  const width = host.clientWidth;
  if (width === 0) return;
  const first = Math.max(...rows.filter((r) => !r.after).map((r) => r.to), 1), end = first * 1.12;
  const room = width - LABEL - VALUE, x = (value) => LABEL + (Math.min(value, end) / end) * room;
  const height = rows.length * ROW + 6, picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  picture.append(svg("line", { x1: x(first), x2: x(first), y1: 0, y2: height, class: "mark" }));
  rows.forEach((row, i) => {
    const y = i * ROW, beyond = row.to > end;
    picture.append(svg("text", { x: 0, y: y + 15 }, [row.key]));
    picture.append(svg("rect", { x: LABEL, y: y + 10, width: room, height: 1, class: "rule" }));
    const bar = { x: x(row.from), y: y + 5, width: Math.max(3, x(row.to) - x(row.from)), height: 11, rx: 3 };
    picture.append(svg("rect", { ...bar, class: `bar ${kind(row)}` }));
    const value = [beyond ? "msBeyond" : "ms", { n: rounded(row.to) }];
    picture.append(svg("text", { x: width, y: y + 15, "text-anchor": "end", class: "value" }, value));
  });
  host.querySelector("svg")?.remove();
  host.prepend(picture);
}

function table(rows) {
  const out = make("table", "sr"), head = make("tr");
  out.append(make("caption"), make("thead", "", head), make("tbody"));
  say(out.caption, "latencyTable");
  for (const key of ["stage", "from", "to"]) { const th = make("th"); th.scope = "col"; say(th, key); head.append(th); }
  for (const row of rows) {
    const name = make("th"), line = make("tr", "", name);
    name.scope = "row";
    say(name, row.key);
    for (const value of [row.from, row.to]) { const td = make("td"); say(td, "ms", { n: rounded(value) }); line.append(td); }
    out.tBodies[0].append(line);
  }
  return out;
}

/// A picture that follows the width and the language of the page, and the table behind it.
export function waterfall(rows) {
  const host = make("div", "waterfall", table(rows));
  new ResizeObserver(() => draw(host, rows)).observe(host);
  return host;
}

/// The same on one line, without words.
export function strip(rows) {
  const shown = rows.filter((r) => !r.after), end = Math.max(...shown.map((r) => r.to), 1);
  const picture = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" });
  for (const r of shown) {
    const width = Math.max(0.8, ((r.to - r.from) / end) * 100);
    picture.append(svg("rect", { x: (r.from / end) * 100, y: 0, width, height: 6, class: `bar ${kind(r)}` }));
  }
  return picture;
}
