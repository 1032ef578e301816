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

from attar.data.splits import filter_parity
from attar.run import DataConfig
from attar.stages.images import read_image_table


def link_odd(data: Path, out: Path) -> int:
    """Link every image of odd parity below `data` into the same place below `out`; count them.

    Links that are there stay.
    """
    table = filter_parity(read_image_table(DataConfig(data=(data,)), None, out / ".notes"), "odd")
    for path, name in zip(table.paths, table.names, strict=True):
        link = out / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(Path(path).resolve())
    return len(table)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder domain/class/image")
    parser.add_argument("out", type=Path, help="folder of links")
    asked = parser.parse_args(words)
    sys.stdout.write(f"{asked.out}: {link_odd(asked.data, asked.out)} images\n")


if __name__ == "__main__":
    main()
