#!/usr/bin/env python3
"""Installs the engine on this host, to run under systemd: `host.py install`, as root, behind `make sbom`.

    host.py install [--trees build/images] [--root /]    programs, libraries, data, units, users, keys; configurations that are there stay as they are
    host.py own [--root /]                               each folder of keys for the group of its user to read again, behind a change by keys.py

The programs are those of the trees of images.py: they find libtorch in /usr/lib/parlando, so nothing of the checkout is needed afterwards, wherever it
lies. Libraries of the distribution are the host's own.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys

import images
import instances
import keys

SYSTEMD = pathlib.Path(__file__).resolve().parent / "systemd"


def fail(text):
    sys.exit(f"host: {text}")


def copy(source, target, mode=None):
    """Beside its place first: a program that runs is not written over."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    part.chmod(mode if mode is not None else source.stat().st_mode & 0o755)
    part.rename(target)


def copy_folder(source, target):
    for file in sorted(source.rglob("*")):
        if file.is_file():
            copy(file, target / file.relative_to(source))


def install_programs(trees, root):
    programs = sorted({f"parlando-{instances.SERVICE.get(role, role)}" for role in instances.ROLES})
    for name in programs:
        if not (trees / name / "usr/bin" / name).exists():
            fail(f"'{trees}' holds no {name}, expected the trees of `make sbom`")
        copy(trees / name / "usr/bin" / name, root / "usr/bin" / name)
        copy_folder(trees / name / "usr/share/parlando", root / "usr/share/parlando")
        copy(trees / f"{name}.cdx.json", root / f"usr/share/doc/parlando/{name}.cdx.json")
    copy_folder(trees / "libraries-models" / images.PRIVATE.lstrip("/"), root / images.PRIVATE.lstrip("/"))
    copy_folder(trees / "parlando-models-nano/models/nano", root / "usr/share/parlando/models/nano")
    copy(SYSTEMD.parent / "README.md", root / "usr/share/doc/parlando/deploy.md", 0o644)
    for role in instances.ROLES:
        link = root / "usr/libexec/parlando" / role
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../bin/parlando-{instances.SERVICE.get(role, role)}")


def install_units(root):
    for role in instances.ROLES:
        if not (root / f"etc/parlando/{role}.json").exists():
            copy(SYSTEMD / f"{role}.json", root / f"etc/parlando/{role}.json", 0o644)
    copy(SYSTEMD / "sysusers.conf", root / "usr/lib/sysusers.d/parlando.conf", 0o644)
    for file in sorted(SYSTEMD.rglob("parlando*")):
        for unit in sorted(file.rglob("*")) if file.is_dir() else [file]:
            copy(unit, root / "etc/systemd/system" / unit.relative_to(SYSTEMD), 0o644)
    done = subprocess.run(["systemd-sysusers", f"--root={root}", root / "usr/lib/sysusers.d/parlando.conf"], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"systemd-sysusers made no users: {done.stderr.strip()}")


def groups(root):
    """-> {user: its group} as the installed system has them"""
    words = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    return {w[0]: int(w[3]) for w in words if len(w) > 3}


def refuse_link(path):
    fail(f"'{path}' is a link, expected a file or a folder")


def give(path, group, mode):
    """It is root's: whoever runs as a role reads its keys and changes nothing. A link is refused, wherever it leads."""
    if path.is_symlink():
        refuse_link(path)
    os.chown(path, 0, group, follow_symlinks=False)
    path.chmod(mode)


def own(root):
    """A folder is for the user of its name: a role's, or a second replica's. Those of clients are for root to hand out; of others nothing is known."""
    folder, known = root / "etc/parlando/keys", groups(root)
    links = [path for path in sorted([folder, *folder.rglob("*")]) if path.is_symlink()]
    if links:
        refuse_link(links[0])  # before anything is changed
    give(folder, 0, 0o711)
    for place in sorted(folder.iterdir()):
        name = place.name.removesuffix("-next")
        its = place.is_dir() and f"parlando-{name}" in known
        if name in keys.CALLS and not its:
            fail(f"'{place}' is for parlando-{name}, which is no user here")
        if place.is_dir() and not its and not place.name.startswith("client-"):
            print(f"'{place}' stays as it is: there is no user parlando-{name}")
            continue
        group = known[f"parlando-{name}"] if its else 0
        give(place, group, (0o550 if its else 0o500) if place.is_dir() else 0o400)
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            give(path, group, 0o440 if its else 0o400)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["install", "own"])
    parser.add_argument("--trees", type=pathlib.Path, default=images.SOURCE / "build/images")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("/"))
    a = parser.parse_args()
    if os.geteuid() != 0:
        fail("needs root")
    os.umask(0o022)
    if a.what == "install":
        install_programs(a.trees, a.root)
        install_units(a.root)
        keys.make(a.root / "etc/parlando/keys")
    own(a.root)


if __name__ == "__main__":
    main()
