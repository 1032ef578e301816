"""The suite `linear-probe` from folders to records, with real models."""

import io
import tarfile
from pathlib import Path

import pytest
from tiny_runs import CLASSES, QUICK, write_pictures

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.records import Record
from attar.report.tables import NOTHING, three_way_table
from attar.run import DataConfig
from attar.stages.comparing import Comparison
from attar.suites.config import SuiteConfig
from attar.suites.linear_probe import linear_probe
from attar.suites.request import SuiteRequest

QUICK_PROBE = LinearProbeConfig(shots=(2,), seeds=(0, 1), search_epochs=1, epochs=1)


def probes(
    path: Path, data: tuple[Path, ...], out: Path, config: LinearProbeConfig = QUICK_PROBE, **asked
) -> list[Record]:
    comparison = Comparison(run=path, data=DataConfig(data=data), out=out, config=QUICK, **asked)
    request = SuiteRequest(
        comparison=comparison, options=SuiteConfig(suite="linear-probe"), probe=config
    )
    return [record for records in linear_probe(request) for record in records]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pets"
    write_pictures(folder / "train", CLASSES, 5, seed=7000)
    write_pictures(folder / "test", CLASSES, 3, seed=8000)
    return folder


def by_role(records: list[Record], task: str) -> dict[str, Record]:
    return {r.role: r for r in records if r.task == task and r.domain == "all"}


def test_teacher_student_and_others_are_probed_side_by_side(
    root: Path, run: Path, bundle: Path, pets: Path, tmp_path: Path
) -> None:
    other = f"local-dir:{root / 'other-teacher'}"
    records = probes(run, (pets,), tmp_path, others=(other, str(bundle)))
    everyone = {"teacher", "student", other, "bundle"}
    for task, learnt in (("linear_probe_2_shot", 6), ("linear_probe", 15)):
        found = by_role(records, task)
        assert set(found) == everyone
        for record in found.values():
            assert record.extra["num_train"] == learnt
            assert record.num_images == 9
            assert record.dataset == "pets"
            assert 0 <= record.metrics["acc1"] <= 1
    assert set(by_role(records, "zeroshot_classification")) == everyone
    assert set(by_role(records, "cost")) == everyone
    assert "acc1_std" in by_role(records, "linear_probe_2_shot")["student"].metrics


def test_train_and_test_may_be_given_apart(run: Path, pets: Path, tmp_path: Path) -> None:
    one = LinearProbeConfig(shots=(), seeds=(0,))
    together = by_role(probes(run, (pets,), tmp_path / "a", one), "linear_probe")
    apart = probes(run, (pets / "train", pets / "test"), tmp_path / "b", one)
    assert not by_role(apart, "cost")
    for role, record in by_role(apart, "linear_probe").items():
        assert record.metrics == together[role].metrics
        assert record.extra == together[role].extra
        assert record.dataset == "pets"


def test_tars_in_folders_train_and_test_are_read_as_they_lie(
    run: Path, pets: Path, tmp_path: Path
) -> None:
    """CLIP_benchmark's layout: numbers in .cls files, names in classnames.txt."""
    folder = tmp_path / "pets"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        with tarfile.open(folder / split / "0.tar", "w") as tar:
            for number, file in enumerate(sorted((pets / split).rglob("*.png"))):
                tar.add(file, f"{number:06d}.png")
                label = str(CLASSES.index(file.parent.name)).encode()
                header = tarfile.TarInfo(f"{number:06d}.cls")
                header.size = len(label)
                tar.addfile(header, io.BytesIO(label))
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    one = LinearProbeConfig(shots=(), seeds=(0,))
    tars = (folder / "train" / "{0..0}.tar", folder / "test" / "0.tar")
    packed = by_role(probes(run, tars, tmp_path / "a", one), "linear_probe")
    plain = by_role(probes(run, (pets,), tmp_path / "b", one), "linear_probe")
    for role, record in packed.items():
        assert record.dataset == "pets"
        assert record.metrics == plain[role].metrics


def test_images_of_the_run_are_learnt_from_and_not_tested(
    root: Path, run: Path, tmp_path: Path
) -> None:
    images = ImageTable.load(run / "images.parquet")
    known = {k for k, s in zip(images.keys, images.splits, strict=True) if s in ("train", "val")}
    config = LinearProbeConfig(shots=(), test_fraction=0.5)
    found = by_role(probes(run, (root / "seen",), tmp_path, config), "linear_probe")
    assert found["student"].extra["num_train"] >= len(known)
    assert found["student"].num_images <= len(images) - len(known)


def test_a_plain_classifier_is_read_before_its_classes(
    plain_run: Path, pets: Path, tmp_path: Path
) -> None:
    config = LinearProbeConfig(shots=(), seeds=(0,))
    found = by_role(probes(plain_run, (pets,), tmp_path, config), "linear_probe")
    assert found["student"].extra["features"] == "trunk"


def test_images_with_several_labels_are_probed_by_average_precision(
    run: Path, pets: Path, tmp_path: Path
) -> None:
    lines = ["path,labels,split"]
    for split in ("train", "test"):
        for row, path in enumerate(sorted((pets / split).rglob("*.png"))):
            lines.append(
                f"{path},{'|'.join(dict.fromkeys((path.parent.name, CLASSES[row % 3])))},{split}"
            )
    manifest = tmp_path / "several.csv"
    manifest.write_text("\n".join(lines) + "\n")
    records = probes(run, (manifest,), tmp_path / "out")
    for task in ("linear_probe_2_shot", "linear_probe", "zeroshot_classification"):
        found = by_role(records, task)
        assert set(found) == {"teacher", "student"}
        for record in found.values():
            assert record.num_images == 9
            assert set(record.metrics) <= {"map_11_points", "map_11_points_std"}
            assert 0 < record.metrics["map_11_points"] <= 1
    shown = [line[2:] for line in three_way_table(records)[1:]]
    assert shown
    assert all(any(cell != NOTHING for cell in cells) for cells in shown)
    assert by_role(records, "linear_probe")["student"].extra["num_train"] == 15
    assert len(by_role(records, "linear_probe")["student"].extra["val_map_11_points"]) == 1


def test_no_images_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --data"):
        probes(run, (), tmp_path)
