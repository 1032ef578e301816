"""Train a small OpenCLIP model that has never seen one PACS domain: a teacher with both towers.

    python scripts/train_small_openclip.py --pacs PACS --out runs/small-openclip

White-box methods train a teacher's own towers, `flyp` the text tower too, and what OpenCLIP
publishes is large. This one is small enough for a CPU: OpenCLIP's timm tower around an
EfficientNet-Lite0 with ImageNet weights, and a text transformer from scratch. It sees the PACS
images of even parity but for one domain (sketch), and the emoji of three families, each with a
sentence. What it answers on PACS images of odd parity, domain by domain, is printed and kept in
facts.json.

OUT is a folder as OpenCLIP saves it: `attar distill --teacher local-dir:OUT`, or
`open_clip.create_model_from_pretrained("local-dir:OUT")`.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from pocket_features import Picture, read_emoji, read_pacs
from pocket_head import KEYWORDS, balance
from safetensors.torch import save_file
from torch import Tensor, nn

from attar.data.images import read_image
from attar.data.transforms import Transform, train_transform
from attar.files import atomic_folder, write_json
from attar.students.weights import load_backbone_weights

log = logging.getLogger("small-openclip")

PROMPT = "a photo of a {}"
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}", "a photograph of a {}", "a photo of the {}"),
    "art_painting": ("a painting of a {}", "an art painting of a {}", "a painted {}"),
    "cartoon": ("a cartoon of a {}", "a cartoon {}", "a drawing of a {}"),
    "sketch": ("a sketch of a {}", "a pencil sketch of a {}", "a line drawing of a {}"),
    "emoji": ("an emoji of a {}", "an icon of a {}", "a small flat drawing of a {}"),
}
"""What a sentence says of a picture's domain."""
ANY_DOMAIN = ("{}", "a {}", "a picture of a {}", "an image of a {}")
"""Sentences that say nothing of it."""
GREATEST_SCALE = math.log(100)
SCORED_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The model and how it is trained."""

    backbone: str = "tf_efficientnet_lite0"
    image_size: int = 128
    dim: int = 256
    context_length: int = 24
    """Tokens of a sentence; the longest here has 23."""
    text_width: int = 256
    text_layers: int = 4
    steps: int = 300
    batch_size: int = 32
    lr: float = 1e-3
    """Peak rate of all that starts from random numbers."""
    backbone_lr: float = 3e-4
    """Peak rate of the backbone, which starts from ImageNet weights."""
    weight_decay: float = 0.05
    warmup: float = 0.1
    """Share of the steps in which the rates rise; a cosine to zero follows."""
    seed: int = 0


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return the `open_clip_config.json` of the model."""
    backbone: Any = timm.create_model(recipe.backbone).pretrained_cfg
    return {
        "model_cfg": {
            "embed_dim": recipe.dim,
            "vision_cfg": {
                "timm_model_name": recipe.backbone,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": recipe.image_size,
            },
            "text_cfg": {
                "context_length": recipe.context_length,
                "vocab_size": 49408,
                "width": recipe.text_width,
                "heads": recipe.text_width // 64,
                "layers": recipe.text_layers,
            },
        },
        "preprocess_cfg": {
            "size": [recipe.image_size, recipe.image_size],
            "mode": "RGB",
            "mean": list(backbone["mean"]),
            "std": list(backbone["std"]),
            "interpolation": backbone["interpolation"],
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }


def build(recipe: Recipe, config: Mapping[str, Any]) -> tuple[open_clip.CLIP, str]:
    """Return the untrained model and where its backbone's ImageNet weights came from.

    All else, and without such weights on this machine ("none") the backbone too, starts from
    random numbers.
    """
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**config["model_cfg"])
    pretrained = timm.create_model(recipe.backbone)
    origin = load_backbone_weights(pretrained, recipe.backbone, "auto")
    wanted, state = model.visual.trunk.state_dict(), pretrained.state_dict()
    model.visual.trunk.load_state_dict({name: state[name] for name in wanted})
    return model.to(memory_format=torch.channels_last), origin  # a third faster on a CPU


def training_pictures(pictures: Sequence[Picture], without: str) -> list[Picture]:
    """Return what the model may see: even parity, no Noto emoji, and nothing of one PACS domain."""
    return [p for p in pictures if not p.held_out and p.group != ("pacs", without)]


def write_captions(pictures: Sequence[Picture], generator: torch.Generator) -> list[str]:
    """Return a sentence for each picture of a batch.

    One batch words a domain in one way, and half of the batches no domain at all, so that within
    a batch two sentences with the same meaning are the same sentence.
    """

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    wordings = {domain: words[draw(len(words))] for domain, words in WORDINGS.items()}
    if draw(2):
        wordings = dict.fromkeys(wordings, ANY_DOMAIN[draw(len(ANY_DOMAIN))])
    keywords = KEYWORDS * draw(2)
    return [
        wordings[p.domain if p.source == "pacs" else "emoji"].format(
            ", ".join((p.name, *p.keywords[:keywords]))
        )
        for p in pictures
    ]


def contrast(images: Tensor, texts: Tensor, scale: Tensor, said: Tensor) -> Tensor:
    """Return CLIP's symmetric loss where pictures may share a sentence.

    A sentence counts once however many pictures of the batch it stands for, and all of these are
    its positives in equal shares: none is a negative of its own sentence.

    Args:
        images: [N, D] unit features.
        texts: [M, D] unit features of the distinct sentences.
        scale: what cosines are multiplied by.
        said: [N] each picture's sentence.
    """
    logits = scale * images @ texts.T
    positives = F.one_hot(said, len(texts)).T.to(logits)
    shares = positives / positives.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, said) + F.cross_entropy(logits.T, shares)) / 2


def make_optimizer(model: open_clip.CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with a rate for the backbone, and no decay of vectors and numbers."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        lr = recipe.backbone_lr if name.startswith("visual.trunk.") else recipe.lr
        groups[lr, recipe.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    return torch.optim.AdamW(
        [{"params": of, "lr": lr, "weight_decay": decay} for (lr, decay), of in groups.items()],
        betas=(0.9, 0.98),
        fused=True,
    )


def rate(step: int, recipe: Recipe) -> float:
    """Return the share of the peak rate at a step, from 0."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup))) / 2


def train(model: open_clip.CLIP, pictures: Sequence[Picture], recipe: Recipe) -> None:
    """Train both towers on pictures and sentences; a domain counts as the root of its size."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=recipe.context_length)
    see, weights = train_transform("domainbed", recipe.image_size), balance(pictures)
    optimizer = make_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe))
    model.train()
    start = time.monotonic()
    for step in range(1, recipe.steps + 1):
        rows = torch.multinomial(weights, recipe.batch_size, replacement=True, generator=generator)
        batch = [pictures[row] for row in rows.tolist()]
        captions = write_captions(batch, generator)
        distinct = list(dict.fromkeys(captions))
        said = torch.tensor([distinct.index(caption) for caption in captions])
        images = model.encode_image(show(batch, see, model), normalize=True)
        texts = model.encode_text(tokenizer(distinct), normalize=True)
        loss = contrast(images, texts, model.logit_scale.exp(), said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=GREATEST_SCALE)
        if step % 20 == 0 or step == recipe.steps:
            seconds = time.monotonic() - start
            log.info("step %d of %d, loss %.3f, %.0f s", step, recipe.steps, loss.item(), seconds)


def show(pictures: Sequence[Picture], see: Transform, model: open_clip.CLIP) -> Tensor:
    """Return the pixels [N, 3, H, W] of pictures, augmented and normalised for the backbone."""
    pixels = torch.stack([see(read_image(picture.path)) for picture in pictures]).float() / 255
    cfg = model.visual.trunk.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


@torch.inference_mode()
def score(folder: Path, pictures: Sequence[Picture]) -> dict[str, float]:
    """Return the saved model's zero-shot top-1 accuracy on each PACS domain's held-out images."""
    place = f"local-dir:{folder}"
    model, prepare = open_clip.create_model_from_pretrained(place)
    model.eval()
    names = sorted({p.name for p in pictures if p.source == "pacs"})
    prompts = open_clip.get_tokenizer(place)([PROMPT.format(name) for name in names])
    texts = model.encode_text(prompts, normalize=True)
    right: dict[str, list[bool]] = defaultdict(list)
    scored = [p for p in pictures if p.source == "pacs" and p.held_out]
    for first in range(0, len(scored), SCORED_AT_ONCE):
        batch = scored[first : first + SCORED_AT_ONCE]
        pixels = torch.stack([prepare(read_image(picture.path)) for picture in batch])
        answers = (model.encode_image(pixels, normalize=True) @ texts.T).argmax(dim=1).tolist()
        for picture, answer in zip(batch, answers, strict=True):
            right[picture.domain].append(names[answer] == picture.name)
    return {domain: sum(of) / len(of) for domain, of in sorted(right.items())}


def run(options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Train, save and score; return what facts.json holds."""
    pictures = [*read_pacs(options.pacs), *read_emoji(options.emoji)]
    kept = training_pictures(pictures, options.without)
    config = describe(recipe)
    model, origin = build(recipe, config)
    train(model, kept, recipe)
    with atomic_folder(options.out) as folder:
        write_json(folder / "open_clip_config.json", config)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
        facts = {
            "without": options.without,
            "training_images": len(kept),
            "recipe": asdict(recipe),
            "backbone_weights": origin,
            "logit_scale": model.logit_scale.exp().item(),
            "held_out_accuracy": score(folder, pictures),
        }
        write_json(folder / "facts.json", facts)
    return facts


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s")  # OpenCLIP tells much to the root logger
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    scratch, default = Path(tempfile.gettempdir()) / "attar-pocket", Recipe()
    domains = [domain for domain in WORDINGS if domain != "emoji"]
    parser.add_argument("--pacs", type=Path, required=True, help="PACS, domain/class/image")
    parser.add_argument("--out", type=Path, default=Path("runs/small-openclip"))
    parser.add_argument("--without", choices=domains, default="sketch", help="never to be seen")
    parser.add_argument("--emoji", type=Path, default=scratch / "emoji", help="scratch folder")
    sizes = [name for name, value in asdict(default).items() if type(value) is int]
    for name in ("backbone", *sizes):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args(words)
    if not read_pacs(options.pacs):
        parser.error(f"--pacs {options.pacs} holds no images as domain/class/image")
    chosen = {name: getattr(options, name) for name in ("backbone", *sizes)}
    facts = run(options, Recipe(**chosen))
    sys.stdout.write(json.dumps(facts, indent=2) + f"\n{options.out}\n")


if __name__ == "__main__":
    main()
