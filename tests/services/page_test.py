"""The page in a real browser: headless Chromium plays a recorded question as the microphone and waits for the spoken answer.

`page_test.py BUILD_BIN SOURCE_DIR`; skipped (77) where there is no Chromium.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tests/support"))
from engine import Engine  # noqa: E402
from ws import WebSocket  # noqa: E402


class Browser:
    """Chromium over its debugging protocol."""

    def __init__(self, program, profile, microphone):
        self.process = subprocess.Popen([program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--autoplay-policy=no-user-gesture-required",
                                         "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop", "about:blank"],
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "DevTools listening on" in line:
                self.port = int(line.split("127.0.0.1:")[1].split("/")[0])
                break
        page = next(t for t in json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/json")) if t["type"] == "page")
        self.ws = WebSocket("127.0.0.1", self.port, page["webSocketDebuggerUrl"].split(str(self.port))[1], timeout=120)
        self.count, self.problems = 0, []
        self.call("Runtime.enable")
        self.call("Page.enable")

    def call(self, method, **params):
        self.count += 1
        self.ws.send({"id": self.count, "method": method, "params": params})
        while True:
            answer = json.loads(self.ws.receive())
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(answer["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            if answer.get("id") == self.count:
                return answer.get("result", answer)

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def until(self, condition, seconds=60):
        """Waits in the page until a condition holds; -> its value."""
        return self.js(f"new Promise((done, fail) => {{ const end = performance.now() + {seconds * 1000}; const look = () => {{ const v = {condition}; v ? done(v) : performance.now() > end ? fail(new Error(document.body.innerText)) : requestAnimationFrame(look); }}; look(); }})")

    def stop(self):
        self.process.kill()
        self.process.wait()


program = shutil.which("chromium") or shutil.which("google-chrome")
if program is None:
    print("skipped: no Chromium")
    sys.exit(77)
with tempfile.TemporaryDirectory() as folder:
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", ":memory:")
    browser = Browser(program, folder, ROOT / "models/nano/questions/capital_of_france.wav")
    try:
        # The page's own socket and its loudspeaker, to say what a controller would and to see what becomes of it.
        browser.call("Page.addScriptToEvaluateOnNewDocument", source="""
            const Socket = WebSocket, Speaker = AudioContext; window.speakers = []; window.stopped = 0;
            window.WebSocket = class extends Socket { constructor(...a) { super(...a); window.socket = this; } };
            window.AudioContext = class extends Speaker { constructor(...a) { super(...a); window.speakers.push(this); } };
            const stop = AudioScheduledSourceNode.prototype.stop;
            AudioScheduledSourceNode.prototype.stop = function (...a) { ++window.stopped; return stop.apply(this, a); };
            window.told = (e) => window.socket.onmessage({ data: JSON.stringify(e) });""")
        browser.call("Page.navigate", url=f"http://127.0.0.1:{engine.port}/")
        browser.until("document.querySelector('#talk') && !document.querySelector('#talk').disabled")
        # The button is held while the recording plays into the microphone; what it hears ends the turn by silence or by the release.
        where = browser.js("(() => { const r = document.querySelector('#talk').getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        mouse = dict(x=where[0], y=where[1], button="left", clickCount=1)
        browser.call("Input.dispatchMouseEvent", type="mousePressed", **mouse)
        browser.until("document.querySelector('#state').textContent === 'thinking…' || document.querySelector('#state').textContent === 'speaking…' || document.querySelector('li[data-done]')")
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", **mouse)
        turn = browser.until("document.querySelector('li[data-done]') && [document.querySelector('li').innerText, +document.querySelector('li').dataset.audio, document.querySelectorAll('li svg rect').length]")
        assert "capital of france" in turn[0] and turn[1] > 0.5 and turn[2] >= 5, turn
        # An example question and a typed one.
        browser.until("document.querySelector('#examples button') && !document.querySelector('#examples button').disabled")
        browser.js("document.querySelector('#examples button').click()")
        browser.until("document.querySelectorAll('li[data-done]').length === 2")
        browser.js("document.querySelector('#text').value = 'hello'; document.querySelector('#form').requestSubmit()")
        browser.until("document.querySelectorAll('li[data-done]').length === 3 && +document.querySelector('li').dataset.audio > 0.2")
        # A fourth one is held, goes on, and is interrupted; then a fifth begins without a button.
        browser.js("document.querySelector('#text').value = 'tell me a joke'; document.querySelector('#form').requestSubmit()")
        browser.until("document.querySelectorAll('#turns > li').length === 4 && !document.querySelector('#talk').disabled && document.querySelector('#state').textContent === 'speaking…'")
        browser.js("told({ type: 'hold', turn: 4 })")
        browser.until("speakers[0].state === 'suspended'")
        browser.js("told({ type: 'release', turn: 4 })")
        browser.until("speakers[0].state === 'running'")
        browser.js("told({ type: 'hold', turn: 4 }); told({ type: 'interrupted', turn: 4, samples: 100, heard: 'why did' })")
        browser.until("speakers[0].state === 'running' && stopped > 0")
        assert browser.js("document.querySelector('li').innerText").rstrip().endswith("why did —"), browser.js("document.querySelector('li').innerText")
        browser.until("document.querySelectorAll('li[data-done]').length === 4")
        browser.js("told({ type: 'text', kind: 'transcript', text: 'stop it' })")
        browser.until("document.querySelectorAll('#turns > li').length === 5 && document.querySelector('li').innerText.includes('stop it')")
        browser.js("document.querySelector('#open').click()")
        browser.until("speakers.length >= 3 && document.querySelector('#open').checked")
        browser.js("document.querySelector('#open').click()")
        browser.until("speakers[speakers.length - 1].state === 'closed'")
        assert not browser.problems, browser.problems
        if len(sys.argv) > 3:
            import base64
            open(sys.argv[3], "wb").write(base64.b64decode(browser.call("Page.captureScreenshot")["data"]))
    finally:
        browser.stop()
        code = engine.stop()
    assert code == 0, engine.all
print("the page heard a question and answered it aloud; 4 turns, one of them interrupted")
