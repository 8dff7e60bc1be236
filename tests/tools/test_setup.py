"""`tools/setup.sh --test` and what `make test` says of skipped tests, with commands of this test's in the place of the system's. `test_setup.py SOURCE_DIR`."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

source = pathlib.Path(sys.argv[1]).resolve()
sys.path[:0] = [str(source / "tests/support"), str(source / "tests")]
import skipped  # noqa: E402
from checks import check, finish  # noqa: E402

# What was asked of the system goes to a file; nothing is changed.
STUBS = {"dpkg-query": "exit 1", "id": "echo 1000", "systemctl": "exit 0", "apt-get": "exit 0",
         "sudo": 'echo "$@" >> "$ASKED"; case "$*" in *install*buildah*) exit 100;; *tee*) cat >/dev/null;; esac'}


def setup(folder, without=(), ends="", **environment):
    """@param ends  signal that ends it and apt-get in the first installation. -> exit code, what it said, what it asked of the system"""
    asked, bin_ = folder / "asked", folder / "bin"
    shutil.rmtree(bin_, ignore_errors=True)
    bin_.mkdir()
    for name, text in STUBS.items():
        if name not in without:
            (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
            (bin_ / name).chmod(0o755)
    if ends:
        (bin_ / "sudo").write_text(f'#!/bin/sh\necho "$@" >> "$ASKED"; case "$*" in *" install "*) kill -{ends} $PPID; kill -{ends} $$;; *tee*) cat >/dev/null;; esac\n')
    for name in ("bash", "sh", "cat", "grep", "tee", "uname", "df", "awk", "dirname", "sha256sum", "cut", "env", "rm", "chmod"):
        (bin_ / name).symlink_to(shutil.which(name))
    asked.write_text("")
    done = subprocess.run(["bash", folder / "tools/setup.sh", "--test"], capture_output=True, text=True, env={"PATH": str(bin_), "ASKED": str(asked), **environment})
    return done.returncode, done.stdout + done.stderr, asked.read_text().splitlines()


def check_setup(folder):
    for file in ("tools/setup.sh", "tests/packages.txt", "tests/requirements.txt", "tools/clients_requirements.txt", "tests/deploy/requirements.txt"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, folder / file)
    script = folder / "tools/setup.sh"
    text = script.read_text()
    check("the policy is the system's", "policy=/usr/sbin/policy-rc.d " in text)
    script.write_text(text.replace("/usr/sbin/policy-rc.d", str(folder / "policy-rc.d")))
    (folder / ".deps/venv").mkdir(parents=True)
    texts = "".join((folder / f).read_text() for f in ("tests/requirements.txt", "tools/clients_requirements.txt", "tests/deploy/requirements.txt"))
    stamp = subprocess.run(["sha256sum"], input=texts, capture_output=True, text=True).stdout[:16]
    (folder / f".deps/stamp-test-{stamp}").touch()  # what pip brings is there
    packages = [w for line in (folder / "tests/packages.txt").read_text().splitlines() if not line.startswith("#") for w in line.split()]
    code, said, asked = setup(folder)
    installs = [line.split()[-1] for line in asked if " install " in line]
    check("each package is asked for alone", sorted(installs) == sorted(packages), f"{asked} {said}")
    check("one that cannot be had is told, and the rest goes on", code == 0 and "setup: buildah could not be installed, so tests that need it are skipped" in said, f"{code} {said}")
    policy = [i for i, line in enumerate(asked) if "policy-rc.d" in line]
    first, last = (i for i in (asked.index(next(a for a in asked if " install " in a)), max(i for i, a in enumerate(asked) if " install " in a)))
    check("no server is started by being installed", [i for i in policy if i < first] and [i for i in policy if i > last] and "rm -f" in asked[policy[-1]], str(asked))
    for signal, code in (("TERM", 143), ("INT", 130)):
        done, _, asked_then = setup(folder, ends=signal)
        end = [line.split()[:2] for line in asked_then if "policy-rc.d" in line][-1:]
        check(f"nor later, behind a SIG{signal} in the middle", done == code and end == [["rm", "-f"]] and len(asked_then) < len(asked), f"{done} {asked_then}")
    (folder / "policy-rc.d").touch()
    check("a policy that is there stays as it is", not [line for line in setup(folder)[2] if "policy-rc.d" in line])
    check("nor with the machine", sum("disable" in a for a in asked) == 2, str(asked))
    code, said, asked = setup(folder, without=["sudo"])
    check("without any right it says what is missing and goes on", code == 0 and "neither root nor sudo" in said and "prometheus" in said and not asked, f"{code} {said}")
    code, said, asked = setup(folder, PARLANDO_SKIP_APT="1")
    check("told to leave the system alone it says what is missing", code == 0 and "PARLANDO_SKIP_APT" in said and "prometheus" in said and not asked, f"{code} {said}")


def check_skipped(folder):
    (folder / "CTestTestfile.cmake").write_text('add_test(one "sh" "-c" "echo there is no such thing here; echo 3 passed, 0 failed; exit 77")\nadd_test(two "true")\n'
                                                'add_test(three "sh" "-c" "exit 77")\nset_tests_properties(one three PROPERTIES SKIP_RETURN_CODE 77)\n')
    subprocess.run(["ctest", "--output-junit", "tests.xml"], cwd=folder, capture_output=True)
    found = skipped.skipped(folder / "tests.xml")
    check("why tests were skipped is told", found == [("one", "there is no such thing here"), ("three", "it told no reason")], str(found))
    recipe = subprocess.run(["make", "-n", "test"], cwd=source, capture_output=True, text=True).stdout
    check("`make test` tells it", "skipped.py tests.xml" in recipe and "exit $code" in recipe, recipe)


with tempfile.TemporaryDirectory(prefix="parlando-setup-") as folder:
    check_setup(pathlib.Path(folder))
with tempfile.TemporaryDirectory(prefix="parlando-skipped-") as folder:
    check_skipped(pathlib.Path(folder))
finish()
