"""Counting checks for the test programs: `check(name, good, detail)`, then `finish()`. What could not be tried here is told by `finish(left_out)`, with
exit code 77 when nothing else is wrong."""
import sys

passed, failed = 0, []


def check(name, good, detail=""):
    global passed
    if good:
        passed += 1
    else:
        failed.append(f"{name}: {detail}")


def finish(left_out=()):
    print("\n".join([*failed, *left_out]))
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(1 if failed else 77 if left_out else 0)
