"""Who may ask, how much, and how much they asked. Keys are held as hashes and written nowhere."""

import hashlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attar.errors import UsageError

SHORTEST = 16
"""Characters of a key; a shorter one can be guessed."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Who a key belongs to."""

    name: str
    quota: int | None
    """Most queries, None for no limit."""


def read_keys(path: Path) -> Mapping[str, Client]:
    """Return {sha256 of a key: its client} from lines NAME KEY [QUOTA]; "#" begins a comment.

    UsageError names the line, never what stands on it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--keys {path} cannot be read ({type(error).__name__})") from error
    clients: dict[str, Client] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) not in (2, 3) or not (words[2:] or ["0"])[0].isdigit():
            raise UsageError(f"{where}: write NAME KEY, or NAME KEY QUOTA with a whole number")
        name, key = words[:2]
        if len(key) < SHORTEST:
            raise UsageError(f"{where}: the key, the second word, is shorter than {SHORTEST}")
        if name in names or _hash(key) in clients:
            raise UsageError(f"{where}: its name or its key was given before")
        names.add(name)
        clients[_hash(key)] = Client(name=name, quota=int(words[2]) if words[2:] else None)
    if not clients:
        raise UsageError(f"--keys {path} holds no key; write a line NAME KEY")
    return clients


def find_client(clients: Mapping[str, Client], authorization: str | None) -> Client | None:
    """Return whose key `Bearer KEY` is. Looking up a hash says nothing about a key by its time."""
    scheme, _, key = (authorization or "").partition(" ")
    return clients.get(_hash(key.strip())) if scheme.lower() == "bearer" else None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class QuotaSpent(Exception):
    """A client's quota does not allow its request."""


class Usage:
    """Counts queries by client; a request sent again under its id is counted once.

    Args:
        file: SQLite database, None to count in memory.
    """

    def __init__(self, file: Path | None) -> None:
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(file or ":memory:", check_same_thread=False)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS charges "
                "(name TEXT, id TEXT, queries INTEGER, PRIMARY KEY (name, id))"
            )
            rows = self._database.execute("SELECT name, SUM(queries) FROM charges GROUP BY name")
            self._totals = Counter(dict(rows.fetchall()))
        except sqlite3.Error as error:
            raise UsageError(f"--usage {file} cannot be used ({error})") from error

    def of(self, client: Client) -> int:
        """Return the queries of a client."""
        return self._totals[client.name]

    def charge(self, client: Client, request: str, queries: int) -> bool:
        """Count a request, and say whether it is new.

        Raises:
            QuotaSpent: it would go beyond the client's quota; nothing is counted.
        """
        with self._lock, self._database:
            known = self._database.execute(
                "SELECT 1 FROM charges WHERE name = ? AND id = ?", (client.name, request)
            ).fetchone()
            if known:
                return False
            if client.quota is not None and self._totals[client.name] + queries > client.quota:
                raise QuotaSpent(
                    f"the quota of {client.quota:,} queries allows "
                    f"{client.quota - self._totals[client.name]:,} more"
                )
            self._database.execute(
                "INSERT INTO charges VALUES (?, ?, ?)", (client.name, request, queries)
            )
            self._totals[client.name] += queries
            return True

    def refund(self, client: Client, request: str, queries: int) -> None:
        """Take back a charge whose request failed."""
        with self._lock, self._database:
            self._database.execute(
                "DELETE FROM charges WHERE name = ? AND id = ?", (client.name, request)
            )
            self._totals[client.name] -= queries

    def close(self) -> None:
        """Close the file."""
        self._database.close()
