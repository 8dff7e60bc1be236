"""Counting checks for the test programs: `check(name, good, detail)`, then `finish()`."""
import sys

passed, failed = 0, []


def check(name, good, detail=""):
    global passed
    if good:
        passed += 1
    else:
        failed.append(f"{name}: {detail}")


def finish():
    print("\n".join(failed))
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(bool(failed))
