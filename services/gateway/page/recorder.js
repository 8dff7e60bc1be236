// Hands frames of 20 ms of the microphone to the page, at the rate that it wants.
class Recorder extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.frame = new Float32Array(rate / 50);
    this.at = 0;
    this.step = sampleRate / rate;  // 1 where the browser takes the page's rate; else a mean stands for a step
    this.due = this.step;
    this.sum = this.count = 0;
  }
  put(x) {
    this.frame[this.at++] = x;
    if (this.at < this.frame.length) return;
    this.port.postMessage(this.frame.slice());
    this.at = 0;
  }
  process([input]) {
    for (const x of input[0] ?? []) {
      this.sum += x;
      ++this.count;
      if (--this.due > 1e-9) continue;
      const mean = this.sum / this.count;
      this.sum = this.count = 0;
      for (; this.due <= 1e-9; this.due += this.step) this.put(mean);
    }
    return true;
  }
}
registerProcessor("recorder", Recorder);
