"""The detector of a complete utterance: `python -m tools.nano.train.turn_end WORK [--model models/nano] [--minutes 50]`.

Trains on what `tools.nano.data.pauses` heard, chooses the thresholds on other voices and other sentences, judges with a third set of both, and writes
`turn_end.safetensors` and `turn_end.json` (thresholds by eagerness, figures) beside the tokenizer's weights. Then the C++ runtime is asked: it must
say what PyTorch says.

A pause is decided at once when the probability reaches `complete`. These thresholds are the controller's own (`complete_permille_…`), so the logits are
stretched and moved until `low` and `medium` cut off the share CUT_OFF of the pauses inside an utterance. A pause that lasts is judged once more: `again`
(`complete_again_permille_…`) is where both looks together cut off IN_ALL of the pauses. `unfinished` is the highest threshold that at most LATE of the
complete ones lie under then: whoever is below it may be waited for as long as one likes. From `likely` on (`likely_permille_…`) 0.7 s are enough, in between 1.2 s are as long as
people wait gladly.
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
from safetensors.torch import load_file, save_file

from .. import modules
from ..data import pauses
from . import trainer

COMPLETE = dict(low=0.9, medium=0.55, high=0.32)
LIKELY = dict(low=0.6, medium=0.35, high=0.08)
CUT_OFF = dict(low=0.005, medium=0.0225)
IN_ALL = dict(low=0.01, medium=0.03, high=0.06)
LATE = 0.03
# Of each network: its share of the time, dropout, noise. Two see less alike than one; more utterances have helped more than more networks.
NETS = ((0.45, 0.3, 0.3), (0.45, 0.35, 0.4))
# These go by the words and hear little of the melody, whatever they are shown of it. One that hears the melody alone learns what they get wrong.
MELODY = dict(share=0.1, dropout=0.05, noise=0.03)
BATCH, SMOOTH, SPREAD = 192, 0.01, 4.0
FIRST, AGAIN = pauses.TAILS_MS
LIKELY_MS, SILENCE_MS, UNFINISHED_MS = 576, 1088, 3904   # behind a pause that the vad ends by itself: one that is likely, that may be, that is not
DIFFER = 2e-3      # C++ and PyTorch, of a probability: float32 here, what was seen kept in float16 there


def load(work, split):
    seen, records = [], []
    for path in sorted(glob.glob(f"{work}/pauses/{split}-*.json")):
        records += [dict(r, shard=path) for r in json.load(open(path))]
        seen.append(np.load(path.replace(".json", ".npy")))
    if not records:
        raise SystemExit(f"{work}/pauses holds nothing of '{split}'; tools.nano.data.pauses writes it")
    return torch.from_numpy(np.concatenate(seen)), records


def counts(record):
    """Is it asked about at all? Not once more when the user has gone on before."""
    return record["tail_ms"] == FIRST or record["silence_ms"] is None or record["silence_ms"] >= record["tail_ms"]


def columns(records):
    take = lambda key: torch.tensor([r[key] for r in records])
    return take("rows"), take("seconds").float(), take("complete").float()


@torch.no_grad()
def judge(net, seen, records):
    net.eval()
    rows, seconds, _ = columns(records)
    out = torch.cat([net(seen[i:i + 512].float(), rows[i:i + 512], seconds[i:i + 512]) for i in range(0, len(records), 512)])
    return out.numpy().astype(np.float64)


def batches(run, use):
    """A batch for each step that is left, of all before any comes again."""
    order = []
    while run.begin_step():
        if len(order) < BATCH:
            order = use[:]
            run.random.shuffle(order)
        pick, order = order[:BATCH], order[BATCH:]
        yield pick


def train(args, seen, records):
    """One network after the other: of the same data in another order. -> all of them, the melody's not trained yet"""
    use = [k for k, r in enumerate(records) if counts(r)]
    rows, seconds, complete = columns(records)
    torch.manual_seed(1)
    whole = modules.TurnEnd(seen.shape[2] - modules.TurnEnd.PROSODY, len(NETS))
    if args.melody_only:
        tensors = load_file(f"{args.model}/Step-Audio-Tokenizer/turn_end.safetensors")
        for number, net in enumerate(whole.nets[:len(NETS)]):
            net.load_state_dict({k.removeprefix(f"nets.{number}."): v for k, v in tensors.items() if k.startswith(f"nets.{number}.")})
        return whole
    for number, (net, (share, dropout, spoilt)) in enumerate(zip(whole.nets, NETS)):
        run = trainer.Run(args.work, f"turn_end_{number}", dict(net=net), args.minutes * share, 2e-3, warmup=100, decay=0.05)
        run.random.seed(number + 1000 * run.steps)
        for pick in batches(run, use):
            net.train()
            # What was long ago may not be there, and neither a state nor a length is quite the same twice.
            kept = torch.minimum(rows[pick], torch.tensor([run.random.choice([32, 32, run.random.randint(12, 32)]) for _ in pick]))
            x = seen[pick].float()
            noise = torch.randn_like(x) * spoilt
            noise[..., -modules.TurnEnd.PROSODY:] *= 0.2
            length = seconds[pick] * (1 + 0.2 * torch.randn(len(pick))).clamp(0.5, 1.5)
            loss = F.binary_cross_entropy_with_logits(net(x + noise, kept, length, dropout), complete[pick] * (1 - 2 * SMOOTH) + SMOOTH)
            run.step(loss, dict(loss=loss.detach()))
    return whole


def train_melody(args, whole, seen, records):
    """Its logit is added to what the others say together, of which it is learned, too, how far to believe it."""
    use = [k for k, r in enumerate(records) if counts(r)]
    rows, seconds, complete = columns(records)
    *others, net = whole.nets
    known = torch.from_numpy(np.mean([judge(other, seen, records) for other in others], axis=0)).float()[:, None]
    states = seen.shape[2] - modules.TurnEnd.PROSODY
    prosody = seen[..., states:].float()
    mix = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(mix.weight), torch.nn.init.zeros_(mix.bias)
    run = trainer.Run(args.work, "turn_end_melody", dict(net=net, mix=mix), args.minutes * MELODY["share"], 3e-3, warmup=100, decay=0.02)
    for pick in batches(run, use):
        net.train()
        x = prosody[pick]
        length = seconds[pick] * (1 + 0.2 * torch.randn(len(pick))).clamp(0.5, 1.5)
        x = F.pad(x + torch.randn_like(x) * MELODY["noise"], (states, 0))
        said = net(x, rows[pick], length, MELODY["dropout"]) + mix(known[pick])[:, 0]
        loss = F.binary_cross_entropy_with_logits(said, complete[pick])
        run.step(loss, dict(loss=loss.detach()))
    count = len(whole.nets)     # the mean of them all is the sum that was learned
    scale(whole, [mix.weight.item() * count / len(others)] * len(others) + [count], [mix.bias.item() * count / len(others)] * len(others) + [0.0])


@torch.no_grad()
def scale(net, factors, offsets):
    """Logits of each network times its factor, and its offset."""
    for each, factor, offset in zip(net.nets, factors, offsets):
        each.out.weight *= factor
        each.out.bias.mul_(factor).add_(offset)


def by_pause(logits, records):
    """[{complete, unseen, kind, ms (of the pause behind the true end), first, again}]; `again` is None where the user had gone on."""
    out = {}
    for logit_, r in zip(logits, records):
        p = out.setdefault((r["shard"], r["utterance"], r["sample"]), dict(complete=r["complete"], unseen=r["unseen"], kind=r["kind"], again=None,
                                                                         ms=(r["sample"] - r["end"]) * 1000 / pauses.RATE))
        if counts(r):
            p["first" if r["tail_ms"] == FIRST else "again"] = float(logit_)
    return list(out.values())


def logit(p):
    return float(np.log(p / (1 - p)))


def bar_of(values, share, of):
    """Lowest logit that at most a share (of so many) reaches."""
    values = np.sort(np.array(values))[::-1]
    k = int(share * of)
    return float(values[k]) + 1e-6 if k < len(values) else float(values[-1]) - 1


def choose(logits, records):
    """-> thresholds by eagerness as probabilities, and (a, b) of the logits a * x + b that they hold for."""
    found = by_pause(logits, records)
    inside, ends = [p for p in found if not p["complete"]], [p for p in found if p["complete"]]
    low, medium = (bar_of([p["first"] for p in inside], CUT_OFF[k], len(inside)) for k in ("low", "medium"))
    a = (logit(COMPLETE["low"]) - logit(COMPLETE["medium"])) / max(0.1, low - medium)
    b = logit(COMPLETE["medium"]) - a * medium
    probability = lambda x: 1 / (1 + float(np.exp(-a * x - b)))
    latest = np.sort([p["first"] if p["again"] is None else p["again"] for p in ends])
    unfinished = round(probability(latest[int(LATE * len(latest))]), 3)
    out = {}
    for k, complete in COMPLETE.items():
        bar = (logit(complete) - b) / a
        left = [p["again"] for p in inside if p["first"] < bar and p["again"] is not None]
        gone = sum(p["first"] >= bar for p in inside)
        again = bar_of(left, max(0, IN_ALL[k] * len(inside) - gone) / len(inside), len(inside))
        out[k] = dict(complete=complete, again=min(complete, round(probability(again), 3)), likely=LIKELY[k], unfinished=min(unfinished, complete))
    return dict(out, auto=out["medium"]), (a, b)


def decided(found, threshold):
    """What becomes of pauses with these thresholds, as the controller goes by them."""
    bars = {k: logit(v) for k, v in threshold.items()}
    inside, ends = [p for p in found if not p["complete"]], [p for p in found if p["complete"]]

    def when(p):
        if p["first"] >= bars["complete"]:
            return FIRST
        if p["again"] is not None and p["again"] >= bars["again"]:
            return AGAIN
        last = p["first"] if p["again"] is None else p["again"]
        return LIKELY_MS if last >= bars["likely"] else UNFINISHED_MS if last < bars["unfinished"] else SILENCE_MS

    at, cut = [when(p) for p in ends], [when(p) for p in inside]
    ms = np.array([t + p["ms"] for t, p in zip(at, ends)])
    share = lambda values, test: round(float(np.mean([test(v) for v in values])), 3) if values else None
    return dict(cut_off=share(cut, lambda t: t <= AGAIN), cut_off_when_long=share(cut, lambda t: t <= LIKELY_MS), at_once=share(at, lambda t: t == FIRST), by_again=share(at, lambda t: t <= AGAIN),
                late=share(list(ms), lambda t: t > 1500), p50=round(float(np.median(ms))) if at else None,
                p95=round(float(np.quantile(ms, 0.95))) if at else None, inside=len(inside), complete=len(ends))


def curve(found, key, points=(0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)):
    """Shares of the ends that are decided for shares cut off, by one look alone."""
    inside, ends = ([p[key] for p in found if p["complete"] == complete and p[key] is not None] for complete in (False, True))
    return {str(p): round(float(np.mean(np.array(ends) > bar_of(inside, p, len(inside)))), 3) for p in points}


def figures(net, work, split, thresholds):
    seen, records = load(work, split)
    found = by_pause(judge(net, seen, records), records)

    def of(part):
        return dict({k: decided(part, t) for k, t in thresholds.items()}, curves={key: curve(part, key) for key in ("first", "again")})

    kinds = {kind: decided([p for p in found if p["kind"] == kind], thresholds["auto"]) for kind in sorted({p["kind"] for p in found})}
    return dict(all=of(found), unseen_sentences=of([p for p in found if p["unseen"]]), kinds=kinds)


@torch.no_grad()
def agreement(net, args):
    """Largest difference of a probability between the C++ runtime and PyTorch, on the same states."""
    utterances = list(pauses.Speaker("test").utterances(20, 5))
    with tempfile.TemporaryDirectory() as folder:
        found, seen = pauses.hear([u.wave for u in utterances], folder, args.parlando, args.model, live=False)
    heard = [p for of in found for p in of]
    records = [dict(rows=p["rows"], seconds=(p["sample"] - p["begun_sample"]) / pauses.RATE + p["tail_ms"] / 1000, complete=False) for p in heard]
    said = 1 / (1 + np.exp(-judge(net, torch.from_numpy(seen), records)))
    return max(abs(float(a) - p["completeness"]) for a, p in zip(said, heard))


def recordings(args):
    """Pauses of recorded people and what is thought of them; without a goal, the words are far outside the domain."""
    names = sorted(glob.glob(f"{args.humans}/*.wav"))
    if not names:
        return {}
    found = pauses.ask(names, args.parlando, args.model, "--live", "--pause-ms", str(pauses.PAUSE_MS), "--tail-ms", ",".join(map(str, pauses.TAILS_MS)))
    return {os.path.basename(name): [[round(p["sample"] / pauses.RATE, 2), p["tail_ms"], round(p["completeness"], 3)] for p in of] for name, of in zip(names, found)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("--model", default="models/nano")
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--melody-only", action="store_true", help="the model's other networks stay what they are")
    parser.add_argument("--parlando", default=os.environ.get("PARLANDO", "build/bin/parlando"))
    parser.add_argument("--humans", default="../shared/audio", help="folder with recordings of people; left out when it does not exist")
    args = parser.parse_args()
    torch.set_num_threads(1)
    practice = load(args.work, "train")
    net = train(args, *practice)
    seen, records = load(args.work, "check")
    scale(net, [SPREAD / float(np.std(judge(each, seen, records))) for each in net.nets[:len(NETS)]], [0.0] * len(NETS))      # none is louder
    train_melody(args, net, *practice)
    del practice
    thresholds, (a, b) = choose(judge(net, seen, records), records)
    scale(net, [a] * len(net.nets), [b] * len(net.nets))
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
