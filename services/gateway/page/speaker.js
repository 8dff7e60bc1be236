// The loudspeaker: chunks are played back to back, stand still, go on, or are dropped.
const LATE_S = 0.03;  // the first chunk starts a little late so that it starts whole

export class Speaker {
  /// @param onChange  something begins to be played, or nothing is any more
  constructor(onChange = () => {}) {
    this.onChange = onChange;
    this.playing = new Set();
    this.playAt = 0;
    this.held = false;
  }

  /// A context at the sound's own rate: chunks that are resampled one by one would click at their seams.
  start(rate) {
    if (this.context?.sampleRate === rate) return;
    this.context?.close();
    this.playing.clear();
    this.rate = rate;
    this.context = new AudioContext({ sampleRate: rate });
    this.analyser = new AnalyserNode(this.context, { fftSize: 1024, smoothingTimeConstant: 0.75 });
    this.analyser.connect(this.context.destination);
  }

  /// Browsers let sound begin with something that the user does.
  wake() { if (!this.held && this.context?.state === "suspended") this.context.resume(); }

  get active() { return this.playing.size > 0; }

  /// @param tag  whose sound it is   @return when it will be heard, on the page's clock, ms
  play(pcm, tag) {
    const c = this.context, buffer = c.createBuffer(1, pcm.length, this.rate), out = buffer.getChannelData(0);
    for (let i = 0; i < pcm.length; ++i) out[i] = pcm[i] / 32768;
    const source = c.createBufferSource();
    source.buffer = buffer;
    source.connect(this.analyser);
    if (this.playAt < c.currentTime) this.playAt = c.currentTime + LATE_S;
    const part = { source, tag, begin: this.playAt, end: this.playAt + buffer.duration };
    source.start(part.begin);
    source.onended = () => { if (this.playing.delete(part) && !this.active) this.onChange(); };
    this.playing.add(part);
    this.playAt = part.end;
    if (this.playing.size === 1) this.onChange();
    return performance.now() + (part.begin - c.currentTime + (c.outputLatency || c.baseLatency || 0)) * 1000;
  }

  /// @return seconds of this tag's sound that are still to be heard
  ahead(tag) {
    const now = this.context?.currentTime ?? 0;
    let sum = 0;
    for (const p of this.playing) if (p.tag === tag) sum += Math.max(0, p.end - Math.max(now, p.begin));
    return sum;
  }

  hold() { this.held = true; this.context?.suspend(); }
  release() { this.held = false; this.context?.resume(); }

  stop() {
    const parts = [...this.playing];
    this.playing.clear();
    this.playAt = 0;
    for (const { source } of parts) source.stop();
    if (this.held) this.release();
    if (parts.length > 0) this.onChange();
  }
}
