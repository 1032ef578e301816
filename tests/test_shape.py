"""The shape of the code: one-way imports, size limits, and commands that load no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import attar

SOURCE = Path(attar.__file__).parent
LAYERS = [
    {"errors"},
    {
        "types",
        "records",
        "files",
        "config",
        "device",
        "http",
        "hub",
        "losses",
        "members",
        "metrics",
        "multilabel",
        "same_run",
    },
    {"prompts", "data"},
    {"teachers", "runtime"},
    {"store", "students"},
    {"methods", "language", "serving"},
    {"training", "evaluation", "report"},
    {"export"},
    {"run"},
    {"stages"},
    {"suites"},
    {"pipeline"},
    {"bench", "demo"},
    {"cli"},
    {"__main__"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
NARROW = {
    "report": {"errors", "files", "members", "records"},
    "runtime": {"errors", "files", "records", "data"},
    "language": {"errors", "files", "config", "device", "http", "hub", "records", "prompts",
                 "members", "metrics", "data", "teachers", "store"},
    "serving": {"errors", "data", "teachers"},
    "students": {"errors", "files", "hub", "types", "config"},
    "training": {"errors", "types", "files", "config", "device", "data", "store", "students",
                 "methods"},
}  # fmt: skip
"""Units that may import less than their level allows."""


def modules() -> Iterator[Path]:
    return SOURCE.rglob("*.py")


def unit_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the units a file imports, lazy and type-only imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "attar":
                names = [f"attar.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "attar" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    for other in imports(path):
        if other in (unit, "__version__"):
            continue
        assert LEVEL[other] < LEVEL[unit], f"{unit} imports {other}, which is not below it"
        if unit in NARROW:
            assert other in NARROW[unit], f"{unit} may not import {other}"


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    is_command = unit_of(path) == "cli"  # a command's parameters are its options
    for function in functions(ast.parse(text)):
        length = (function.end_lineno or 0) - function.lineno + 1
        parameters = len(function.args.args) + len(function.args.kwonlyargs)
        assert length <= 80, f"{function.name} has {length} lines"
        assert is_command or parameters <= 9, f"{function.name} has {parameters} parameters"


@pytest.mark.parametrize(
    "code",
    [
        "import attar",
        "import attar.runtime.predict, attar.runtime.latency",
        "import attar.report.page",
        "from attar.cli.main import main; main(['predict', '--help'])",
        "from attar.cli.main import main; main(['report', '--help'])",
    ],
)
def test_no_torch_where_none_is_needed(code: str) -> None:
    tried = f"try:\n    {code}\nexcept SystemExit: pass\n"
    program = f"import sys\n{tried}assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_every_public_name_is_there() -> None:
    assert attar.__all__ == sorted(attar.__all__)
    for name in attar.__all__:
        assert getattr(attar, name) is not None
