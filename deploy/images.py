#!/usr/bin/env python3
"""Makes the images: `images.py [--bin DIR …] [--out build/images] [--only NAME …] [--trees] [--engine docker|podman|buildah]`.

Each image is two trees, libraries and service, made from the programs in `--bin` (default build/bin) and the distribution's packages that they
link, and a third one with the empty folders of user 65532, where it writes; `--trees` stops there. The engine copies them into an image of its
own (Containerfile.in) and writes OUT/NAME.tar. The same programs and packages make the same bytes.

A tree holds, beside programs and libraries: passwd and group with the user 65532, the copyright and the dpkg status of every package (for
scanners), and a CycloneDX list of everything with SHA-256. Light images hold no shell. Budgets are checked.
"""
import argparse
import datetime
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import uuid

SOURCE = pathlib.Path(__file__).resolve().parents[1]
UID = 65532
LIGHT_MB, MODEL_MB = 40, 600
PRIVATE = "/usr/lib/parlando"  # for libraries that are no package of the distribution: libtorch and what it needs


class Image:
    def __init__(self, name, program, description, megabytes, libraries=None, data=(), listens=True, writes=()):
        self.name, self.program, self.description, self.megabytes, self.data, self.listens = name, program, description, megabytes, data, listens
        self.writes = writes  # folders of user 65532: an engine gives a new volume the owner that the folder beneath it has in the image
        self.libraries = libraries or [program]  # programs whose libraries make the first layer: the same for those that share it


MODEL_PROGRAMS = ["parlando-llm", "parlando-tokenizer", "parlando-tts"]
IMAGES = [
    Image("parlando-gateway", "parlando-gateway", "Front door: HTTP, WebSocket and ZeroMQ clients", LIGHT_MB,
          data=[("services/gateway/page", "usr/share/parlando/page"), ("models/nano/questions", "usr/share/parlando/questions")]),
    Image("parlando-controller", "parlando-controller", "Leads the conversations", LIGHT_MB, writes=["data"]),
    Image("parlando-vad", "parlando-vad", "Finds where speech starts and ends", LIGHT_MB, data=[("models/silero-vad", "usr/share/parlando/silero-vad")]),
    Image("parlando-context", "parlando-context", "Owners and histories of sessions", LIGHT_MB, writes=["data"]),
    Image("parlando-tokenizer", "parlando-tokenizer", "Streaming dual-codebook speech tokenizer", MODEL_MB, MODEL_PROGRAMS),
    Image("parlando-llm", "parlando-llm", "Step-1 language model, for chat and for speech", MODEL_MB, MODEL_PROGRAMS),
    Image("parlando-tts", "parlando-tts", "Flow matching and vocoder: text to sound", MODEL_MB, MODEL_PROGRAMS),
    Image("parlando-traces", "parlando-traces", "Brings turns to a collector of traces", LIGHT_MB, listens=False),
    Image("parlando-models-nano", "parlando-pod", "The bundled model, for a volume", LIGHT_MB, listens=False, writes=["volume"],
          data=[("models/nano", "models/nano"), ("models/silero-vad", "models/silero-vad")]),
]
# Code that is compiled in and lies in no library: what scanners must know of all the same.
HEADERS = ["/usr/include/boost/asio.hpp", "/usr/include/nlohmann/json.hpp", "/usr/include/zmq.hpp", "/usr/include/CLI/CLI.hpp", "/usr/include/tl/expected.hpp"]
SHELLS = re.compile(r"(^|/)(sh|bash|dash|ash|busybox|zsh|perl|python[0-9.]*|apt|dpkg)$")


def fail(text):
    sys.exit(f"images: {text}")


def run(*words, **options):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        fail(f"'{' '.join(map(str, words))}' ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(f.read()).hexdigest()


class Project:
    """What the images are made of: version and time, programs, and who owns a library."""

    def __init__(self, folders):
        self.folders = [pathlib.Path(f).resolve() for f in folders]
        self.version = re.search(r"project\(parlando VERSION (\S+)", (SOURCE / "CMakeLists.txt").read_text())[1]
        git = ["git", "-C", SOURCE]
        known = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        self.revision = known.stdout.strip() if known.returncode == 0 else "unknown"
        self.epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or (run(*git, "log", "-1", "--format=%ct") if known.returncode == 0 else 0))
        self.owners, self.packages = {}, {}

    @property
    def created(self):
        return datetime.datetime.fromtimestamp(self.epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def program(self, name):
        for folder in self.folders:
            if (folder / name).exists():
                return folder / name
        fail(f"'{name}' is in none of {[str(f) for f in self.folders]}: run `make build`")

    def needs(self, file):
        """-> {name of a library: file}, all that the loader would map"""
        out = {}
        for line in run("ldd", file).splitlines():
            found = re.match(r"\s*(\S+) => (\S+) \(0x", line) or re.match(r"\s*((/\S+)) \(0x", line)
            if found:
                out[pathlib.Path(found[1]).name] = pathlib.Path(found[2])
            elif "not found" in line:
                fail(f"{file} needs {line.strip()}")
        return out

    def owner(self, file):
        """-> package of the distribution, or None"""
        real = str(file.resolve())
        if real not in self.owners:
            # Since /usr was merged packages name their files as they were built, with or without /usr.
            names = [real, real.removeprefix("/usr"), "/usr" + real]
            found = None
            for name in names:
                done = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True)
                if done.returncode == 0:
                    found = done.stdout.splitlines()[0].split(": ")[0].split(",")[0]
                    break
            self.owners[real] = found
        return self.owners[real]

    def package(self, name):
        if name not in self.packages:
            words = run("dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}", name).split("\t")
            self.packages[name] = dict(zip(("name", "version", "architecture", "source", "source_version"), words)) | {"status": run("dpkg-query", "-s", name)}
        return self.packages[name]


def licences(package):
    """Short names, as its copyright file has them."""
    file = pathlib.Path("/usr/share/doc") / package / "copyright"
    text = file.read_text(errors="replace") if file.exists() else ""
    names = sorted({line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("License:") and line.split(":", 1)[1].strip()})
    return names or ["see copyright file"]


def wheel_of(file):
    """-> (name, version, licence) of the Python package that brought a file, by its RECORD"""
    site = next((p for p in file.resolve().parents if p.name == "site-packages"), None)
    if site is None:
        fail(f"{file} belongs to no package of the distribution and to no wheel: nobody could say what it is")
    relative = file.resolve().relative_to(site).as_posix()
    for record in sorted(site.glob("*.dist-info/RECORD")):
        if any(line.startswith(relative + ",") for line in record.read_text().splitlines()):
            metadata = (record.parent / "METADATA").read_text(errors="replace")
            field = lambda key: (re.search(rf"^{key}: (.*)$", metadata, re.M) or [None, ""])[1].strip()  # noqa: E731
            return field("Name"), field("Version"), (field("License-Expression") or field("License") or "see its METADATA")[:200], record.parent
    fail(f"{file} is in no wheel's RECORD")


class Tree:
    """A folder that becomes a layer; what it holds is told to `parts`, for the list."""

    def __init__(self, folder):
        self.folder, self.parts = pathlib.Path(folder), {}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def write(self, path, data, mode=0o644):
        target = self.folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        target.chmod(mode)
        return target

    def copy(self, source, path, mode=0o644):
        target = self.folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode)
        return target

    def copy_folder(self, source, path):
        for file in sorted(pathlib.Path(source).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                self.copy(file, f"{path}/{file.relative_to(source).as_posix()}")

    def settle(self, epoch, owner=0):
        """One owner, one time, modes of our own: what is left of the machine that made it."""
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o1777 if path.relative_to(self.folder).as_posix() == "tmp" else 0o755)
            if os.geteuid() == 0:
                os.lchown(path, owner, owner)
            os.utime(path, (epoch, epoch), follow_symlinks=False)

    def size(self):
        return sum(p.lstat().st_size for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink())

    def files(self):
        return sorted(p for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink())


COPYRIGHT_BYTES_MAX = 200_000  # of Boost it is 2 MB, and its licence asks for no copy beside programs


def tell(tree, package):
    """That a tree holds something of a package of the distribution: for lists, people and scanners."""
    name = package["name"]
    copyright_file = pathlib.Path("/usr/share/doc") / name / "copyright"
    if copyright_file.exists() and copyright_file.stat().st_size <= COPYRIGHT_BYTES_MAX:
        tree.copy(copyright_file.resolve(), f"/usr/share/doc/{name}/copyright")
    # As images without a package manager tell scanners what they hold.
    tree.write(f"/var/lib/dpkg/status.d/{name}", package["status"])
    purl = f"pkg:deb/debian/{name}@{package['version'].replace('+', '%2B').replace(':', '%3A')}?arch={package['architecture']}"
    tree.parts[purl] = {"type": "library", "name": name, "version": package["version"], "licences": licences(name), "files": []}


def headers(project):
    """-> packages whose code the programs of ours have compiled in"""
    return sorted({owner for h in HEADERS if (owner := project.owner(pathlib.Path(h)))})


def make_libraries(project, tree, programs):
    packages = {}
    for name, file in sorted({k: v for p in programs for k, v in project.needs(project.program(p)).items()}.items()):
        package = project.owner(file)
        if package:
            target = str(file) if name.startswith("ld-linux") else f"/usr/lib/{os.uname().machine}-linux-gnu/{name}"
            tree.copy(file.resolve(), target, 0o755)
            packages[package] = project.package(package)
        else:
            wheel, version, licence, info = wheel_of(file)
            target = tree.copy(file.resolve(), f"{PRIVATE}/{name}", 0o755)
            run("strip", "--strip-all", target)  # a fifth of libtorch is symbols
            tree.parts.setdefault(f"pkg:pypi/{wheel.lower()}@{version}", {"type": "library", "name": wheel, "version": version, "licences": [licence], "files": []})
            tree.parts[f"pkg:pypi/{wheel.lower()}@{version}"]["files"].append(str(target.relative_to(tree.folder)))
            for text in sorted(info.rglob("LICENSE*")):
                if text.is_file():
                    tree.copy(text, f"/usr/share/doc/{wheel}/{text.name}")
    for name in ("base-files", "netbase"):  # os-release, and the names of protocols that the resolver reads
        if subprocess.run(["dpkg-query", "-W", name], capture_output=True).returncode == 0:
            packages[name] = project.package(name)
    for package in packages.values():
        tell(tree, package)
    tree.copy(pathlib.Path("/etc/os-release").resolve(), "/usr/lib/os-release")
    tree.write("/etc/passwd", f"root:x:0:0:root:/:/nowhere\nparlando:x:{UID}:{UID}:parlando:/:/nowhere\n")
    tree.write("/etc/group", f"root:x:0:\nparlando:x:{UID}:\n")
    tree.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    if pathlib.Path("/etc/protocols").exists():
        tree.copy("/etc/protocols", "/etc/protocols")
        tree.copy("/etc/services", "/etc/services")
    for folder in ("tmp", "etc/parlando", "models"):
        (tree.folder / folder).mkdir(parents=True, exist_ok=True)
    for link, to in (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("etc/os-release", "../usr/lib/os-release")):
        moved = tree.folder / link
        if moved.is_dir() and not moved.is_symlink():  # the loader's own place is a link, as in the distribution
            (tree.folder / to).mkdir(parents=True, exist_ok=True)
            for file in moved.iterdir():
                file.rename(tree.folder / to / file.name)
            moved.rmdir()
        if not moved.is_symlink():
            (tree.folder / to).parent.mkdir(parents=True, exist_ok=True)
            moved.symlink_to(to)
    tree.settle(project.epoch)


def install(project, tree, name):
    """A program without symbols and without the paths of the machine that built it."""
    target = tree.copy(project.program(name), f"/usr/bin/{name}", 0o755)
    run("strip", "--strip-all", target)
    if "PATH)" in run("readelf", "-d", target):
        run("patchelf", "--force-rpath", "--set-rpath", PRIVATE, target)


def bill(project, image, trees):
    """CycloneDX 1.5. Its number is made of its contents, so that the same image has the same list."""
    components = []
    for purl, part in sorted({k: v for t in trees for k, v in t.parts.items()}.items()):
        components.append({"type": part["type"], "bom-ref": purl, "name": part["name"], "version": part["version"], "purl": purl,
                           "licenses": [{"license": {"name": name}} for name in part["licences"]]})
    for tree in trees:
        for file in tree.files():
            path = "/" + file.relative_to(tree.folder).as_posix()
            if not path.startswith(("/usr/share/doc/", "/var/lib/dpkg/")):
                components.append({"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": [{"alg": "SHA-256", "content": digest(file)}]})
    out = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
           "metadata": {"timestamp": project.created,
                        "component": {"type": "container", "bom-ref": image.name, "name": image.name, "version": project.version,
                                      "licenses": [{"license": {"id": "MIT"}}], "properties": [{"name": "revision", "value": project.revision}]}},
           "components": components}
    out["serialNumber"] = "urn:uuid:" + str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(out, sort_keys=True)))
    return json.dumps(out, indent=1, sort_keys=True) + "\n"


def check(image, trees):
    files = [(t, f) for t in trees for f in t.files()]
    size = sum(f.stat().st_size for _, f in files)
    if size > image.megabytes * 1_000_000:
        fail(f"{image.name} has {size / 1e6:.1f} MB, at most {image.megabytes} are meant")
    for tree, file in files:
        path = file.relative_to(tree.folder).as_posix()
        if image.megabytes == LIGHT_MB and SHELLS.search(path):
            fail(f"{image.name} holds {path}: light images have no shell")
        if file.stat().st_mode & 0o7022:
            fail(f"{image.name}: {path} has mode {file.stat().st_mode & 0o7777:o}, expected neither setuid nor writable by others")
    return size


def make_trees(project, out, images):
    """-> {name: (libraries' folder, service's folder, folder of what it writes or None, bytes)}"""
    made, libraries = {}, {}
    for image in images:
        key = "libraries-models" if image.libraries is MODEL_PROGRAMS else f"libraries-{image.name}"
        if key not in libraries:
            libraries[key] = Tree(out / key)
            make_libraries(project, libraries[key], [*image.libraries, "parlando-pod"])
        tree = Tree(out / image.name)
        for program in sorted({image.program, "parlando-pod"}):
            install(project, tree, program)
        for name in headers(project) if image.program != "parlando-pod" else ():
            tell(tree, project.package(name))
        for source, path in image.data:
            tree.copy_folder(SOURCE / source, path)
        tree.copy(SOURCE / "LICENSE", "/usr/share/doc/parlando/LICENSE")
        both = [libraries[key], tree]
        tree.write("/usr/share/doc/parlando/sbom.cdx.json", bill(project, image, both))
        tree.settle(project.epoch)
        volumes = Tree(out / f"volumes-{image.name}") if image.writes else None
        for folder in image.writes:
            (volumes.folder / folder).mkdir()
        if volumes:
            volumes.settle(project.epoch, UID)
        made[image.name] = (libraries[key].folder, tree.folder, volumes and volumes.folder, check(image, both))
        shutil.copyfile(tree.folder / "usr/share/doc/parlando/sbom.cdx.json", out / f"{image.name}.cdx.json")
    return made


def choose_engine(wanted):
    for name in [wanted] if wanted else ["docker", "podman", "buildah"]:
        if not shutil.which(name):
            continue
        if name == "buildah" or subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    fail(f"{wanted or 'docker, podman or buildah'} is not here or does not answer: tools/setup.sh --images installs buildah, which needs no service")


def containerfile(project, image, libraries, tree, volumes):
    # Whoever copies into an image makes everything root's, whatever it was outside.
    more = f"COPY --chown={UID}:{UID} {volumes.name}/ /\n" if volumes else ""
    entrypoint, cmd = [f"/usr/bin/{image.program}"], ["--config", "/etc/parlando/instance.json"]
    if image.listens:
        ports = "5555 9100" + (" 7860" if image.name == "parlando-gateway" else "")
        more += (f'EXPOSE {ports}\nHEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 '
                 'CMD ["/usr/bin/parlando-pod", "probe", "127.0.0.1:9100/healthz"]')
    elif image.name == "parlando-models-nano":
        cmd = ["copy", "/models", "/volume"]
    else:
        cmd = ["--help"]
    text = (SOURCE / "deploy/Containerfile.in").read_text()
    for key, value in {"libraries": libraries.name, "tree": tree.name, "name": image.name, "description": image.description, "version": project.version,
                       "revision": project.revision, "created": project.created, "more": more, "entrypoint": json.dumps(entrypoint), "cmd": json.dumps(cmd)}.items():
        text = text.replace(f"@{key}@", value)
    return text


def settle_archive(archive, epoch):
    """Leaves out what is of the build and not of the image: names of containers, hosts and intermediate images."""
    part = archive.with_suffix(".part")
    with tarfile.open(archive) as old, tarfile.open(part, "w") as new:
        manifest = json.load(old.extractfile("manifest.json"))[0]
        config = json.load(old.extractfile(manifest["Config"]))
        for key in ("container", "container_config", "parent", "docker_version"):
            config.pop(key, None)
        config["config"].pop("Hostname", None)
        for step in config["history"]:
            step.pop("comment", None)

        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = data.seek(0, os.SEEK_END), epoch, 0o644
            data.seek(0)
            new.addfile(info, data)
            return name
        text = json.dumps(config, sort_keys=True).encode()
        layers = [add(id_.removeprefix("sha256:") + ".tar", old.extractfile(name)) for id_, name in zip(config["rootfs"]["diff_ids"], manifest["Layers"])]
        named = add(hashlib.sha256(text).hexdigest() + ".json", io.BytesIO(text))
        add("manifest.json", io.BytesIO(json.dumps([{"Config": named, "RepoTags": manifest["RepoTags"], "Layers": layers}]).encode()))
    part.rename(archive)


def build(project, engine, out, image, libraries, tree, volumes, tag):
    file = out / f"{image.name}.Containerfile"
    file.write_text(containerfile(project, image, libraries, tree, volumes))
    archive = out / f"{image.name}.tar"
    archive.unlink(missing_ok=True)
    name = f"{image.name}:{tag}"
    if engine == "docker":
        run("docker", "build", "-q", "-f", file, "-t", name, out, env=os.environ | {"SOURCE_DATE_EPOCH": str(project.epoch)})
        run("docker", "save", "-o", archive, name)
        settle_archive(archive, project.epoch)
        return archive
    # A store of our own, so that nothing stays behind; vfs works in any file system and without any right to mount.
    words = [engine, "--root", out / ".store", "--runroot", out / ".store/run", "--storage-driver", "vfs"]
    isolation = ["--isolation", "chroot"] if engine == "buildah" else []
    run(*words, "build" if engine == "podman" else "bud", *isolation, "--format", "docker", "--layers", "--timestamp", project.epoch, "-f", file, "-t", name, out)
    run(*words, *(["push"] if engine == "buildah" else ["push", "--format", "v2s2"]), name, f"docker-archive:{archive}:{name}")
    settle_archive(archive, project.epoch)
    return archive


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", action="append", type=pathlib.Path, help="folder with programs; the first that has one counts")
    parser.add_argument("--out", type=pathlib.Path, default=SOURCE / "build/images")
    parser.add_argument("--only", action="append", help="names of images")
    parser.add_argument("--trees", action="store_true", help="make the trees and the lists, no images")
    parser.add_argument("--engine", choices=["docker", "podman", "buildah"])
    parser.add_argument("--tag", help="default: the version")
    a = parser.parse_args()
    unknown = set(a.only or ()) - {i.name for i in IMAGES}
    if unknown:
        fail(f"there is no image {sorted(unknown)}, expected some of {[i.name for i in IMAGES]}")
    for tool in ("ldd", "dpkg-query", "strip", "readelf", "patchelf"):
        if not shutil.which(tool):
            fail(f"{tool} is missing: run tools/setup.sh --images")
    project = Project(a.bin or [SOURCE / "build/bin"])
    chosen = [i for i in IMAGES if not a.only or i.name in a.only]
    engine = None if a.trees else choose_engine(a.engine)
    made = make_trees(project, a.out, chosen)
    for image in chosen:
        libraries, tree, volumes, size = made[image.name]
        line = f"{image.name:<22} {size / 1e6:6.1f} MB of {image.megabytes}"
        if engine:
            archive = build(project, engine, a.out, image, libraries, tree, volumes, a.tag or project.version)
            line += f"  {archive}  sha256:{digest(archive)[:16]}…"
        print(line, flush=True)
    shutil.rmtree(a.out / ".store", ignore_errors=True)


if __name__ == "__main__":
    main()
