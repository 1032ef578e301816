"""Make the emoji set: 849 concepts drawn by four families, one zip of WebP pictures a family.

    python scripts/make_emoji.py --out src/attar/assets/emoji --size 64

Needs npm (or --packages with the four packages unpacked in it), Pillow and CairoSVG
(`pip install cairosvg`; nothing else in the project uses it).  The same packages and size give the
same archives.  Noto and Twemoji come as 64-pixel pictures: above that they are enlarged; Fluent
(256 pixels) and OpenMoji (vector) are drawn at the size itself.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

PACKAGES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji@17.0.0",
)
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
LICENCES = Path(__file__).parents[1] / "src" / "attar" / "assets" / "emoji"
WHITE = (255, 255, 255, 255)
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""A fixed date in every archive entry, so that the same pictures give the same bytes."""

Concept = dict[str, Any]


def fetch_packages(folder: Path) -> Path:
    """Install the four npm packages in `folder` and return where they lie."""
    (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm was not found; install it, or give --packages with the packages unpacked")
    flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run([npm, "install", *flags, *PACKAGES], cwd=folder, check=True)
    return folder / "node_modules"


def without_selector(codes: str) -> str:
    """Drop the variation selector, which some OpenMoji names leave out.

    A code is otherwise compared whole: its first code point alone would make a lime a lemon.
    """
    return codes.lower().replace("-fe0f", "")


def plain_name(name: str) -> str:
    """Make a CLDR short name a file name on every system: ASCII letters, a straight apostrophe."""
    name = name.replace("’", "'")
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def keywords_of(name: str, tags: str, short_names: Iterable[str]) -> list[str]:
    """Return the distinct keywords of a concept, its own name left out."""
    words = [tag.strip() for tag in tags.split(",")]
    words += [short.replace("_", " ").replace("-", " ") for short in short_names]
    distinct = dict.fromkeys(word for word in words if len(word) > 1)
    return [word for word in distinct if word.lower() != name.lower()]


def read_concepts(packages: Path) -> list[Concept]:
    """Return the concepts of the five groups that all four families have drawn."""
    google = json.loads((packages / "emoji-datasource-google/emoji.json").read_text("utf-8"))
    twitter = json.loads((packages / "emoji-datasource-twitter/emoji.json").read_text("utf-8"))
    in_twitter = {entry["unified"] for entry in twitter if entry["has_img_twitter"]}
    openmoji = {
        without_selector(entry["hexcode"]): entry
        for entry in json.loads((packages / "openmoji/data/openmoji.json").read_text("utf-8"))
    }
    fluent = {path.stem for path in (packages / "@lobehub/fluent-emoji-3d/assets").glob("*.webp")}
    concepts = []
    for entry in sorted(google, key=lambda entry: entry["sort_order"]):
        codes = entry["unified"].lower()
        drawn = openmoji.get(without_selector(codes))
        in_google = entry["category"] in GROUPS and entry["has_img_google"]
        if not (in_google and entry["unified"] in in_twitter and codes in fluent and drawn):
            continue
        name = plain_name(drawn["annotation"])
        concepts.append(
            {
                "id": codes,
                "name": name,
                "keywords": keywords_of(name, drawn["tags"], entry["short_names"]),
                "group": entry["category"],
                "image": entry["image"],
                "openmoji": drawn["hexcode"],
            }
        )
    names = {concept["name"].lower() for concept in concepts}
    if len(names) != len(concepts):
        sys.exit("two concepts have the same name; give one of them another")
    return concepts


def family_sources(packages: Path, size: int) -> dict[str, Callable[[Concept], Image.Image]]:
    """Return for each family the function that opens a concept's picture with its alpha."""
    import cairosvg

    def openmoji(concept: Concept) -> Image.Image:
        path = packages / "openmoji/color/svg" / f"{concept['openmoji']}.svg"
        png = cairosvg.svg2png(url=str(path), output_width=size, output_height=size)
        return Image.open(io.BytesIO(png))

    google = packages / "emoji-datasource-google/img/google/64"
    twitter = packages / "emoji-datasource-twitter/img/twitter/64"
    fluent = packages / "@lobehub/fluent-emoji-3d/assets"
    return {
        "noto": lambda concept: Image.open(google / concept["image"]),
        "twemoji": lambda concept: Image.open(twitter / concept["image"]),
        "fluent": lambda concept: Image.open(fluent / f"{concept['id']}.webp"),
        "openmoji": openmoji,
    }


def encode_picture(picture: Image.Image, size: int) -> bytes:
    """Lay a picture on white, bring it to size × size and encode it as WebP of quality 80."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, WHITE)
    flat = Image.alpha_composite(white, picture).convert("RGB")
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    flat.save(buffer, "WEBP", quality=80, method=6)
    return buffer.getvalue()


def write_family(
    target: Path, concepts: list[Concept], source: Callable[[Concept], Image.Image], size: int
) -> None:
    """Write one family's archive, uncompressed since WebP is compressed already."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for concept in sorted(concepts, key=lambda concept: concept["name"]):
            entry = zipfile.ZipInfo(f"{concept['name']}.webp", ZIP_DATE)
            archive.writestr(entry, encode_picture(source(concept), size))
    print(f"{target}: {len(concepts)} pictures, {target.stat().st_size / 1e3:,.0f} kB")


def write_concepts(target: Path, concepts: list[Concept]) -> None:
    """Write the concepts, one a line, in the order of the Unicode charts."""
    keys = ("id", "name", "keywords", "group")
    lines = [json.dumps({key: concept[key] for key in keys}) for concept in concepts]
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{target}: {len(concepts)} concepts")


def copy_licences(out: Path) -> None:
    """Put each family's licence beside its archive."""
    for licence in LICENCES.glob("LICENSE-*.txt"):
        if licence.resolve().parent != out.resolve():
            shutil.copy2(licence, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the archives")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--packages", type=Path, help="node_modules with the four npm packages")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        packages = args.packages or fetch_packages(Path(temporary))
        concepts = read_concepts(packages)
        for family, source in family_sources(packages, args.size).items():
            write_family(args.out / f"{family}.zip", concepts, source, args.size)
    write_concepts(args.out / "concepts.json", concepts)
    copy_licences(args.out)


if __name__ == "__main__":
    main()
