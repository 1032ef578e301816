"""scripts/odd_half.py: the folder of links is the half that `--subset odd` leaves, and no more."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from tests.bench.small_grid import write_pictures

from attar.data.share import filter_parity
from attar.run import DataConfig
from attar.stages.images import read_image_table

SCRIPT = Path(__file__).parents[2] / "scripts" / "odd_half.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("odd_half", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_links_are_the_images_of_odd_parity(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_pictures(tmp_path / "data"), tmp_path / "odd"
    for _ in range(2):  # given again it finds its links and changes nothing
        script.main([str(data), str(out)])
    whole = read_image_table(DataConfig(data=(data,)), None, tmp_path / "a")
    odd = filter_parity(whole, "odd")
    linked = read_image_table(DataConfig(data=(out,)), None, tmp_path / "b")
    assert 0 < len(odd) < len(whole)
    assert linked.names == odd.names
    assert linked.keys == odd.keys
    assert all((out / name).is_symlink() for name in linked.names)
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: {len(odd)} images"


def test_links_follow_data_that_were_moved(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "odd"
    count = script.link_odd(write_pictures(tmp_path / "data"), out)
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    copied = next(out.rglob("*.png"))
    copied.unlink()
    shutil.copy(moved / copied.relative_to(out), copied)
    assert script.link_odd(moved, out) == count
    links = [path for path in out.rglob("*.png") if path.is_symlink()]
    assert len(links) == count - 1  # a copy stays
    assert all(path.resolve() == moved / path.relative_to(out) for path in links)


def test_other_images_are_not_joined(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_pictures(tmp_path / "data"), tmp_path / "odd"
    script.link_odd(data, out)
    before = sorted(out.rglob("*.png"))
    renamed = (data / "art").rename(data / "drawn")
    with pytest.raises(SystemExit) as caught:
        script.main([str(data), str(out)])
    assert caught.value.code == 2
    stale = next(path for path in before if path.relative_to(out).parts[0] == "art")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"{stale} is no odd image of {data}: delete {out}, or give another folder")
    assert sorted(out.rglob("*.png")) == before
    assert renamed.is_dir()
