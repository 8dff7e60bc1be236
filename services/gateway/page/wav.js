// Samples and files.
export const toPcm = (samples) => Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767);

/// @param parts  Int16Arrays, one after another. @return a mono WAV file
export function wav(parts, rate) {
  const samples = parts.reduce((n, p) => n + p.length, 0), head = new DataView(new ArrayBuffer(44));
  const word = (at, text) => [...text].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"), head.setUint32(4, 36 + 2 * samples, true), word(8, "WAVEfmt "), head.setUint32(16, 16, true);
  head.setUint16(20, 1, true), head.setUint16(22, 1, true), head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true), head.setUint16(32, 2, true), head.setUint16(34, 16, true);
  word(36, "data"), head.setUint32(40, 2 * samples, true);
  return new Blob([head, ...parts], { type: "audio/wav" });
}

/// Any file that the browser can read, as mono samples at a rate.
/// @error the browser's own
export async function decode(bytes, rate) {
  const decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(decoded.duration * rate)), rate);
  const source = offline.createBufferSource();
  source.buffer = decoded;
  source.connect(offline.destination);
  source.start();
  return toPcm((await offline.startRendering()).getChannelData(0));
}

export function save(blob, name) {
  const a = document.createElement("a");
  a.href = URL.createObjectURL(blob);
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 60000);
}

export const stamp = () => new Date().toISOString().slice(0, 19).replaceAll(":", "-");
