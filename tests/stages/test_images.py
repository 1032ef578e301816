"""What one folder knows of the image files is not read again for the next."""

import os
from pathlib import Path

from tests.stages.tiny_runs import write_pictures

from attar.run import DataConfig
from attar.stages.images import read_image_table


def test_a_run_begins_with_what_its_store_knows_of_the_files(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", ("cat", "dog"), 2, seed=0)
    config = DataConfig(data=(pictures,))
    asked = read_image_table(config, None, tmp_path / "store")
    for path in pictures.rglob("*.png"):  # nobody could tell from outside: only reading would
        stamp = path.stat()
        path.write_bytes(bytes(stamp.st_size))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = read_image_table(config, None, tmp_path / "run", store=tmp_path / "store")
    assert again.keys == asked.keys
    (pictures / "cat" / "0.png").touch()
    fewer = read_image_table(config, None, tmp_path / "run", store=tmp_path / "store")
    assert len(fewer) == 3
