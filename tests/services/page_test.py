"""The page in a real browser: headless Chromium plays a recorded question as the microphone and waits for the spoken answer, interrupts it, types, goes by keyboard, and looks at
its own pictures.

`page_test.py BUILD_BIN SOURCE_DIR [FOLDER]`: screenshots are written to FOLDER. Skipped (77) where there is no Chromium.
"""
import hashlib
import json
import pathlib
import struct
import sys
import tempfile

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tests/support"))
from browser import Browser, program  # noqa: E402
from engine import Engine  # noqa: E402

# The page's own sockets and loudspeakers, to say what a controller would and to see what becomes of it; what it plays, and what it saves.
# `mouth` is a microphone that speaks when it is told to, in place of the browser's.
SPY = """
    const Socket = WebSocket, Speaker = AudioContext;
    Object.assign(window, { sockets: [], speakers: [], played: 0, loudest: 0, saved: [], requests: [], scripted: false });
    class Script { constructor() { this.readyState = 1; this.sent = []; sockets.push(this); setTimeout(() => this.onopen()); } send(m) { this.sent.push(m); } close() { this.readyState = 3; } }
    window.WebSocket = new Proxy(Socket, { construct: (T, a) => { if (window.scripted) return new Script(); const s = new T(...a); sockets.push(s); return s; } });
    window.AudioContext = class extends Speaker { constructor(...a) { super(...a); if (a[0]?.sampleRate === 22050) speakers.push(this); } };
    const start = AudioBufferSourceNode.prototype.start;
    AudioBufferSourceNode.prototype.start = function (...a) { ++window.played; for (const x of this.buffer.getChannelData(0)) window.loudest = Math.max(window.loudest, Math.abs(x)); return start.apply(this, a); };
    const url = URL.createObjectURL;
    URL.createObjectURL = (blob) => { saved.push(blob); return url.call(URL, blob); };
    window.told = (e, s = sockets[0]) => s.onmessage({ data: e instanceof ArrayBuffer ? e : JSON.stringify(e) });
    window.sleep = (condition) => new Promise((done) => { const look = () => (condition() ? done() : requestAnimationFrame(look)); look(); });
    window.mouth = async (file) => {
      const context = new Speaker(), out = context.createMediaStreamDestination(), source = context.createBufferSource();
      source.buffer = await context.decodeAudioData(await (await fetch(`questions/${file}`)).arrayBuffer());
      source.connect(out);
      navigator.mediaDevices.getUserMedia = async () => out.stream.clone();
      window.speakUp = () => source.start();
    };"""

PHONE, DESKTOP = (390, 844), (1280, 800)

# Enabled text whose colour is too near to what is behind it.
CONTRAST = """(() => {
    const parse = (c) => { const p = c.match(/[\\d.]+/g).map(Number); return p.length > 3 ? p : [...p, 1]; };
    const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
    const back = (e) => { const all = []; for (; e; e = e.parentElement) all.unshift(parse(getComputedStyle(e).backgroundColor)); return all.reduce((b, c) => over(c, b), [255, 255, 255, 1]); };
    const bad = []; let count = 0;
    for (const e of document.querySelectorAll("body *")) {
      const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
      if (!own || !e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) || e.closest(":disabled, .sr, .skip, option") || e.closest("label")?.querySelector("input:disabled")) continue;
      const style = getComputedStyle(e), b = back(e), f = over(parse(e.namespaceURI.endsWith("svg") ? style.fill : style.color), b), [x, y] = [light(f), light(b)].sort((p, q) => q - p);
      ++count;
      if ((x + .05) / (y + .05) < 4.5) bad.push(`${e.textContent.trim().slice(0, 30)}: ${((x + .05) / (y + .05)).toFixed(2)}`);
    }
    return { bad, count };
})()"""


def settled(browser, count):
    browser.until(f"document.querySelectorAll('li[data-done]').length === {count}")


def first(browser, what="innerText"):
    return browser.js(f"document.querySelector('#turns > li').{what}")


def hears_a_question_and_answers_it(browser):
    """Hands-free: what the microphone hears ends the turn by its silence."""
    browser.until("!document.querySelector('#microphone').disabled")
    browser.click("#microphone")
    browser.until("document.body.dataset.mode === 'listening'")
    browser.look(*PHONE, "light", 2, True)
    browser.shot("listening-phone-light")
    browser.look(*DESKTOP, "light")
    browser.until("document.body.dataset.mode === 'speaking' && document.querySelector('#caption-answer').innerText")
    settled(browser, 1)
    assert "capital of france" in first(browser) and "paris" in first(browser), first(browser)
    assert float(first(browser, "dataset.audio") or 0) > 0.5 and browser.js("loudest") > 0.05, first(browser, "innerText")
    rows = browser.js("[...document.querySelectorAll('#turns > li .waterfall table tbody tr')].map((r) => [r.cells[0].textContent, parseFloat(r.cells[2].textContent)])")
    stages = dict(rows)
    assert {"End of speech decided", "Understood", "First words", "First sound made", "First sound received", "First sound played", "All words", "All sound made"} <= set(stages), rows
    assert stages["First sound made"] < stages["All sound made"] and 0 < stages["First sound received"] <= stages["First sound played"] < 30000, rows
    assert browser.js("document.querySelectorAll('#turns > li .waterfall svg rect.bar').length") == len(rows)
    live = browser.js("document.querySelector('#live').innerText")
    assert "capital of france" in live and "paris" in live, live
    browser.click("#microphone")
    browser.until("document.querySelector('#microphone').getAttribute('aria-pressed') === 'false'")


def shows_what_a_tool_was_asked(browser):
    browser.until("document.querySelectorAll('#examples button').length >= 6 && document.body.dataset.mode === 'ready'")
    browser.js("[...document.querySelectorAll('#examples button')].find((b) => b.textContent.includes('weather')).click()")
    browser.until("document.body.dataset.mode === 'speaking' && document.querySelector('#caption-answer span').innerText.includes('it is')")
    browser.shot("answering-desktop-light")
    settled(browser, 2)
    card = browser.js("document.querySelector('#turns > li .tool').innerText")
    assert "get_weather" in card and "paris" in card and "sunny" in card, card


def can_be_interrupted(browser):
    """Somebody speaks over an answer: it stands still, then it is over, and what was said is answered."""
    browser.js("mouth('seven_plus_nine.wav')")
    browser.click("#microphone")
    browser.until("document.querySelector('#microphone').getAttribute('aria-pressed') === 'true' && document.body.dataset.mode === 'waitingForYou'")
    browser.js("document.querySelector('#text').value = 'tell me a joke'; document.querySelector('#composer').requestSubmit()")
    browser.js("sleep(() => document.body.dataset.mode === 'speaking').then(() => speakUp())")
    browser.until("document.querySelector('li[data-interrupted]')", 30)
    settled(browser, 4)
    assert "seven plus nine" in first(browser) and "sixteen" in first(browser), first(browser)
    cut = browser.js("document.querySelector('li[data-interrupted]').innerText")
    assert "interrupted" in cut and "tell me a joke" in cut, cut
    browser.click("#microphone")


def stands_still_and_goes_on(browser):
    """The words of the server one by one."""
    browser.until("document.body.dataset.mode === 'ready'")
    browser.js("document.querySelector('#text').value = 'tell me a joke'; document.querySelector('#composer').requestSubmit()")
    browser.until("document.body.dataset.mode === 'speaking'")
    number = 5
    browser.js(f"told({{ type: 'hold', turn: {number} }})")
    browser.until("speakers[0].state === 'suspended' && document.body.dataset.mode === 'held'")
    browser.shot("held")
    browser.js(f"told({{ type: 'release', turn: {number} }})")
    browser.until("speakers[0].state === 'running' && document.body.dataset.mode === 'speaking'")
    # What the server sends of it behind that, because it does not know, is not played.
    played = browser.js(f"told({{ type: 'hold', turn: {number} }}); told({{ type: 'interrupted', turn: {number}, samples: 100, heard: 'why did' }}); played")
    browser.until("speakers[0].state === 'running' && document.querySelector('#stop').hidden")
    assert browser.js("document.querySelector('#caption-answer').innerText.endsWith('why did —')")
    settled(browser, 5)
    assert browser.js("played") == played
    assert first(browser, "querySelector('.unheard') !== null")


def sets_what_it_is_told_as_text(browser):
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    browser.js(f"""told({{ type: 'text', turn: 6, kind: 'transcript', text: {json.dumps(evil)} }}); told({{ type: 'text', turn: 6, kind: 'text', text: {json.dumps(evil)} }});
        told({{ type: 'text', turn: 6, kind: 'tool_call', text: JSON.stringify({{ id: 'a', name: {json.dumps(evil)}, arguments: {{ {json.dumps(evil)}: {json.dumps(evil)} }}, result: {json.dumps(evil)} }}) }});
        told({{ type: 'error', code: 'internal', turn: 6, message: {json.dumps(evil)} }})""")
    settled(browser, 6)
    assert browser.js("document.querySelectorAll('main img, main b:not(.option b), #turns b').length") == 0
    assert first(browser).count(evil) == 7, first(browser)
    browser.js("told({ type: 'error', code: 'unsupported', message: 'a controller takes no configure from a client' })")
    assert browser.js("!document.querySelector('#notice').hidden && document.querySelector('#notice').innerText.includes('takes no configure')")
    browser.click("#notice-close")


def asks_again_and_saves(browser):
    browser.js("document.querySelector('#text').value = 'what is seven plus nine'; document.querySelector('#composer').requestSubmit()")
    settled(browser, 7)
    browser.until("!document.querySelector('#again').disabled")
    browser.look(*PHONE, "dark", 2, True)
    browser.click("#again")
    browser.until("document.body.dataset.mode === 'speaking' && document.querySelector('#caption-answer span').innerText.includes('nine')")
    browser.js("document.querySelector('#notice').hidden = true")
    browser.js("scrollTo(0, 0)")
    browser.shot("answering-phone-dark")
    browser.look(*DESKTOP, "light")
    settled(browser, 8)
    assert "what is seven plus nine" in first(browser) and browser.js("document.querySelectorAll('li[data-replaced]').length") == 1
    browser.click("#save-text")
    browser.click("#save-sound")
    browser.until("saved.length === 2")
    told = json.loads(browser.js("saved[0].text()"))
    assert len(told["turns"]) == 8 and told["turns"][0]["stages"]["first_audio_ms"] > 0 and told["turns"][1]["tool_calls"][0]["name"] == "get_weather", told
    head = bytes(browser.js("saved[1].arrayBuffer().then((b) => [...new Uint8Array(b).slice(0, 44)])"))
    assert head[:4] == b"RIFF" and struct.unpack("<I", head[24:28])[0] == 22050 and struct.unpack("<I", head[40:44])[0] > 4 * 22050 * 2, head


def comes_back_behind_a_lost_socket(browser):
    browser.js("sockets[0].close()")
    browser.until("document.body.dataset.mode === 'offline'")
    browser.until("document.body.dataset.mode === 'ready' && sockets.length === 2")
    assert browser.js("document.querySelectorAll('#turns > li').length") == 8
    browser.click("#fresh")
    browser.until("document.body.dataset.mode === 'ready' && sockets.length === 3 && document.querySelectorAll('#turns > li').length === 0")


CLAIM = """import("/claim.js").then(({ Claim }) => {
    const text = (turn, text, kind = "text") => ({ type: "text", turn, kind, text });
    const after = (turn, ...told) => { const c = new Claim(turn); for (const t of told) typeof t === "number" ? c.sound(t) : t.resumed ? c.resumed(t.turn) : c.event(t); const f = c.fields; return [f.turn, f.samples, f.transcript_bytes, f.reply_bytes, f.tool_calls]; };
    return {
      "of the turn under way": after(1, text(1, "hé", "transcript"), text(1, "Bern"), text(1, "{}", "tool_call"), 100),
      "nothing of the next": after(1, text(1, "Bern"), 100, { type: "turn", turn: 1 }),
      "a number that is used again": after(1, text(1, "Bern"), 100, { type: "turn", turn: 1, remembered: false }, text(1, "Paris")),
      "numbers passed over": after(2, text(3, "Paris"), 7),
      "lost with its controller": after(3, { type: "turn", turn: 3, degraded: true }, text(3, "Bern")),
      "a cancel of the turn before": after(2, text(2, "Paris"), 50, { type: "cancelled", turn: 1 }),
      "a cancel of this one": after(2, text(2, "Paris"), 50, { type: "cancelled", turn: 2 }),
      "an error of this one": after(2, text(2, "Paris"), { type: "error", code: "overloaded", turn: 2 }),
      "an error of none": after(2, text(2, "Paris"), { type: "error", code: "bad_json" }),
      "under way behind a resume": after(2, text(2, "Paris"), 50, { resumed: true, turn: 2 }, 10),
      "not under way behind a resume": after(2, text(2, "Paris"), 50, { resumed: true }, 10),
    };
})"""


def claims_what_has_come(browser):
    """What `resume` says: nothing of a turn is told twice, nothing is missing."""
    assert (got := browser.js(CLAIM)) == {
        "of the turn under way": [1, 100, 3, 4, 1], "nothing of the next": [2, 0, 0, 0, 0], "a number that is used again": [1, 0, 0, 5, 0], "numbers passed over": [3, 7, 0, 5, 0],
        "lost with its controller": [3, 0, 0, 4, 0], "a cancel of the turn before": [2, 50, 0, 5, 0], "a cancel of this one": [2, 0, 0, 0, 0], "an error of this one": [2, 0, 0, 0, 0],
        "an error of none": [2, 0, 0, 5, 0], "under way behind a resume": [2, 60, 0, 5, 0], "not under way behind a resume": [2, 10, 0, 0, 0]}, got


def works_by_keyboard_alone(browser):
    browser.js("document.querySelector('#notice').hidden = true; document.querySelector('.skip').focus()")
    order = ["skip"]
    while order[-1] != "text" and len(order) < 20:
        browser.key("Tab")
        order.append(browser.js("document.activeElement.id || document.activeElement.className"))
    assert order == ["skip", "tab-talk", "language", "theme", "open-settings", "hold", "microphone"] + ["chip"] * 6 + ["file", "text"], order
    browser.type("hello")
    browser.key("Enter")
    settled(browser, 1)
    assert "hello" in first(browser)
    # The space bar is the button; what the microphone hears meanwhile is a turn when it is let go.
    browser.js("mouth('capital_of_france.wav')")
    browser.js("document.activeElement.blur()")
    browser.until("document.body.dataset.mode === 'ready'")
    browser.key(" ", up=False)
    browser.until("document.body.dataset.mode === 'listening'")
    browser.js("speakUp()")
    browser.until("document.querySelector('#turns > li .words').textContent.includes('france')")
    browser.key(" ", down=False)
    settled(browser, 2)
    # Enter on the button begins, Enter again ends; Escape stops an answer.
    browser.until("document.body.dataset.mode === 'ready'")
    browser.js("document.querySelector('#hold').focus()")
    browser.key("Enter")
    browser.until("document.body.dataset.mode === 'listening'")
    browser.key("Enter")
    settled(browser, 3)
    browser.js("document.querySelector('#text').value = 'tell me a joke'; document.querySelector('#composer').requestSubmit()")
    browser.until("document.body.dataset.mode === 'speaking'")
    browser.key("Escape")
    browser.until("document.querySelector('#stop').hidden")
    settled(browser, 4)
    assert "stopped" in first(browser).lower(), first(browser)
    # Settings hold from the next turn on, and outlive the page.
    browser.js("document.querySelector('#open-settings').focus()")
    browser.key("Enter")
    assert browser.js("document.querySelector('#settings').open")
    browser.js("document.querySelector('#voice').value = 'Ken'; document.querySelector('#system').value = 'be brief'; document.querySelector('#settings').dispatchEvent(new Event('change'))")
    browser.key("Escape")
    assert browser.js("!document.querySelector('#settings').open && document.activeElement.id === 'open-settings'")
    assert browser.js("JSON.parse(localStorage['parlando.settings'])") == {"system": "be brief", "speaker": "Ken", "detection": "silence"}


def speaks_two_languages(browser):
    tables = browser.js("import('/texts.js').then(({ tables: { en, zh } }) => ({ en: Object.keys(en), zh: Object.keys(zh), tags: [Object.keys(en.tag), Object.keys(zh.tag)], empty: [...Object.values(en), ...Object.values(zh)].filter((v) => !v).length }))")
    assert set(tables["en"]) == set(tables["zh"]) and set(tables["tags"][0]) == set(tables["tags"][1]) and tables["empty"] == 0, tables
    used = browser.js("[...document.querySelectorAll('[data-text], [data-label], [data-hint], [data-tip]')].flatMap((e) => ['text', 'label', 'hint', 'tip'].map((n) => e.dataset[n])).filter(Boolean)")
    assert len(used) > 80 and set(used) <= {*tables["en"], *(f"tag.{tag}" for tag in tables["tags"][0])}, set(used) - set(tables["en"])
    browser.click("#language")
    assert browser.js("document.documentElement.lang === 'zh-CN' && document.querySelector('#tab-studio').textContent === '声音工坊' && document.querySelector('#text').placeholder === '输入文字'")
    assert browser.js("document.querySelector('#turns > li .who').textContent") == "您"
    browser.click("#language")
    assert browser.js("document.documentElement.lang === 'en' && document.querySelector('#turns > li .who').textContent === 'You'")


def shows_words_without_their_tag(browser):
    parts = browser.js("import('/turn.js').then(({ spokenPart }) => ['(哼唱)la la', '(哼', '（高兴1）hi', '(sic) yes', 'no (哼唱)'].map(spokenPart).map((p) => [p.tag, p.words]))")
    assert parts == [["哼唱", "la la"], ["哼", ""], ["高兴1", "hi"], ["", "(sic) yes"], ["", "no (哼唱)"]], parts


def draws_the_order_of_stages(browser):
    spans = browser.js("""import('/waterfall.js').then(({ spans }) => spans({ decision_ms: 400, trial_ms: 180, tokenizer_ms: 250, transcript_ms: 260, first_text_ms: 300, text_ms: 320, first_audio_ms: 400, total_ms: 2000 },
        { received: 410, played: 450 }).map((s) => [s.key, s.from, s.to, s.after]))""")
    assert spans == [["decision", 0, 400, False], ["trial", 220, 400, False], ["tokenizer", 220, 250, False], ["transcript", 250, 260, False], ["firstText", 260, 300, False], ["firstAudio", 300, 400, False],
                     ["received", 400, 410, False], ["played", 410, 450, False], ["text", 300, 320, True], ["total", 400, 2000, True]], spans


def speaks_a_text(browser):
    """First on a server of the test's own, which knows the words; then on the engine, which speaks or says why not."""
    browser.click("#tab-studio")
    browser.key("ArrowLeft")
    assert browser.js("document.activeElement.id") == "tab-talk" and browser.js("document.querySelector('#view-studio').hidden")
    browser.key("ArrowRight")
    assert browser.js("[...document.querySelectorAll('.choice input:enabled')].map((i) => i.value).filter(Boolean)") == ["哼唱", "高兴1", "慢速1", "快速1"]
    browser.js("window.scripted = true; document.querySelector('#say').value = 'seven plus nine is sixteen.'; document.querySelector('#say').dispatchEvent(new Event('input')); document.getElementById('style-emotion-高兴1').click(); document.getElementById('style-tempo-快速1').click(); document.querySelector('#studio-voice').value = 'Clara'")
    browser.click("#speak")
    browser.until("sockets.at(-1).sent?.length === 1")
    asked = json.loads(browser.js("sockets.at(-1).sent[0]"))
    assert asked == {"type": "open", "speak": True, "stored": False, "speaker": "Clara", "speed": 1, "volume": 1, "style": "高兴1"}, asked
    browser.js("told({ type: 'error', code: 'overloaded', message: 'not now', retry_ms: 50 }, sockets.at(-1))")
    browser.until("sockets.at(-1).sent.length === 2")
    assert browser.js("sockets.at(-1).sent[0] === sockets.at(-1).sent[1]")
    browser.js("told({ type: 'opened', session: '00', rate: 22050, turns: 0 }, sockets.at(-1))")
    assert json.loads(browser.js("sockets.at(-1).sent[2]")) == {"type": "utter", "text": "(高兴1)(快速1)seven plus nine is sixteen."}
    samples = browser.js("""fetch('questions/seven_plus_nine.wav').then((r) => r.arrayBuffer()).then((b) => new OfflineAudioContext(1, 1, 22050).decodeAudioData(b)).then((b) => {
        const pcm = Int16Array.from(b.getChannelData(0), (x) => x * 32767), half = pcm.length >> 1;
        told(pcm.slice(0, half).buffer, sockets.at(-1)), told(pcm.slice(half).buffer, sockets.at(-1));
        return pcm.length; })""")
    assert browser.js("document.querySelector('#studio-save').disabled && document.querySelector('#studio-state').textContent") == f"Making… {samples / 22050:.1f} s so far"
    browser.js("told({ type: 'turn', turn: 1, stages: {} }, sockets.at(-1))")
    assert browser.js("!document.querySelector('#studio-save').disabled && sockets.at(-1).readyState === 3")
    browser.js("sleep(() => document.querySelector('#studio-play-label').textContent === 'Play')")
    browser.click("#studio-play")
    browser.until("document.querySelector('#studio-play-label').textContent === 'Pause'")
    browser.js("new Promise((done) => { let n = 0; const next = () => (++n === 40 ? done() : requestAnimationFrame(next)); next(); })")
    browser.look(*DESKTOP, "dark")
    browser.shot("speaking-desktop-dark")
    browser.look(*DESKTOP, "light")
    browser.click("#studio-play")
    browser.until("document.querySelector('#studio-play-label').textContent === 'Play' && speakers.some((s) => s.state === 'suspended')")
    browser.click("#studio-play")
    browser.until("document.querySelector('#studio-play-label').textContent === 'Play' && speakers.every((s) => s.state === 'running')")
    browser.js("saved.length = 0; document.querySelector('#studio-save').click()")
    assert browser.js("saved[0].size") == 44 + 2 * samples
    browser.js("document.querySelector('#speak').click()")
    browser.until("sockets.at(-1).sent?.length === 1")
    browser.js("told({ type: 'error', code: 'invalid_argument', message: 'speaker is <i>Nobody</i>' }, sockets.at(-1))")
    assert browser.js("document.querySelector('#studio-state.bad').textContent === 'speaker is <i>Nobody</i>'")
    browser.js("window.scripted = false; document.querySelector('#speak').click()")
    browser.until("document.querySelector('#studio-state').textContent !== 'speaker is <i>Nobody</i>' && document.querySelector('#speak-label').textContent === 'Speak'")
    end = browser.js("({ text: document.querySelector('#studio-state').textContent, bad: document.querySelector('#studio-state').matches('.bad'), save: document.querySelector('#studio-save').disabled })")
    assert end["bad"] == end["save"] and end["text"], end


def clones_a_voice(browser):
    """From what the microphone hears to a voice that speaks, which is deleted at the end."""
    browser.click("#tab-talk")
    browser.click("#tab-studio")
    browser.until("!document.querySelector('#clone-fields').disabled && document.querySelector('#clone-reason').hidden")
    browser.js("mouth('capital_of_france.wav')")
    browser.js("document.querySelector('#clone-record').click()")
    browser.js("speakUp()")
    browser.until("parseFloat(document.querySelector('#clone-seconds').textContent) >= 1.5")
    browser.js("document.querySelector('#clone-record').click()")
    browser.until("!document.querySelector('#clone-audio').hidden")
    assert browser.js("document.querySelector('#clone-create').disabled")
    browser.js("document.querySelector('#clone-name').value = 'anna'; document.querySelector('#clone-text').value = 'what is the capital of france'")
    browser.click("#clone-consent")
    browser.until("!document.querySelector('#clone-create').disabled")
    browser.click("#clone-create")
    browser.until("document.querySelector('#clone-state').textContent === 'anna can speak now.'")
    voice = browser.js("document.querySelector('#studio-voice').value")
    assert voice.startswith("voice_") and browser.js("document.querySelector('#studio-voice').selectedOptions[0].textContent") == "anna", voice
    before = browser.js("played")
    browser.js("document.querySelector('#say').value = 'seven plus nine is sixteen.'")
    browser.click("#speak")
    browser.until(f"played > {before}")
    browser.until("!document.querySelector('#studio-save').disabled")
    assert browser.js(f"fetch('/v1/audio/voices/{voice}', {{ method: 'DELETE' }}).then((r) => r.status)") == 200


def asks_for_a_key(browser):
    """A server with keys: the page says so, and talks once it has one."""
    browser.until("document.querySelector('#settings').open && document.activeElement.id === 'key'")
    assert browser.js("document.querySelector('#notice-text').textContent") == "This server asks for an API key: see the settings."
    browser.type("wrong-key")
    browser.js("document.querySelector('#key').dispatchEvent(new Event('change'))")
    browser.until("document.querySelector('#notice-text').textContent === 'The server does not know this API key.'")
    browser.js("document.querySelector('#key').value = 'the right key'; document.querySelector('#key').dispatchEvent(new Event('change'))")
    browser.until("document.querySelector('#notice-text').textContent === 'This is no API key: it has characters that none has.'")
    browser.js("document.querySelector('#key').value = 'the-right-key'; document.querySelector('#key').dispatchEvent(new Event('change'))")
    browser.until("document.body.dataset.mode === 'ready'")
    browser.shot("settings-key")
    browser.click("#close-settings")
    browser.click("#text")
    browser.type("what is the capital of france")
    browser.key("Enter")
    settled(browser, 1)
    assert "paris" in first(browser), first(browser)


def can_be_read_by_everybody(browser):
    """Names, contrast, room, stillness, and the pictures."""
    interactive = {"button", "textbox", "combobox", "slider", "radio", "checkbox", "tab", "link", "menuitem"}
    for view in ("talk", "studio"):
        browser.js(f"document.querySelector('#tab-{view}').click(); document.querySelector('#notice').hidden = true")
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        roles = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored") and n.get("role", {}).get("value") in interactive]
        assert len(roles) > 10 and all(name.strip() for _, name in roles), [r for r in roles if not r[1].strip()]
        for scheme in ("light", "dark"):
            for size, (width, height, scale, mobile) in {"phone": (*PHONE, 2, True), "desktop": (*DESKTOP, 1, False)}.items():
                browser.look(width, height, scheme, scale, mobile)
                browser.js("scrollTo(0, 0)")
                browser.until("document.readyState === 'complete'")
                png = browser.shot(f"{view}-{size}-{scheme}")
                assert struct.unpack(">II", png[16:24]) == (width * scale, height * scale)
                contrast = browser.js(CONTRAST)
                assert contrast["count"] > 12 and contrast["bad"] == [], (view, size, scheme, contrast)
                assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (view, size)
                small = browser.js("[...document.querySelectorAll('button, select')].filter((e) => e.checkVisibility() && Math.min(e.offsetWidth, e.offsetHeight) < 24).map((e) => e.id || e.className)")
                assert small == [], small
    for view in ("studio", "talk"):
        browser.js(f"document.querySelector('#tab-{view}').click()")
        browser.look(320, 640, "light", 2, True)
        browser.until("document.documentElement.scrollWidth <= 320 && innerWidth === 320", 5)
        assert browser.js("[...document.querySelectorAll('button, input, select')].every((e) => !e.checkVisibility() || e.getBoundingClientRect().left >= -1 || e.closest('.chips'))"), view
    # Nothing is out of reach in a low window.
    browser.click("#tab-talk")
    browser.look(1000, 480, "light")
    for place in ("#orb", "#composer"):
        browser.js(f"document.querySelector('{place}').scrollIntoView({{ block: 'nearest' }})")
        browser.until(f"(() => {{ const r = document.querySelector('{place}').getBoundingClientRect(); return r.top >= -1 && r.bottom <= innerHeight + 1; }})()", 5)
    browser.shot("talk-low")
    browser.look(*DESKTOP, "light")
    browser.until("document.body.dataset.mode === 'ready'")
    look = "new Promise((done) => { let n = 0; const next = () => (++n === 40 ? done(document.querySelector('#orb').toDataURL()) : requestAnimationFrame(next)); next(); })"
    assert browser.js(look) != browser.js(look)
    browser.media(motion="reduce")
    browser.js(f"(async () => {{ for (let before = '', now = await {look}; now !== before; [before, now] = [now, await {look}]); }})()")
    assert browser.js(look) == browser.js(look)


if program() is None:
    print("skipped: no Chromium")
    sys.exit(77)
with tempfile.TemporaryDirectory() as folder:
    engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", ":memory:")
    browser = Browser(folder, ROOT / "models/nano/questions/capital_of_france.wav", sys.argv[3] if len(sys.argv) > 3 else None)
    try:
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=SPY)
        browser.look(*DESKTOP, "light")
        browser.open(f"http://127.0.0.1:{engine.port}/")
        browser.until("document.querySelector('#microphone')")
        parts = [hears_a_question_and_answers_it, shows_what_a_tool_was_asked, can_be_interrupted, stands_still_and_goes_on, sets_what_it_is_told_as_text, asks_again_and_saves,
                 comes_back_behind_a_lost_socket, claims_what_has_come, works_by_keyboard_alone, speaks_two_languages, shows_words_without_their_tag, draws_the_order_of_stages, can_be_read_by_everybody, speaks_a_text, clones_a_voice]
        for part in parts:
            part(browser)
            print(f"{part.__name__} passed", flush=True)
        assert not browser.problems, browser.problems
        code = engine.stop()
        assert code == 0, engine.all
        keys = pathlib.Path(folder) / "keys"
        keys.write_text(hashlib.sha256(b"the-right-key").hexdigest() + " anna\n")
        engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0", "--store", ":memory:", "--keys-file", keys)
        browser.open(f"http://127.0.0.1:{engine.port}/")
        browser.until("document.querySelector('#settings')")
        asks_for_a_key(browser)
        parts.append(asks_for_a_key)
        print("asks_for_a_key passed", flush=True)
    finally:
        browser.stop()
        if engine.process.poll() is None:
            code = engine.stop()
    assert code == 0, engine.all
print(f"{len(parts)} passed, 0 failed")
