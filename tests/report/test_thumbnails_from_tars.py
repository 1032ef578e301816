"""The page shows pictures that stand in tars."""

import io
from pathlib import Path

from PIL import Image
from tests.data.tars import sample, write_tar

from attar.data.sources import read_sources
from attar.report.samples import thumbnail


def test_a_picture_in_a_tar_has_a_thumbnail(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [*sample("0", 0), *sample("1", 1)])
    address = read_sources([tar]).paths[1]
    with Image.open(io.BytesIO(thumbnail(address, 10) or b"")) as picture:
        assert picture.size == (10, 8)
    tar.unlink()
    assert thumbnail(address, 10) is None
