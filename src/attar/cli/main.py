"""The command line: one command a stage, each imported only when it is called."""

import logging
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError

from attar import __version__
from attar.cli.config_file import expand_config_file
from attar.errors import AttarError

app = App(
    name="attar",
    version=__version__,
    help="Distil a large vision-language model into a small image model that keeps working "
    "out of distribution.",
    help_format="markdown",
    help_epilogue="Try it: `attar demo`. Every command's `--help` has an example.",
)
store = App(name="store", help="Look after a folder of teacher embeddings.")
bench = App(name="bench", help="Run a grid of runs and make one table of it.")

app.command("attar.cli.demo:demo")
app.command("attar.cli.distill:distill")
app.command("attar.cli.embed:embed")
app.command("attar.cli.evaluate:evaluate")
app.command("attar.cli.export:export")
app.command("attar.cli.predict:predict")
app.command("attar.cli.predict:latency")
app.command("attar.cli.report:report")
app.command(store)
store.command("attar.cli.store:info")
store.command("attar.cli.store:verify")
store.command("attar.cli.store:import_", name="import")
app.command(bench)
bench.command("attar.cli.bench:domains")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exit status: 0 success, 2 wrong use, 1 failure; one line on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("attar").setLevel(logging.INFO)
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        status = app(expand_config_file(tokens), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _say(_one_line(error))
        sys.exit(2)
    except AttarError as error:
        _say(str(error))
        logging.getLogger("attar").debug("traceback", exc_info=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        sys.exit(130)
    except Exception as error:
        _say(f"{type(error).__name__}: {error} (traceback: {_write_traceback()})")
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _say(message: str) -> None:
    print(f"attar: {message}", file=sys.stderr)


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
