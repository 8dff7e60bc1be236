"""The detector of a complete utterance: `python -m tools.nano.train.turn_end WORK [--model models/nano] [--minutes 4]`.

Trains on what `tools.nano.data.pauses` heard, chooses the thresholds on other voices and other sentences, judges with a third set of both, and writes
`turn_end.safetensors` and `turn_end.json` (thresholds by eagerness, figures) beside the tokenizer's weights. Then the C++ runtime is asked: it must
say what PyTorch says.

A pause is decided at once when the probability reaches `complete`. These thresholds are the controller's own (`complete_permille_…`), so the logits are
stretched and moved until `low` and `medium` cut off the share CUT_OFF of the pauses inside an utterance. `unfinished` is the highest threshold that at most
LATE of the complete ones lie under: whoever is below it may be waited for as long as one likes, in between 1.2 s are as long as people wait gladly.
"""
from __future__ import annotations

import argparse
import glob
import json
import os
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .. import modules
from ..data import pauses
from . import trainer

COMPLETE = dict(low=0.9, medium=0.7, high=0.5, auto=0.7)
CUT_OFF = dict(low=0.005, medium=0.02)
LATE = 0.03
BATCH, DROPOUT, NOISE, SMOOTH = 192, 0.3, 0.3, 0.01
DIFFER = 1e-3      # C++ and PyTorch, of a probability: float32 here, states kept in float16 there


def load(work, split):
    states, records = [], []
    for path in sorted(glob.glob(f"{work}/pauses/{split}-*.json")):
        records += json.load(open(path))
        states.append(np.load(path.replace(".json", ".npy")))
    if not records:
        raise SystemExit(f"{work}/pauses holds nothing of '{split}'; tools.nano.data.pauses writes it")
    return torch.from_numpy(np.concatenate(states)), records


def columns(records):
    take = lambda key: torch.tensor([r[key] for r in records])
    return take("rows"), take("seconds").float(), take("complete").float()


@torch.no_grad()
def judge(net, states, records):
    net.eval()
    rows, seconds, _ = columns(records)
    out = torch.cat([net(states[i:i + 512].float(), rows[i:i + 512], seconds[i:i + 512]) for i in range(0, len(records), 512)])
    return out.numpy().astype(np.float64)


def decided(logits, records, complete, unfinished):
    """Shares at these logits: of pauses inside an utterance that are cut off, of complete utterances that are decided at once and that are late."""
    ends = np.array([r["complete"] for r in records])
    return dict(cut_off=float((logits[~ends] >= complete).mean()), at_first_pause=float((logits[ends] >= complete).mean()),
                late=float((logits[ends] < unfinished).mean()), inside_waited_for=float((logits[~ends] < unfinished).mean()))


def train(args, states, records):
    net = modules.TurnEnd(states.shape[2])
    run = trainer.Run(args.work, "turn_end", dict(net=net), args.minutes, 2e-3, warmup=100, decay=0.05)
    rows, seconds, complete = columns(records)
    order = []
    while run.begin_step():
        net.train()
        if len(order) < BATCH:
            order = list(range(len(records)))
            run.random.shuffle(order)
        pick, order = order[:BATCH], order[BATCH:]
        # What was long ago may not be there, and neither a state nor a length is quite the same twice.
        kept = torch.minimum(rows[pick], torch.tensor([run.random.choice([32, 32, run.random.randint(10, 32)]) for _ in pick]))
        x = states[pick].float()
        x = x + torch.randn_like(x) * NOISE
        length = seconds[pick] * (1 + 0.2 * torch.randn(len(pick))).clamp(0.5, 1.5)
        loss = F.binary_cross_entropy_with_logits(net(x, kept, length, DROPOUT), complete[pick] * (1 - 2 * SMOOTH) + SMOOTH)
        run.step(loss, dict(loss=loss))
    return net


def curve(logits, records, points=(0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)):
    """Shares decided at once for shares cut off."""
    ends = np.array([r["complete"] for r in records])
    inside = np.sort(logits[~ends])[::-1]
    return {str(p): round(float((logits[ends] > inside[min(len(inside) - 1, int(p * len(inside)))]).mean()), 3) for p in points}


def logit(p):
    return float(np.log(p / (1 - p)))


def choose(logits, records):
    """-> thresholds by eagerness as probabilities, and (a, b) of the logits a * x + b that they hold for."""
    ends = np.array([r["complete"] for r in records])
    inside, complete = np.sort(logits[~ends])[::-1], np.sort(logits[ends])
    low, medium = (float(inside[int(CUT_OFF[k] * len(inside))]) + 1e-6 for k in ("low", "medium"))
    a = (logit(COMPLETE["low"]) - logit(COMPLETE["medium"])) / max(0.1, low - medium)
    b = logit(COMPLETE["medium"]) - a * medium
    late = 1 / (1 + float(np.exp(-a * complete[int(LATE * len(complete))] - b)))
    return {k: dict(complete=v, unfinished=min(round(late, 3), v)) for k, v in COMPLETE.items()}, (a, b)


def figures(net, work, split, thresholds):
    states, records = load(work, split)
    logits = judge(net, states, records)

    def of(keep):
        own = [k for k, r in enumerate(records) if keep(r)]
        part = [records[k] for k in own]
        found = {k: {n: round(v, 3) for n, v in decided(logits[own], part, logit(t["complete"]), logit(t["unfinished"])).items()} for k, t in thresholds.items()}
        return dict(inside=sum(not r["complete"] for r in part), complete=sum(r["complete"] for r in part), **found, curve=curve(logits[own], part))

    bar = logit(thresholds["auto"]["complete"])
    kinds = {}
    for kind in sorted({r["kind"] for r in records}):
        at = lambda complete: [logits[k] >= bar for k, r in enumerate(records) if r["kind"] == kind and r["complete"] == complete]
        kinds[kind] = {name: [round(float(np.mean(found)), 3), len(found)] for name, found in (("cut_off", at(False)), ("at_first_pause", at(True))) if found}
    return dict(all=of(lambda r: True), unseen_sentences=of(lambda r: r["unseen"]), kinds=kinds)


@torch.no_grad()
def agreement(net, args):
    """Largest difference of a probability between the C++ runtime and PyTorch, on the same states."""
    utterances = list(pauses.Speaker("test").utterances(20, 5))
    with tempfile.TemporaryDirectory() as folder:
        found, states = pauses.hear([u.wave for u in utterances], folder, args.parlando, args.model, live=False)
    heard = [p for of in found for p in of]
    records = [dict(rows=p["rows"], seconds=(p["sample"] + pauses.TAIL - p["begun_sample"]) / pauses.RATE, complete=False) for p in heard]
    said = 1 / (1 + np.exp(-judge(net, torch.from_numpy(states), records)))
    return max(abs(float(a) - p["completeness"]) for a, p in zip(said, heard))


def recordings(args):
    """Pauses of recorded people and what is thought of them; without a goal, the words are far outside the domain."""
    names = sorted(glob.glob(f"{args.humans}/*.wav"))
    if not names:
        return {}
    found = pauses.ask(names, args.parlando, args.model)
    return {os.path.basename(name): [[round(p["sample"] / pauses.RATE, 2), round(p["completeness"], 3)] for p in of] for name, of in zip(names, found)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--model", default="models/nano")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--parlando", default=os.environ.get("PARLANDO", "build/bin/parlando"))
    parser.add_argument("--humans", default="../shared/audio", help="folder with recordings of people; left out when it does not exist")
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = train(args, *load(args.work, "train"))
    states, records = load(args.work, "check")
    thresholds, (a, b) = choose(judge(net, states, records), records)
    with torch.no_grad():
        net.out.weight *= a
        net.out.bias.mul_(a).add_(b)
    out = dict(thresholds=thresholds, **{split: figures(net, args.work, split, thresholds) for split in ("check", "test")})
    folder = f"{args.model}/Step-Audio-Tokenizer"
    save_file({k: v.detach().contiguous() for k, v in net.state_dict().items()}, f"{folder}/turn_end.safetensors")
    json.dump(out, open(f"{folder}/turn_end.json", "w"), indent=1)
    print(json.dumps(out, indent=1))
    differ = agreement(net, args)
    print(json.dumps(dict(differ=differ, recordings=recordings(args))))
    if differ > DIFFER:
        raise SystemExit(f"the C++ runtime and PyTorch differ by {differ:.4f} of a probability, at most {DIFFER} is rounding")


if __name__ == "__main__":
    main()
