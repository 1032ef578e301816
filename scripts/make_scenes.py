"""Compose scenes of several emoji: the data of the several-labels experiment.

    python scripts/make_scenes.py --out scenes

Each scene shows 2 to 5 different concepts on a plain or graded background. Of 26 concepts drawn by
the seed, half are seen: scenes of `train` and `test_id` hold seen concepts alone, those of
`unseen_classes` and `few_shot` at least one seen and one unseen. Writes the images, `manifest.csv`
(path, labels, split), `zero_shot.csv` (the same without the few-shot scenes), `seen.txt`,
`unseen.txt` and `descriptions.json` (each concept's Unicode keywords). The same arguments give the
same pictures: a scene depends on the seed, its split and its number alone.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from attar.data.emoji import TRAINING_FAMILIES, emoji_concepts, extract_emoji
from attar.data.images import read_image

NEARLY_WHITE = 235
"""Grey values from here on are the white around a picture."""
WHITE, INK, OUTSIDE = 255, 128, 0
SPLITS = ("train", "few_shot", "test_id", "unseen_classes")
MIXED = ("few_shot", "unseen_classes")
"""Splits whose scenes hold seen and unseen concepts together."""


@dataclass(frozen=True)
class Concepts:
    """The concepts of the scenes, by name."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    pictures: dict[str, list["CutOut"]]
    """Each concept's pictures, one a family."""


class CutOut(NamedTuple):
    """A picture on white and where it is."""

    colours: Image.Image
    inside: Image.Image


def read_concepts(folder: Path, families: Sequence[str], count: int, seed: int) -> Concepts:
    """Draw the concepts and the half of them that is seen, and cut out their pictures."""
    extract_emoji(folder, families, count, seed)
    names = sorted(path.name for path in (folder / families[0]).iterdir())
    order = np.random.default_rng((seed, len(SPLITS))).permutation(count)
    seen = tuple(names[i] for i in sorted(order[: count // 2]))
    pictures = {
        name: [
            cut_out(read_image(path)) for family in families for path in files(folder, family, name)
        ]
        for name in names
    }
    return Concepts(seen, tuple(name for name in names if name not in seen), pictures)


def files(folder: Path, family: str, name: str) -> list[Path]:
    return sorted((folder / family / name).glob("*.webp"))


def cut_out(image: Image.Image) -> CutOut:
    """Tell the picture from the white around it.

    White inside an outline stays, even where the outline has a gap of two pixels.
    """
    white = np.asarray(image).min(axis=-1) >= NEARLY_WHITE
    ink = Image.fromarray(np.where(white, WHITE, INK).astype(np.uint8))
    framed = Image.new("L", (image.width + 2, image.height + 2), WHITE)
    framed.paste(ink.filter(ImageFilter.MinFilter(3)), (1, 1))
    ImageDraw.floodfill(framed, (0, 0), OUTSIDE)
    outside = Image.fromarray((np.asarray(framed)[1:-1, 1:-1] == OUTSIDE).astype(np.uint8) * 255)
    outside = outside.filter(ImageFilter.MaxFilter(3))  # as far as the outline, drawn wider above
    return CutOut(image, ImageChops.invert(outside))


def paste(scene: Image.Image, picture: CutOut, place: tuple[int, int, int]) -> None:
    """Lay a picture on the scene; thin lines that are not inside it darken the ground."""
    left, top, side = place
    box = (left, top, left + side, top + side)
    colours, inside = (part.resize((side, side), Image.Resampling.LANCZOS) for part in picture)
    ground = ImageChops.multiply(scene.crop(box), colours)
    scene.paste(Image.composite(colours, ground, inside), box)


def draw_labels(concepts: Concepts, split: str, generator: np.random.Generator) -> list[str]:
    """Draw 2 to 5 different concepts that a scene of this split may hold."""
    count = int(generator.integers(2, 6))
    if split not in MIXED:
        return [str(name) for name in generator.choice(concepts.seen, count, replace=False)]
    seen, unseen = (
        list(generator.permutation(names)) for names in (concepts.seen, concepts.unseen)
    )
    rest = list(generator.permutation([*seen[1:], *unseen[1:]]))
    return [str(name) for name in [seen[0], unseen[0], *rest][:count]]


def draw_background(size: int, generator: np.random.Generator) -> Image.Image:
    """Return a plain colour, or one that grades into another along a random direction."""
    first, second = generator.uniform(120, 255, (2, 3))
    if generator.random() < 0.5:
        second = first
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / max(size - 1, 1) - 0.5
    along = np.clip(x * np.cos(angle) + y * np.sin(angle) + 0.5, 0, 1)[..., None]
    return Image.fromarray(np.rint(first * (1 - along) + second * along).astype(np.uint8))


def places(count: int, size: int, generator: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return (left, top, side) of squares of a quarter to 0.42 of the scene, seldom overlapping."""
    placed: list[tuple[int, int, int]] = []
    for _ in range(count):
        side = int(generator.uniform(0.25, 0.42) * size)
        tries = [(*generator.integers(0, size - side + 1, 2).tolist(), side) for _ in range(40)]
        apart = [min((gap(one, other) for other in placed), default=1.0) for one in tries]
        placed.append(
            next((t for t, g in zip(tries, apart, strict=True) if g >= 1), None)
            or tries[int(np.argmax(apart))]
        )
    return placed


def gap(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the distance of two squares' centres along the wider axis over their mean side."""
    mean = (one[2] + other[2]) / 2
    return (
        max(abs(a + one[2] / 2 - b - other[2] / 2) for a, b in zip(one[:2], other[:2], strict=True))
        / mean
    )


def compose(
    concepts: Concepts, labels: Sequence[str], size: int, generator: np.random.Generator
) -> Image.Image:
    """Draw each label's picture, of a random family, on a random background."""
    scene = draw_background(size, generator)
    for label, place in zip(labels, places(len(labels), size, generator), strict=True):
        pictures = concepts.pictures[label]
        paste(scene, pictures[int(generator.integers(len(pictures)))], place)
    return scene


def write_scenes(
    out: Path, concepts: Concepts, counts: dict[str, int], size: int, seed: int
) -> None:
    """Write the images and the two manifests."""
    rows = []
    for number, split in enumerate(SPLITS):
        (out / split).mkdir(parents=True, exist_ok=True)
        for index in range(counts[split]):
            generator = np.random.default_rng((seed, number, index))
            labels = draw_labels(concepts, split, generator)
            name = f"{split}/{index:05d}.png"
            compose(concepts, labels, size, generator).save(out / name)
            rows.append((name, "|".join(labels), split))
    without = [row for row in rows if row[-1] != "few_shot"]
    for name, listed in (("manifest.csv", rows), ("zero_shot.csv", without)):
        with (out / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "labels", "split"), *listed])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--few-shot", type=int, default=50)
    parser.add_argument("--test", type=int, default=500, help="scenes of each of the two tests")
    parser.add_argument("--concepts", type=int, default=26, help="half of them are seen")
    parser.add_argument("--families", nargs="+", default=TRAINING_FAMILIES)
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.concepts < 10:
        parser.error("--concepts must be at least 10: a scene holds up to 5 seen ones")
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out {options.out} is not empty: delete it or choose another folder")
    with tempfile.TemporaryDirectory() as folder:
        concepts = read_concepts(Path(folder), options.families, options.concepts, options.seed)
    tests = (options.train, options.few_shot, options.test, options.test)
    counts = dict(zip(SPLITS, tests, strict=True))
    write_scenes(options.out, concepts, counts, options.size, options.seed)
    for name, classes in (("seen", concepts.seen), ("unseen", concepts.unseen)):
        (options.out / f"{name}.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    keywords = {c.name: [", ".join(c.keywords)] if c.keywords else [] for c in emoji_concepts()}
    descriptions = {name: keywords[name] for name in sorted((*concepts.seen, *concepts.unseen))}
    text = json.dumps(descriptions, indent=1, ensure_ascii=False)
    (options.out / "descriptions.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"{sum(counts.values()):,} scenes written to {options.out}\n")


if __name__ == "__main__":
    main()
