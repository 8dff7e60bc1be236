// The page of the gateway: its two views, its settings, its language and colours.
import { apiKey, isKey, setKey } from "./key.js";
import { Orb } from "./orb.js";
import { Studio } from "./studio.js";
import { Talk, examples, settings } from "./talk.js";
import { kept, label, switchLanguage, t, translate } from "./texts.js";
import { fillVoices } from "./voices.js";

const $ = (id) => document.getElementById(id);
const NOTICE_MS = 12000;

let hide = 0;
function notice(text) {
  $("notice-text").textContent = text;
  $("notice").hidden = false;
  clearTimeout(hide);
  hide = setTimeout(() => { $("notice").hidden = true; }, NOTICE_MS);
}
$("notice-close").addEventListener("click", () => { $("notice").hidden = true; });

// ------------------------------------------------------------------------------------------------ colours, language

const THEMES = ["auto", "light", "dark"];
let theme = kept.get("theme", "auto");
function showTheme() {
  if (!THEMES.includes(theme)) theme = "auto";
  document.documentElement.dataset.theme = theme;
  const key = { auto: "themeAuto", light: "themeLight", dark: "themeDark" }[theme];
  for (const attribute of ["label", "tip"]) label($("theme"), key, attribute);
  $("theme").querySelector("use").setAttribute("href", `#i-${theme}`);
  orb?.recolour();
}
let orb = null;
translate();
showTheme();

const talk = new Talk(notice), studio = new Studio(notice);
orb = new Orb($("orb"), () => talk.look());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => orb.recolour());
$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  kept.set("theme", theme);
  showTheme();
  studio.show();
});
$("language").addEventListener("click", switchLanguage);
addEventListener("languagechange", () => {
  for (const group of document.querySelectorAll("optgroup")) group.label = group.getAttribute("aria-label");
});

// ------------------------------------------------------------------------------------------------ the views

// Tabs as screen readers know them: arrows move, one of them is in the order of focus.
const views = ["talk", "studio"];
function view(name, focus = false) {
  for (const v of views) {
    $(`tab-${v}`).setAttribute("aria-selected", String(v === name));
    $(`tab-${v}`).tabIndex = v === name ? 0 : -1;
    $(`view-${v}`).hidden = v !== name;
  }
  document.body.dataset.view = name;
  if (focus) $(`tab-${name}`).focus();
  if (name === "studio") { talk.setMicrophone(false); studio.clone.ask(); studio.show(); } else studio.cancel();
  history.replaceState(null, "", name === "talk" ? location.pathname + location.search : "#studio");
}
for (const v of views) {
  $(`tab-${v}`).addEventListener("click", () => view(v));
  $(`tab-${v}`).addEventListener("keydown", (e) => {
    if (e.key === "ArrowLeft" || e.key === "ArrowRight") view(views[1 - views.indexOf(v)], true);
  });
}

// ------------------------------------------------------------------------------------------------ settings

const dialog = $("settings");
function fillSettings() {
  const { system, speaker, detection } = settings();
  $("system").value = system;
  fillVoices($("voice"), speaker);
  $("key").value = apiKey();
  for (const input of dialog.querySelectorAll("[name=detection]")) input.checked = input.value === detection.type;
}
function keepSettings() {
  const { system, speaker, detection } = settings(), before = { system, speaker, detection: detection.type };
  const end = dialog.querySelector("[name=detection]:checked")?.value ?? "silence";
  const next = { system: $("system").value, speaker: $("voice").value, detection: end };
  if (JSON.stringify(next) === JSON.stringify(before)) return;
  kept.set("settings", next);
  talk.configure();
}
/// Another key is another right: what it opens begins anew.
function keepKey() {
  const next = $("key").value.trim();
  if (next === apiKey()) return;
  if (!isKey(next)) return notice(t("badKey"));
  setKey(next);
  studio.clone.ask();
  talk.dialogue.restart();
}
let asked = null;
addEventListener("keyneeded", () => {
  if (asked === apiKey()) return;  // once for each
  asked = apiKey();
  notice(t(asked ? "wrongKey" : "needsKey"));
  if (dialog.open) return;
  fillSettings();
  dialog.showModal();
  $("key").focus();
});
$("key").addEventListener("change", keepKey);
$("open-settings").addEventListener("click", () => { fillSettings(); dialog.showModal(); });
$("close-settings").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (e) => { if (e.target === dialog) dialog.close(); });
dialog.addEventListener("change", keepSettings);
dialog.addEventListener("close", () => { keepSettings(); keepKey(); });

fillVoices($("studio-voice"), "");
fillVoices($("voice"), settings().speaker);
view(location.hash === "#studio" ? "studio" : "talk");
examples(talk);
