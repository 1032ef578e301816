import re

import numpy as np
import pytest

from attar.errors import AttarError
from attar.records import Record, append_records
from attar.report.gate import gate_lines, write_gate_page


def bounds(name, value, low, high):
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def records_of(domain, verdict, classes, **said):
    common = {"dataset": "set", "pretrained": "", "split": "gate", "domain": domain, "model": "t"}
    teacher = {
        "verdict": verdict,
        "reason": f"why {domain}",
        "margin": 0.05,
        "confidence": 0.95,
        **said,
    }
    yield Record(
        **common, task="teacher_gate", role="teacher", num_images=1200,
        metrics=bounds("acc1", 0.5, 0.4, 0.6), extra=teacher,
    )  # fmt: skip
    for labels_of, decides, gap in (("others", True, 0.1), ("own", False, -0.1)):
        yield Record(
            **common, task="teacher_gate", role="probe", num_images=1200,
            metrics={"acc1": 0.45 - gap, "zero_shot": 0.45, "deviation": 0.02,
                     **bounds("difference", gap, gap - 0.05, gap + 0.05)},
            extra={"features": "teacher", "labels_of": labels_of, "labels_per_class": 5,
                   "decides": decides},
        )  # fmt: skip
    for number, recall in enumerate(np.linspace(0, 1, classes)):
        taken = "<other>" if number == classes - 1 else ""
        yield Record(
            **common, task="teacher_gate_class", role="teacher", num_images=20,
            metrics=bounds("recall", float(recall), max(0, recall - 0.1), min(1, recall + 0.1)),
            extra={"class": f"class <{number}>", "taken_for": taken},
        )  # fmt: skip


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.jsonl"
    append_records(path, records_of("photo", "go", 3))
    append_records(path, records_of("ink", "blend", 40))
    append_records(path, records_of("all", "blend", 3, summary="Blend: go on photo; blend on ink."))
    return path


def test_the_page_says_what_the_records_say(results, tmp_path):
    page = write_gate_page(results, tmp_path / "gate.html").read_text()
    assert "Blend: go on photo; blend on ink." in page
    assert page.count('<td class="number">45.0</td>') == 3 * 2  # beside each probe
    for words in ("why photo", "why ink", "1,200", "50.0 (40.0 … 60.0)", "+10.0 (+5.0 … +15.0)"):
        assert words in page
    assert page.count("<svg ") >= 2 + 3
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="http', page)


def test_names_are_text_and_not_markup(results, tmp_path):
    page = write_gate_page(results, tmp_path / "gate.html").read_text()
    assert "class &lt;0&gt;" in page
    assert "<other>" not in page


def test_ids_of_the_figures_are_all_different(results, tmp_path):
    page = write_gate_page(results, tmp_path / "gate.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids
    assert len(ids) == len(set(ids))


def test_of_many_classes_the_lost_and_the_weakest_are_shown(results, tmp_path):
    page = write_gate_page(results, tmp_path / "gate.html").read_text()
    table = page[page.index('aria-label="Classes of ink"') :]
    table = table[: table.index("</table>")]
    shown = re.findall(r"class &lt;(\d+)&gt;", table)
    assert shown == ["39", *map(str, range(29))]
    assert "and 10 stronger classes" in page


def test_lines_for_a_terminal(results):
    from attar.records import read_records

    heading, photo, _, whole = gate_lines(read_records(results))
    assert heading == ("domain", "images", "zero-shot", "probe", "difference", "verdict")
    assert photo == (
        "photo", "1,200", "50.0 (40.0 … 60.0)", "35.0", "+10.0 (+5.0 … +15.0)", "go"
    )  # fmt: skip
    assert whole[0] == "all"


def test_a_file_without_a_verdict_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("")
    with pytest.raises(AttarError, match=r"results\.jsonl holds no verdict"):
        write_gate_page(path, tmp_path / "gate.html")
