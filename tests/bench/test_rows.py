"""Variants: rows that a file describes, and what such a file may not say."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.bench.small_grid import base_config, write_teachers

from attar.bench.cells import Cell, what_was_run
from attar.bench.config import DomainsConfig
from attar.bench.rows import in_grid, make_rows
from attar.errors import UsageError
from attar.run import differences
from attar.students.config import StudentConfig

TEACHER = "pocket"


def rows_of(tmp_path: Path, text: str, **options: object) -> dict:
    (tmp_path / "variants.yaml").write_text(text)
    base = replace(base_config(tmp_path), teacher=TEACHER)
    (tmp_path / "pictures").mkdir(exist_ok=True)
    config = DomainsConfig(variants=tmp_path / "variants.yaml", **options)
    rows, _ = make_rows(base, config)
    return {row.name: in_grid(row, base, tmp_path / "out") for row in rows}


def test_a_variant_is_the_base_with_other_options(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        vl2v-adip+swad: {method: vl2v-adip, training.average: swad}
        tenth: {method: erm, splits.train-share: 0.1}
        image-only: {method: vl2v-adip, method.image-weight: 1.0, student: test_vit}
        fixed: {method: kd, training.lr: 3e-4}
        """,
        methods=("erm", "vl2v-adip"),
        lrs=(1e-3, 1e-2),
    )
    assert list(rows) == ["erm", "vl2v-adip", "vl2v-adip+swad", "tenth", "image-only", "fixed"]
    plain, swad = rows["vl2v-adip"].config, rows["vl2v-adip+swad"].config
    assert differences(what_was_run(plain), what_was_run(swad)) == [
        "training.average none there, swad asked"
    ]
    assert swad.store == plain.store == tmp_path / "out" / "store"
    assert rows["tenth"].config.splits.train_share == 0.1
    assert rows["tenth"].config.teacher is None
    assert rows["tenth"].config.store is None
    assert rows["image-only"].config.student == "test_vit"
    assert rows["image-only"].config.method_options == {"image_weight": 1.0}
    assert rows["fixed"].lrs == (3e-4,)
    assert rows["tenth"].lrs == (1e-3, 1e-2)
    assert rows["tenth"].variant == "method erm, splits.train-share 0.1"
    assert rows["fixed"].variant == "method kd, training.lr 3e-4"
    assert all(row.config.protocol == "domainbed" for row in rows.values())
    assert not any(row.config.references for row in rows.values())


def test_a_plain_row_is_the_run_it_was_before_there_were_variants(tmp_path: Path) -> None:
    base = replace(base_config(tmp_path), teacher=TEACHER)
    rows = rows_of(tmp_path, "{}", methods=("vl2v-adip",))
    wanted = replace(base, method="vl2v-adip", protocol="domainbed", references=False)
    assert what_was_run(rows["vl2v-adip"].config) == what_was_run(wanted)
    cell = Cell(method="vl2v-adip", held_out_domain="art", seed=0, lr=1e-3)
    assert "variant" not in cell.facts()


def test_frozen_batchnorm_is_said_as_the_run_has_it(tmp_path: Path) -> None:
    own = "student: teacher, student.weights: auto"
    rows = rows_of(
        tmp_path,
        f"""
        tuned: {{method: fine-tune, {own}}}
        live: {{method: fine-tune, {own}, student.freeze-bn: false}}
        """,
        methods=("erm",),
    )
    frozen = {name: what_was_run(row.config)["student"]["freeze_bn"] for name, row in rows.items()}
    assert frozen == {"erm": False, "tuned": True, "live": False}


def test_another_teacher_has_a_store_of_its_own(tmp_path: Path) -> None:
    other = f"local-dir:{write_teachers(tmp_path)}"
    rows = rows_of(
        tmp_path,
        f"""
        strict: {{method: vl2v-adip, teacher: "{other}"}}
        strict-kd: {{method: kd, teacher: "{other}"}}
        """,
    )
    stores = {rows[name].config.store for name in ("strict", "strict-kd")}
    assert len(stores) == 1
    assert stores != {rows["vl2v-adip"].config.store}


def test_the_teachers_own_encoder_keeps_its_teacher_whatever_the_method(tmp_path: Path) -> None:
    own = "method: erm, student: teacher, student.weights: auto"
    rows = rows_of(tmp_path, f"own: {{{own}}}", methods=("erm",))
    assert rows["erm"].config.teacher is None
    assert rows["own"].config.teacher == TEACHER
    assert rows["own"].config.store == tmp_path / "out" / "store"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "write {name: {method: vl2v-adip"),
        ("erm+swad: swad", "write {name: {method: vl2v-adip"),
        ("a: {b: ", "cannot be read as YAML"),
        ("erm: {method: erm}", "'erm' cannot name a row"),
        ("a/b: {method: erm}", "'a/b' cannot name a row"),
        ("strict-teacher: {method: erm}", "cannot name a row"),
        ("swad: {training.average: swad}", "variant 'swad' names no method"),
        ("five: {method: erm, student: 5}", "variant 'five': student 5 must be text"),
        ("swad: {method: ermm}", "unknown method 'ermm': did you mean 'erm'"),
        ("swad: {method: erm, training.avrage: swad}", "training.avrage.*--training.average"),
        (
            "swad: {method: erm, trainig.average: swad}",
            "option of variant 'swad' 'trainig.average'",
        ),
        ("swad: {method: erm, training.average: swat}", "--training.average 'swat'"),
        ("lower: {method: erm, training.lr: -1}", "variant 'lower': training.lr -1 must be"),
        ("other: {method: erm, splits.seed: 3}", "option of variant 'other' 'splits.seed'"),
        ("other: {method: erm, held_out_domain: art}", "option of variant 'other' 'held_out_dom"),
        ("other: {method: erm, training.seed: 3}", "option of variant 'other' 'training.seed'"),
        ("odd: {method: vl2v-adip, method.image_wait: 1}", "image-wait.*image-weight"),
    ],
)
def test_what_no_row_can_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        rows_of(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "option", "way_out"),
    [("simkd", "projector", "linear"), ("attar", "projection", "random")],
)
def test_what_a_method_sets_is_judged_before_the_first_cell(
    tmp_path: Path, method: str, option: str, way_out: str
) -> None:
    (tmp_path / "pictures").mkdir()
    base = replace(base_config(tmp_path), teacher=TEACHER, student="teacher")
    config = DomainsConfig(methods=(method,))
    with pytest.raises(UsageError, match=rf"; give --student\.{option} {way_out}$"):
        make_rows(replace(base, student_config=StudentConfig()), config)
    follows = StudentConfig(**{option: way_out})
    (row,), _ = make_rows(replace(base, student_config=follows), config)
    assert row.config.student_config == follows


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = DomainsConfig(variants=tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"--variants .*none\.yaml cannot be read"):
        make_rows(base_config(tmp_path), config)
