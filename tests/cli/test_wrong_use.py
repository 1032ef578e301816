"""Wrong use gets one line that names the value and the way out, before anything is computed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from tests.cli.commands import Give, Outcome, World
from tests.cli.processes import START
from tests.cli.refusals import nothing_computed, refused, request_of

NEAREST = "did you mean '{}'"

CASES = {
    "missing path": ({"data": "{root}/nowhere"}, "{root}/nowhere", "give a folder"),
    "no images": ({"data": "{root}/empty"}, "{root}/empty", "give a folder of images"),
    "one class only": ({"data": "{root}/one-class"}, "'cat'", "at least two class"),
    "class list missing": ({"classes": "{root}/no.txt"}, "{root}/no.txt", "give a text file"),
    "class list with duplicates": ({"classes": "{root}/double.txt"}, "'dog' (as 'Dog')", "keep"),
    "class list of one": ({"classes": "{root}/single.txt"}, "'cat'", "give at least two"),
    "class list is empty": ({"classes": "{root}/blank.txt"}, "blank.txt", "write one class"),
    "classes the labels lack": (
        {"data": "{root}/domains", "classes": "{root}/classes.txt"},
        "'horse'",
        "correct the list",
    ),
    "labels the classes lack": (
        {"data": "{root}/domains", "classes": "{root}/others.txt"},
        "'dog'",
        "correct the list",
    ),
    "unknown student": (
        {"student": "mobilnetv3_small_100"},
        "'mobilnetv3_small_100'",
        NEAREST.format("mobilenetv3_small_100"),
    ),
    "unknown method": ({"method": "feature-msee"}, "'feature-msee'", NEAREST.format("feature-mse")),
    "unknown teacher": (
        {"teacher": "ViT-B-23/openai"},
        "'ViT-B-23'",
        NEAREST.format("ViT-B-32"),
    ),
    "unknown weights of a teacher": (
        {"teacher": "ViT-B-32/opnai"},
        "'opnai'",
        NEAREST.format("openai"),
    ),
    "misspelt pocket": ({"teacher": "poket"}, "'poket'", NEAREST.format("pocket")),
    "unknown strict head": (
        {"teacher": "pocket-without:skech"},
        "'skech'",
        NEAREST.format("sketch"),
    ),
    "teacher's folder missing": ({"teacher": "local-dir:{root}/no"}, "{root}/no", "give one"),
    "no teacher": ({"teacher": None}, "feature-mse", "give --teacher"),
    "unknown option": ({"trainig__steps": 3}, "--trainig.steps", "mean --training.steps"),
    "unknown option of a group": ({"training__step": 3}, "--training.step", "--training.steps"),
    "value of the wrong type": ({"training__steps": "many"}, '"many"', "distill --help"),
    "a group is no option": ({"training": 3}, "--training=3", r"--training\.steps"),
    "unknown option of a method": (
        {"data": "{root}/domains", "method": "vl2v-adip", "method__image_wieght": 1},
        "'--method.image-wieght'",
        NEAREST.format("--method.image-weight"),
    ),
    "option of another method": ({"method__image_weight": 1}, "--method.image-weight", "known"),
    "method option of the wrong type": (
        {"data": "{root}/domains", "method": "vl2v-adip", "method__image_weight": "half"},
        "'half'",
        "expected float",
    ),
    "views that nothing records": ({"method__views": "same"}, "17 training", "--embed.views 4"),
    "method option out of range": (
        {"data": "{root}/domains", "method": "vl2v-adip", "method__image_weight": 3},
        "--method.image-weight 3",
        r"0 \.\.\. 1",
    ),
    "unknown held-out domain": (
        {"data": "{root}/domains", "held_out_domain": "skech"},
        "'skech'",
        NEAREST.format("sketch"),
    ),
    "held-out domain without domains": ({"held_out_domain": "sketch"}, "'sketch'", "domain/class"),
    "held-out domain given twice": (
        {"data": "{root}/domains", "splits__held_out_domain": "sketch"},
        "--splits.held-out-domain",
        "give --held-out-domain",
    ),
    "image too small": ({"student__image_size": 5}, "--student.image-size 5", "at least 32"),
    "image of no size": ({"student__image_size": 0}, "--student.image-size 0", "at least 32"),
    "image between patches": (
        {"student": "test_vit", "student__image_size": 50},
        "--student.image-size 50",
        "a multiple of 16",
    ),
    "weights file missing": ({"student__weights": "{root}/w.pt"}, "{root}/w.pt", "auto, none"),
    "labels are needed": ({"method": "erm"}, "method erm needs labels", "class/image"),
    "labels are needed, classes are not enough": (
        {"method": "vl2v-adip", "classes": "{root}/classes.txt"},
        "method vl2v-adip needs labels",
        "use --method feature-mse",
    ),
    "steps and epochs": (
        {"training__steps": 3, "training__epochs": 2},
        "--training.steps",
        "not both",
    ),
    "batch of nothing": ({"training__batch_size": 0}, "--training.batch-size 0", "at least 1"),
    "domains are needed": ({"training__sampler": "per-domain"}, "'per-domain'", "use 'uniform'"),
    "selection without validation": (
        {"training__selection": "best", "splits__val_fraction": 0},
        "--training.selection best",
        "val-fraction",
    ),
    "shares that leave nothing": ({"splits__test_fraction": 1.5}, "1.5", "give 0 <="),
    "unknown templates": ({"templates": "fotos"}, "'fotos'", "known: .*photo"),
    "unknown task": (
        {"evaluation__tasks": "zeroshot"},
        "'zeroshot'",
        NEAREST.format("zero_shot"),
    ),
    "unknown number format": ({"embed__dtype": "int8"}, "'int8'", "choose one of float16"),
    "unknown recipe of views": (
        {"embed__views": 1, "embed__view_recipe": "flipcrop"},
        "'flipcrop'",
        NEAREST.format("flip-crop"),
    ),
    "baseline missing": ({"baseline": "{root}/no"}, "{root}/no", "no trained student"),
    "store missing": ({"teacher": None, "store": "{root}/no"}, "{root}/no", "give --teacher"),
    "export without classes": ({"export": "true"}, "--export", "give --classes"),
    "threshold out of range": (
        {"classes": "{root}/classes.txt", "export": "true", "export__threshold": 3},
        "3.0",
        "between 0 and 1",
    ),
    "vocabulary missing": (
        {"classes": "{root}/classes.txt", "export": "true", "export__vocabulary": "{root}/no"},
        "{root}/no",
        "give a text file",
    ),
    "config file missing": ({"config": "{root}/no.yaml"}, "{root}/no.yaml", "give a YAML file"),
    "config file broken": ({"config": "{root}/broken.yaml"}, "broken.yaml", "not a YAML file"),
    "config file without options": ({"config": "{root}/list.yaml"}, "list.yaml", "name: value"),
    "config file with an unknown key": (
        {"config": "{root}/typo.yaml"},
        "--training.stepps",
        "mean --training.steps",
    ),
    "config file with a value for a group": (
        {"config": "{root}/group.yaml"},
        "--training=3",
        r"--training\.steps",
    ),
}


@pytest.fixture(scope="module")
def files(world: World) -> None:
    contents = {
        "double.txt": "cat\nDog\ndog\n",
        "single.txt": "cat\n",
        "blank.txt": "\n\n",
        "others.txt": "cat\nhorse\n",
        "broken.yaml": "training: [1,\n",
        "list.yaml": "- 1\n",
        "typo.yaml": "training:\n  stepps: 3\n",
        "group.yaml": "training: 3\n",
    }
    for name, text in contents.items():
        (world.root / name).write_text(text)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_distill_is_refused(give: Give, world: World, tmp_path: Path, case: str) -> None:
    changes, names, way_out = CASES[case]

    def filled(value: object) -> object:
        return value.format(root=world.root) if isinstance(value, str) else value

    changes = {name: filled(value) for name, value in changes.items()}
    outcome = give(*request_of(world, tmp_path / "run", **changes))
    refused(outcome, names=str(filled(names)), way_out=way_out)
    nothing_computed(tmp_path)


@pytest.mark.parametrize(
    ("words", "names", "way_out"),
    [
        (["distil"], '"distil"', 'mean "distill"'),
        (["distill", "extra", "--data=d", "--out=o"], "extra", "distill --help"),
        (["distill", "--config"], "--config", "YAML"),
        (["embed", "--data={root}/flat", "--out=o"], "--teacher", "embed --help"),
        (["embed", "--data=d", "--taecher=pocket", "--out=o"], "--taecher", "mean --teacher"),
        (["embed", "--data={root}/no", "--teacher=pocket", "--out={out}"], "{root}/no", "give a"),
        (["evaluate", "{root}/no", "--data={root}/flat"], "{root}/no", "attar distill"),
        (["evaluate", "{root}/empty", "--data={root}/flat"], "{root}/empty", "attar distill"),
        (["export", "{root}/no", "--out={out}"], "{root}/no", "attar distill"),
        (["export", "{root}/empty", "--out={out}"], "{root}/empty", "attar distill"),
        (["predict", "{root}/empty", "{root}/flat"], "{root}/empty", "attar export"),
        (["predict", "{root}/no", "{root}/flat"], "{root}/no", "attar export"),
        (["latency", "{root}/empty"], "{root}/empty", "attar export"),
        (["report", "{root}/empty"], "{root}/empty", "attar distill"),
        (["report", "{root}/no"], "{root}/no", "attar distill"),
        (["report"], "RUNS", "report --help"),
        (["store", "info", "{root}/empty"], "{root}/empty", "attar embed"),
        (["store", "verify", "{root}/empty"], "{root}/empty", "attar embed"),
        (["store", "import", "{root}/empty", "--data={root}/flat", "--teacher=t", "--out={out}"],
         "{root}/empty", "clip-retrieval"),
        (["bench", "domains", "--data={root}/flat", "--out={out}", "--teacher=pocket"],
         "no labels", "two or more"),
        (["bench", "domains", "--data={root}/domains", "--out={out}", "--methods=erms"],
         "'erms'", "did you mean 'erm'"),
        (["demo", "--out={out}", "--teacher=poket"], "'poket'", "did you mean 'pocket'"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)  # fmt: skip
def test_other_commands_refuse_wrong_use(
    give: Give, world: World, tmp_path: Path, words: list[str], names: str, way_out: str
) -> None:
    def filled(text: str) -> str:
        return text.format(root=world.root, out=tmp_path / "out")

    outcome = give(*map(filled, words))
    refused(outcome, names=filled(names), way_out=way_out)
    nothing_computed(tmp_path)


@pytest.mark.parametrize("command", ["distill", "embed"])
def test_a_store_of_another_teacher_is_refused(
    give: Give, world: World, finished: Path, tmp_path: Path, command: str
) -> None:
    store = shutil.copytree(finished / "store", tmp_path / "store")
    before = (store / "store.json").read_bytes()
    if command == "distill":
        words = request_of(world, tmp_path / "run", store=store, teacher=world.other_teacher)
    else:
        words = ["embed", "--data", world.flat, "--teacher", world.other_teacher, "--out", store]
    line = refused(give(*words), names=str(store), way_out="choose another store folder")
    assert world.teacher in line
    assert world.other_teacher in line
    assert (store / "store.json").read_bytes() == before
    nothing_computed(tmp_path / "run")


def test_a_store_that_lacks_rows_is_refused_without_a_teacher(
    give: Give, world: World, finished: Path, tmp_path: Path
) -> None:
    store = finished / "store"
    words = request_of(world, tmp_path / "run", data=world.domains, store=store, teacher=None)
    refused(give(*words), names="lacks 36 of 36 images", way_out="give --teacher")
    nothing_computed(tmp_path)


def test_a_run_folder_with_another_configuration_is_refused(
    give: Give, world: World, copy_of_finished: Path
) -> None:
    before = (copy_of_finished / "config.yaml").read_bytes()
    words = request_of(world, copy_of_finished, training__steps=7)
    refused(give(*words), names="training.steps 4 there, 7 asked", way_out="choose another --out")
    assert (copy_of_finished / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("command", ["distill", "embed"])
def test_a_folder_that_holds_something_else_is_refused(
    give: Give, world: World, copy_of_finished: Path, command: str
) -> None:
    if command == "distill":
        words = request_of(world, world.flat)
        refused(give(*words), names=str(world.flat), way_out="choose another --out")
    else:
        words = ["embed", "--data", world.flat, "--teacher", world.teacher]
        outcome = give(*words, "--out", copy_of_finished)
        refused(outcome, names=str(copy_of_finished), way_out=r"is a run.*/store")
        assert not (copy_of_finished / "store.json").exists()


def test_an_unfinished_run_is_not_exported(
    give: Give, copy_of_finished: Path, tmp_path: Path
) -> None:
    (copy_of_finished / "done").unlink()
    outcome = give("export", copy_of_finished, "--out", tmp_path / "bundle")
    refused(outcome, names=str(copy_of_finished), way_out="command again")
    nothing_computed(tmp_path / "bundle")


def test_a_bundle_does_not_replace_something_else(give: Give, world: World, finished: Path) -> None:
    outcome = give("export", finished, "--out", world.flat)
    refused(outcome, names=str(world.flat), way_out="choose another --out")


@pytest.mark.parametrize("command", ["distill", "embed", "export"])
def test_a_full_disk_is_refused(
    give: Give,
    world: World,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    words = {
        "distill": request_of(world, tmp_path / "out"),
        "embed": ["embed", f"--data={world.flat}", f"--teacher={world.teacher}",
                  f"--out={tmp_path / 'out'}"],
        "export": ["export", str(finished), f"--out={tmp_path / 'out'}"],
    }[command]  # fmt: skip
    refused(give(*words), names="0 MB free", way_out="free some space or choose another place")
    nothing_computed(tmp_path)


@pytest.mark.parametrize("command", ["distill", "embed", "export"])
def test_a_folder_without_permission_is_refused(
    give: Give,
    world: World,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    # Whoever runs this may be root, whom no mode keeps out.
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    words = {
        "distill": request_of(world, tmp_path / "out"),
        "embed": ["embed", f"--data={world.flat}", f"--teacher={world.teacher}",
                  f"--out={tmp_path / 'out'}"],
        "export": ["export", str(finished), f"--out={tmp_path / 'out'}"],
    }[command]  # fmt: skip
    refused(give(*words), names=str(tmp_path), way_out="choose another place")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("teacher", ["ViT-B-32/openai", "hf-hub:org/name", "hf:org/name"])
def test_an_offline_hub_is_said_at_once(
    give: Give, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    outcome = give(*request_of(world, tmp_path / "run", teacher=teacher))
    refused(outcome, names=teacher, way_out="offline teacher 'pocket'")
    nothing_computed(tmp_path)


def test_weights_from_an_offline_hub_are_refused_before_the_teacher_is_asked(
    give: Give, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    outcome = give(*request_of(world, tmp_path / "run", student__weights="timm"))
    refused(outcome, names="mobilenetv3_small_050", way_out="--student.weights none")
    nothing_computed(tmp_path)


def test_a_process_of_its_own_says_one_line_too(world: World, tmp_path: Path) -> None:
    """Libraries that warn and retry are heard here, unlike in the tests above."""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    nowhere["HF_HUB_OFFLINE"] = "0"
    words = request_of(world, tmp_path / "run", teacher="ViT-B-32/openai")
    done = subprocess.run(
        [sys.executable, "-m", "attar", *words],
        env={**os.environ, **nowhere, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    refused(outcome, names="ViT-B-32/openai", way_out="offline teacher 'pocket'")
    nothing_computed(tmp_path / "run")


def test_a_refused_request_does_not_stand_in_the_way_of_the_corrected_one(
    give: Give, world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wrong = {"export": "true"}, {"training__sampler": "per-domain"}, {"method": "erm"}
    for changes in wrong:
        assert give(*request_of(world, run, **changes)).status == 2
    settings = {"training__workers": 0, "embed__workers": 0, "evaluation__workers": 0}
    words = request_of(world, run, training__steps=1, training__precision="fp32", **settings)
    assert give(*words).status == 0
    assert (run / "done").is_file()
