// Hands 20 ms frames of the microphone to the page.
class Recorder extends AudioWorkletProcessor {
  constructor() { super(); this.frame = new Float32Array(320); this.at = 0; }
  process([input]) {
    for (const x of input[0] ?? []) {
      this.frame[this.at++] = x;
      if (this.at === this.frame.length) { this.port.postMessage(this.frame.slice()); this.at = 0; }
    }
    return true;
  }
}
registerProcessor("recorder", Recorder);
