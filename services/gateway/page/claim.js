// What has come of the turn under way: what `resume` claims, so that nothing of it is told twice and nothing is missing.
const bytes = (text) => new TextEncoder().encode(text).length;

export class Claim {
  /// @param turn  the number of the turn that comes next
  constructor(turn) { this.#begin(turn); }

  get fields() { return { ...this.had }; }

  /// The engine says what is under way behind a resume; what was claimed of another turn counts no more.
  resumed(turn) { if (turn !== this.had.turn) this.#begin(turn ?? this.had.turn); }

  sound(samples) { this.had.samples += samples; }

  event(e) {
    if (e.type === "text") {
      this.#reach(e.turn);
      if (e.kind === "tool_call") ++this.had.tool_calls;
      else this.had[e.kind === "text" ? "reply_bytes" : "transcript_bytes"] += bytes(e.text);
    } else if (e.type === "turn") {
      this.#begin(e.remembered === false ? e.turn : e.turn + 1);  // the number of one that is not kept is used again
    } else if ((e.type === "cancelled" || e.type === "error") && e.turn && e.turn >= this.had.turn) {
      this.#begin(e.turn);
    }
  }

  /// Numbers may be passed over (items that are stored on their own), and come again when a turn was lost with its controller.
  #reach(turn) { if (turn && turn !== this.had.turn) this.#begin(turn); }
  #begin(turn) { this.had = { turn, samples: 0, transcript_bytes: 0, reply_bytes: 0, tool_calls: 0 }; }
}
