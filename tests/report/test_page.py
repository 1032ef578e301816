import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from run_folders import record, three, write_full_run, write_metrics, write_predictions

from attar.errors import UsageError
from attar.records import append_records
from attar.report.config import ReportConfig
from attar.report.page import write_report

VOID = {"meta", "img", "path", "br", "circle", "polygon", "use", "rect", "link", "input"}


class Page(HTMLParser):
    """What a reader of the page meets: links, ids, text; complains about unclosed tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href", "action")]
        self.ids += [values["id"] or ""] if "id" in values else []
        assert tag != "img" or values.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3", "h4"):
            self.headings.append(data.strip())


def report(*runs: Path, **options: object) -> tuple[str, Page]:
    out = runs[0].parent / "page.html"
    assert write_report(runs, out, ReportConfig(**options)) == out
    html = out.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_run(tmp_path_factory.mktemp("report") / "my run")


@pytest.fixture(scope="module")
def shown(full: Path) -> tuple[str, Page]:
    return report(full)


def test_a_full_run_shows_everything_in_order(shown: tuple[str, Page]) -> None:
    _, page = shown
    assert page.open == []
    text = page.text.replace("\u00a0", " ")
    expected = [
        "my run",
        "Teacher, student and baseline",
        "Training",
        "What the student confuses",
        "How far its confidence can be trusted",
        "Sample predictions",
        "Size and latency",
        "What was run",
        "Make it again",
    ]
    assert [heading for heading in page.headings if heading in expected] == expected
    assert "15.7 points below the teacher pocket" in text
    for number in ("82.0", "66.3", "60.0", "64.3", "4.1", "70.1", "0.812"):
        assert number in text
    assert "80 steps in 2.0 minutes, 72 images/s (median), 4 % of the time" in text
    assert "2.5 MB" in text
    assert "11.8 ms" in text
    assert "held_out_domain: sketch" in text
    assert "packages.timm" in text
    assert "12 files were" in text
    assert "photo/broken_9.jpg" in text
    assert "photo/broken_10.jpg" not in text
    assert "and 2 more" in text
    assert "attar distill --data pacs --out 'my run' --method <x>" in text


def test_the_page_stands_alone(shown: tuple[str, Page]) -> None:
    html, page = shown
    assert page.links
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert "<script" not in html
    assert "@import" not in html
    assert "http" not in html
    assert not re.search(r"url\((?!#)", html)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)


def test_figures_follow_the_theme_and_say_what_they_show(shown: tuple[str, Page]) -> None:
    html, _ = shown
    figures = re.findall(r'<svg [^>]*role="img".*?</svg>', html, re.DOTALL)
    assert len(figures) == 1 + 5 + 1 + 3  # domains, curves, confusion, reliability
    for figure in figures:
        assert re.search(r'aria-label="[^"]{20,}"', figure)
        assert not re.search(r"#[0-9a-f]{6}\b", figure)
    assert "--student-0:#d55e00" in html
    assert "prefers-color-scheme: dark" in html


def test_class_names_are_text_not_markup(shown: tuple[str, Page]) -> None:
    html, page = shown
    assert "<b>" not in html
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    assert "<b>cat</b>" in page.text
    assert "house & home" in page.text


def test_thumbnails_are_small_jpegs_where_the_file_is_still_there(full: Path) -> None:
    _, page = report(full, thumbnail_size=48, samples=30)
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures) == 15  # every second image file exists
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    assert image.format == "JPEG"
    assert max(image.size) == 48
    assert "sketch/img_1.png" in page.text


def test_thumbnails_can_be_left_out(full: Path) -> None:
    html, page = report(full, thumbnails=False)
    assert "data:image" not in html
    assert "Sample predictions" in page.headings
    assert "sketch/img_" in page.text


def test_no_samples_on_request(full: Path) -> None:
    assert "Sample predictions" not in report(full, samples=0)[1].headings


def test_many_classes_show_pairs_instead_of_a_matrix(full: Path) -> None:
    _, page = report(full, confusion_classes=2)
    assert "Confusion matrix" not in page.headings
    assert "Most confused pairs" in page.headings


def test_the_same_files_give_the_same_page(full: Path, shown: tuple[str, Page]) -> None:
    assert report(full)[0] == shown[0]


def test_an_almost_empty_run_says_so(tmp_path: Path) -> None:
    run = tmp_path / "started"
    run.mkdir()
    (run / "config.yaml").write_text("method: erm\n")
    _, page = report(run)
    assert "There are no results yet" in page.text
    assert page.headings == ["started", "What was run"]


def test_results_alone_are_enough(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    _, page = report(tmp_path / "run")
    assert "70.0" in page.text
    assert "Training" not in page.headings
    assert "Sample predictions" not in page.headings


def test_a_run_without_done_is_called_unfinished(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    write_metrics(tmp_path / "run")
    assert "has not finished" in report(tmp_path / "run")[1].text
    (tmp_path / "run" / "done").write_text("")
    assert "has not finished" not in report(tmp_path / "run")[1].text


def test_broken_files_are_left_out_and_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    append_records(run / "results.jsonl", three(0.8, 0.7, 0.6))
    (run / "environment.json").write_text('{"python": ')
    (run / "config.yaml").write_text("a: [1\nb: {")
    (run / "set_aside.json").write_text('["no mapping"]')
    (run / "predictions").mkdir()
    (run / "predictions" / "student-held_out.parquet").write_bytes(b"not parquet")
    (run / "bundle").mkdir()
    _, page = report(run)
    assert "70.0" in page.text
    for name in ("environment.json", "config.yaml", "set_aside.json"):
        assert f"{name} could not be read and is left out" in page.text
    assert "predictions/student-held_out.parquet could not be read" in page.text
    assert "a: [1" in page.text  # the text is still shown as it is


def test_predictions_without_a_column_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    (tmp_path / "run" / "predictions").mkdir()
    table = pa.table({"name": ["a"], "path": ["a"]})
    pq.write_table(table, tmp_path / "run" / "predictions" / "student-test_id.parquet")
    assert "no column domain, label, prediction" in report(tmp_path / "run")[1].text


def test_unlabelled_predictions_are_compared_with_the_teacher(tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = {"agreement": 0.5, "mean_cosine": 0.6}
    append_records(run / "results.jsonl", [record("student", None, metrics=metrics)])
    write_predictions(run, "student", ["dog", "cat"] * 5, [None] * 10)
    write_predictions(run, "teacher", ["dog", "dog"] * 5, [None] * 10)
    _, page = report(run, samples=2)
    assert "Like the teacher" in page.headings
    assert "Unlike the teacher" in page.headings
    assert "What the student confuses" not in page.headings
    assert "How far its confidence can be trusted" not in page.headings
    assert "✗" not in page.text


def test_several_runs_have_a_row_each_and_an_average(tmp_path: Path) -> None:
    for name, accuracies, domain in (
        ("a", (0.8, 0.6, 0.5), "sketch"),
        ("b", (0.9, 0.8, 0.7), "photo"),
    ):
        append_records(tmp_path / name / "results.jsonl", three(*accuracies, domain=domain))
    html, page = report(tmp_path / "a", tmp_path / "b")
    assert page.open == []
    assert "2 runs" in page.headings
    assert "Held-out domain, averaged by method" in page.headings
    assert "Held-out domain, run by run" in page.headings
    assert html.count('<tr class="student">') == 3
    assert "lite0 · a" in page.text
    assert len(page.ids) == len(set(page.ids))


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("x/seed0", "y/seed0"):
        append_records(tmp_path / name / "results.jsonl", three(0.8, 0.7, 0.6))
    out = write_report([tmp_path / "x/seed0", tmp_path / "y/seed0"], tmp_path / "p.html")
    text = out.read_text()
    assert "x/seed0" in text
    assert "y/seed0" in text


def test_an_existing_folder_gets_report_html(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    assert write_report([tmp_path / "run"], tmp_path) == tmp_path / "report.html"
    assert "70.0" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "is a file, not a run folder"),
        (lambda path: path.mkdir(), "has neither config.yaml nor results.jsonl"),
    ],
)
def test_what_is_no_run_is_refused_with_the_way_out(tmp_path, make, message) -> None:
    make(tmp_path / "thing")
    with pytest.raises(UsageError, match=message) as refusal:
        write_report([tmp_path / "thing"], tmp_path / "page.html")
    assert "attar distill --data" in str(refusal.value)
    assert not (tmp_path / "page.html").exists()


def test_no_run_and_no_page_name_are_refused(full: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name at least one run"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(UsageError, match=r"should end in \.html"):
        write_report([full], tmp_path / "page.txt")


def test_a_report_loads_no_torch(full: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from attar.report.page import write_report;"
        "write_report([Path(sys.argv[1])], Path(sys.argv[2]));"
        "assert not {'torch', 'timm', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(full), str(tmp_path / "page.html")]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_later_evaluations_of_a_run_are_shown_apart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    append_records(run / "results.jsonl", three(0.8, 0.7, 0.6))
    later = three(0.5, 0.4, 0.3, dataset="photos", split="test_ood", domain="all")
    append_records(run / "evaluations" / "photos" / "results.jsonl", later)
    _, page = report(run)
    assert "Held-out domain of pacs" in page.headings
    assert "Out-of-distribution test images of photos" in page.headings
    assert "40.0" in page.text
