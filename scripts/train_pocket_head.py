"""Train the pocket teacher's head, and its strict kin that never saw one PACS domain.

    python scripts/train_pocket_head.py --pacs PACS --imagenet-sample SAMPLE
    python scripts/train_pocket_head.py --pacs PACS --imagenet-sample SAMPLE --without sketch

The head sees PACS images of even parity, the ImageNet sample, and the emoji of three families.
PACS images of odd parity and the Noto family are scored and never trained on. The first form
writes the shipped head, its facts and its card; the second writes to the local cache, where the
teacher `pocket-without:DOMAIN` looks for it.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pocket_card import write_card
from pocket_features import FeatureFile, Picture, read_emoji, read_imagenet_sample, read_pacs
from pocket_head import Captions, Head, Recipe, balance, encode, train_head
from safetensors.torch import save_file

from attar.data.emoji import emoji_concepts
from attar.files import atomic_path, write_json
from attar.teachers.pocket import (
    DIM,
    HEAD,
    STRICT_DOMAINS,
    TextTower,
    Tokenize,
    load_text_tower,
    strict_head_path,
)

log = logging.getLogger("pocket")
PROMPT = "a photo of a {}"


def collect(pacs: Path, sample: Path, emoji: Path) -> list[Picture]:
    return [*read_pacs(pacs), *read_imagenet_sample(sample), *read_emoji(emoji)]


def score(
    head: Head, pictures: Sequence[Picture], features: FeatureFile, text: TextTower, tok: Tokenize
) -> dict[str, float]:
    """Return zero-shot top-1 accuracy of each held-out domain, among its own data's classes."""
    groups: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.held_out:
            groups[picture.source, picture.domain].append(picture)
    names = {
        "pacs": sorted({p.name for p in pictures if p.source == "pacs"}),
        "emoji": [concept.name for concept in emoji_concepts()],
    }
    prompts = {s: encode([PROMPT.format(n) for n in ns], text, tok) for s, ns in names.items()}
    scores = {}
    for (source, domain), members in sorted(groups.items()):
        wanted = torch.tensor([names[source].index(p.name) for p in members])
        answers = (head(features.get(members, "clean")) @ prompts[source].T).argmax(dim=1)
        scores[domain] = float((answers == wanted).double().mean())
    return scores


def save_head(head: Head, path: Path, facts: dict[str, Any]) -> None:
    """Write the head in float16 with its facts as metadata."""
    tensors = {
        "weight": head.weight.half().contiguous(),
        "bias": head.bias.half().contiguous(),
        "logit_scale": torch.tensor(head.logit_scale),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
    path.chmod(0o644)


def run(options: argparse.Namespace) -> None:
    recipe = Recipe()
    text, tokenize, _ = load_text_tower()
    pictures = collect(options.pacs, options.imagenet_sample, options.emoji)
    features = FeatureFile(options.features)
    features.compute(pictures)
    kept = [p for p in pictures if not p.held_out]
    if options.without:
        kept = [p for p in kept if (p.source, p.domain) != ("pacs", options.without)]
    captions = Captions(kept, text, tokenize)
    views = [features.get(kept, view) for view in ("clean", "flip")]
    head = train_head(views, captions.targets(kept), balance(kept), captions, recipe)
    scores = score(head, pictures, features, text, tokenize)
    facts = {
        "dim": DIM,
        "without": options.without,
        "training_images": len(kept),
        "concepts": len(captions.index),
        "recipe": asdict(recipe),
        "logit_scale": head.logit_scale,
        "held_out_accuracy": scores,
    }
    path = options.out or (strict_head_path(options.without) if options.without else HEAD)
    save_head(head, path, facts)
    write_json(path.with_suffix(".json"), facts)
    sys.stdout.write(json.dumps(facts, indent=2) + f"\n{path}\n")
    if options.out is None:
        write_card(HEAD.parent)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    scratch = Path(tempfile.gettempdir()) / "attar-pocket"
    parser.add_argument("--pacs", type=Path, required=True, help="PACS, domain/class/image")
    parser.add_argument(
        "--imagenet-sample", type=Path, required=True, help="folder with images/ and classes.tsv"
    )
    parser.add_argument("--without", choices=STRICT_DOMAINS, help="a PACS domain never to see")
    parser.add_argument("--out", type=Path, help="where the head goes, instead of its own place")
    parser.add_argument("--emoji", type=Path, default=scratch / "emoji", help="scratch folder")
    parser.add_argument(
        "--features", type=Path, default=scratch / "features.npz", help="backbone features, kept"
    )
    run(parser.parse_args())


if __name__ == "__main__":
    main()
