"""One page with the curves of all stages, the evaluation table and audio samples: `python -m tools.nano.report WORK [MODEL]` -> WORK/report.html."""
from __future__ import annotations

import base64
import glob
import html
import json
import os
import sys


def curve(rows, key, width=420, height=120):
    points = [(r["minutes"], r[key]) for r in rows if key in r]
    if len(points) < 2:
        return ""
    xs, ys = zip(*points)
    low, high = min(ys), max(ys)
    scale = lambda x, y: (x / max(xs) * width, height - (y - low) / ((high - low) or 1) * height)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (scale(*p) for p in points))
    return (f'<figure><svg viewBox="-4 -4 {width + 8} {height + 8}" width="{width}"><polyline points="{path}" fill="none" stroke="#2563eb" stroke-width="1.5"/></svg>'
            f"<figcaption>{html.escape(key)}: {points[0][1]:.3f} → {points[-1][1]:.3f} in {max(xs):.0f} core-minutes</figcaption></figure>")


def confusion(result):
    """Intents said (rows) and understood (columns); the diagonal is what was right."""
    rows = result["confusion"]
    columns = sorted({c for r in rows.values() for c in r} | set(rows))
    cell = lambda row, column, n: f'<td style="background:rgba({"37,99,235" if row == column else "220,38,38"},{min(1, n / max(1, sum(rows[row].values()))):.2f})">{n or ""}'
    body = "".join(f"<tr><th>{html.escape(row)}" + "".join(cell(row, c, rows[row].get(c, 0)) for c in columns) for row in rows)
    return f"<h3>Intents, {html.escape(result['measure'])}</h3><table><tr><th>" + "".join(f"<th>{html.escape(c)}" for c in columns) + body + "</table>"


def main():
    work, model = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "models/nano"
    parts = ["<!doctype html><meta charset=utf-8><title>parlando-nano</title><style>body{font:15px system-ui;margin:2rem;max-width:70rem}figure{display:inline-block;margin:.5rem}"
             "td,th{border:1px solid #ccc;padding:.3rem .6rem;text-align:left}table{border-collapse:collapse}</style><h1>parlando-nano: training report</h1>"]
    for path in sorted(glob.glob(f"{work}/state/*.jsonl")):
        rows = [json.loads(line) for line in open(path)]
        keys = sorted({k for r in rows for k in r} - {"step", "minutes"})
        parts.append(f"<h2>{os.path.basename(path)[:-6]}</h2>" + "".join(curve(rows, k) for k in keys))
    if os.path.exists(f"{work}/eval/results.json"):
        parts.append("<h2>Evaluation through the C++ runtime</h2><table>")
        results = json.load(open(f"{work}/eval/results.json"))
        for r in results:
            rest = ", ".join(f"{k} {v}" for k, v in r.items() if k not in ("measure", "kinds", "examples", "confusion"))
            kinds = ", ".join(f"{k} {v}" for k, v in r.get("kinds", {}).items())
            parts.append(f"<tr><th>{html.escape(r['measure'])}<td>{html.escape(rest)}<td>{html.escape(kinds or ' · '.join(r.get('examples', [])))}</tr>")
        parts.append("</table>")
        for r in results:
            if "confusion" in r:
                parts.append(confusion(r))
    samples = sorted(glob.glob(f"{model}/samples/*.wav"))
    if samples:
        parts.append("<h2>Samples</h2>")
    for path in samples:
        data = base64.b64encode(open(path, "rb").read()).decode()
        parts.append(f'<p>{html.escape(os.path.basename(path))}<br><audio controls src="data:audio/wav;base64,{data}"></audio>')
    open(f"{work}/report.html", "w").write("\n".join(parts))
    print(f"{work}/report.html")


if __name__ == "__main__":
    main()
