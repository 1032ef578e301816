"""Real tars of samples, as webdataset writes them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.doubles import random_image

Files = Iterable[tuple[str, bytes]]


def picture(seed: int, extension: str = "png", size: tuple[int, int] = (20, 16)) -> bytes:
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension]
    random_image(seed, size).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, files: Files) -> Path:
    """Write (name, bytes) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(
    key: str, seed: int, cls: object = None, text: str | None = None, extension: str = "png", **said
) -> list[tuple[str, bytes]]:
    """Return the files of one sample; `said` goes into its JSON."""
    files = [(f"{key}.{extension}", picture(seed, extension))]
    files += [] if cls is None else [(f"{key}.cls", str(cls).encode())]
    files += [] if text is None else [(f"{key}.txt", text.encode())]
    files += [(f"{key}.json", json.dumps(said).encode())] if said else []
    return files


def write_tars(folder: Path, tars: int = 3, each: int = 4, first_seed: int = 0) -> list[Path]:
    """Write data-000.tar ... of `each` samples, classes 0 and 1 in turn, a caption each."""
    return [
        write_tar(
            folder / f"data-{tar:03}.tar",
            [
                file
                for i in range(each)
                for file in sample(
                    f"{tar:03}{i:03}", first_seed + tar * each + i, i % 2, f"text {tar} {i}"
                )
            ],
        )
        for tar in range(tars)
    ]
