#!/usr/bin/env python3
"""A day of 10 000 people at once, second by second, against the autoscalers as they are shipped: how long people wait, who is refused, and what it costs.

`simulate.py [--cells 4] [--people 10000] [--json] [--svg FILE]`. It reads the HorizontalPodAutoscalers of rendered/prod-cpu.json (and the ScaledObjects of
prod-cpu-keda.json) and follows them as Kubernetes does: sync period, tolerance, policies, windows, late metrics, pods that take time to start. Everything
else is a queue per role: what a replica can hold (its configuration in the same file: set it to what `parlando bench turn` says of yours), people who come
and go by a curve with two peaks and a rush, replicas that die, a zone that is lost. A model, not a measurement: it compares settings, and believes what
the configurations say a replica holds. KEDA makes an autoscaler of the same kind: with the same settings its day is the same one.
"""
import argparse
import copy
import json
import math
import pathlib
import random
import sys

K8S = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(K8S.parent / "deploy"))
import instances  # noqa: E402
DAY = 86_400
TURN_SECONDS = 20.0     # from question to question of one person
FIRST_AUDIO = 0.55      # p95 of an engine that waits for nothing: README.md, "Numbers"
GOAL_SECONDS, GOAL_REFUSED = 1.5, 0.001
HPA_SYNC, TOLERANCE, SCRAPE = 15, 0.1, 10
# Role -> (share of people that hold a slot at a moment, seconds until a new replica is ready).
ROLES = {"gateway": (1.0, 8), "controller": (1.0, 8), "vad": (1.0, 8), "tokenizer": (0.35, 40), "llm-chat": (0.10, 120), "llm-tts": (0.20, 60), "tts": (0.22, 60)}
TURN_ROLES = ("tokenizer", "llm-chat", "llm-tts", "tts")  # a turn waits for these; the others refuse a new conversation


def slots(variant="prod-cpu"):
    """-> {role: what a replica holds}, as its configuration says; a role that does not say it is an error"""
    documents = json.loads((K8S / f"rendered/{variant}.json").read_text())["items"]
    data = next(d["data"] for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"].startswith("parlando-config"))
    return {role: instances.slots(role, json.loads(data[f"{role}.json"])["core"]) for role in ROLES}


def settings(kind):
    """-> {role: (least, most, behaviour, seconds between two decisions)} as shipped"""
    out = {}
    file = "prod-cpu-keda" if kind == "keda" else "prod-cpu"
    for d in json.loads((K8S / f"rendered/{file}.json").read_text())["items"]:
        name, spec = d["metadata"]["name"], d.get("spec", {})
        if name not in ROLES:
            continue
        if d["kind"] == "HorizontalPodAutoscaler":
            out[name] = (spec["minReplicas"], spec["maxReplicas"], copy.deepcopy(spec["behavior"]), HPA_SYNC)
        if d["kind"] == "ScaledObject":
            out[name] = (spec["minReplicaCount"], spec["maxReplicaCount"], copy.deepcopy(spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]), HPA_SYNC)
    if kind == "defaults":  # what one gets without saying anything
        for name, (low, high, _, _) in out.items():
            out[name] = (low, high, {"scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 15}]},
                                     "scaleDown": {"stabilizationWindowSeconds": 300, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}, HPA_SYNC)
    if kind == "peak":  # no autoscaler: what the busiest minute needs, all day
        for name, (low, high, behaviour, _) in out.items():
            out[name] = (high, high, behaviour, HPA_SYNC)
    return out


def people_at(second, most):
    """Two peaks, a night, and a rush at noon: a fifth of all come within a minute."""
    hour = second / 3600
    bell = lambda middle, width: math.exp(-((hour - middle) / width) ** 2)  # noqa: E731
    base = 0.06 + 0.62 * bell(10.5, 2.6) + 0.72 * bell(19.5, 2.8)
    rush = 0.2 * max(0.0, min(1.0, (second - 43_200) / 60)) * max(0.0, min(1.0, 1 - (second - 45_000) / 1800)) if 43_200 <= second < 46_800 else 0.0
    return most * min(1.0, base + rush)


class Scaler:
    """A HorizontalPodAutoscaler of one role."""

    def __init__(self, low, high, behaviour, period):
        self.low, self.high, self.behaviour, self.period = low, high, behaviour, period
        self.wishes, self.changes = [], []

    def limit(self, rules, now, current, up):
        """How many the policies allow, counting what was changed within their periods."""
        best = current
        for policy in rules["policies"]:
            changed = sum(n for at, n in self.changes if at > now - policy["periodSeconds"] and (n > 0) == up)
            base = current - changed
            step = policy["value"] if policy["type"] == "Pods" else math.ceil(base * policy["value"] / 100)
            best = max(best, base + step) if up else min(best, base - step)
        return best

    def decide(self, now, current, ratio):
        wish = current if abs(ratio / 0.7 - 1) <= TOLERANCE else math.ceil(current * ratio / 0.7)
        window = self.behaviour["scaleDown"].get("stabilizationWindowSeconds", 300)
        self.wishes = [(at, n) for at, n in self.wishes if at > now - window] + [(now, wish)]
        if wish < current:
            wish = min(current, max(n for _, n in self.wishes))
        if wish > current:
            wish = min(wish, self.limit(self.behaviour["scaleUp"], now, current, True))
        elif wish < current:
            wish = max(wish, self.limit(self.behaviour["scaleDown"], now, current, False))
        wish = max(self.low, min(self.high, wish))
        self.changes = [(at, n) for at, n in self.changes if at > now - 1800] + ([(now, wish - current)] if wish != current else [])
        return wish


class Fleet:
    """The replicas of one role."""

    def __init__(self, role, held, low, high, behaviour, period):
        self.slots, (self.share, self.start) = held, ROLES[role]
        self.scaler = Scaler(low, high, behaviour, period)
        self.ready, self.starting, self.wanted = low, [], low
        self.seen, self.hours, self.waiting, self.moved = [], 0.0, 0.0, 0.0

    def step(self, now, people, dice):
        self.starting = [at for at in self.starting if at > now or not self.arrive()]
        held = people * self.share
        room = self.ready * self.slots
        ratio = min(1.0, held / room) if room else 1.0
        # A queue in front of a full role: what it cannot hold waits, and is told of as more than full.
        self.waiting = max(0.0, held - room)
        self.seen.append(min(1.0, ratio * (1 + 0.02 * dice.gauss(0, 1))))
        if now % self.scaler.period == 0:
            # Replicas that start tell nothing yet: the mean is over those that are ready, the size over all.
            wanted = self.scaler.decide(now, self.wanted, self.seen[max(0, len(self.seen) - 1 - SCRAPE)])
            for _ in range(wanted - self.wanted):
                self.starting.append(now + self.start)
            spare = self.wanted - wanted
            while spare > 0 and self.starting:
                self.starting.pop()
                spare -= 1
            if spare > 0:
                self.moved += held * spare / max(1, self.ready)  # what its replicas held goes elsewhere
                self.ready -= spare
            self.wanted = wanted
        if len(self.seen) > 60:
            del self.seen[:30]
        self.hours += (self.ready + len(self.starting)) / 3600
        return ratio

    def arrive(self):
        self.ready += 1
        return True

    def lose(self, count, now):
        count = min(count, self.ready)
        self.ready -= count
        self.starting += [now + self.start + 5] * count


def percentile(values, share):
    """Of (value, weight), sorted here."""
    values, total, sum_ = sorted(values), sum(w for _, w in values), 0.0
    for value, weight in values:
        sum_ += weight
        if sum_ >= share * total:
            return value
    return values[-1][0]


def cell(kind, most, seed):
    """One engine for a day. -> what became of it, and a curve"""
    dice = random.Random(seed)
    held = slots()
    fleets = {role: Fleet(role, held[role], *shipped) for role, shipped in settings(kind).items()}
    waits, refused, came, curve, worst = [], 0.0, 0.0, [], 0.0
    people = people_at(0, most)
    failures = sorted([(dice.randrange(DAY), dice.choice(list(ROLES))) for _ in range(24)])
    for now in range(DAY):
        wanted = people_at(now, most)
        leaving = people / 600  # conversations last ten minutes
        coming = max(0.0, wanted - people) + leaving
        while failures and failures[0][0] == now:
            fleets[failures.pop(0)[1]].lose(1, now)
        if now == 68_400:  # a zone, at the evening's peak: a third of everything
            for fleet in fleets.values():
                fleet.lose(fleet.ready // 3, now)
        room = min(f.ready * f.slots - people * f.share for r, f in fleets.items() if r not in TURN_ROLES)
        turned_away = max(0.0, coming - leaving - max(0.0, room))
        came, refused = came + coming, refused + turned_away
        people = max(0.0, people + coming - leaving - turned_away) if wanted >= people else wanted
        wait = FIRST_AUDIO
        for role, fleet in fleets.items():
            ratio = fleet.step(now, people, dice)
            if role in TURN_ROLES:
                # Near full, turns meet; beyond, each waits for places to become free.
                wait += 0.08 * max(0.0, ratio - 0.7) / max(0.05, 1.02 - ratio) + fleet.waiting * TURN_SECONDS * fleet.share / max(1.0, fleet.ready * fleet.slots)
        waits.append((wait, people))
        worst = max(worst, wait)
        if now % 120 == 0:
            curve.append({"second": now, "people": people, "wait": wait, "refused": turned_away, "replicas": {r: f.ready for r, f in fleets.items()}})
    late = sum(w for v, w in waits if v > GOAL_SECONDS) / sum(w for _, w in waits)
    return {"p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99), "worst": worst, "late_share": late, "refused_share": refused / came,
            "moved": sum(fleets[r].moved for r in ("gateway", "controller")), "replica_hours": {r: f.hours for r, f in fleets.items()}}, curve


def simulate(kind, people, cells, seed=1):
    results, curves = zip(*[cell(kind, people / cells, seed + n) for n in range(cells)])
    mean = lambda key: sum(r[key] for r in results) / cells  # noqa: E731
    hours = {role: sum(r["replica_hours"][role] for r in results) for role in ROLES}
    return {"settings": kind, "people": people, "cells": cells, "p50": mean("p50"), "p99": max(r["p99"] for r in results), "worst": max(r["worst"] for r in results),
            "late_share": mean("late_share"), "refused_share": mean("refused_share"), "moved": sum(r["moved"] for r in results), "replica_hours": hours, "replica_hours_total": sum(hours.values())}, curves[0]


# ---------------------------------------------------------------------------------------------------------------- the picture
COLOURS = ["#1f6feb", "#8250df", "#2da44e", "#bf8700", "#cf222e", "#0a7ea4", "#6e7781"]


def svg(curve, result):
    width, panel, left = 960, 190, 60
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {3 * panel + 70}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/>']

    def draw(index, title, series, top, unit, goal=None):
        y0 = 40 + index * panel
        x = lambda second: left + second / DAY * (width - left - 130)  # noqa: E731
        y = lambda value: y0 + (panel - 50) * (1 - min(value, top) / top)  # noqa: E731
        out.append(f'<text x="{left}" y="{y0 - 8}" font-weight="bold" fill="#1f2328">{title}</text>')
        for step in range(5):
            value = top * step / 4
            out.append(f'<line x1="{left}" x2="{width - 130}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#d0d7de" stroke-width="0.5"/>'
                       f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#57606a">{value:g}{unit}</text>')
        for hour in range(0, 25, 3):
            out.append(f'<text x="{x(hour * 3600):.1f}" y="{y0 + panel - 34}" text-anchor="middle" fill="#57606a">{hour}:00</text>')
        if goal:
            out.append(f'<line x1="{left}" x2="{width - 130}" y1="{y(goal):.1f}" y2="{y(goal):.1f}" stroke="#cf222e" stroke-dasharray="4 3"/>')
        for n, (name, points) in enumerate(series):
            line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[n]}" stroke-width="1.6"/><text x="{width - 122}" y="{y0 + 12 + 17 * n}" fill="{COLOURS[n]}">{name}</text>')
    most = max(p["people"] for p in curve)
    draw(0, "People at once (one cell)", [("people", [(p["second"], p["people"]) for p in curve])], math.ceil(most / 500) * 500, "")
    top = max(max(p["replicas"].values()) for p in curve)
    draw(1, "Ready replicas", [(r, [(p["second"], p["replicas"][r]) for p in curve]) for r in ROLES], math.ceil(top / 8) * 8, "")
    draw(2, f"Until the first sound; goal {GOAL_SECONDS} s", [("seconds", [(p["second"], p["wait"]) for p in curve])], 2, " s", GOAL_SECONDS)
    out.append(f'<text x="{left}" y="{3 * panel + 55}" fill="#57606a">{result["settings"]}, {result["people"]} people in {result["cells"]} cells; a rush at 12:00, a third of all replicas lost at 19:00. A model: k8s/simulate.py</text></svg>')
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=pathlib.Path)
    a = parser.parse_args()
    results = []
    for kind in ("hpa", "defaults", "peak"):
        result, curve = simulate(kind, a.people, a.cells)
        results.append(result)
        if kind == "hpa" and a.svg:
            a.svg.write_text(svg(curve, result))
        if not a.json:
            print(f"{kind:<9} first sound p50 {result['p50']:.2f} p99 {result['p99']:.2f} worst {result['worst']:.2f} s, later than {GOAL_SECONDS} s {100 * result['late_share']:.3f} %, "
                  f"refused {100 * result['refused_share']:.3f} %, moved by scaling down {result['moved']:.0f}, {result['replica_hours_total']:.0f} replica-hours")
    if a.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
