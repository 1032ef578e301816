"""docs/cli.md is what the command line says of itself."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App

from attar.cli.main import app

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "make_cli_docs.py"
PRINT = "import runpy, sys; print(runpy.run_path(sys.argv[1])['document'](), end='')"
DRAWN_FOR_A_TERMINAL = {"FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"}
"""With these rich would draw for a terminal of its own width, which the page is not."""


def document(**settings: str) -> str:
    """Return the page as the script makes it, in a process that has loaded no command yet."""
    kept = {name: v for name, v in os.environ.items() if name not in DRAWN_FOR_A_TERMINAL}
    fixed = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT, str(SCRIPT)],
        env={**kept, **fixed, **settings},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(text: str) -> str:
    """Return the text without frames and spacing, which are rich's and change with its version."""
    return " ".join(re.sub("[─-╿]", " ", text).split())


def sections(page: str) -> dict[str, str]:
    """Return "`title`" -> what stands below it."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_page_is_fresh_whatever_the_width_of_the_terminal() -> None:
    there = sections((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    wanted = sections(document(COLUMNS="47"))
    assert list(there) == list(wanted)
    for title, text in wanted.items():
        assert words(there[title]) == words(text), f"{title} has changed: run `make docs`"


def commands_of(parent: App, path: str = "") -> Iterator[str]:
    yield path
    for name in parent:
        if not name.startswith("-"):
            yield from commands_of(parent[name], f"{path} {name}".strip())


def test_every_command_has_its_section() -> None:
    assert sorted(runpy.run_path(str(SCRIPT))["COMMANDS"]) == sorted(commands_of(app))
