"""What goes wrong, in one readable line: the value, the reason and the way out."""

import difflib
from collections.abc import Iterable


class AttarError(Exception):
    """A run failed; the message is one line for a person (exit status 1)."""

    exit_status = 1


class UsageError(AttarError):
    """The request itself is wrong; raised before anything is computed or spent (exit status 2)."""

    exit_status = 2


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that no registry holds, with the nearest and all known names."""
    names = sorted(known)
    spelled = {known_name.lower(): known_name for known_name in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)
    near = [spelled[match] for match in close]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    if len(names) > 40 and near:
        shown = f"{len(names)} names"
    else:
        shown = ", ".join(names[:40]) + (f", … ({len(names)} names)" if len(names) > 40 else "")
    return UsageError(f"unknown {kind} {name!r}: {hint}known: {shown}")
