// Who is speaking: a ring of strokes for the voice that is heard, a sphere with waves for the voice that answers.
const STROKES = 96, BINS = 40, WAVES = 3, QUIET_MS = 45;
const COLOURS = ["user", "accent", "orb", "orb-deep", "orb-light", "line"];
const still = matchMedia("(prefers-reduced-motion: reduce)");

/// A step from a value towards another one, which it reaches.
const towards = (value, target, part) => (Math.abs(target - value) < 0.004 ? target : value + (target - value) * part);

/// Loudness of `BINS` bands, low to high, 0…1.
class Ear {
  constructor() { this.bands = new Float32Array(BINS); this.level = 0; }
  hear(analyser, open) {
    const target = new Float32Array(BINS);
    if (analyser && open) {
      const bins = new Uint8Array(analyser.frequencyBinCount);
      analyser.getByteFrequencyData(bins);
      // Speech lies below 5 kHz; bands widen upwards.
      const most = Math.min(bins.length - 1, Math.floor((5000 / (analyser.context.sampleRate / 2)) * bins.length));
      for (let b = 0; b < BINS; ++b) {
        const bin = (band) => Math.floor(1 + (most - 1) * (band / BINS) ** 1.6);
        const from = bin(b), to = Math.max(from + 1, bin(b + 1));
        for (let i = from; i < to; ++i) target[b] = Math.max(target[b], Math.max(0, bins[i] - 70) / 150);
      }
    }
    let sum = 0;
    for (let b = 0; b < BINS; ++b) {
      this.bands[b] = towards(this.bands[b], target[b], target[b] > this.bands[b] ? 0.5 : 0.14);
      sum += this.bands[b];
    }
    this.level = towards(this.level, Math.min(1, (sum / BINS) * 2.2), 0.35);
  }
  /// @param part  0 low … 1 high   @return the bands around it, smoothly
  at(part) {
    let sum = 0, weight = 0;
    const middle = part * (BINS - 1);
    for (let b = Math.max(0, Math.floor(middle - 3)); b <= Math.min(BINS - 1, middle + 3); ++b) {
      const w = Math.cos(((b - middle) / 4) * (Math.PI / 2)) ** 2;
      sum += w * this.bands[b];
      weight += w;
    }
    return weight > 0 ? sum / weight : 0;
  }
}

export class Orb {
  /// @param look  () => {mode, mic, out}: the mode's name and two analysers or null
  constructor(canvas, look) {
    this.canvas = canvas;
    this.look = look;
    this.user = new Ear();
    this.voice = new Ear();
    this.drawn = 0;
    this.warm = this.busy = this.calm = 0;  // how much of listening, thinking and standing still there is, 0…1
    this.recolour();
    new ResizeObserver(() => this.#resize()).observe(canvas);
    this.#resize();
    requestAnimationFrame((now) => this.#frame(now));
  }

  recolour() {
    const style = getComputedStyle(document.documentElement);
    this.colour = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  #resize() {
    const scale = Math.min(3, devicePixelRatio || 1), size = this.canvas.clientWidth;
    this.canvas.width = this.canvas.height = Math.max(1, Math.round(size * scale));
  }

  #frame(now) {
    requestAnimationFrame((next) => this.#frame(next));
    if (document.hidden || this.canvas.width < 8 || this.canvas.offsetParent === null) return;
    const { mode, mic, out } = this.look();
    // At rest little moves, and batteries last longer.
    const quiet = (mode === "ready" || mode === "offline") && this.voice.level < 0.01 && this.busy < 0.01;
    if (quiet && now - this.drawn < QUIET_MS) return;
    this.drawn = now;
    this.user.hear(mic, mode !== "offline");
    this.voice.hear(out, mode === "speaking");
    const ease = (name, on) => { this[name] = towards(this[name], on ? 1 : 0, 0.08); };
    ease("warm", mode === "listening" || mode === "held");
    ease("busy", mode === "thinking" || mode === "connecting" || mode === "sending");
    ease("calm", mode === "held" || mode === "offline");
    this.#draw(still.matches ? 0 : now / 1000, mode);
  }

  #draw(time, mode) {
    const g = this.canvas.getContext("2d"), size = this.canvas.width, c = size / 2;
    g.clearRect(0, 0, size, size);
    const breath = still.matches ? 0 : Math.sin(time * 1.3) * 0.006;
    const radius = size * (0.285 + breath + this.voice.level * 0.03 - this.warm * 0.02);
    this.#halo(g, c, radius, size);
    this.#sphere(g, c, radius, time);
    this.#ring(g, c, radius, size, time, mode);
  }

  #halo(g, c, radius, size) {
    const strength = 0.1 + 0.3 * Math.max(this.voice.level, this.user.level * this.warm);
    for (const [colour, part] of [[this.colour.accent, 1 - this.warm], [this.colour.user, this.warm * 0.7]]) {
      const glow = g.createRadialGradient(c, c, radius * 0.7, c, c, size * 0.5);
      glow.addColorStop(0, colour);
      glow.addColorStop(1, `${colour}00`);
      g.globalAlpha = strength * part;
      g.fillStyle = glow;
      g.fillRect(0, 0, size, size);
    }
    g.globalAlpha = 1;
  }

  #sphere(g, c, radius, time) {
    g.save();
    g.beginPath();
    g.arc(c, c, radius, 0, Math.PI * 2);
    g.clip();
    const body = g.createRadialGradient(c - radius * 0.35, c - radius * 0.5, radius * 0.1, c, c, radius * 1.15);
    body.addColorStop(0, this.colour["orb-light"]);
    body.addColorStop(0.5, this.colour.orb);
    body.addColorStop(1, this.colour["orb-deep"]);
    g.globalAlpha = 1 - 0.45 * this.calm;
    g.fillStyle = body;
    g.fillRect(c - radius, c - radius, radius * 2, radius * 2);
    g.globalCompositeOperation = "lighter";
    for (let w = 0; w < WAVES; ++w) this.#wave(g, c, radius, time, w);
    g.restore();
  }

  /// A line through the sphere whose swings are the bands of the voice; at rest it hardly moves.
  #wave(g, c, radius, time, w) {
    const steps = 72, rest = 0.05 * (1 - this.calm), drift = time * (0.7 + 0.25 * w) + w * 2.1;
    g.beginPath();
    for (let i = 0; i <= steps; ++i) {
      const x = (i / steps) * 2 - 1, envelope = Math.cos((x * Math.PI) / 2) ** 2;
      const swing = rest + this.voice.at(x * x * 0.6 + w * 0.05) * 0.45 + this.voice.level * 0.3 + this.busy * 0.06;
      const y = Math.sin(x * (4.2 + w * 1.7) + drift * 2) * envelope * swing;
      const at = [c + x * radius, c + radius * (y + 0.04 * (w - 1))];
      i === 0 ? g.moveTo(...at) : g.lineTo(...at);
    }
    g.strokeStyle = `rgba(255, 255, 255, ${0.55 - w * 0.15})`;
    g.lineWidth = radius * (0.028 - w * 0.006);
    g.stroke();
  }

  #ring(g, c, radius, size, time, mode) {
    const inner = size * 0.355, reach = size * 0.125, comet = (time * 0.55) % 1;
    g.lineCap = "round";
    g.lineWidth = Math.max(1.5, size * 0.0075);
    for (let i = 0; i < STROKES; ++i) {
      const part = i / STROKES, angle = part * Math.PI * 2 + Math.PI / 2;
      // Left and right are mirrored, low bands at the bottom.
      const band = Math.floor((part < 0.5 ? part : 1 - part) * 2 * (BINS - 1));
      const user = this.user.bands[band], voice = this.voice.bands[band] * 0.4;
      const behind = (comet - part + 1) % 1, tail = this.busy * Math.max(0, 1 - behind * 4);
      const loud = Math.max(user, voice, still.matches ? this.busy * 0.15 : tail * 0.35);
      const from = inner, to = inner + size * 0.008 + reach * Math.min(1, loud);
      const lit = Math.min(1, loud * 3 + this.warm * 0.35);
      const speaker = user >= voice && tail < 0.05 && mode !== "speaking" ? this.colour.user : this.colour.accent;
      for (const [colour, alpha] of [[this.colour.line, 1], [speaker, lit]]) {
        if (alpha < 0.02) continue;
        g.globalAlpha = alpha;
        g.strokeStyle = colour;
        g.beginPath();
        g.moveTo(c + Math.cos(angle) * from, c + Math.sin(angle) * from);
        g.lineTo(c + Math.cos(angle) * to, c + Math.sin(angle) * to);
        g.stroke();
      }
    }
    g.globalAlpha = 1;
  }
}
