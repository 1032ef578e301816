"""What may differ between two calls for one run, and what may not."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from attar.bench.cells import load_cell, save_cell, what_was_run
from attar.errors import UsageError
from attar.run import DataConfig, RunConfig, differences, plain_options
from attar.same_run import MAY_CHANGE
from attar.training.config import TrainingConfig

CONFIG = RunConfig(
    data=DataConfig(data=(Path("pictures"),)),
    teacher="pocket",
    student="s",
    training=TrainingConfig(steps=4, lr=1e-3),
)


def changed(option: str, value: Any) -> RunConfig:
    section, name = option.split(".")
    return replace(CONFIG, **{section: replace(getattr(CONFIG, section), **{name: value})})


def other_value(option: str) -> int:
    section, name = option.split(".")
    assert name in {field.name for field in fields(getattr(CONFIG, section))}, "no such option"
    return 5 if getattr(getattr(CONFIG, section), name) != 5 else 6


@pytest.mark.parametrize("option", sorted(MAY_CHANGE))
def test_the_pace_is_no_part_of_a_run_or_a_cell(option: str, tmp_path: Path) -> None:
    other = changed(option, other_value(option))
    assert plain_options(other) != plain_options(CONFIG)
    assert differences(plain_options(CONFIG), plain_options(other)) == []
    assert what_was_run(other) == what_was_run(CONFIG)
    # A cell that was made when this option was still written down.
    section, name = option.split(".")
    said = what_was_run(CONFIG)
    said[section] = {**said[section], name: 77}
    save_cell(tmp_path / "cell.json", said, [], {})
    assert load_cell(tmp_path / "cell.json", what_was_run(other)) == []


@pytest.mark.parametrize(
    "option",
    ["training.batch_size", "training.steps", "training.validate_every", "training.seed",
     "embed.views", "embed.view_size", "embed.seed"],
)  # fmt: skip
def test_what_decides_a_result_is(option: str, tmp_path: Path) -> None:
    other = changed(option, 9)
    (line,) = differences(plain_options(CONFIG), plain_options(other))
    assert line.startswith(f"{option} ")
    assert line.endswith(" there, 9 asked")
    save_cell(tmp_path / "cell.json", what_was_run(CONFIG), [], {})
    with pytest.raises(UsageError, match=f"another configuration .{option} "):
        load_cell(tmp_path / "cell.json", what_was_run(other))


def test_a_place_may_be_written_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)

    def options(*data: Path, store: Path | None = None) -> dict[str, Any]:
        return plain_options(replace(CONFIG, data=DataConfig(data=data), store=store))

    here = options(Path("pictures"), store=Path("store"))
    for data in (tmp_path / "pictures", Path("link"), Path("pictures/../pictures")):
        assert differences(here, options(data, store=tmp_path / "store")) == []
    assert differences(here, options(Path("others"), store=Path("store"))) == [
        "data ['pictures'] there, ['others'] asked"
    ]
    assert differences(here, options(Path("pictures"))) == ["store store there, None asked"]
    two = options(Path("pictures"), Path("others"), store=Path("store"))
    assert len(differences(here, two)) == 1
