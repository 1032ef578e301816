"""What the commands print."""

import shlex
import sys


def command_line() -> str:
    """Return the command that was given, quoted so that a shell reads it back."""
    return "attar " + " ".join(shlex.quote(word) for word in sys.argv[1:])
