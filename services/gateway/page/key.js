// The API key, where the server asks for one. The browser forgets it with the tab.
const NAME = "parlando.key";
let key = "";
try { key = sessionStorage.getItem(NAME) ?? ""; } catch { /* a browser that keeps nothing */ }

export const apiKey = () => key;

/// Keys travel as a subprotocol of WebSockets, which takes these characters only.
export const isKey = (text) => /^[!#$%&'*+\-.^_`|~0-9A-Za-z]*$/.test(text);

export function setKey(text) {
  key = text;
  try { text ? sessionStorage.setItem(NAME, text) : sessionStorage.removeItem(NAME); } catch { /* likewise */ }
}

export const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});
/// Of a WebSocket: browsers let a page send no other headers.
export const protocols = () => (key ? ["dialogue", `openai-insecure-api-key.${key}`] : []);

/// Does the server want a key that we have not?
export async function isRefused() {
  const answer = await fetch("v1/models", { headers: headers() }).catch(() => null);
  return answer?.status === 401;
}
