"""Checks the direction of includes and that every header compiles alone (syntax only). Usage: layout_test.py [BUILD_DIR]"""
import json
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[1]
problems = []
sources = [p for d in ("common", "kernels", "services") for p in sorted((ROOT / d).rglob("*.[ch]pp"))]
for path in sources:
    name = path.relative_to(ROOT).as_posix()
    for include in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
        top = include.split("/")[0]
        if not (ROOT / include).exists():
            problems.append(f"{name} includes '{include}', which does not exist")
        if name.startswith("common/") and top in ("services", "tests"):
            problems.append(f"{name} includes '{include}': common never includes services")
        if name.startswith("common/base/") and not include.startswith("common/base/"):
            problems.append(f"{name} includes '{include}': base stands alone")
        if name.startswith("kernels/") and not include.startswith(("kernels/", "common/base/")):
            problems.append(f"{name} includes '{include}': kernels see common/base only")
        if name.startswith("services/") and top == "services" and not name.startswith("services/cli/"):
            if include.split("/")[1] != name.split("/")[1]:
                problems.append(f"{name} includes '{include}': services never include each other")
commands = ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build") / "compile_commands.json"
headers = [p for p in sources if p.suffix == ".hpp"]
if commands.exists():
    flags = {}
    for c in json.load(open(commands)):
        words = c["command"].split()
        keep = [w for w in words if w.startswith(("-I", "-std", "-D"))]
        for i, w in enumerate(words):
            if w == "-isystem":
                keep += [w, words[i + 1]]
        flags[str(pathlib.Path(c["file"]).parent)] = keep
    widest = max(flags.values(), key=len)

    def compile_alone(header):
        done = subprocess.run(["g++", "-std=gnu++20", "-fsyntax-only", "-x", "c++", f"-I{ROOT}", *widest, str(header)], capture_output=True, text=True)
        return None if done.returncode == 0 else f"{header.relative_to(ROOT)} does not compile alone: {done.stderr.splitlines()[0] if done.stderr else ''}"

    with ThreadPoolExecutor(2) as pool:
        problems += [p for p in pool.map(compile_alone, headers) if p]
print("\n".join(problems))
print(f"{len(sources) + len(headers) - len(problems)} passed, {len(problems)} failed")
sys.exit(bool(problems))
