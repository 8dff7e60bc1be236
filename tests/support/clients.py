"""Where the stock clients are installed."""
import os
import pathlib
import sys


def go_there(root):
    """Starts this program anew with the Python that has the clients (tools/setup.sh), if there is one."""
    python = pathlib.Path(root).resolve() / ".deps/clients/bin/python"
    if python.exists() and not os.environ.get("PARLANDO_CLIENTS"):
        os.environ["PARLANDO_CLIENTS"] = "1"
        os.execv(python, [str(python), *sys.argv])
