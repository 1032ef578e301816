"""What a user may choose about serving a teacher; free of torch so that the CLI starts fast."""

from dataclasses import dataclass
from pathlib import Path

from attar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where a teacher is served, to whom, and how much of it."""

    keys: Path
    """File of keys, one a line: NAME KEY, or NAME KEY QUOTA with the most queries it may ask."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in (put TLS in front of it)."""
    port: int = 7997
    """Port to listen at; 0 takes a free one."""
    name: str | None = None
    """The model's name for clients; the teacher's own by default."""
    usage: Path | None = None
    """SQLite file that counts queries; without it counts and quotas start anew with the server."""
    max_body_mb: float = 32.0
    """Largest request in megabytes."""
    max_pixels: int = 50_000_000
    """Largest image, width times height, looked up before it is decoded."""
    max_items: int = 256
    """Most images or texts in one request."""
    max_text: int = 8192
    """Longest text in characters."""
    batch_size: int = 64
    """Images or texts, of any requests, in one call of the teacher."""
    body_seconds: float = 30.0
    """Seconds that a client may take to send its request."""

    def __post_init__(self) -> None:
        for name in ("max_body_mb", "max_pixels", "max_items", "max_text", "batch_size"):
            if not getattr(self, name) > 0:
                raise UsageError(f"serve {name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.port < 65536:
            raise UsageError(f"serve port is {self.port}; give one from 0 to 65535")
