#!/usr/bin/env python3
"""Keys of an engine whose services meet over a network: `keys.py make DIR` makes a folder a role, for volumes and Secrets.

    keys.py make DIR                 all roles, and a first API key (printed once, kept as SHA-256); leaves alone what is there
    keys.py next DIR ROLE            step 1 of a rotation: DIR/ROLE-next with a new pair, which everybody whom ROLE calls admits as well
    keys.py point DIR ROLE           step 2: the callers of ROLE (of the gateway: its clients) believe the new pair alone
    keys.py finish DIR ROLE          step 3: ROLE has the new pair, ROLE-next goes
    keys.py retire DIR ROLE          step 4, when nobody runs with the old pair any more: it is admitted nowhere
    keys.py client DIR NAME          a pair for a client of the SDK, DIR/client-NAME, which the gateway admits
    keys.py secrets DIR [NAMESPACE]  the same as Kubernetes Secrets on stdout: pipe them into kubectl, never into a file

A folder holds `secret_key` and `public_key`, `callers` (who may call this role) and `server-ROLE` (whom it believes), as
`wire.curve` of configs/README.md wants them; that of gateways also `session_secret`, which signs tokens of sessions at all of them. Needs openssl; secrets are written with mode 0400 and never printed.
"""
import argparse
import base64
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys

# Who calls whom: the graph of ARCHITECTURE.md.
CALLS = {"gateway": ["controller"], "controller": ["vad", "tokenizer", "llm-chat", "tts", "context"], "tts": ["llm-tts", "tokenizer"],
         "vad": [], "tokenizer": [], "llm-chat": [], "llm-tts": [], "context": []}
CALLERS = {role: [c for c, called in CALLS.items() if role in called] for role in CALLS}
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def z85(raw):
    out = ""
    for at in range(0, len(raw), 4):
        number, word = int.from_bytes(raw[at:at + 4], "big"), ""
        for _ in range(5):
            number, digit = divmod(number, 85)
            word = Z85[digit] + word
        out += word
    return out


def pair():
    """-> public, secret; 40 characters each"""
    def openssl(*words, **options):
        return subprocess.run(["openssl", *words], check=True, capture_output=True, **options).stdout
    while True:
        secret = openssl("genpkey", "-algorithm", "X25519", "-outform", "DER")
        public = z85(openssl("pkey", "-inform", "DER", "-pubout", "-outform", "DER", input=secret)[-32:])
        if not public.startswith("#"):  # a line of `callers` that begins so is a comment
            return public, z85(secret[-32:])


def write(path, text, mode=0o444):
    """Renamed into its place: a service that looks at it sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as f:
        f.write(text)
    part.rename(path)


def new_pair(folder):
    public, secret = pair()
    write(folder / "secret_key", secret, 0o400)
    write(folder / "public_key", public)
    return public


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def folders(root, role):
    """Of a role, and of its next generation while there is one."""
    return [f for f in (root / role, root / f"{role}-next") if f.is_dir()]


def admit(root, public, role, by):
    for folder in folders(root, by):
        known = lines(folder / "callers")
        if f"{public} {role}" not in known:
            write(folder / "callers", "\n".join([*known, f"{public} {role}"]) + "\n")


def make(root):
    for role in CALLS:
        if not (root / role / "secret_key").exists():
            new_pair(root / role)
        if not (root / role / "callers").exists():
            write(root / role / "callers", "# public key, role, instance\n")
    for role, called in CALLS.items():
        for other in called:
            admit(root, (root / role / "public_key").read_text(), role, other)
            # In a rotation it may be the next pair's; one that is neither is of a pair that is gone.
            believable = [(folder / "public_key").read_text() for folder in folders(root, other)]
            for folder in folders(root, role):
                if "".join(lines(folder / f"server-{other}")) not in believable:
                    write(folder / f"server-{other}", believable[0])
    if not (root / "gateway/session_secret").exists():
        write(root / "gateway/session_secret", secrets.token_hex(32), 0o400)
    if not (root / "gateway/api_keys").exists():
        key = "pk-" + secrets.token_urlsafe(32)
        write(root / "gateway/api_keys", f"{hashlib.sha256(key.encode()).hexdigest()} first\n")
        print(f"API key, shown this once: {key}")


def begin(root, role):
    if (root / f"{role}-next").exists():
        sys.exit(f"keys: '{root / role}-next' exists: a rotation is under way, expected `point` and `finish` first")
    shutil.copytree(root / role, root / f"{role}-next")
    public = new_pair(root / f"{role}-next")
    for other in CALLS[role]:
        admit(root, public, role, other)


def point(root, role):
    public = (root / f"{role}-next/public_key").read_text()
    for caller in CALLERS[role]:
        for folder in folders(root, caller):
            write(folder / f"server-{role}", public)
    if role == "gateway":
        for folder in root.glob("client-*"):
            write(folder / "server-gateway", public)


def finish(root, role):
    point(root, role)
    shutil.rmtree(root / role)
    (root / f"{role}-next").rename(root / role)


def retire(root, role):
    public = (root / role / "public_key").read_text()
    for other in CALLS[role]:
        for folder in folders(root, other):
            kept = [line for line in lines(folder / "callers") if line.split()[1:] != [role] or line.split()[0] == public]
            write(folder / "callers", "\n".join(kept) + "\n")


def client(root, name):
    if (root / f"client-{name}").exists():
        sys.exit(f"keys: '{root}/client-{name}' exists, expected a new name")
    if (root / "gateway-next").exists():
        sys.exit(f"keys: '{root}/gateway-next' exists: the gateway's pair is being changed, expected `finish` first")
    public = new_pair(root / f"client-{name}")
    write(root / f"client-{name}/server-gateway", (root / "gateway/public_key").read_text())
    admit(root, public, f"client {name}", "gateway")


def secrets_of(root, namespace):
    """-> objects of Kubernetes"""
    out = []
    for role in CALLS:
        for folder in folders(root, role):
            data = {f.name: base64.b64encode(f.read_bytes()).decode() for f in sorted(folder.iterdir())}
            out.append({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data,
                        "metadata": {"name": f"parlando-keys-{folder.name}", "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "parlando"}}})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "next", "point", "finish", "retire", "client", "secrets"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("name", nargs="?", help="role, client or namespace")
    a = parser.parse_args()
    if a.what in ("next", "point", "finish", "retire") and a.name not in CALLS:
        sys.exit(f"keys: '{a.name}' is no role, expected one of {list(CALLS)}")
    if a.what in ("point", "finish") and not (a.folder / f"{a.name}-next").is_dir():
        sys.exit(f"keys: '{a.folder / a.name}-next' does not exist, expected `next` first")
    if a.what == "retire" and (a.folder / f"{a.name}-next").is_dir():
        sys.exit(f"keys: '{a.folder / a.name}-next' exists, expected `finish` first")
    if a.what == "client" and not (a.name or "").isidentifier():
        sys.exit(f"keys: '{a.name}' is no name for a client, expected letters, digits and _")
    if a.what != "make" and not (a.folder / "gateway").is_dir():
        sys.exit(f"keys: '{a.folder}' holds no keys, expected those of `make`")
    if a.what == "make":
        make(a.folder)
    elif a.what == "secrets":
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": secrets_of(a.folder, a.name or "parlando")}, indent=1))
    else:
        {"next": begin, "point": point, "finish": finish, "retire": retire, "client": client}[a.what](a.folder, a.name)


if __name__ == "__main__":
    main()
