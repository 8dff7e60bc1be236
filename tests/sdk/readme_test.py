"""The packages as a user gets them: the wheel, the installed library, and the examples of both READMEs as they are printed.

`readme_test.py BUILD SOURCE_DIR PYTHON`: PYTHON has what sdk/python needs.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

BUILD, ROOT, PYTHON = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Engine  # noqa: E402


def examples(file, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.M | re.S)


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout + done.stderr


def wheel(folder):
    """@return where it is installed. Nothing is fetched: what it needs is there."""
    source = folder / "python"
    shutil.copytree(ROOT / "sdk/python", source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    code, said = run(PYTHON, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, source)
    wheels = list(folder.glob("parlando-*.whl"))
    check("a wheel is built", code == 0 and len(wheels) == 1, said)
    code, said = run(PYTHON, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", folder / "site", *wheels)
    check("and installed", code == 0 and (folder / "site/parlando/py.typed").exists(), said)
    return folder / "site"


def python_examples(folder, site, endpoint):
    shutil.copy(ROOT / "models/nano/questions/capital_of_france.wav", folder / "question.wav")
    found = examples("sdk/python/README.md", "python")
    check("two examples", len(found) == 2)
    for n, text in enumerate(found):
        file = folder / f"example_{n}.py"
        file.write_text(text.replace("ipc:///run/parlando/gateway-1", endpoint))
        code, said = run(PYTHON, "-W", "error", file, cwd=folder, env={**os.environ, "PYTHONPATH": str(site)})
        want = ("what is the capital of france -> the capital of france is paris", "s of sound", "first sound after") if n == 0 else (" samples", "paris")
        check(f"example {n} of Python", code == 0 and all(w in said for w in want), said)


def cpp_examples(folder, endpoint):
    place = folder / "place"
    code, said = run("cmake", "--install", BUILD, "--component", "sdk", "--prefix", place)
    check("the library is installed", code == 0 and (place / "include/parlando/client.hpp").exists(), said)
    program, = examples("sdk/cpp/README.md", "cpp")
    lines, = examples("sdk/cpp/README.md", "cmake")
    command, = examples("sdk/cpp/README.md", "sh")
    (folder / "program.cpp").write_text(program)
    (folder / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.22)\nproject(example CXX)\nadd_executable(program program.cpp)\n" + lines)
    code, said = run("cmake", "-S", folder, "-B", folder / "out", f"-DCMAKE_PREFIX_PATH={place}")
    check("find_package", code == 0, said)
    code, said = run("cmake", "--build", folder / "out")
    check("it links", code == 0, said)
    library = next(place.rglob("libparlando.so")).parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "PKG_CONFIG_PATH": str(library / "pkgconfig")}
    code, said = run("bash", "-c", command.strip() + " -o by_pkg_config", cwd=folder, env=environment)
    check("pkg-config", code == 0, said)
    for name in ("out/program", "by_pkg_config"):
        code, said = run(folder / name, endpoint, env=environment)
        check(f"the example of C++: {name}", code == 0 and "paris" in said and "s of sound" in said and "no_speech" in said, said)
    code, said = run(BUILD / "tests/parlando_sdk_example", endpoint)
    check("examples/talk.cpp", code == 0 and "paris" in said and "the first of it after" in said, said)
    code, said = run("ldd", library / "libparlando.so")
    check("neither CAF nor libtorch", code == 0 and "caf" not in said and "torch" not in said, said)


with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    engine = Engine(BUILD / "bin/parlando", "--listen", "127.0.0.1:0", "--store", folder / "s.sqlite", "--processes", "--run-folder", folder / "run")
    endpoint = f"ipc://{folder}/run/gateway-1"
    python_examples(folder, wheel(folder), endpoint)
    cpp_examples(folder, endpoint)
    check("the engine ends cleanly", engine.stop() == 0)
finish()
