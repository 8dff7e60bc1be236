"""Headless Chromium over its debugging protocol, with a recording as its microphone."""
import base64
import json
import pathlib
import shutil
import subprocess
import urllib.request

from ws import WebSocket


def program():
    return shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    def __init__(self, profile, microphone, folder=None):
        """`folder`: where screenshots go; None: none are made."""
        self.folder = pathlib.Path(folder) if folder else None
        self.process = subprocess.Popen([program(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--autoplay-policy=no-user-gesture-required",
                                         "--lang=en", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop", "about:blank"],
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "DevTools listening on" in line:
                self.port = int(line.split("127.0.0.1:")[1].split("/")[0])
                break
        page = next(t for t in json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/json")) if t["type"] == "page")
        self.ws = WebSocket("127.0.0.1", self.port, page["webSocketDebuggerUrl"].split(str(self.port))[1], timeout=120)
        self.count, self.problems = 0, []
        for domain in ("Runtime", "Page", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.count += 1
        self.ws.send({"id": self.count, "method": method, "params": params})
        while True:
            answer = json.loads(self.ws.receive())
            self._note(answer.get("method"), answer.get("params", {}))
            if answer.get("id") == self.count:
                return answer.get("result", answer)

    def _note(self, method, params):
        """Exceptions, and what breaks the page's content security policy, are problems; a 404 of what a server does not offer is none."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details.get("text", "?")))
        if method == "Log.entryAdded" and params["entry"]["level"] == "error" and params["entry"]["source"] != "network":
            self.problems.append(params["entry"]["text"])

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def until(self, condition, seconds=60):
        """Waits in the page until a condition holds; -> its value."""
        failure = "new Error(document.body.innerText)"
        return self.js(f"new Promise((done, fail) => {{ const end = performance.now() + {seconds * 1000}; const look = () => {{ const v = {condition}; v ? done(v) : performance.now() > end ? fail({failure}) : requestAnimationFrame(look); }}; look(); }})")

    def open(self, url):
        self.call("Page.navigate", url=url)

    def click(self, selector, hold=False):
        """A press of the mouse in the middle of an element. -> what lets go, when it is held"""
        x, y = self.js(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{ block: 'nearest' }}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()")
        mouse = dict(x=x, y=y, button="left", clickCount=1)
        self.call("Input.dispatchMouseEvent", type="mousePressed", **mouse)
        release = lambda: self.call("Input.dispatchMouseEvent", type="mouseReleased", **mouse)  # noqa: E731
        return release if hold else release()

    KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " "), "ArrowRight": (39, ""), "ArrowLeft": (37, "")}

    def key(self, key, down=True, up=True, shift=False):
        number, text = self.KEYS[key]
        common = dict(key=key, code="Space" if key == " " else key, windowsVirtualKeyCode=number, modifiers=8 if shift else 0)
        if down:
            self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        if up:
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def look(self, width, height, scheme, scale=1, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        self.media(scheme)

    def media(self, scheme="light", motion="no-preference"):
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def shot(self, name):
        """A picture of the window; -> its PNG"""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        png = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.png").write_bytes(png)
        return png

    def stop(self):
        self.process.kill()
        self.process.wait()
