"""Why tests were skipped in a run of ctest, which tells their names alone: `skipped.py FILE`, what `ctest --output-junit FILE` wrote. The reason is the last thing
that a test said, but for what it counted."""
import re
import sys
import xml.etree.ElementTree


def skipped(file):
    """-> [(test, reason)]"""
    out = []
    for case in xml.etree.ElementTree.parse(file).getroot().iter("testcase"):
        if case.find("skipped") is None:
            continue
        lines = [line.strip() for line in (case.findtext("system-out") or "").splitlines()]
        reasons = [line for line in lines if line and not re.fullmatch(r"\d+ passed, \d+ failed", line)]
        out.append((case.get("name"), reasons[-1] if reasons else "it told no reason"))
    return out


if __name__ == "__main__":
    found = skipped(sys.argv[1])
    if found:
        print(f"{len(found)} tests were skipped:", *(f"  {name}: {why}" for name, why in found), sep="\n")
