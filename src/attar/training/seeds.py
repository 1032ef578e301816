"""Random numbers as pure functions of where a run stands, so that a resume needs only the step."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2⁶³) that depends on every part and on nothing else."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
