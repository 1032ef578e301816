"""The script's entry: what it does before and after the command line is imported."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "attar.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from attar.__main__ import main
main()
"""


def test_ctrl_c_during_the_import_ends_it_quietly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_installed_script_is_this_entry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["attar"].partition(":")
    assert (module, name) == ("attar.__main__", "main")
    assert callable(getattr(import_module(module), name))
    asked = [sys.executable, "-m", "attar", "--version"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert said.strip() == import_module("attar").__version__
