import random
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attar.data.emoji import (
    EMOJI_FAMILIES,
    HELD_OUT_FAMILY,
    TRAINING_FAMILIES,
    emoji_concepts,
    extract_emoji,
)
from attar.errors import UsageError

ASSETS = Path(str(resources.files("attar"))) / "assets" / "emoji"


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.webp"))


def test_the_set_has_849_concepts_in_the_five_groups():
    concepts = emoji_concepts()
    assert len(concepts) == 849
    assert len({concept.id for concept in concepts}) == 849
    assert len({concept.name.lower() for concept in concepts}) == 849
    assert set(Counter(concept.group for concept in concepts)) == {
        "Animals & Nature",
        "Food & Drink",
        "Travel & Places",
        "Activities",
        "Objects",
    }
    assert all(concept.name.isascii() and "/" not in concept.name for concept in concepts)


def test_concepts_that_one_family_lacks_are_not_replaced_by_their_first_code_point():
    names = {concept.name for concept in emoji_concepts()}
    assert {"lemon", "bird", "dog face"} <= names
    assert not {"lime", "phoenix", "harp", "shovel", "brown mushroom"} & names


def test_the_training_families_leave_noto_out():
    assert HELD_OUT_FAMILY == "noto"
    assert set(TRAINING_FAMILIES) == set(EMOJI_FAMILIES) - {"noto"}


@pytest.mark.parametrize("family", EMOJI_FAMILIES)
def test_every_archive_holds_every_concept_as_a_small_picture_on_white(family):
    names = {f"{concept.name}.webp" for concept in emoji_concepts()}
    with zipfile.ZipFile(ASSETS / f"{family}.zip") as archive:
        assert set(archive.namelist()) == names
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        corners = []
        for name in random.Random(1).sample(sorted(names), 40):
            with archive.open(name) as file, Image.open(file) as image:
                assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64))
                pixels = np.asarray(image)
            assert pixels.std() > 5, name
            corners.append(pixels[0, 0].mean())
        assert np.median(corners) > 250


@pytest.mark.parametrize("family", EMOJI_FAMILIES)
def test_every_family_has_its_licence_beside_it(family):
    text = (ASSETS / f"LICENSE-{family}.txt").read_text(encoding="utf-8")
    mark = {
        "noto": "Apache License",
        "twemoji": "CC BY 4.0",
        "fluent": "MIT License",
        "openmoji": "CC BY-SA 4.0",
    }
    assert mark[family] in text
    assert "Attribution" in text


def test_extraction_writes_a_domain_class_image_tree(tmp_path):
    out = extract_emoji(tmp_path / "emoji", families=("twemoji", "noto"), concepts=12, seed=3)
    twemoji, noto = files_of(out / "twemoji"), files_of(out / "noto")
    assert len(twemoji) == 12
    assert twemoji == noto
    ids = {f"{concept.name}/{concept.id}.webp" for concept in emoji_concepts()}
    assert set(twemoji) <= ids
    assert sorted(path.name for path in out.iterdir()) == ["noto", "twemoji"]
    for name in twemoji:
        assert Image.open(out / "twemoji" / name).size == (64, 64)
        assert (out / "twemoji" / name).read_bytes() != (out / "noto" / name).read_bytes()


def test_extraction_of_the_whole_set_matches_the_archive(tmp_path):
    out = extract_emoji(tmp_path, families=("fluent",))
    with zipfile.ZipFile(ASSETS / "fluent.zip") as archive:
        for concept in emoji_concepts():
            written = (out / "fluent" / concept.name / f"{concept.id}.webp").read_bytes()
            assert written == archive.read(f"{concept.name}.webp")
    assert len(files_of(out)) == 849


def test_the_seed_alone_decides_which_concepts_are_drawn(tmp_path):
    first = files_of(extract_emoji(tmp_path / "a", ("noto",), concepts=30, seed=1))
    again = files_of(extract_emoji(tmp_path / "b", ("noto",), concepts=30, seed=1))
    other = files_of(extract_emoji(tmp_path / "c", ("noto",), concepts=30, seed=2))
    assert first == again
    assert first != other


def test_a_second_extraction_writes_nothing_and_repairs_what_is_missing(tmp_path):
    extract_emoji(tmp_path, ("noto",), concepts=5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.webp")}
    victim, cut = sorted(before)[:2]
    victim.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    extract_emoji(tmp_path, ("noto",), concepts=5)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.webp")}
    assert set(after) == set(before)
    assert all(after[path] == before[path] for path in before if path not in (victim, cut))
    assert Image.open(cut).convert("RGB").size == (64, 64)


def test_a_folder_with_other_pictures_is_refused(tmp_path):
    extract_emoji(tmp_path, ("noto",), concepts=20, seed=1)
    with pytest.raises(UsageError, match="not of this emoji set"):
        extract_emoji(tmp_path, ("noto",), concepts=5, seed=1)


def test_wrong_requests_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"twemojy.*twemoji"):
        extract_emoji(tmp_path / "out", ("twemojy",))
    for number in (0, 1, 850):
        with pytest.raises(UsageError, match="from 2 to 849"):
            extract_emoji(tmp_path / "out", concepts=number)
    assert not (tmp_path / "out").exists()
