"""Writes the trained stages as a model directory in the official layout: `python -m tools.nano.export WORK [models/nano]`."""
from __future__ import annotations

import json
import pathlib
import random
import shutil
import sys
import wave

import numpy as np
import torch
from safetensors.torch import save_file

from .data import dialogues, domain, tokenise
from .train import encoders as train_encoders, flow as train_flow, lm as train_lm, trainer, vocoder as train_vocoder
from . import text

FOLDERS = ("Step-Audio-Tokenizer", "Step-Audio-Chat", "Step-Audio-TTS-3B")


def half(tensors: dict) -> dict:
    """Matrices in float16, everything small or delicate in float32."""
    out = {}
    for k, v in tensors.items():
        v = v.detach().clone().contiguous()
        out[k] = v.half() if v.is_floating_point() and v.dim() > 1 and not k.startswith("kmeans") else v
    return out


def state(work, name):
    return trainer.weights(work, name)


def tokenizer(work, out):
    out.mkdir(parents=True, exist_ok=True)
    for name in ("turn_end.safetensors", "turn_end.json"):      # it knows the states of other weights
        (out / name).unlink(missing_ok=True)
    ling = tokenise.load_task(work, "linguistic")
    tensors = {k: v for k, v in ling.net.state_dict().items()}
    tensors["cmvn.shift"], tensors["cmvn.rescale"] = ling.shift, ling.rescale
    tensors["kmeans.centroids"] = torch.from_numpy(np.load(f"{work}/centroids.npy"))
    save_file(half(tensors), out / "linguistic.safetensors")
    sem = tokenise.load_task(work, "semantic").net
    renamed = {k.replace("positional_embedding", "encoder.positional_embedding").replace("embed", "quantizer._codebook.embed") if k == "embed" else
               ("encoder.positional_embedding" if k == "positional_embedding" else k): v for k, v in sem.state_dict().items()}
    save_file(half(renamed), out / "semantic.safetensors", metadata={"n_head": str(train_encoders.SEMANTIC["heads"])})
    json.dump({"linguistic": {"heads": train_encoders.LINGUISTIC["heads"], "dither": 0.0}, "semantic": {"heads": train_encoders.SEMANTIC["heads"]}},
              open(out / "tokenizer.json", "w"), indent=1)


def language_model(work, root):
    chat, speak = root / "Step-Audio-Chat", root / "Step-Audio-TTS-3B"
    config = json.load(open(f"{work}/state/lm_config.json"))
    config.update(reply_format="transcript_first", tool_calls=True, history_turns=max(dialogues.TURNS))   # it is trained with so many turns before
    for folder in (chat, speak):
        folder.mkdir(parents=True, exist_ok=True)
        # Spoken where the model says nothing at all; the engine has no words of its own.
        fallback = {"fallback_replies": {"no_reply": "please repeat.", "bad_call": domain.NOT_UNDERSTOOD}} if folder is chat else {}
        json.dump(config | fallback, open(folder / "config.json", "w"), indent=1)
        shutil.copyfile(f"{work}/tokenizer.model", folder / "tokenizer.model")
        json.dump({"add_bos_token": folder is chat, "tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
                  open(folder / "tokenizer_config.json", "w"), indent=1)
        json.dump({"do_sample": False, "temperature": 0.0}, open(folder / "generation_config.json", "w"), indent=1)
    save_file(half(state(work, "lm")), chat / "model.safetensors")
    if (speak / "model.safetensors").is_symlink():
        (speak / "model.safetensors").unlink()
    save_file(half(state(work, "tts")), speak / "model.safetensors")
    json.dump(text.PROMPTS["tts"], open(speak / "prompts.json", "w"), indent=1, ensure_ascii=False)
    json.dump({"chat": text.PROMPTS["chat"], "asr": text.PROMPTS["asr"]}, open(chat / "prompts.json", "w"), indent=1)


def vocoder_config():
    f, e, v = train_flow.SHAPE, train_flow.SHAPE["estimator"], train_vocoder.SHAPE
    return {"sample_rate": 22050, "spk_embed_dim": 192,
            "flow": {"input_size": f["input_size"], "output_size": 80, "vocab_size": f["vocab_size"], "input_frame_rate": f["rate"],
                     "encoder": {"input_size": f["input_size"], "output_size": f["width"], "attention_heads": f["heads"], "linear_units": f["hidden"], "num_blocks": f["blocks"]},
                     "cfm": {"sigma_min": 1e-6, "solver": "euler", "t_scheduler": "cosine", "inference_cfg_rate": f["cfg_rate"], "n_timesteps": train_flow.SERVED_STEPS},
                     "estimator": {"in_channels": 320, "out_channels": 80, "channels": list(e["channels"]), "attention_head_dim": e["head_dim"], "n_blocks": e["blocks"],
                                   "num_mid_blocks": e["mid_blocks"], "num_heads": e["heads"], "act_fn": "gelu"}},
            "hift": {"in_channels": 80, "base_channels": v["base"], "nb_harmonics": 8, "sampling_rate": 22050, "nsf_alpha": 0.1, "nsf_sigma": 0.003, "nsf_voiced_threshold": 10,
                     "upsample_rates": [8, 8], "upsample_kernel_sizes": [16, 16], "istft_params": {"n_fft": 16, "hop_len": 4}, "resblock_kernel_sizes": [3, 7, 11],
                     "resblock_dilation_sizes": [[1, 3, 5]] * 3, "source_resblock_kernel_sizes": [7, 11], "source_resblock_dilation_sizes": [[1, 3, 5]] * 2,
                     "lrelu_slope": 0.1, "audio_limit": 0.99}}


def decoder(work, root):
    common, music = root / "Step-Audio-TTS-3B/CosyVoice-300M-25Hz", root / "Step-Audio-TTS-3B/CosyVoice-300M-25Hz-Music"
    for folder in (common, music):
        folder.mkdir(parents=True, exist_ok=True)
        json.dump(vocoder_config(), open(folder / "config.json", "w"), indent=1)
    save_file(half(state(work, "flow")), common / "flow.safetensors")
    save_file(half(state(work, "vocoder")), common / "hift.safetensors")
    speaker = state(work, "speaker")
    save_file({k: v.contiguous() for k, v in speaker.items()}, common / "campplus.safetensors")
    for name in ("flow.safetensors", "hift.safetensors"):
        link = music / name
        if link.is_symlink() or link.exists():
            link.unlink()
        link.symlink_to("../CosyVoice-300M-25Hz/" + name)


def speakers(work, root):
    """The voices' recordings: the prompts the language model was trained with."""
    out = root / "Step-Audio-TTS-3B/speakers"
    out.mkdir(parents=True, exist_ok=True)
    data = train_lm.Data(work, random.Random(1))
    info = {}
    for name, d in data.prompts.items():
        samples = data.prompt_waves[name]
        with wave.open(str(out / f"{name}_prompt.wav"), "wb") as f:
            f.setnchannels(1), f.setsampwidth(2), f.setframerate(22050), f.writeframes(samples.tobytes())
        info[name] = d["text"]
    json.dump(info, open(out / "speakers_info.json", "w"), indent=1, ensure_ascii=False)


def main():
    work = sys.argv[1]
    root = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "models/nano")
    only = sys.argv[3].split(",") if len(sys.argv) > 3 else ["tokenizer", "lm", "decoder", "speakers"]
    if "tokenizer" in only:
        tokenizer(work, root / "Step-Audio-Tokenizer")
    if "lm" in only:
        language_model(work, root)
    if "decoder" in only:
        decoder(work, root)
    if "speakers" in only:
        speakers(work, root)
    total = sum(p.stat().st_size for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    print(f"{root}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
