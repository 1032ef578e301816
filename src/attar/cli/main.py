"""The command line: one command a stage, each imported only when it is called."""

import ast
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError

from attar import __version__
from attar.cli.config_file import expand_config_file
from attar.errors import AttarError, UsageError

app = App(
    name="attar",
    version=__version__,
    help="Distil a large vision-language model into a small image model that keeps working "
    "out of distribution.\n\nFor example: `attar demo`",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
    default_parameter=Parameter(negative_iterable=()),
    help_epilogue="`--config FILE` reads any command's options from a YAML file, such as the "
    "config.yaml of a run; options on the line win.",
)
store = App(
    name="store",
    help="Look after a folder of teacher embeddings.\n\nFor example: `attar store info store/`",
)
bench = App(
    name="bench",
    help="Run a grid of runs and make one table of it.\n\n"
    "For example: `attar bench domains --data PACS/ --teacher pocket --out runs/pacs`",
)

_COMMANDS: Sequence[tuple[App, str, str | None]] = (
    (app, "caption:caption", None),
    (app, "demo:demo", None),
    (app, "describe:describe", None),
    (app, "distill:distill", None),
    (app, "embed:embed", None),
    (app, "evaluate:evaluate", None),
    (app, "export:export", None),
    (app, "few_shot:few_shot", None),
    (app, "gate:gate", None),
    (app, "lists:lists", None),
    (app, "predict:predict", None),
    (app, "predict:latency", None),
    (app, "report:report", None),
    (app, "select_texts:select_texts", None),
    (app, "serve_teacher:serve_teacher", None),
    (store, "store:info", None),
    (store, "store:verify", None),
    (store, "store:import_", "import"),
    (bench, "bench:domains", None),
    (bench, "bench:classes", None),
    (bench, "embeddings:embeddings", None),
)
"""Group, module and function of every command; a module is imported when its command is called."""


def _explanation(module: str, function: str) -> str:
    """Return what a command's docstring says above its parameters, without importing it."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n\nParameters\n")[0]
    raise LookupError(f"{module}.py has no function {function}")


for _group, _target, _name in _COMMANDS:
    _help = _explanation(*_target.split(":"))
    _group.command(f"attar.cli.{_target}", name=_name, help=_help)
app.command(store)
app.command(bench)

_GROUPS = {
    "--training": "steps 200",
    "--splits": "seed 1",
    "--embed": "batch-size 32",
    "--evaluation": "batch-size 32",
}
"""Groups of options -> one of them, as an example."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exit status: 0 success, 2 wrong use, 1 failure; one line on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    _speak_on_stderr()
    tokens = list(sys.argv[1:] if argv is None else argv)
    with _noting_interrupts() as interrupts:
        try:
            words = expand_config_file(tokens)
            _refuse_bare_groups(words)
            status = app(words, exit_on_error=False, print_error=False)
        except (KeyboardInterrupt, Exception) as error:
            if interrupts or isinstance(error, KeyboardInterrupt):
                _end_interrupted()
            sys.exit(_say_what_went_wrong(error))
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Keep a note of every Ctrl-C, which may come out as another error than KeyboardInterrupt.

    An extension module that is being imported turns it into an ImportError, for one.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    # Another handler, or none (as under nohup), is somebody's choice.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_interrupted() -> NoReturn:
    """Say how to go on and end at once.

    Nothing is waited for: Python would join threads and processes, such as a reading worker that
    itself waits to hand its batch over.
    """
    if hasattr(signal, "SIGCHLD"):  # PyTorch's handler raises an error for every worker that dies
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _say("interrupted; run the same command again to go on")
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(130)


def _say_what_went_wrong(error: BaseException) -> int:
    """Say it in one line; return the exit status."""
    if isinstance(error, CycloptsError):
        _say(_one_line(_mistyped(error) or error))
        return 2
    if isinstance(error, AttarError):
        _say(str(error))
        return error.exit_status
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    where = " ".join(getattr(error, "__notes__", ())) or f"traceback: {_write_traceback()}"
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported for a name
        _say(
            f"the accelerator's memory ran out ({where}): give a smaller batch size (--batch-size, "
            "--embed.batch-size or --evaluation.batch-size); what was finished is kept"
        )
        return 1
    _say(f"{type(error).__name__}: {error} ({where})")
    return 1


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """The base class sets it once; there is nothing to keep."""


def _speak_on_stderr() -> None:
    """Show attar's messages and libraries' logged warnings, but no Python warnings."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Stderr) for handler in root.handlers):
        root.addHandler(_Stderr())
    logging.getLogger("attar").setLevel(logging.INFO)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _refuse_bare_groups(words: Sequence[str]) -> None:
    """Refuse `--training 3`, which cyclopts would take for the group's first option."""
    for word in words:
        option, _, value = word.partition("=")
        if option in _GROUPS:
            given = f"{option}={value}" if value else option
            raise UsageError(
                f"{given}: {option} is a group of options; give one of them, as in "
                f"{option}.{_GROUPS[option]}"
            )


def _say(message: str) -> None:
    print(f"attar: {' '.join(message.split())}", file=sys.stderr)


def _mistyped(error: CycloptsError) -> CycloptsError | None:
    """Return the error of an unknown option that stands where a required one is missing.

    It may be the required one mistyped, and its nearest name says more than what is missing.
    """
    if not isinstance(error, MissingArgumentError) or error.app is None:
        return None
    options = error.app.assemble_argument_collection()
    known = {name for option in options for name in option.names}
    words = [word.partition("=")[0] for word in error.unused_tokens or ()]
    unknown = next((word for word in words if word.startswith("--") and word not in known), None)
    if unknown is None:
        return None
    return UnknownOptionError(
        token=Token(keyword=unknown, source="cli"),
        argument_collection=options,
        command_chain=error.command_chain,
        verbose=False,
    )


def _one_line(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    chain = getattr(error, "command_chain", None) or ()
    if isinstance(error, UnknownCommandError):
        return f"{text} (`attar --help` lists the commands)"
    return f"{text} (`attar {' '.join([*chain, '--help'])}` explains)"


def _write_traceback() -> str:
    """Keep the traceback of an unexpected failure in a file; return its path."""
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="attar-", suffix=".log")
    with os.fdopen(handle, "w") as file:
        traceback.print_exc(file=file)
    return path
