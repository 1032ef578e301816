"""A folder of links to the images that the pocket teacher never saw.

    python scripts/odd_half.py PACS runs/pacs-odd

The pocket teacher's head has learnt from the images of even parity (the last bit of the sha256 of
"domain/class/file"). `--subset odd` leaves them out of a run; this makes a folder of the others,
for a grid that is to be carried to another machine: `cp -rL` takes the images along.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attar.data.share import filter_parity
from attar.errors import UsageError
from attar.run import DataConfig
from attar.stages.images import read_image_table

NOTES = ".notes"
"""Below the folder of links: what was found about the files of the data."""


def link_odd(data: Path, out: Path) -> int:
    """Link every image of odd parity below `data` into the same place below `out`; count them.

    Images that were copied there in place of links stay.

    Raises:
        UsageError: `out` holds something else.
    """
    table = read_image_table(DataConfig(data=(data,)), None, out / NOTES)
    odd = filter_parity(table, "odd")
    links = {
        out / name: Path(path).resolve() for path, name in zip(odd.paths, odd.names, strict=True)
    }
    for path in files_of(out):
        if path not in links:
            raise UsageError(
                f"{path} is no odd image of {data}: delete {out}, or give another folder"
            )
    for link, image in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.readlink() != image:  # moved since, or of a copy of the data
            link.unlink()
        if not link.exists():
            link.symlink_to(image)
    return len(links)


def files_of(out: Path) -> list[Path]:
    """Return the files and links below a folder, but for the notes."""
    files = [path for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir()]
    return [path for path in files if path.relative_to(out).parts[0] != NOTES]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder domain/class/image")
    parser.add_argument("out", type=Path, help="folder of links")
    asked = parser.parse_args(words)
    try:
        count = link_odd(asked.data, asked.out)
    except UsageError as error:
        parser.error(str(error))
    sys.stdout.write(f"{asked.out}: {count} images\n")


if __name__ == "__main__":
    main()
