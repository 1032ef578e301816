"""Li et al.'s official files: what they say, and where a copy of the dataset has their images."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from attar.cli.main import main
from attar.data.class_lists import (
    draw_lists,
    match_images,
    read_official_classes,
    read_official_lists,
    write_manifest,
)
from attar.data.classes import read_class_list
from attar.data.manifest import read_manifest
from attar.data.sources import read_sources
from attar.data.splits import SplitConfig, make_splits
from attar.errors import UsageError
from attar.prompts import class_texts, get_templates, texts_behind_context

CLASSES = {"001.Red_Bird": "Red_Bird", "002.Sea_Bird": "Sea_Bird", "003.Sky_Bird": "Sky_Bird"}
CLASSES["004.Old_Bird"] = "Old_Bird"
SENTENCES = ("A Red Bird is red.", "It swims.", "It flies.", ".")
LISTS = {
    "train_data.txt": [
        "train/002.Sea_Bird/s2.png",
        "train/001.Red_Bird/r1.png",
        "train/001.Red_Bird/r2.png",
    ],
    "val_on_train_data.txt": ["val_on_train/002.Sea_Bird/s1.png"],
    "val_data.txt": ["val/003.Sky_Bird/k1.png", "val/004.Old_Bird/o1.png"],
}
FILES = [tuple(line.split("/")[1:]) for lines in LISTS.values() for line in lines]


def official(folder: Path, end: str = "\n", **changes: list[str] | None) -> Path:
    """Write an official folder; the last line of each list has no end, as in the real ones."""
    folder.mkdir(parents=True)
    files: dict[str, list[str] | None] = {
        **LISTS,
        "label2text.txt": [f"{k} {n} {v}" for n, (k, v) in enumerate(CLASSES.items(), start=1)],
        "chatgpt.txt": list(SENTENCES),
        **{f"{name}.txt": lines for name, lines in changes.items()},
    }
    for name, lines in files.items():
        if lines is not None:
            (folder / name).write_bytes(end.join(lines).encode())
    return folder


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, len(path.name), 9)).save(path)


def copy_of(root: Path, layout: str = "images/{folder}/{file}") -> Path:
    for number, (folder, file) in enumerate(FILES):
        picture(root / layout.format(folder=folder, file=file, label=CLASSES[folder]), number)
    return root


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_names_and_descriptions_are_read(tmp_path: Path, end: str) -> None:
    lists = read_official_lists(official(tmp_path / "Birds", end))
    assert lists.name == "Birds"
    assert lists.train == (
        ("002.Sea_Bird", "s2.png"),
        ("001.Red_Bird", "r1.png"),
        ("001.Red_Bird", "r2.png"),
    )
    assert lists.test_id == (("002.Sea_Bird", "s1.png"),)
    assert lists.unseen_classes == (("003.Sky_Bird", "k1.png"), ("004.Old_Bird", "o1.png"))
    assert list(lists.class_names.values()) == ["Red Bird", "Sea Bird", "Sky Bird", "Old Bird"]
    assert lists.descriptions == dict(zip(CLASSES, SENTENCES[:3], strict=False))
    assert lists.undescribed == ("Old Bird",)
    assert lists.describe() == (
        "train 3 (2 classes), test_id 1 (1 classes), unseen_classes 2 (2 classes)"
    )


def test_a_final_line_end_is_no_line(tmp_path: Path) -> None:
    sentences = official(tmp_path / "Birds") / "chatgpt.txt"
    sentences.write_text(sentences.read_text() + "\n")
    assert read_official_lists(tmp_path / "Birds").undescribed == ("Old Bird",)


def test_a_sentence_may_hold_a_line_separator_of_unicode(tmp_path: Path) -> None:
    strange = ["A Red Bird\u2028is red.", "It\x0bswims.", "It flies.", "It is old."]
    lists = read_official_lists(official(tmp_path / "Birds", chatgpt=strange))
    assert list(lists.descriptions.values()) == strange


def test_names_are_read_without_lists_and_the_lists_are_asked_for(tmp_path: Path) -> None:
    folder = official(tmp_path / "tiered", train_data=None, val_data=None)
    classes = read_official_classes(folder)
    assert classes.class_names["001.Red_Bird"] == "Red Bird"
    assert classes.descriptions["002.Sea_Bird"] == "It swims."
    with pytest.raises(UsageError, match=r"lacks train_data\.txt, val_data\.txt: put .*test-share"):
        read_official_lists(folder)


def test_without_a_file_of_them_there_are_no_descriptions(tmp_path: Path) -> None:
    lists = read_official_lists(official(tmp_path / "Birds", chatgpt=None))
    assert lists.descriptions == {}
    manifest = write_manifest(lists, copy_of(tmp_path / "copy"), tmp_path / "out")
    assert sorted(path.name for path in manifest.parent.iterdir()) == [
        "classes.txt",
        "manifest.csv",
    ]


TRAIN = LISTS["train_data.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label2text": None}, r"label2text\.txt cannot be read"),
        ({"label2text": ["a 1 A", "b 2"]}, r"line 2: 'b 2' is not `CLASS number label`"),
        ({"label2text": ["a 1 A", "a 2 B"]}, r"line 2: the class 'a' is named twice"),
        ({"chatgpt": ["one", "two", "three"]}, r"has 3 lines and label2text\.txt 4"),
        ({"train_data": ["train/r1.png"]}, r"line 1: 'train/r1.png' is not `split/CLASS/file`"),
        ({"train_data": ["", *TRAIN]}, r"line 1: '' is not"),
        ({"val_data": []}, "no image in unseen_classes"),
        ({"train_data": [*TRAIN, TRAIN[0]]}, r"twice: 002\.Sea_Bird/s2\.png \(in train\)"),
        ({"val_on_train_data": TRAIN}, r"twice: .*\(in test_id\)"),
        ({"val_data": ["val/005.New_Bird/1.png"]}, r"'005\.New_Bird' is not named"),
        ({"val_data": ["val/001.Red_Bird/1.png"]}, r"'001\.Red_Bird' is both seen and unseen"),
        ({"train_data": TRAIN[1:]}, r"'002\.Sea_Bird' is tested as a seen class and has no"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_official_lists(official(tmp_path / "Birds", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layout",
    [
        "images/{folder}/{file}",  # CUB
        "jpg/{file}",  # Flowers-102
        "{file}",
        "{label}/{file}",
        "train/{folder}/deeper/{file}",
        "r/{label}/{file}",  # SUN397's letters
    ],
)
def test_images_are_found_in_any_layout(tmp_path: Path, layout: str) -> None:
    root = copy_of(tmp_path / "copy", layout)
    picture(root / "other.png")
    picture(root / "__MACOSX" / "r1.png", 77)
    picture(root / ".hidden" / "r1.png", 78)
    entries = match_images(read_official_lists(official(tmp_path / "Birds")), root)
    expected = [
        layout.format(folder=folder, file=file, label=CLASSES[folder]) for folder, file in FILES
    ]
    assert [entry.name for entry in entries] == expected
    assert [entry.path for entry in entries] == [str(root / name) for name in expected]
    assert [entry.split for entry in entries] == (
        ["train"] * 3 + ["test_id"] + ["unseen_classes"] * 2
    )
    assert [e.label for e in entries][:2] == ["Sea Bird", "Red Bird"]


def nested(tmp_path: Path) -> Path:
    return official(
        tmp_path / "Places",
        label2text=["inn_indoor 1 inn_indoor", "inn_outdoor 2 inn_outdoor", "pub 3 pub"],
        chatgpt=None,
        train_data=["train/inn_indoor/1.png", "train/inn_outdoor/1.png"],
        val_on_train_data=["val_on_train/inn_outdoor/2.png"],
        val_data=["val/pub/1.png"],
    )


def test_the_class_folder_decides_between_files_of_one_name(tmp_path: Path) -> None:
    root = tmp_path / "copy"
    names = ["i/inn/indoor/1.png", "inn/outdoor/a/1.png", "i/inn/outdoor/2.png", "p/Pub/1.png"]
    for number, name in enumerate(names):
        picture(root / name, number)
    entries = match_images(read_official_lists(nested(tmp_path)), root)
    assert [entry.name for entry in entries] == names


def test_another_classs_file_of_that_name_is_not_taken(tmp_path: Path) -> None:
    for name in ("inn_indoor/1.png", "inn_outdoor/2.png", "pub/1.png"):
        picture(tmp_path / "copy" / name)
    with pytest.raises(UsageError, match=r"1 of the 4 images of Places .*: inn_outdoor/1\.png;"):
        match_images(read_official_lists(nested(tmp_path)), tmp_path / "copy")


def test_files_that_nothing_tells_apart_are_refused_unless_they_are_the_same(
    tmp_path: Path,
) -> None:
    lists = read_official_lists(official(tmp_path / "Cars"))
    root = copy_of(tmp_path / "copy", "cars_train/{file}")
    copy_of(root, "cars_test/{file}")
    assert match_images(lists, root)[0].name == "cars_test/s2.png"
    picture(root / "cars_test" / "r1.png", 99)
    with pytest.raises(
        UsageError, match=r"Red_Bird/r1\.png may be cars_test/r1\.png or cars_train"
    ):
        match_images(lists, root)
    assert len(match_images(lists, root / "cars_train")) == len(FILES)


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    root = copy_of(tmp_path / "copy")
    (root / "images" / "again").symlink_to(root, target_is_directory=True)
    entries = match_images(read_official_lists(official(tmp_path / "Birds")), root)
    assert [entry.name for entry in entries] == [f"images/{c}/{f}" for c, f in FILES]


def test_missing_images_are_counted_and_five_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists = read_official_lists(official(tmp_path / "Birds"))
    (tmp_path / "empty").mkdir()
    shown = ", ".join(f"{folder}/{file}" for folder, file in FILES[:5])
    for allow_missing in (False, True):
        with pytest.raises(UsageError, match="6 of the 6 images of Birds") as caught:
            match_images(lists, tmp_path / "empty", allow_missing=allow_missing)
        assert f": {shown}, ...; " in str(caught.value)
    root = copy_of(tmp_path / "copy", "{file}")
    (root / "s2.png").unlink()
    with pytest.raises(UsageError, match=r"1 of the 6 .*: 002\.Sea_Bird/s2\.png; .*allow-missing"):
        match_images(lists, root)
    with caplog.at_level(logging.WARNING):
        entries = match_images(lists, root, allow_missing=True)
    assert [entry.name for entry in entries] == [file for _, file in FILES[1:]]
    assert "left out: 1 of the 6 images" in caplog.text
    with pytest.raises(UsageError, match="nowhere is no folder"):
        match_images(lists, tmp_path / "nowhere")


def test_a_class_that_the_copy_lacks_is_not_in_the_class_list(tmp_path: Path) -> None:
    root = copy_of(tmp_path / "copy", "{file}")
    (root / "o1.png").unlink()
    lists = read_official_lists(official(tmp_path / "Birds"))
    manifest = write_manifest(lists, root, tmp_path / "out", allow_missing=True)
    names = ("Red Bird", "Sea Bird", "Sky Bird")
    assert read_class_list(manifest.with_name("classes.txt")).names == names
    assert read_class_list(manifest.with_name("descriptions.json")).names == names


def test_the_manifest_is_one_that_training_reads(tmp_path: Path) -> None:
    root = copy_of(tmp_path / "a copy, with commas")
    lists = read_official_lists(official(tmp_path / "Birds"))
    manifest = write_manifest(lists, root, tmp_path / "out")
    assert [entry.split for entry in read_manifest(manifest)][-1] == "unseen_classes"
    classes = read_class_list(manifest.with_name("classes.txt"))
    splits = make_splits(read_sources([manifest], class_list=classes), SplitConfig())
    found = {
        name: sorted(
            (table.class_names[label], Path(path).name)
            for label, path in zip(table.labels, table.paths, strict=True)
        )
        for name, table in splits.tables().items()
        if len(table)
    }
    assert found == {
        "train": [("Red Bird", "r1.png"), ("Red Bird", "r2.png"), ("Sea Bird", "s2.png")],
        "test_id": [("Sea Bird", "s1.png")],
        "unseen_classes": [("Old Bird", "o1.png"), ("Sky Bird", "k1.png")],
    }


def test_descriptions_become_the_texts_of_the_official_code(tmp_path: Path) -> None:
    lists = read_official_lists(official(tmp_path / "Birds"))
    manifest = write_manifest(lists, copy_of(tmp_path / "copy"), tmp_path / "out")
    classes = read_class_list(manifest.with_name("descriptions.json"))
    assert class_texts(classes, get_templates("photo-no-article")) == [
        ["a photo of Red Bird . A Red Bird is red."],
        ["a photo of Sea Bird . It swims."],
        ["a photo of Sky Bird . It flies."],
        ["a photo of Old Bird"],
    ]
    assert texts_behind_context(classes) == [
        "Red Bird . A Red Bird is red.",
        "Sea Bird . It swims.",
        "Sky Bird . It flies.",
        "Old Bird",
    ]


def test_homonyms_are_told_apart(tmp_path: Path) -> None:
    names = [
        "001.Red_Bird 1 crane",
        "002.Sea_Bird 2 Crane",
        "003.Sky_Bird 3 ant",
        "004.Old_Bird 4 b",
    ]
    lists = read_official_lists(official(tmp_path / "Birds", label2text=names))
    manifest = write_manifest(lists, copy_of(tmp_path / "copy"), tmp_path / "out")
    classes = read_class_list(manifest.with_name("descriptions.json"))
    assert classes.names == ("crane (001.Red_Bird)", "Crane (002.Sea_Bird)", "ant", "b")
    texts = class_texts(classes, ("{c}",))
    assert texts[0] == ["a photo of crane (001.Red_Bird) . A Red Bird is red."]


def test_lists_are_drawn_from_train_and_val(tmp_path: Path) -> None:
    folder = official(tmp_path / "tiered", train_data=None, val_on_train_data=None, val_data=None)
    root = tmp_path / "copy"
    for number in range(10):
        picture(root / "train" / "001.Red_Bird" / f"{number}.png", number)
        picture(root / "train" / "002.Sea_Bird" / f"{number}.png", 50 + number)
        picture(root / "val" / "003.Sky_Bird" / f"{number}.png", 100 + number)
        picture(root / "test" / "004.Old_Bird" / f"{number}.png", 150 + number)
    (root / "train" / "001.Red_Bird" / "notes.txt").write_text("no image")
    lists = draw_lists(folder, root, test_share=0.3)
    assert lists.describe() == (
        "train 14 (2 classes), test_id 6 (2 classes), unseen_classes 10 (1 classes)"
    )
    assert list(lists.class_names.values()) == ["Red Bird", "Sea Bird", "Sky Bird"]
    assert draw_lists(folder, root, test_share=0.3) == lists
    assert draw_lists(folder, root, test_share=0.3, seed=1).test_id != lists.test_id
    places = [entry.name for entry in match_images(lists, root)]
    assert places == [
        f"{'val' if split == 'unseen_classes' else 'train'}/{folder}/{file}"
        for split, listed in lists.splits().items()
        for folder, file in listed
    ]
    for share in (0.0, 1.0):
        with pytest.raises(UsageError, match="--test-share"):
            draw_lists(folder, root, test_share=share)
    with pytest.raises(UsageError, match="train is no folder"):
        draw_lists(folder, tmp_path / "tiered")


def test_the_command_writes_the_manifest_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root, out = official(tmp_path / "Birds"), copy_of(tmp_path / "copy"), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["lists", str(folder), "--images", str(root), "--out", str(out)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == (
        f"{out / 'manifest.csv'}: train 3 (2 classes), test_id 1 (1 classes), "
        "unseen_classes 2 (2 classes)\nwithout a description, so the plain prompt: Old Bird\n"
    )
    assert len(read_manifest(out / "manifest.csv")) == len(FILES)


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = official(tmp_path / "Birds"), tmp_path / "copy"
    root.mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["lists", str(folder), "--images", str(root), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "6 of the 6 images of Birds" in error
    assert not (tmp_path / "out").exists()
