"""The folder of links is the half that `--subset odd` leaves."""

import subprocess
import sys
from pathlib import Path

from tests.bench.small_grid import write_pictures

from attar.data.splits import filter_parity
from attar.run import DataConfig
from attar.stages.images import read_image_table

SCRIPT = Path(__file__).parents[2] / "scripts" / "odd_half.py"


def test_the_links_are_the_images_of_odd_parity(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    out = tmp_path / "odd"
    for _ in range(2):  # given again it finds its links and changes nothing
        said = subprocess.run(
            [sys.executable, SCRIPT, data, out], check=True, capture_output=True, text=True
        )
    whole = read_image_table(DataConfig(data=(data,)), None, tmp_path / "a")
    odd = filter_parity(whole, "odd")
    linked = read_image_table(DataConfig(data=(out,)), None, tmp_path / "b")
    assert 0 < len(odd) < len(whole)
    assert linked.names == odd.names
    assert linked.keys == odd.keys
    assert str(len(odd)) in said.stdout
