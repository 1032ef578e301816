"""One cell in a process of its own: `python -m attar.bench.worker`, told what to run on stdin.

The first line of stdin is the cell as JSON. The pipe then stays open as long as whoever runs the
grid lives; its end is the end of this process too, however the other one died.
"""

import json
import logging
import os
import sys
import threading
from pathlib import Path

from attar import pipeline
from attar.errors import AttarError
from attar.run import from_options
from attar.store import writer

_STDIN = 0
_PATIENCE = 7 * 24 * 3600.0


def main() -> None:
    """Run the cell. Exit status as `attar distill`; what went wrong is the log's last line."""
    request = json.loads(_first_line())
    threading.Thread(target=_end_with_the_grid, daemon=True).start()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("attar").setLevel(logging.INFO)
    # Cells share a store: the first asks the teacher, the others wait for it and find the answers.
    writer.LOCK_WAIT_SECONDS = _PATIENCE
    try:
        config, run = from_options(request["options"]), Path(request["run"])
        pipeline.distill(config, run, command=request["command"], estimated=False)
    except AttarError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(error.exit_status)


def _first_line() -> bytes:
    """Read a line without a buffer, whose lock processes forked from this one would inherit."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            sys.exit(1)  # the grid ended before it said what to run
        line += byte
    return bytes(line)


def _end_with_the_grid() -> None:
    while os.read(_STDIN, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
