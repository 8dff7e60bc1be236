#!/usr/bin/env python3
"""Prints the configuration of one instance for a deployment: `instances.py ROLE [--where dns|local]`.

compose.yaml, the systemd units and k8s/ all run the same programs with files that this program wrote; `instances.py --write` writes those in the
repository again, and a test compares them. Where a role is found is all that differs: by the name of a container or headless Service, or on
this machine by a port.
"""
import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
CALLS = {"gateway": ["controller"], "edge": ["controller"], "controller": ["vad", "tokenizer", "llm-chat", "tts", "context"], "tts": ["llm-tts", "tokenizer"]}
SERVICE = {"llm-chat": "llm", "llm-tts": "llm", "edge": "gateway"}
ROLES = ["vad", "tokenizer", "llm-chat", "llm-tts", "tts", "context", "controller", "gateway"]
PORT, METRICS, HTTP = 5555, 9100, 7860
# What a replica in a cluster holds at most, by key: what autoscalers go by, and k8s/simulate.py. Of a language model it is less where its cache has
# no room for so many (`slots`).
SLOTS = {"gateway": ("connections_max", 512), "edge": ("streams_max", 512), "controller": ("sessions_max", 250), "vad": ("sessions_max", 500), "tokenizer": ("sessions_max", 40),
         "llm-chat": ("sequences_max", 64), "llm-tts": ("sequences_max", 64), "tts": ("utterances_max", 32)}
CACHE_TOKENS, CONVERSATION_TOKENS = 49152, 512  # of a language model that says nothing of them (configs/README.md)
LOCAL = {role: 5560 + n for n, role in enumerate(ROLES)}  # ports on one machine; metrics 100 behind


def slots(role, core):
    """What a replica of this configuration tells as its places while nobody is there."""
    places = core[SLOTS[role][0]]
    if SERVICE.get(role) != "llm":
        return places
    return min(places, max(1, core.get("cache_tokens", CACHE_TOKENS) // core.get("conversation_tokens", CONVERSATION_TOKENS)))


def core(role, models="/models", data="/data", share="/usr/share/parlando", keys="/etc/parlando/keys"):
    nano = f"{models}/nano"
    return {"vad": {"weights": f"{share}/silero-vad/silero_vad.safetensors"},
            "tokenizer": {"model": f"{nano}/Step-Audio-Tokenizer"},
            "llm-chat": {"model": f"{nano}/Step-Audio-Chat"},
            "llm-tts": {"model": f"{nano}/Step-Audio-TTS-3B"},
            "tts": {"model": f"{nano}/Step-Audio-TTS-3B"},
            "context": {"store": f"{data}/context.sqlite"},
            "controller": {"history_turns": 1, "tools": "demo", "commit_queue_file": f"{data}/commits"},
            "gateway": {"listen": f"0.0.0.0:{HTTP}", "keys_file": f"{keys}/api_keys", "secrets_file": f"{keys}/session_secret", "hosts": ["*"], "page": f"{share}/page", "questions": f"{share}/questions",
                        "drain_seconds_max": 60},
            # The gateway that clients of the SDK see: no HTTP.
            "edge": {"listen": "", "page": "", "questions": "", "secrets_file": f"{keys}/session_secret", "drain_seconds_max": 60}}[role]


def official(role):
    """What differs with the official weights on GPUs and PostgreSQL: the prod overlays of k8s/."""
    store = "postgresql://parlando@postgres:5432/parlando?sslmode=verify-full&sslrootcert=/etc/parlando/store/ca.crt&sslcert=/etc/parlando/store/tls.crt&sslkey=/etc/parlando/store/tls.key"
    return {"context": {"store": store},
            "controller": {"history_turns": 20, "summary": "model", "commit_queue_file": "/data/commits"},
            "tokenizer": {"model": "/models/Step-Audio-Tokenizer"},
            "llm-chat": {"model": "/models/Step-Audio-Chat", "bf16": True, "cache_tokens": 61440, "conversation_tokens": 2048},
            "llm-tts": {"model": "/models/Step-Audio-TTS-3B", "bf16": True, "cache_tokens": 262144},
            "tts": {"model": "/models/Step-Audio-TTS-3B", "bf16": True, "prompt_memory_mb": 1024}}[role]


def instance(role, where="dns", **folders):
    """@param where  `dns`: names of services; `local`: ports of this machine"""
    keys = folders.get("keys", "/etc/parlando/keys")
    called = CALLS.get(role, [])
    curve = {"secret_key_file": f"{keys}/secret_key", "public_key_file": f"{keys}/public_key", "keys_file": f"{keys}/callers"}
    if called:
        curve["server_key_files"] = {r: f"{keys}/server-{r}" for r in called}
    local = where == "local"
    wire = {"bind": f"tcp://127.0.0.1:{LOCAL[role]}" if local else f"tcp://*:{PORT}",
            "metrics": f"127.0.0.1:{LOCAL[role] + 100}" if local else f"0.0.0.0:{METRICS}", "curve": curve}
    if called:
        wire["connect"] = {r: [f"tcp://127.0.0.1:{LOCAL[r]}" if local else f"dns:tcp://{r}:{PORT}"] for r in called}
    out = core(role, **folders)
    if local and role == "gateway":
        out |= {"listen": f"127.0.0.1:{HTTP}", "hosts": []}
    return {"service": SERVICE.get(role, role), "role": "gateway" if role == "edge" else role, "wire": wire, "core": out}


def in_cluster(role, changes=None):
    """There SDK clients come to the edge, and the gateway listens to no mesh."""
    out = instance(role)
    if role == "gateway":
        del out["wire"]["bind"]
        # Places are counted in connections, which autoscalers follow. Behind an ingress or a load balancer all have its address: keys have limits.
        out["core"] |= {"streams_max": 0, "connections_per_address_max": 0}
    if changes is not None:
        out["core"] = changes
        # Official sizes: a step may take longer than nano's.
        out["wire"] |= {"step_limit_ms": 10000, "watchdog_ms": 10000}
    if role in SLOTS:
        out["core"] |= dict([SLOTS[role]])
    return out


def files():
    """-> {file in the repository: its text}"""
    out = {}
    def text(value):
        return json.dumps(value, indent=1) + "\n"
    for role in ROLES:
        out[HERE / f"compose/{role}.json"] = text(instance(role))
        out[HERE / f"systemd/{role}.json"] = text(instance(role, "local", models="/usr/share/parlando/models", data=f"/var/lib/parlando/{role}", keys=f"/etc/parlando/keys/{role}"))
    k8s = HERE.parent / "k8s"
    for role in [*ROLES, "edge"]:
        out[k8s / f"base/config/{role}.json"] = text(in_cluster(role))
    out[k8s / "overlays/prod-cpu/config/context.json"] = text(instance("context") | {"core": official("context")})
    for role in ("tokenizer", "llm-chat", "llm-tts", "tts", "controller"):
        out[k8s / f"overlays/prod-gpu/config/{role}.json"] = text(in_cluster(role, official(role)))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", choices=ROLES)
    parser.add_argument("--where", choices=["dns", "local"], default="dns")
    parser.add_argument("--write", action="store_true", help="write the files of the repository again")
    parser.add_argument("--check", action="store_true", help="say which of them differ")
    a = parser.parse_args()
    if a.write or a.check:
        different = [str(f) for f, text in files().items() if not f.exists() or f.read_text() != text]
        if a.write:
            for file, text in files().items():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        elif different:
            sys.exit(f"these are not what instances.py writes: {different}")
    elif a.role:
        print(json.dumps(instance(a.role, a.where), indent=1))
    else:
        parser.error("a role, --write or --check is needed")


if __name__ == "__main__":
    main()
