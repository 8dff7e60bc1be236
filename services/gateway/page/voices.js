// Voices and styles: what the bundled model has, what official weights add, what this server says of itself.
import { headers } from "./key.js";
import { label, make, say } from "./texts.js";

const BUNDLED = ["Clara", "Ken"], OFFICIAL = ["Tingting"];

// The official tags, in the order in which they stand in front of a text. The first one decides whether it is sung.
export const STYLES = {
  mode: ["RAP", "哼唱"],
  emotion: ["高兴1", "高兴2", "生气1", "生气2", "悲伤1", "撒娇1"],
  dialect: ["中文", "英文", "韩语", "日语", "四川话", "粤语", "广东话"],
  tempo: ["慢速2", "慢速1", "快速1", "快速2"],
};
export const KNOWN = new Set(["哼唱", "高兴1", "快速1", "慢速1"]);

export const server = { voices: [], status: null, canClone: false };

/// Asks the server which voices it has and whether it clones. A server without that part answers 404.
export async function askServer() {
  const answer = await fetch("v1/audio/voices", { headers: headers() }).catch(() => null);
  server.status = answer?.status ?? 0;
  server.canClone = Boolean(answer?.ok);
  if (!answer?.ok) return;
  const list = (await answer.json().catch(() => null))?.data;
  server.voices = (Array.isArray(list) ? list : []).map((v) => ({ id: String(v?.id), name: String(v?.name) }));
}

/// Fills a select; the choice stays if it is still there.
export function fillVoices(select, chosen) {
  const group = (key, names) => {
    const out = make("optgroup");
    label(out, key);
    out.label = out.getAttribute("aria-label");
    for (const one of names) { const option = make("option", "", one.name ?? one); option.value = one.id ?? one; out.append(option); }
    return names.length > 0 ? [out] : [];
  };
  const plain = make("option");
  plain.value = "";
  say(plain, "defaultVoice");
  select.replaceChildren(plain, ...group("bundledVoices", BUNDLED), ...group("serverVoices", server.voices), ...group("officialVoices", OFFICIAL));
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}
