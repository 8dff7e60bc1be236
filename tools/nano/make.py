"""All stages of the nano model, from nothing to a report: `python -m tools.nano.make WORK [--minutes-scale 1.0] [--only stage,…]`.

Every stage keeps its state in WORK and continues where it stopped; a longer budget on a finished stage trains it further. On two cores
the default budgets take about 7 core-hours. Stages that do not depend on each other run side by side, one single-threaded process each.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

# name, module, arguments after WORK, core-minutes at scale 1, stages it waits for
STAGES = [
    ("speech", "synth", ["--users", "10000", "--replies", "5500"], None, []),
    ("features", "prepare", [], None, ["speech"]),
    ("linguistic", "train_encoders", [], 26, ["features"]),
    ("semantic", "train_encoders", [], 26, ["features"]),
    ("tokens", "tokenise", [], None, ["linguistic", "semantic"]),
    ("text", "text", [], None, ["speech"]),
    ("speaker", "train_speaker", [], 6, ["features"]),
    ("lm", "train_lm", [], 66, ["tokens", "text"]),
    ("more", "more_replies", [], None, ["tokens"]),
    ("tts", "train_tts", [], 80, ["lm", "more"]),
    ("flow", "train_flow", [], 140, ["tokens", "speaker"]),
    ("vocoder", "train_vocoder", [], 28, ["features"]),
    ("export", "export", ["models/nano"], None, ["lm", "tts", "flow", "vocoder", "speaker"]),
    ("evaluate", "evaluate", [], None, ["export"]),
    ("report", "report", [], None, ["evaluate"]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--minutes-scale", type=float, default=1.0)
    parser.add_argument("--only", help="comma-separated stages")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    wanted = args.only.split(",") if args.only else [s[0] for s in STAGES]
    todo = [s for s in STAGES if s[0] in wanted]
    done, running = {s[0] for s in STAGES if s[0] not in wanted}, {}
    started = time.time()
    env = dict(os.environ, OMP_NUM_THREADS="1")
    while todo or running:
        for stage in list(todo):
            name, module, extra, minutes, needs = stage
            if len(running) >= args.jobs or not all(n in done for n in needs):
                continue
            command = [sys.executable, "-W", "ignore", "-m", f"tools.nano.{module}"] + ([name] if module == "train_encoders" else []) + [args.work, *extra]
            if minutes:
                command += ["--minutes", str(minutes * args.minutes_scale)]
            log = open(f"{args.work}/{name}.log", "a")
            running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=env, preexec_fn=lambda: os.nice(10))
            todo.remove(stage)
            print(f"[{(time.time() - started) / 60:6.1f} min] {name} started, progress in {args.work}/{name}.log", flush=True)
        time.sleep(1)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode != 0:
                for other in running.values():
                    other.terminate()
                sys.exit(f"stage {name} failed, see {args.work}/{name}.log; start again to continue")
            done.add(name)
            print(f"[{(time.time() - started) / 60:6.1f} min] {name} done", flush=True)


if __name__ == "__main__":
    main()
