// All words of the page, a table per language, and the two functions that put them in place. Everything is set as text.
const en = {
  title: "parlando", talk: "Talk", studio: "Voice studio", views: "Views", skip: "Skip to the conversation",
  language: "中文", languageLabel: "切换到中文", settings: "Settings", close: "Close", dismiss: "Dismiss",
  themeAuto: "Colours: as the system", themeLight: "Colours: light", themeDark: "Colours: dark",

  connecting: "Connecting…", offline: "Connection lost. Trying again…", ready: "Ready when you are",
  waitingForYou: "Go ahead, I’m listening", listening: "Listening", thinking: "Thinking", speaking: "Speaking",
  held: "You have the floor", sending: "Sending the recording…",
  hintMic: "Open the microphone and just talk. You can interrupt at any time.",
  hintHold: "Hold the button or the space bar while you talk.",
  openMic: "Open microphone", closeMic: "Close microphone", hold: "Hold to talk", holding: "Release to send",
  holdHelp: "Hold, or press Enter to begin and Enter again to send", space: "Space", stop: "Stop",
  typeHere: "Type a message", send: "Send", upload: "Send a recording", examples: "Example questions",

  conversation: "Conversation", you: "You", assistant: "parlando", tool: "Tool",
  arguments: "Arguments", result: "Result", running: "running…",
  again: "Ask again", saveText: "Text", saveTextLabel: "Text: download the conversation as JSON", saveSound: "Sound",
  saveSoundLabel: "Sound: download the answers as WAV", fresh: "New", freshLabel: "New session: clears this one",
  replay: "Play the answer again", interrupted: "interrupted", stopped: "stopped", cancelled: "cancelled",
  replaced: "asked again", failed: "not answered", noted: "noted", soundDropped: "Older sound was let go.",
  restarted: "The earlier session is over; a new one has begun.",

  latency: "First sound after {time}", latencyNone: "No sound", latencyTable: "Stages of the turn, from the end of your speech",
  stage: "Stage", from: "From", to: "To", ms: "{n} ms", msBeyond: "→ {n} ms",
  trial: "Thought ahead", decision: "End of speech decided", tokenizer: "Speech read", transcript: "Understood",
  firstText: "First words", firstAudio: "First sound made", received: "First sound received", played: "First sound played",
  text: "All words", total: "All sound made",

  system: "System prompt", systemHelp: "Who the assistant is and how it answers. The bundled model knows one role only.",
  voice: "Voice", defaultVoice: "Default voice", degraded: "not stored yet", detection: "End of your turn", silence: "Silence", silenceHelp: "A pause ends your turn.",
  semantic: "Meaning", semanticHelp: "The engine waits until the sentence is finished.",
  none: "Hold to talk", noneHelp: "Your turn ends when you let go of the button.",
  key: "API key", keyHelp: "Needed where the server has keys. This tab keeps it, and nobody else.",
  needsKey: "This server asks for an API key: see the settings.", wrongKey: "The server does not know this API key.",
  badKey: "This is no API key: it has characters that none has.",
  appliesNext: "Changes hold from the next turn on.", knows: "What the bundled model knows",
  know1: "Greetings and small talk: hello, how are you, tell me a joke, good night",
  know2: "Sums with numbers up to twenty", know3: "Some thirty simple facts and twenty capitals",
  know4: "Time, date, weather in a city and timers, each through a tool call (the weather is a fixed example)",
  know5: "“Speak faster”, “speak slowly”, “speak happily”, “sing a song”, “repeat after me …”",
  know6: "To anything else it says “i did not understand”: it is a demonstration model on a closed English domain.",

  noMicrophone: "The microphone cannot be used: {why}", insecure: "browsers give it to https and localhost only",
  micLost: "The microphone has gone.", badFile: "This file cannot be read as sound.",
  longFile: "This recording is longer than {n} minutes.", lost: "the connection was lost", badJson: "the server sent no JSON",

  say: "What shall be said?",
  sayExample: "today in paris it is sunny, twenty degrees.", samples: "Sample sentences", speak: "Speak", stopSpeaking: "Stop",
  speed: "Speed", volume: "Volume", times: "{n} ×", plainMode: "Speaking", plainEmotion: "Neutral", plainDialect: "As written", plainTempo: "Normal",
  mode: "Mode", emotion: "Emotion", dialect: "Language", tempo: "Tempo",
  official: "needs official weights", allTags: "Official weights are loaded: offer every style",
  pause: "Pause", play: "Play", saveWav: "Download WAV", waveform: "Waveform of the speech",
  making: "Making… {s} s so far", made: "{s} s of speech, first sound after {ms} ms", nothingYet: "The speech appears here while it is made.",
  cloneTitle: "Clone a voice", cloneLead: "Record one calm sentence of 3 to 10 seconds and write down what you said.",
  cloneMissing: "This server does not offer cloning (GET /v1/audio/voices answered {status}).",
  record: "Record", stopRecording: "Stop recording", recorded: "{s} s recorded", listenBack: "Listen to the recording",
  cloneName: "Name of the voice", cloneText: "What is said in the recording",
  consent: "This is my voice, or its owner has agreed to this clone.", create: "Create voice", created: "{name} can speak now.",
  cloneNeeds: "Needed: a recording, its words, a name and consent.",
  bundledVoices: "Bundled", officialVoices: "Need official weights", serverVoices: "Of this server",
  tag: { "RAP": "Rap", "哼唱": "Humming", "高兴1": "Happy", "高兴2": "Very happy", "生气1": "Angry", "生气2": "Very angry", "悲伤1": "Sad",
    "撒娇1": "Coquettish", "中文": "Chinese", "英文": "English", "韩语": "Korean", "日语": "Japanese", "四川话": "Sichuanese",
    "粤语": "Cantonese", "广东话": "Guangdong", "慢速2": "Very slow", "慢速1": "Slow", "快速1": "Fast", "快速2": "Very fast" },
};

const zh = {
  title: "parlando", talk: "对话", studio: "声音工坊", views: "视图", skip: "跳到对话记录",
  language: "EN", languageLabel: "Switch to English", settings: "设置", close: "关闭", dismiss: "知道了",
  themeAuto: "颜色：跟随系统", themeLight: "颜色：浅色", themeDark: "颜色：深色",

  connecting: "正在连接…", offline: "连接已断开，正在重试…", ready: "随时可以开始",
  waitingForYou: "请讲，我在听", listening: "正在听", thinking: "正在思考", speaking: "正在说", held: "您先说", sending: "正在发送录音…",
  hintMic: "打开麦克风，直接说话即可，随时可以打断。", hintHold: "说话时按住按钮或空格键。",
  openMic: "打开麦克风", closeMic: "关闭麦克风", hold: "按住说话", holding: "松开发送",
  holdHelp: "按住说话；或按回车开始，再按回车发送", space: "空格", stop: "停止",
  typeHere: "输入文字", send: "发送", upload: "发送录音文件", examples: "示例问题",

  conversation: "对话记录", you: "您", assistant: "parlando", tool: "工具",
  arguments: "参数", result: "结果", running: "执行中…",
  again: "重新回答", saveText: "文字", saveTextLabel: "文字：下载对话（JSON）", saveSound: "声音", saveSoundLabel: "声音：下载回答（WAV）",
  fresh: "新会话", freshLabel: "新会话：清空当前对话", replay: "重放回答", interrupted: "被打断", stopped: "已停止", cancelled: "已取消",
  replaced: "已重问", failed: "未回答", noted: "已记下", soundDropped: "较早的声音已删除。",
  restarted: "之前的会话已结束，已开始新会话。",

  latency: "{time} 后听到第一声", latencyNone: "没有声音", latencyTable: "本轮各阶段，从您说完算起",
  stage: "阶段", from: "开始", to: "结束", ms: "{n} 毫秒", msBeyond: "→ {n} 毫秒",
  trial: "提前思考", decision: "判定说完", tokenizer: "语音编码", transcript: "听懂", firstText: "第一个词", firstAudio: "合成第一声",
  received: "收到第一声", played: "播放第一声", text: "全部文字", total: "全部声音",

  system: "系统提示词", systemHelp: "助手的身份和回答方式。内置模型只会一种角色。", voice: "音色", defaultVoice: "默认音色", degraded: "尚未保存", detection: "如何判断您说完",
  silence: "静音", silenceHelp: "停顿一下即算说完。", semantic: "语义", semanticHelp: "引擎会等句子说完整。",
  none: "按住说话", noneHelp: "松开按钮即算说完。", appliesNext: "更改从下一轮开始生效。",
  key: "API 密钥", keyHelp: "服务器设有密钥时需要。只保存在此标签页中。", needsKey: "此服务器需要 API 密钥，请在设置中填写。",
  wrongKey: "服务器不认识这个 API 密钥。", badKey: "这不是 API 密钥：含有不允许的字符。",
  knows: "内置模型会什么",
  know1: "问候和闲聊（英语）：hello, how are you, tell me a joke, good night", know2: "二十以内的加减乘", know3: "约三十个常识和二十个首都",
  know4: "时间、日期、城市天气和定时器，都通过工具调用（天气是固定的示例）",
  know5: "“speak faster”“speak slowly”“speak happily”“sing a song”“repeat after me …”",
  know6: "其他内容会回答 “i did not understand”：这是一个封闭英语领域的演示模型。",

  noMicrophone: "无法使用麦克风：{why}", insecure: "浏览器只在 https 和 localhost 上开放麦克风", micLost: "麦克风已断开。",
  badFile: "无法把这个文件读作声音。", longFile: "录音超过 {n} 分钟。", lost: "连接已断开", badJson: "服务器发来的不是 JSON",

  say: "要说什么？", sayExample: "today in paris it is sunny, twenty degrees.",
  samples: "示例句子", speak: "朗读", stopSpeaking: "停止", speed: "语速", volume: "音量", times: "{n} 倍",
  mode: "方式", emotion: "情感", dialect: "语言", tempo: "节奏", plainMode: "说话", plainEmotion: "平静", plainDialect: "按文字", plainTempo: "正常", official: "需要官方权重",
  allTags: "已加载官方权重：开放全部风格", pause: "暂停", play: "播放", saveWav: "下载 WAV", waveform: "语音波形",
  making: "正在合成…已有 {s} 秒", made: "共 {s} 秒，{ms} 毫秒后发出第一声", nothingYet: "合成的语音会实时显示在这里。",
  cloneTitle: "克隆音色", cloneLead: "平静地录一句话，3 到 10 秒，并写下所说的内容。",
  cloneMissing: "此服务器不提供克隆（GET /v1/audio/voices 返回 {status}）。", record: "录音", stopRecording: "停止录音",
  recorded: "已录 {s} 秒", listenBack: "试听录音", cloneName: "音色名称", cloneText: "录音里说的内容",
  consent: "这是我本人的声音，或已得到本人同意。", create: "创建音色", created: "{name} 可以说话了。",
  cloneNeeds: "需要：录音、文字、名称和同意。", bundledVoices: "内置", officialVoices: "需要官方权重", serverVoices: "此服务器",
  tag: { "RAP": "说唱", "哼唱": "哼唱", "高兴1": "高兴", "高兴2": "很高兴", "生气1": "生气", "生气2": "很生气", "悲伤1": "悲伤", "撒娇1": "撒娇",
    "中文": "中文", "英文": "英文", "韩语": "韩语", "日语": "日语", "四川话": "四川话", "粤语": "粤语", "广东话": "广东话",
    "慢速2": "很慢", "慢速1": "慢", "快速1": "快", "快速2": "很快" },
};

export const tables = { en, zh };

/// What the user has chosen and what the browser keeps of it; without a store it lasts as long as the page.
export const kept = {
  get(key, otherwise) {
    try { return JSON.parse(localStorage.getItem(`parlando.${key}`)) ?? otherwise; } catch { return otherwise; }
  },
  set(key, value) {
    try { localStorage.setItem(`parlando.${key}`, JSON.stringify(value)); } catch { /* a browser that keeps nothing */ }
  },
};

const preferred = () => ((navigator.languages ?? [navigator.language]).find((l) => /^(zh|en)/i.test(l)) ?? "en").slice(0, 2).toLowerCase();
let language = kept.get("language", preferred());
if (!(language in tables)) language = "en";

/// @param key  of the table; `tag.高兴1` for a tag
export function t(key, values = {}) {
  const text = key.startsWith("tag.") ? tables[language].tag[key.slice(4)] : tables[language][key];
  return (text ?? key).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

/// Is it the name of a style that the page has a word for?
export const isTag = (name) => Object.hasOwn(tables.en.tag, name);

/// Says a text of the table in an element, and again when the language changes.
export function say(element, key, values) {
  if (element.dataset.text === key && !values && !element.dataset.values) return;
  element.dataset.text = key;
  if (values) element.dataset.values = JSON.stringify(values);
  else delete element.dataset.values;
  element.textContent = t(key, values);
}

const ATTRIBUTES = { label: "aria-label", hint: "placeholder", tip: "title" };

export function label(element, key, attribute = "label") {
  element.dataset[attribute] = key;
  element.setAttribute(ATTRIBUTES[attribute], t(key));
}

export function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const e of root.querySelectorAll("[data-text]"))
    e.textContent = t(e.dataset.text, e.dataset.values ? JSON.parse(e.dataset.values) : {});
  for (const [name, attribute] of Object.entries(ATTRIBUTES))
    for (const e of root.querySelectorAll(`[data-${name}]`)) e.setAttribute(attribute, t(e.dataset[name]));
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  kept.set("language", language);
  translate();
  dispatchEvent(new Event("languagechange"));
}

/// An element with a class, and a text or children.
export function make(tag, className = "", ...children) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  e.append(...children);
  return e;
}
