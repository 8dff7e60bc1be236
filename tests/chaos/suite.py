"""Runs the chaos programs and makes one report of them: a row a fault with its id, trials, passes and the longest silence that anybody heard.

`suite.py BUILD_DIR SOURCE_DIR [--profile short|long] [--report FILE.md] [--rounds N] [--told FILE …]`. Short, about 7 minutes on two free cores: every role killed or
stopped once, cuts between a few, damage and delay on the way, a full disk and its like, one roll and the loss of a node. Long: each program's full form, `--rounds` times.
`--told`: what these programs (and soak.py) printed in other runs counts as well; with `--rounds 0` nothing else. Beside FILE.md lies FILE.svg.
Exit code 1 when a trial failed or a program told none. What judges a turn is tests/chaos/talkers.py, which shares no code with the engine.
"""
import argparse
import datetime
import pathlib
import platform
import re
import subprocess
import sys
import time

# Name of a trial, as its program prints it -> id of the fault; k8s/chaos has the same ids for clusters.
FAULTS = [(r"kill -9 gateway|^kill gateway", "P1", "a gateway is killed"), (r"kill -9 controller|^kill controller", "P2", "a controller is killed"), (r"kill -9 vad|^kill vad", "P3", "a vad is killed"),
          (r"kill -9 tokenizer|^kill tokenizer", "P4", "a tokenizer is killed"), (r"kill -9 llm-(chat|tts)|^kill llm-", "P5", "a language model is killed"),
          (r"kill -9 tts|^kill tts", "P6", "a tts is killed"), (r"kill -9 context|^kill context", "P7", "context is killed"), (r"^stop .* s ", "P8", "a process is stopped and goes on"),
          (r"^descriptors", "P11", "a gateway has no descriptors left"), (r"^role away", "P12", "all replicas of a role are away for 4 or 6 s"), (r"^random deaths", "P13", "two services die at random"),
          (r"^lose ", "P14", "a node is lost with all that runs there"), (r"^flip ", "N4", "bits turn over on the way"), (r" -> ", "N5", "one way between two services is cut for 3 s"),
          (r"^slow ", "N7", "a way has little room"), (r"^reset ", "N8", "connections are reset, six in 3 s"), (r"^late ", "N10", "a way takes 40 to 200 ms"),
          (r"^clock ", "C1", "the wall clock jumps by an hour"), (r"^disk full", "D1", "the store's disk is full for 12 s"), (r"^names away", "N9", "the name server is silent while addresses change"), (r"^roll .* under ", "U1", "a role is rolled while all of 20 talk"), (r"^roll ", "U1", "a role is rolled, one after the other"), (r"^scale|^tts 1|^autoscale", "U3", "replicas come and go"),
          (r"^drain|^budget", "U4", "nodes are drained, budgets hold"), (r"^keys ", "U5", "a role gets new keys"), (r"^none", "–", "no fault, for comparison")]
ROW = re.compile(r"^\s*(?:\d+\s{2})?\s*(?P<name>\S.*?)\s+(?P<result>pass|FAIL)\s+(?:[\d.]+ s\s+)?(?P<answered>\d+) of (?P<turns>\d+)\s+answered(?:, (?P<cut>\d+) cut)?(?:, (?P<resumed>\d+) resumed)?(?:.*?dry for (?P<dry>\d+) ms)?(?:.*longest silence (?P<silence>\d+) ms)?")


def programs(build, source, profile):
    tests = source / "tests"
    full = ["--full"] if profile == "long" else []
    yield "mesh", [sys.executable, tests / "chaos/mesh_chaos.py", build / "bin", source, *full]
    if profile == "long":
        yield "rolls", [sys.executable, tests / "chaos/mesh_chaos.py", build / "bin", source, "--roll"]
    # Cuts have no short form of their own: two pairs stand for all.
    yield "cuts", [sys.executable, tests / "chaos/partition.py", build / "bin", source, *([] if profile == "long" else ["--only", "controller -> tts"])]
    yield "wire", [sys.executable, tests / "chaos/wire.py", build / "bin", source, *full]
    yield "hardships", [sys.executable, tests / "chaos/hardships.py", build / "bin", source, "--minutes", "10" if profile == "long" else "0.25"]
    if profile == "long":
        yield "cluster", [sys.executable, tests / "k8s/cluster_test.py", build, source, "--full"]
    else:
        yield "cluster", [sys.executable, tests / "k8s/cluster_test.py", build, source, "--only", "roll controller"]
        yield "cluster", [sys.executable, tests / "k8s/cluster_test.py", build, source, "--only", "lose"]


def fault_of(name):
    return next(((id_, what) for pattern, id_, what in FAULTS if re.search(pattern, name)), ("?", name))


class Rows:
    def __init__(self):
        self.by_fault = {}

    def add(self, line):
        """-> whether it is a trial's row"""
        found = ROW.match(line)
        if not found or found["name"].strip() == "the load ends":
            return False
        key = fault_of(found["name"])
        row = self.by_fault.setdefault(key, {"trials": 0, "passed": 0, "turns": 0, "answered": 0, "cut": 0, "resumed": 0, "silences": [], "dry": []})
        row["trials"] += 1
        row["passed"] += found["result"] == "pass"
        row["turns"] += int(found["turns"])
        row["answered"] += int(found["answered"])
        row["cut"] += int(found["cut"] or 0)
        row["resumed"] += int(found["resumed"] or 0)
        if found["dry"]:
            row["dry"].append(int(found["dry"]))
        if found["silence"]:
            row["silences"].append(int(found["silence"]))
        return True


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def order(key):
    return ("–PNCDU?".index(key[0][0]), int(key[0][1:] or 0) if key[0][1:].isdigit() else 0)


def dry_of(row):
    return f"{percentile(row['dry'], 0.99)} ms" if row["dry"] else "–"


def report(rows, how, left_out):
    lines = ["# Chaos", "", f"`make chaos` on {datetime.date.today()}, {how}, {platform.machine()}. Each trial hits real processes while people talk; a turn passes when it is answered,",
             "whole and once. *Silence* is the longest pause that anybody heard in the trial, from the end of the question to the first sound or between two sounds; compare it with that of no fault.",
             "*Resumed* are turns whose socket closed with its gateway and that went on, whole, at another one; *cut* are those that did not, and they are among no other figure. *Audible gap* is the",
             "longest time for which a loudspeaker that had begun had nothing to play; clients ask for a lead of 400 ms where the program says so (`--lead-ms`).", "",
             "| id | fault | trials | passed | turns answered | resumed | cut | audible gap, p99 | longest silence, median | p99 |", "|---|---|---|---|---|---|---|---|---|---|"]
    for key in sorted(rows.by_fault, key=order):
        r = rows.by_fault[key]
        lines.append(f"| {key[0]} | {key[1]} | {r['trials']} | {r['passed']} | {r['answered']} of {r['turns']} | {r['resumed']} | {r['cut']} | "
                     f"{dry_of(r)} | {percentile(r['silences'], 0.5)} ms | {percentile(r['silences'], 0.99)} ms |")
    return "\n".join(lines + ["", *(f"- {text}" for text in left_out)]) + "\n"


def picture(rows):
    keys = [k for k in sorted(rows.by_fault, key=order) if rows.by_fault[k]["silences"]]
    most = max((max(rows.by_fault[k]["silences"]) for k in keys), default=1)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {40 + 26 * len(keys)}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>'
           '<text x="10" y="20" font-weight="bold" fill="#1f2328">Longest silence of each trial, in ms; the bar is the median</text>']
    for n, key in enumerate(keys):
        y, r = 36 + 26 * n, rows.by_fault[key]
        out.append(f'<text x="10" y="{y + 13}" fill="#1f2328">{key[0]} {key[1]}</text><rect x="330" y="{y + 3}" width="{percentile(r["silences"], 0.5) / most * 500:.0f}" height="12" fill="#9cc3ff"/>')
        out += [f'<circle cx="{330 + s / most * 500:.0f}" cy="{y + 9}" r="3" fill="#1f6feb"/>' for s in r["silences"]]
        out.append(f'<text x="840" y="{y + 13}" fill="#57606a">{max(r["silences"])}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--profile", choices=["short", "long"], default="short")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--told", type=pathlib.Path, nargs="*", default=[])
    a = parser.parse_args()
    rows, failed, left_out, began = Rows(), [], [], time.monotonic()
    for file in a.told:
        if not sum([rows.add(line) for line in file.read_text().splitlines()]):
            failed.append(f"{file} tells of no trial")
    for round_ in range(a.rounds):
        for name, words in programs(a.build.resolve(), a.source.resolve(), a.profile):
            process = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            told, lines = 0, []
            for line in process.stdout:
                lines.append(line)
                told += rows.add(line)
                print(f"{name}: {line}", end="", flush=True)
            code = process.wait()
            if code == 77:
                left_out.append(f"{name}, {'in part' if told else 'all of it'}: {next((line.strip() for line in reversed(lines) if line.strip()), 'no reason was told')}")
            elif code != 0 or told == 0:
                failed.append(f"{name}, round {round_ + 1}: exit code {code}, {told} trials")
    how = f"profile {a.profile}, {a.rounds} round(s), {(time.monotonic() - began) / 60:.0f} minutes" if a.rounds else f"what {len(a.told)} run(s) told"
    text = report(rows, how, sorted(set(left_out)))
    print(text)
    if a.report:
        a.report.parent.mkdir(parents=True, exist_ok=True)
        a.report.write_text(text + f"\n![Longest silence of each trial]({a.report.with_suffix('.svg').name})\n")
        a.report.with_suffix(".svg").write_text(picture(rows))
    print(*failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
