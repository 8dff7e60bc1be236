// The words under the orb. What is seen moves with the sound; screen readers hear of whole sentences only.
const ENDS = ["。", "！", "？", ". ", "! ", "? "], LINES_MAX = 8;

/// Where the words that have been heard end; whole words only, so that none changes its colour in the middle.
/// @param part  of the sound, 0…1
export function heardUntil(text, part) {
  let at = Math.round(text.length * part);
  while (at > 0 && at < text.length && /\S/.test(text[at])) ++at;
  return at;
}

export class Captions {
  constructor({ box, user, answer, live }) {
    Object.assign(this, { box, user, answer, live });
    this.turn = null;
    this.said = { user: "", answer: 0 };
  }

  /// @param part  how much of the answer has been heard, 0…1
  show(turn, part) {
    if (turn !== this.turn) {
      this.turn = turn;
      this.said = { user: "", answer: 0 };
      this.box.hidden = !turn;
    }
    if (!turn) return;
    if (this.user.textContent !== turn.user) this.user.textContent = turn.user;
    this.#answer(turn, part);
    this.#speak(turn);
  }

  #answer(turn, part) {
    const text = turn.heard ?? turn.words;
    const at = turn.cut ? text.length : heardUntil(text, part);
    const key = `${at}|${text}|${turn.cut}`;
    if (key === this.key) return;
    this.key = key;
    const heard = document.createElement("span"), ahead = document.createElement("span");
    heard.textContent = text.slice(0, at) + (turn.cut && text ? " —" : "");
    ahead.textContent = text.slice(at);
    ahead.className = "ahead";
    this.answer.replaceChildren(heard, ahead);
    // The words that are being said stay in sight.
    const bottom = heard.offsetTop + heard.offsetHeight - this.answer.offsetTop;
    this.answer.scrollTop = Math.max(0, bottom - this.answer.clientHeight * 0.75);
  }

  #speak(turn) {
    const understood = turn.user !== "" && (turn.words !== "" || !turn.isOpen);
    if (turn.kind !== "typed" && understood && turn.user !== this.said.user) this.#tell((this.said.user = turn.user));
    const rest = turn.words.slice(this.said.answer);
    const end = turn.isOpen ? Math.max(...ENDS.map((mark) => rest.lastIndexOf(mark))) + 1 : rest.length;
    if (end <= 0) return;
    this.#tell(rest.slice(0, end).trim());
    this.said.answer += end;
  }

  #tell(text) {
    const line = document.createElement("p");
    line.textContent = text;
    this.live.append(line);
    while (this.live.childElementCount > LINES_MAX) this.live.firstChild.remove();
  }
}
