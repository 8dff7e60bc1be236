"""Text side of the language model: a SentencePiece unigram model in the official vocabulary layout, encoding with the added-token rule,
and the official chat and TTS prompts. `python -m tools.nano.text WORK` makes `WORK/tokenizer.model`."""
from __future__ import annotations

import json
import random
import re
import sys

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

from .data import domain

TEXT_PIECES, AUDIO_CODES = 500, 1536
EOT, BOT = 3, 4
CONTROL = ("<unk> <s> </s> <|EOT|> <|BOT|> <|CALL_START|> <|CALL_END|> <|THINK_START|> <|THINK_END|> <|IMG_START|> <|IMG_END|> <|META_START|> "
           "<|META_END|> <im_patch> <im_start> <im_end> <dream> <dream_start> <dream_end> <|MASK_1e69f|> <|UNMASK_1e69f|> <video_start> <video_end> "
           "<row_patch> <column_patch> <|SEP_1e69f|> #26 #27 #28 #29 #30 <audio_start> <audio_end> <text_start> <text_end> <|TTS|> <|ASR|> <|TQAA|> "
           "<|AQTA|>").split() + [f"#{i}" for i in range(39, 68)]
USER_DEFINED = {19, 20, 25, *range(26, 31), *range(39, 68)}
PROMPTS = {
    "chat": "answer in short spoken words.",
    "asr": "write down what you hear.",
    "tts": {"sys_prompt_with_spk": "read the text aloud as {}.", "sys_prompt_wo_spk": "read the text aloud.", "sys_prompt_for_rap": "rap the text.",
            "sys_prompt_for_vocal": "sing the text."},
}


def corpus(rng):
    for _ in range(60000):
        turn = domain.dialogue(rng)
        yield turn.user
        yield domain.untag(turn.reply)[1].replace("<|CALL_START|>", "").replace("<|CALL_END|>", "")
        call, result, reply = domain.tool_result(rng)
        yield json.dumps(result, separators=(",", ":"))
        yield reply


def make(work):
    lines = sorted(set(corpus(random.Random(3))))
    lines += (["human", "assistant", "system", "tool"] * 300 + [PROMPTS["chat"], PROMPTS["asr"], *PROMPTS["tts"].values()] * 300)
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=f"{work}/raw", vocab_size=TEXT_PIECES + 259 - 30, model_type="unigram",
                                   byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                                   character_coverage=1.0, hard_vocab_limit=False, minloglevel=2, num_threads=1)
    raw = pb.ModelProto()
    raw.ParseFromString(open(f"{work}/raw.model", "rb").read())
    pieces = [(p.piece, p.score) for p in raw.pieces if p.type == 1][:TEXT_PIECES - 10]
    lowest = min(s for _, s in pieces)
    have = {p for p, _ in pieces}
    for extra in ["快速1", "慢速1", "高兴1", "哼唱", "(", ")", "RAP"]:
        if extra not in have:
            pieces.append((extra, lowest))
    model = pb.ModelProto()
    model.CopyFrom(raw)
    del model.pieces[:]

    def add(piece, score, kind):
        model.pieces.add(piece=piece, score=score, type=kind)

    for i, name in enumerate(CONTROL):
        add(name if name[0] != "#" else f"<user_defined_symbol_{i - 4}>", 0.0, 2 if i == 0 else 4 if i in USER_DEFINED else 3)
    for b in range(256):
        add(f"<0x{b:02X}>", 0.0, 6)
    for piece, score in pieces:
        add(piece, score, 1)
    for i in range(AUDIO_CODES):
        add(f"<audio_{i}>", 0.0, 4)
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    open(f"{work}/tokenizer.model", "wb").write(model.SerializeToString())
    return len(model.pieces)


class Tokenizer:
    def __init__(self, path):
        proto = pb.ModelProto()
        proto.ParseFromString(open(path, "rb").read())
        self.size = len(proto.pieces)
        self.pieces = [p.piece for p in proto.pieces]
        self.types = [p.type for p in proto.pieces]
        added = sorted((p.piece for p in proto.pieces if p.type in (2, 3, 4)), key=len, reverse=True)
        self.ids = {p.piece: i for i, p in enumerate(proto.pieces)}
        self.audio = self.ids["<audio_0>"]
        self.added = re.compile("|".join(map(re.escape, added)))
        proto.normalizer_spec.add_dummy_prefix = False
        self.sp = spm.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.cache: dict = {}

    def encode(self, text: str) -> list[int]:
        """Without BOS."""
        if text in self.cache:
            return self.cache[text]
        out, at = [], 0

        def section(s, first):
            if s:
                s = s.replace(" ", "▁")
                out.extend(self.sp.encode(("" if s.startswith("▁") else "▁") + s if first else s))

        for m in self.added.finditer(text):
            section(text[at:m.start()], at == 0)
            out.append(self.ids[m.group()])
            at = m.end()
        section(text[at:], at == 0)
        if len(self.cache) < 50000:
            self.cache[text] = out
        return out

    def decode(self, ids) -> str:
        data, text = b"", ""
        for i in ids:
            if self.types[i] == 6:
                data += bytes([int(self.pieces[i][3:5], 16)])
                continue
            text, data = text + data.decode("utf-8", "replace"), b""
            text += self.pieces[i].replace("▁", " ")
        text += data.decode("utf-8", "replace")
        return text[1:] if text.startswith(" ") else text

    def chat(self, messages) -> list[int]:
        """Offline style; content is text or a list of codes. Ends where the assistant speaks."""
        ids, text = [1], ""
        parts = []
        for m in messages:
            role = "human" if m["role"] == "user" else m["role"]
            content = m["content"]
            text += f"<|BOT|>{role}\n"
            if isinstance(content, str):
                text += content + "<|EOT|>"
            else:
                parts.append((text, content))
                text = "<|EOT|>"
        parts.append((text + "<|BOT|>assistant\n", []))
        for t, codes in parts:
            ids += self.encode(t) + [self.audio + c for c in codes]
        return ids

    def cut(self, text):
        """Ids of text without the mark of a word start, as the official TTS prompt makes them."""
        return self.encode("\n" + text)[len(self.encode("\n")):]

    def tts(self, system, prompt_text, prompt_codes, text) -> list[int]:
        audio = [self.audio + c for c in prompt_codes]
        e = self.encode
        return ([1, BOT] + e("system\n" + system) + [EOT, BOT] + e("human\n") + self.cut(prompt_text) + [EOT, BOT] + e("assistant\n") + audio +
                [EOT, BOT] + e("human\n") + self.cut(text) + [EOT, BOT] + e("assistant\n"))


if __name__ == "__main__":
    print(make(sys.argv[1]), "pieces")
    t = Tokenizer(sys.argv[1] + "/tokenizer.model")
    for s in ("what is seven plus nine", "(快速1)okay, i will speak faster.", '<|CALL_START|>{"name":"get_time","arguments":{"city":"rome"}}<|CALL_END|>'):
        ids = t.encode(s)
        print(len(ids), [t.pieces[i] for i in ids], t.decode(ids))
