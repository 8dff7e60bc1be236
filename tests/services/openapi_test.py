"""The gateway's own description against the gateway, by schemathesis: whatever a request looks like, no answer is a 5xx, and every answer is one that
/openapi.json describes. `openapi_test.py BUILD_BIN SOURCE_DIR [EXAMPLES]`; skipped (77) without schemathesis (tools/setup.sh --clients).
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
EXAMPLES = sys.argv[3] if len(sys.argv) > 3 else "30"  # of each operation
sys.path.insert(0, str(ROOT / "tests/support"))
from checks import check, finish  # noqa: E402
from engine import Engine  # noqa: E402

tool = next((p for p in (ROOT / ".deps/clients/bin/schemathesis", pathlib.Path(os.environ.get("SCHEMATHESIS", ""))) if p.is_file()), None)
if tool is None:
    print("skipped: no schemathesis; tools/setup.sh --clients installs it")
    sys.exit(77)

engine = Engine(BIN / "parlando", "--listen", "127.0.0.1:0")
folder = tempfile.mkdtemp()  # it leaves a cache where it runs
try:
    # A place may be taken for the moment: 503 with Retry-After is an answer of its own and no fault, so it is asked one after the other.
    done = subprocess.run([tool.resolve(), "run", f"http://127.0.0.1:{engine.port}/openapi.json", "--url", f"http://127.0.0.1:{engine.port}", "--seed", "1",
                           "--max-examples", EXAMPLES, "--workers", "1", "--request-timeout", "60", "--phases", "examples,coverage,fuzzing",
                           "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
                           "--generation-database", "none", "--no-color"], capture_output=True, text=True, timeout=3000, cwd=folder)
    print(done.stdout[-6000:], done.stderr[-2000:])
    check("no answer is a server error or outside the description", done.returncode == 0, done.returncode)
    check("the engine lives", engine.process.poll() is None)
finally:
    engine.stop()
    shutil.rmtree(folder)
finish()
