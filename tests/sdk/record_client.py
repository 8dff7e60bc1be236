"""Records what a client says, frame by frame, while it talks to a running gateway: how `fixtures/client_v1.txt` was made, with the
package as it was at version 1. A later package says other bytes; the recorded ones stay what an old client says.

`record_client.py ENDPOINT WAV OUT`: a typed turn, a spoken turn, close.
"""
import pathlib
import sys
import wave

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sdk/python"))
import parlando  # noqa: E402
from parlando.core import Gateway  # noqa: E402


def main(endpoint, wav, out):
    lines = []
    flush = Gateway.flush

    def note(sign, frames):
        lines.append(sign + " " + " ".join(f.hex() or "-" for f in frames))

    class Tap:
        def __init__(self, socket):
            self._socket = socket

        def send_multipart(self, frames, flags):
            self._socket.send_multipart(frames, flags)
            note(">", frames)

        def __getattr__(self, name):
            return getattr(self._socket, name)

    def tapped(self, now):
        whole, self.socket = self.socket, Tap(self.socket)
        try:
            flush(self, now)
        finally:
            self.socket = whole

    Gateway.flush = tapped
    with wave.open(wav) as f:
        sound = f.readframes(f.getnframes())
    with parlando.Client(endpoint) as client, client.open(speak=True, seed=7) as talk:
        talk.say("hello")
        talk.turn()
        talk.send_audio(sound[:2 * 16000])
        talk.flush()
        try:
            talk.turn()
        except parlando.ParlandoError as e:
            print(e)
    pathlib.Path(out).write_text("\n".join(lines) + "\n")
    print(len(lines), "messages")


main(*sys.argv[1:])
