"""All stages of the nano model, from nothing to a report: `python -m tools.nano.make WORK [--model models/nano] [--scale 1.0] [--only stage,…]`.

`--start-from MODEL` begins with the weights of a finished model instead of nothing and leaves its encoders as they are: what the language models, flow and
vocoder know is practised further (with `--scale 0.3`, say). Every stage keeps its state in WORK and continues where it stopped; a longer budget on a finished stage trains it further. The default budgets
take about nine core-hours. Stages that do not depend on each other run side by side, one single-threaded process each. `--scale 0.02` goes
the whole way with little data and time: a check of the recipe, not a model.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field


@dataclass
class Stage:
    name: str
    module: str
    before: list = field(default_factory=list)    # arguments in front of WORK
    after: list = field(default_factory=list)
    minutes: float = 0                            # core-minutes of training at scale 1
    counts: dict = field(default_factory=dict)    # option -> utterances at scale 1
    share: str = ""                               # option that takes the scale itself
    expected: float = 1                           # core-minutes of a stage without a budget, for the time left
    needs: tuple = ()

    def command(self, work, scale):
        arguments = [*self.before, work, *self.after]
        for option, count in self.counts.items():
            arguments += [option, str(max(20, round(count * scale)))]
        if self.share:
            arguments += [self.share, str(min(1.0, scale))]
        if self.minutes:
            arguments += ["--minutes", str(self.minutes * scale)]
        return [sys.executable, "-W", "ignore", "-m", f"tools.nano.{self.module}", *arguments]

    def core_minutes(self, scale):
        return (self.minutes or self.expected) * scale


ENCODERS = ("linguistic", "semantic", "text", "speaker")      # kept when a finished model is the start: codes and pieces mean what they meant

GENTLE = dict(lm=6e-4, lm_again=4e-4, tts=4e-4, flow=7e-4, vocoder=1e-3, vocoder_again=5e-4)      # rates that go on from a finished model without tearing it down


def stages(model, start_from=None):
    every = [
        Stage("speech", "data.synth", after=["--jobs", "1"], counts={"--users": 10000, "--replies": 5500}, expected=12),
        Stage("features", "data.prepare", expected=8, needs=("speech",)),
        Stage("linguistic", "train.encoders", before=["linguistic"], minutes=26, needs=("features",)),
        Stage("semantic", "train.encoders", before=["semantic"], minutes=26, needs=("features",)),
        Stage("tokens", "data.tokenise", expected=3, needs=("features", "linguistic", "semantic")),
        Stage("text", "text", needs=("speech",)),
        Stage("speaker", "train.speaker", minutes=6, needs=("features",)),
        Stage("questions", "data.more", after=["questions", "--jobs", "1"], counts={"--count": 12000}, expected=14, needs=("tokens",)),
        Stage("replies", "data.more", after=["replies", "--jobs", "1"], counts={"--count": 13000}, expected=38, needs=("tokens",)),
        Stage("turns", "data.turns", counts={"--count": 3000}, expected=6, needs=("speech",)),
        Stage("lm", "train.lm", minutes=105, counts={"--tests": 300}, needs=("text", "questions", "replies")),
        Stage("again", "data.again", counts={"--count": 700}, expected=6, needs=("vocoder_again",)),
        Stage("lm_again", "train.lm", minutes=136, counts={"--tests": 300}, needs=("lm", "again")),      # continues lm
        Stage("tts", "train.tts", minutes=174, needs=("lm", "flow")),      # through which the judge hears it
        Stage("flow", "train.flow", minutes=50, needs=("speaker", "replies", "vocoder")),      # the judge hears it through the vocoder
        Stage("vocoder", "train.vocoder", minutes=27, needs=("replies",)),
        Stage("vocoder_again", "train.vocoder", after=["--behind-flow", "600", "--alone", "0"], minutes=40, needs=("flow",)),      # continues vocoder
        Stage("export", "export", after=[model], needs=("lm_again", "tts", "vocoder_again")),
        Stage("pauses", "data.pauses", after=["--model", model], counts={"--count": 28000}, expected=28, needs=("export",)),
        Stage("turn_end", "train.turn_end", after=["--model", model], minutes=50, needs=("pauses",)),
        Stage("evaluate", "judge.evaluate", after=["--model", model], counts={"--count": 60, "--limit": 300}, expected=15, needs=("export",)),
        Stage("report", "report", after=[model], needs=("evaluate",)),
    ]
    if start_from:
        begin = Stage("start", "resume_from", before=[start_from])
        every = [begin] + [s for s in every if s.name not in ENCODERS]
        for s in every:
            if s.name == "speech":      # every held-out utterance of a whole run, so that old and new weights are tried with the same
                s.after, s.counts, s.share = [*s.after, *(str(a) for pair in s.counts.items() for a in pair)], {}, "--share"
            s.after = [*s.after, *(["--rate", str(GENTLE[s.name])] if s.name in GENTLE else [])]
            s.needs = tuple(dict.fromkeys("start" if n in ENCODERS else n for n in s.needs))
    return every


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--model", default="models/nano", help="folder that export writes and evaluate judges")
    parser.add_argument("--start-from", help="folder of a finished model")
    parser.add_argument("--scale", type=float, default=1.0, help="share of data and training time")
    parser.add_argument("--only", help="comma-separated stages")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    every = stages(args.model, args.start_from)
    wanted = args.only.split(",") if args.only else [s.name for s in every]
    unknown = set(wanted) - {s.name for s in every}
    if unknown:
        sys.exit(f"there is no stage {sorted(unknown)[0]}; the stages are {', '.join(s.name for s in every)}")
    todo, running = [s for s in every if s.name in wanted], {}
    done = {s.name for s in every if s.name not in wanted}
    started, count = time.time(), len(todo)
    env = dict(os.environ, OMP_NUM_THREADS="1")

    def say(text):
        left = sum(s.core_minutes(args.scale) for s in todo) / args.jobs
        left += max([max(0.0, s.core_minutes(args.scale) - (time.time() - began) / 60) for s, _, began in running.values()], default=0)
        print(f"[{(time.time() - started) / 60:6.1f} min] {text}; {count - len(todo) - len(running)} of {count} stages done, about {left:.0f} min left", flush=True)

    while todo or running:
        for stage in list(todo):
            if len(running) >= args.jobs or not all(n in done for n in stage.needs):
                continue
            with open(f"{args.work}/{stage.name}.log", "a") as log:
                process = subprocess.Popen(stage.command(args.work, args.scale), stdout=log, stderr=log, env=env, preexec_fn=lambda: os.nice(10))
            running[stage.name] = stage, process, time.time()
            todo.remove(stage)
            say(f"{stage.name} started, its progress is in {args.work}/{stage.name}.log")
        time.sleep(1)
        for name, (stage, process, _) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode != 0:
                for _, other, _ in running.values():
                    other.terminate()
                tail = "".join(open(f"{args.work}/{name}.log").readlines()[-5:])
                sys.exit(f"stage {name} failed, start again to continue; the end of {args.work}/{name}.log:\n{tail}")
            done.add(name)
            say(f"{name} done")


if __name__ == "__main__":
    main()
