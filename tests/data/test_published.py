"""Benchmarks are recognised as their downloads lie on disk, and what one lacks is said."""

import gzip
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attar.data.domainbed import domainbed_split, make_domainbed_splits
from attar.data.published import benchmarks, find_published
from attar.data.sources import read_sources

PACS = [
    (domain, label, f"pic_{number:03}.png")
    for domain in ("art_painting", "cartoon", "photo", "sketch")
    for label in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    for number in range(2)
]
TERRA = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon")
TERRA += ("squirrel",)


def named(name):
    return next(one for one in benchmarks() if one.name == name)


def listing(name, files=("1.jpg",)):
    """All paths of a benchmark under its own names."""
    one = named(name)
    return [(d, c, file) for d in one.domains for c in one.classes for file in files]


def write(root: Path, parts) -> Path:
    """Write small pictures, each with its own bytes."""
    for number, names in enumerate(parts):
        path = root.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array([[[number % 256, number // 256, 7]] * 4] * 4, dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
    return root


@pytest.mark.parametrize("wrapped", [(), ("kfold",), ("PACS", "images")])
def test_pacs_with_or_without_the_folders_around_it(tmp_path, wrapped):
    root = write(tmp_path / "data", [(*wrapped, *parts) for parts in PACS])
    table = read_sources([root])
    assert table.layout == "PACS: 4 domains, 7 classes, 56 images"
    assert table.domain_names == ("art_painting", "cartoon", "photo", "sketch")
    assert table.class_names == tuple(sorted({label for _, label, _ in PACS}))
    # The names, and so odd and even, are those of a copy without folders around it.
    assert table.names == tuple("/".join(parts) for parts in sorted(PACS))
    domain, label = table.domain_names[table.domains[9]], table.class_names[table.labels[9]]
    assert table.names[9].split("/")[:2] == [domain, label]
    assert Path(table.paths[9]) == root.joinpath(*wrapped, table.names[9])


def test_vlcs_as_domainbed_downloads_it(tmp_path):
    classes = ("bird", "car", "chair", "dog", "person")
    domains = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
    root = write(tmp_path / "VLCS", [(d, c, f"{c}{i}.jpg") for d in domains for c in classes
                                     for i in range(2)])  # fmt: skip
    table = read_sources([root])
    assert table.layout == "VLCS: 4 domains, 5 classes, 40 images"
    assert (table.domain_names, table.class_names) == (domains, classes)


def test_vlcs_with_split_folders_is_read_once(tmp_path):
    def place(domain, split, label):
        return [(domain, split, str(label), f"imgs_{i}.jpg") for i in range(2)]

    domains = ("CALTECH", "LABELME", "PASCAL", "SUN")
    parts = [p for d in domains for c in range(5) for p in place(d, "train", c)]
    table = read_sources([write(tmp_path / "apart", parts)])
    assert table.layout == "VLCS: 4 domains, 5 classes, 40 images"
    assert table.domain_names == ("Caltech101", "LabelMe", "SUN09", "VOC2007")
    assert table.class_names == ("bird", "car", "chair", "dog", "person")
    of_pascal = [n for n, d in zip(table.names, table.domains, strict=True) if d == 3]
    assert all(name.startswith("VOC2007/train/") for name in of_pascal)
    # `full` holds what the other folders do, and is taken instead of them.
    both = parts + [p for d in domains for c in range(5) for p in place(d, "full", c)]
    table = read_sources([write(tmp_path / "both", both)])
    assert table.layout == (
        "VLCS without 40 copies in train, val or test beside full: 4 domains, 5 classes, 40 images"
    )
    assert all(name.split("/")[1] == "full" for name in table.names)


@pytest.mark.parametrize("real", ["Real World", "Real_World", "RealWorld", "real_world"])
def test_office_home_however_its_fourth_domain_is_spelled(real):
    found = [(real if d == "Real World" else d, c, f) for d, c, f in listing("OfficeHome")]
    published = find_published(found)
    assert published is not None
    assert published.layout == "OfficeHome"
    assert published.missing == ()
    assert Counter(i.domain for i in published.images) == dict.fromkeys(
        ("Art", "Clipart", "Product", "Real World"), 65
    )
    split = [(d.lower(), "val", c.upper(), f) for d, c, f in found]
    assert find_published(split).images[0].label == "Alarm_Clock"


def test_terra_incognita_takes_four_cameras_and_ten_classes(tmp_path):
    cameras = [f"location_{n}" for n in (38, 43, 46, 100)]
    parts = [(d, c, f"{i}.jpg") for d in cameras for c in TERRA for i in range(2)]
    others = [("location_12", "cat", "1.jpg"), ("location_38", "deer", "1.jpg")]
    table = read_sources([write(tmp_path / "terra", parts + others)])
    assert table.layout == (
        "TerraIncognita without 2 images of other domains or classes: 4 domains, 10 classes, "
        "80 images"
    )
    assert table.domain_names == ("location_100", "location_38", "location_43", "location_46")
    assert table.class_names == TERRA


def test_domainnet_is_read_without_its_duplicates():
    lines = gzip.decompress(
        resources.files("attar").joinpath("assets/domainnet/duplicates.txt.gz").read_bytes()
    )
    listed = [tuple(line.split("/")) for line in lines.decode().split()]
    assert len(listed) == len(set(listed)) == 9431
    files = listing("DomainNet")
    assert len(files) == 6 * 345
    published = find_published([("domain_net", *parts) for parts in files + listed])
    assert published is not None
    assert published.layout == "DomainNet without 9,431 listed duplicates"
    assert [image.parts[1:] for image in published.images] == files
    assert published.missing == ()


def test_names_of_classes_and_domains_stay_apart_when_spelled_loosely():
    for one in benchmarks():
        for names in (one.domains, one.classes):
            every = [word for name, others in names.items() for word in (name, *others)]
            plain = {"".join(c for c in word.casefold() if c.isalnum()) for word in every}
            assert len(plain) == len(every), one.name
    sizes = {one.name: (len(one.domains), len(one.classes)) for one in benchmarks()}
    assert sizes == {
        "PACS": (4, 7),
        "VLCS": (4, 5),
        "OfficeHome": (4, 65),
        "TerraIncognita": (4, 10),
        "DomainNet": (6, 345),
    }


@pytest.mark.parametrize(
    ("missing", "lacks"),
    [
        (("sketch",), "domain 'sketch':"),
        (("photo", "giraffe"), "class 'giraffe' of domain 'photo':"),
        (("cartoon", None), "class 'elephant' of domain 'cartoon', .* and 3 more:"),
    ],
)
def test_what_a_benchmark_lacks_is_named(tmp_path, caplog, missing, lacks):
    def there(parts):
        if missing == ("cartoon", None):
            return parts[0] != "cartoon" or parts[1] == "dog"
        return parts[: len(missing)] != missing

    root = write(tmp_path / "pacs", [parts for parts in PACS if there(parts)])
    table = read_sources([root])
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(rf"{root} has the layout of PACS but lacks {lacks} .*complete", said.message)
    assert "\n" not in said.message
    assert table.layout.startswith("part of PACS: ")
    assert len(table) == sum(map(there, PACS))
    # Evaluation on a part of the classes is another matter.
    caplog.clear()
    assert read_sources([root], superset=True).layout == table.layout
    assert not caplog.records


@pytest.mark.parametrize(
    "parts",
    [
        [(d, c, "1.png") for d in ("art", "photo", "sketch") for c in ("cat", "dog")],
        [*PACS, ("my_own_domain", "dog", "1.png")],
        [*PACS, ("photo", "unicorn", "1.png")],
    ],
)
def test_own_data_with_familiar_names_stays_own_data(tmp_path, parts):
    table = read_sources([write(tmp_path / "own", parts)])
    assert table.layout.startswith("domain/class/image: ")
    assert set(table.domain_names) == {domain for domain, _, _ in parts}


def test_unlabelled_stays_unlabelled(tmp_path):
    table = read_sources([write(tmp_path / "pacs", PACS)], unlabelled=True)
    assert table.layout == "nested folder of images, no labels: 56 images"


def test_a_copy_with_other_names_is_split_as_domainbed_splits_it(tmp_path):
    """The order of domains (so each one's seed) and of images is that of the published names."""
    domains = ("PASCAL", "SUN", "LABELME", "CALTECH")
    parts = [(d, "full", str(c), f"{i}.jpg") for d in domains for c in range(5) for i in range(4)]
    table = read_sources([write(tmp_path / "vlcs", parts)])
    splits = make_domainbed_splits(table, "LabelMe", trial_seed=1)
    train, _ = domainbed_split(20, 1, 3)  # VOC2007 is the fourth of Caltech101 ... VOC2007
    classes = ("bird", "car", "chair", "dog", "person")
    of_pascal = sorted(f"VOC2007/full/{c}/{i}.jpg" for c in classes for i in range(4))
    found = {name for name in splits.source.train.names if name.startswith("VOC2007/")}
    assert found == {of_pascal[index] for index in train}


def test_the_order_of_the_images_does_not_depend_on_how_a_copy_spells_the_classes():
    found = [(d.lower(), c.lower(), f) for d, c, f in sorted(listing("OfficeHome"))]
    names = [image.name for image in find_published(sorted(found)).images]
    assert sorted(names) == sorted("/".join(parts) for parts in listing("OfficeHome"))
    # "TV" stands before "Table", and "tv" behind "table".
    assert names != sorted(names)
