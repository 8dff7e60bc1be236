"""Checks who includes whom, which folders reach which heavy library, the width of lines, and that every header compiles alone (syntax
only). The two tables are the picture of the house: a new edge is a decision, made here. Usage: layout_test.py [BUILD_DIR]
"""
import json
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[1]
problems = []
checked = 0

# Folder -> folders of the project that its files may include, besides itself.
MAY_INCLUDE = {
    "common/base": [],
    "common/audio": ["common/base"],
    "common/checkpoint": ["common/base"],
    "common/config": ["common/base"],
    "common/http": ["common/base"],
    "common/nn": ["common/base", "kernels"],
    "common/parallel": ["common/base"],
    "common/telemetry": ["common/base"],
    "common/tensor": ["common/checkpoint"],
    "common/protocol": ["common/base"],
    "common/transport": ["common/base", "common/protocol"],
    "common/transport/sim": ["common/base", "common/protocol", "common/transport"],
    "common/transport/zmq": ["common/base", "common/protocol", "common/telemetry", "common/transport"],
    "common/service": ["common/base", "common/config", "common/http", "common/protocol", "common/service/process", "common/telemetry",
                       "common/transport"],
    "common/service/process": ["common/base"],
    "kernels": ["common/base"],
    "sdk/cpp": ["common/base", "common/protocol", "common/transport"],
}
# A service includes common (all but the seeded network), kernels, and itself; `cli` alone includes the others.
SERVICE_MAY = ["common", "kernels"]
SERVICE_MAY_NOT = ["common/transport/sim"]

# Heavy library -> folders whose files may include it.
LIBRARIES = {
    r"zmq(\.|_)": ["common/transport/zmq", "services/cli"],
    r"caf/": ["common/service"],
    r"(ATen|torch|c10)/": ["common/nn", "common/tensor", "services/llm", "services/tokenizer", "services/tts", "services/cli"],
    r"boost/(asio|beast)": ["common/http"],
    r"prometheus/": ["common/telemetry"],
    r"spdlog/": ["common/telemetry"],
    r"CLI/": ["common/service", "services/cli"],
    r"sqlite3": ["services/context", "services/cli"],
    r"libpq": ["services/context"],
    r"sox": ["services/tts"],
    r"simdjson": ["services/gateway"],
    r"sndfile": ["common/audio"],
    r"opus/": ["common/audio"],
    r"hwy/": ["kernels"],
    r"openssl/": ["common/base", "common/checkpoint", "common/http", "services/context", "services/controller", "services/gateway", "services/cli"],
    r"yaml-cpp/": ["common/checkpoint"],
}
COLUMNS = 120


def inside(name, folders):
    return any(name == f or name.startswith(f + "/") for f in folders)


def folder_of(name):
    """The entry of MAY_INCLUDE that a file belongs to: the longest that fits."""
    fits = [f for f in MAY_INCLUDE if inside(name, [f])]
    return max(fits, key=len) if fits else None


def check_includes(name, text):
    global checked
    for include in re.findall(r'^#include "([^"]+)"', text, re.M):
        checked += 1
        if not (ROOT / include).exists():
            problems.append(f"{name} includes '{include}', which does not exist")
        own = folder_of(name)
        if own is not None:
            theirs = folder_of(include) or include
            if theirs != own and not inside(theirs, MAY_INCLUDE[own]):
                problems.append(f"{name} includes '{include}': {own} sees {MAY_INCLUDE[own]}")
        elif not name.startswith("services/cli/"):
            service = "/".join(name.split("/")[:2])
            if not inside(include, SERVICE_MAY + [service]) or inside(include, SERVICE_MAY_NOT):
                problems.append(f"{name} includes '{include}': a service sees common, kernels and itself")
    for library in re.findall(r"^#include <([^>]+)>", text, re.M):
        for pattern, folders in LIBRARIES.items():
            if re.match(pattern, library):
                checked += 1
                if not inside(name, folders):
                    problems.append(f"{name} includes <{library}>: only {folders} do")


sources = [p for d in ("common", "kernels", "sdk", "services") for p in sorted((ROOT / d).rglob("*.[ch]pp"))]
for path in sources:
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    check_includes(name, text)
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > COLUMNS and "http" not in line:
            problems.append(f"{name}:{number} has {len(line)} columns, at most {COLUMNS} are meant")
commands = ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build") / "compile_commands.json"
headers = [p for p in sources if p.suffix == ".hpp"]
if not commands.exists():
    print(f"{commands} does not exist: headers are not compiled alone")
else:
    flags = {}
    for c in json.load(open(commands)):
        words = c["command"].split()
        keep = [w for w in words if w.startswith(("-I", "-std", "-D"))]
        for i, w in enumerate(words):
            if w == "-isystem":
                keep += [w, words[i + 1]]
        flags[str(pathlib.Path(c["file"]).parent)] = keep
    widest = max(flags.values(), key=len)
    # The build has compiled what its own source includes first, where that source is not compiled behind others.
    compiled = {pathlib.Path(c["file"]) for c in json.load(open(commands))}

    def is_included_first(header):
        source = header.with_suffix(".cpp")
        first = re.search(r'^#include [<"]([^>"]+)[>"]', source.read_text(), re.M) if source in compiled else None
        return first is not None and first[1] == header.relative_to(ROOT).as_posix()

    headers = [h for h in headers if not is_included_first(h)]

    def compile_alone(header):
        done = subprocess.run(["g++", "-std=gnu++20", "-fsyntax-only", "-x", "c++", f"-I{ROOT}", *widest, str(header)], capture_output=True, text=True)
        return None if done.returncode == 0 else f"{header.relative_to(ROOT)} does not compile alone: {done.stderr.splitlines()[0] if done.stderr else ''}"

    with ThreadPoolExecutor(2) as pool:
        alone = list(pool.map(compile_alone, headers))
    checked += len(alone)
    problems += [p for p in alone if p]
print("\n".join(problems))
print(f"{checked} passed, {len(problems)} failed")
sys.exit(bool(problems))
