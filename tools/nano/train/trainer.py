"""What every training stage shares: a budget in core-minutes, a schedule over it, checkpoints that resume, a log for the report."""
from __future__ import annotations

import glob
import json
import os
import pickle
import random
import signal
import sys
import time

import numpy as np
import torch


def weights(work: str, name: str, net: str = "net") -> dict:
    """Weights of a stage: those that the judge liked best, or the last ones where nobody judged."""
    state = torch.load(f"{work}/state/{name}.pt", weights_only=False)
    return state["extra"].get("best", state["nets"][net])


def load_features(work: str, splits=None) -> list[dict]:
    data = []
    for path in sorted(glob.glob(f"{work}/features/*.pkl")):
        with open(path, "rb") as f:
            data += [d for d in pickle.load(f) if splits is None or d["split"] in splits]
    return data


class Run:
    """One stage. `budget` is CPU minutes of this process, so a busy machine changes the wall clock and not the result.

    Usage: `while run.begin_step(): loss = …; run.step(loss, {...})`. State lives in `WORK/state/NAME.pt`; a second start continues.
    """

    def __init__(self, work, name, nets: dict, budget, rate, warmup=200, clip=1.0, betas=(0.9, 0.98), decay=0.01, floor=0.0, power=0.8, save_every=120):
        torch.set_num_threads(1)
        os.makedirs(f"{work}/state", exist_ok=True)
        self.path, self.log_path = f"{work}/state/{name}.pt", f"{work}/state/{name}.jsonl"
        self.name, self.nets, self.budget, self.rate, self.warmup, self.clip = name, nets, budget * 60, rate, warmup, clip
        self.floor, self.power, self.save_every = floor, power, save_every
        self.parameters = [p for n in nets.values() for p in n.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=betas, weight_decay=decay)
        self.steps, self.used, self.averages, self.extra = 0, 0.0, {}, {}
        self.random = random.Random(7)
        torch.manual_seed(7)
        if os.path.exists(self.path):
            state = torch.load(self.path, weights_only=False)
            for key in nets.keys() & state["nets"].keys():      # tools.nano.resume_from brings the served weights alone
                nets[key].load_state_dict(state["nets"][key])
            if "optimiser" in state:
                self.optimiser.load_state_dict(state["optimiser"])
            self.steps, self.used, self.extra = state["steps"], state["used"], state["extra"]
            self.random.seed(self.steps)
            torch.manual_seed(self.steps)
            print(f"{name}: continues at step {self.steps}, {self.used / 60:.1f} of {budget:.0f} core-minutes used", flush=True)
        self._mark = self._saved = self._told = time.process_time()
        self._stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_):
        self._stopped = True

    @property
    def fraction(self):
        return min(1.0, self.used / self.budget)

    def begin_step(self) -> bool:
        now = time.process_time()
        self.used, self._mark = self.used + now - self._mark, now
        if now - self._saved > self.save_every or self.fraction >= 1 or self._stopped:
            self.save()
            self._saved = now
        if self._stopped:
            sys.exit(f"{self.name}: stopped at step {self.steps}, the next start goes on from here")
        if self.fraction >= 1:
            return False
        rate = self.rate * min(1, (self.steps + 1) / self.warmup) * (1 - self.fraction) ** self.power + self.floor
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return True

    def step(self, loss, figures: dict):
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.steps += 1
        for key, value in figures.items():
            value = float(value)
            self.averages[key] = 0.97 * self.averages.get(key, value) + 0.03 * value
        if time.process_time() - self._told > 15:
            self._told = time.process_time()
            left = (self.budget - self.used) / 60
            print(f"{self.name} step {self.steps} {' '.join(f'{k} {v:.3f}' for k, v in self.averages.items())}, {left:.1f} core-min left", flush=True)
            self.note(dict(self.averages))

    def judge(self, ear, net):
        """Keeps the weights with the lowest error of the judge for `weights`; training goes on from the last ones. Listening is not charged to the budget."""
        error = ear.error(net)
        self._mark = time.process_time()
        if error is None:
            return
        best = self.extra.get("error", float("inf"))
        self.note(dict(judge=error))
        print(f"{self.name} step {self.steps}: judged {error:.4f}, best before {best:.4f}", flush=True)
        if error <= best:
            self.extra["error"] = error
            self.extra["best"] = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.save()

    def note(self, figures: dict):
        with open(self.log_path, "a") as f:
            f.write(json.dumps(dict(step=self.steps, minutes=round(self.used / 60, 2), **figures)) + "\n")

    def save(self):
        state = dict(nets={k: n.state_dict() for k, n in self.nets.items()}, optimiser=self.optimiser.state_dict(), steps=self.steps, used=self.used, extra=self.extra)
        torch.save(state, self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)


def edit_distance(a, b) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(last + (x != y), row[j + 1] + 1, row[j] + 1)
    return row[-1]


def bucketed(data, size_of, budget, rng):
    """Endless batches of similar length whose padded size stays under `budget`."""
    while True:
        order = data[:]
        rng.shuffle(order)
        for i in range(0, len(order), 500):
            batches, batch = [], []
            for d in sorted(order[i:i + 500], key=size_of):
                if batch and size_of(d) * (len(batch) + 1) > budget:
                    batches.append(batch)
                    batch = []
                batch.append(d)
            batches.append(batch)
            rng.shuffle(batches)
            yield from batches


def pad(arrays, length=None, value=0.0):
    """[(T, D)…] -> float tensor [B, T, D]."""
    length = length or max(len(a) for a in arrays)
    out = np.full((len(arrays), length, *arrays[0].shape[1:]), value, np.float32)
    for i, a in enumerate(arrays):
        out[i, :len(a)] = a
    return torch.from_numpy(out)
