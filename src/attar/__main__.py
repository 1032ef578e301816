"""The command line: the `attar` script, and `python -m attar` where that is not on the path."""

import sys


def main() -> None:
    """Run a command; Ctrl-C while its code is still being imported ends it without a traceback."""
    try:
        from attar.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
