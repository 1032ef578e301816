"""Every grid of scripts/claims.sh is a command that attar and its scripts understand."""

import itertools
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from attar.bench.class_rows import words_of
from attar.bench.rows import read_variants
from attar.cli.main import app
from attar.methods.registry import METHODS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "claims.sh"
GRIDS = re.findall(r"^([a-z-]+)\)", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)
STUB = '#!/bin/sh\n(echo "$(basename "$0")"; for word; do echo "$word"; done; echo) >> "$SAID"\n'


def commands_of(grid: str, folder: Path) -> list[list[str]]:
    """Return the commands that a grid gives, each the program's name and its words."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("attar", "python"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        "SAID": str(folder / "said"),
        **{name: str(folder / name) for name in ("PACS", "SAMPLE", "SENTENCES", "OTHERS")},
    }
    subprocess.run(["bash", SCRIPT, grid, "3"], cwd=folder, env=environment, check=True)
    return [said.split("\n") for said in (folder / "said").read_text().split("\n\n")[:-1]]


def values_of(words: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_is_understood(grid: str, tmp_path: Path) -> None:
    commands = commands_of(grid, tmp_path)
    assert commands
    for program, *words in commands:
        if program == "attar":
            app.parse_args(words, exit_on_error=False, print_error=False)
            check_names_in(words)
        elif words[0] == "scripts/foundation_table.py":
            runpy.run_path(str(ROOT / words[0]))["read_options"](words[1:])
        else:
            assert (ROOT / words[0]).is_file()


def check_names_in(words: list[str]) -> None:
    """Check what the command line takes as it is: methods, rows, and files of variants."""
    assert set(values_of(words, "--methods")) <= METHODS.keys()
    for row in values_of(words, "--rows"):
        words_of(row)
    for file in values_of(words, "--variants"):
        assert read_variants(ROOT / file)


def test_the_last_table_of_a_grid_has_every_domain(tmp_path: Path) -> None:
    *_, last = commands_of("strict", tmp_path)
    assert last[0] == "attar"
    assert "--domains" not in last


def test_an_unknown_grid_is_refused() -> None:
    done = subprocess.run(["bash", SCRIPT, "pascal"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown grid: pascal" in done.stderr
