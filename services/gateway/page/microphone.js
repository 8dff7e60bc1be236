// The microphone: frames of 20 ms at a rate, and what the orb shows of it.
import { t } from "./texts.js";

// What is played here must not be heard by the microphone: the browser takes it out.
const HEAR = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };

async function graph(stream, rate) {
  // Some browsers take a microphone at its own rate only; the worklet changes it then.
  for (const options of [{ sampleRate: rate }, {}]) {
    const context = new AudioContext(options);
    try {
      return { context, source: context.createMediaStreamSource(stream) };
    } catch (problem) {
      context.close();
      if (!options.sampleRate) throw problem;
    }
  }
}

export class Microphone {
  /// @param onFrame  gets Float32Arrays   @param onLost  the device has gone
  constructor(rate, onFrame, onLost) {
    this.rate = rate;
    this.onFrame = onFrame;
    this.onLost = onLost;
    this.closed = false;
  }

  /// @error with a text for people
  async open() {
    try {
      if (!navigator.mediaDevices) throw new Error(t("insecure"));
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: HEAR });
      const { context, source } = await graph(this.stream, this.rate);
      this.context = context;
      await context.audioWorklet.addModule("recorder.js");
      if (this.closed) return this.close();
      const node = new AudioWorkletNode(context, "recorder", { processorOptions: { rate: this.rate } });
      node.port.onmessage = ({ data }) => { if (!this.closed) this.onFrame(data); };
      this.analyser = new AnalyserNode(context, { fftSize: 512, smoothingTimeConstant: 0.7 });
      source.connect(node);
      source.connect(this.analyser);
      this.stream.getTracks().forEach((track) => { track.onended = () => { if (!this.closed) this.onLost?.(); }; });
      if (context.state === "suspended") context.resume();
    } catch (problem) {
      if (this.closed) return;  // it was let go before it was open
      this.close();
      throw new Error(t("noMicrophone", { why: problem.message }));
    }
  }

  close() {
    this.closed = true;
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}
