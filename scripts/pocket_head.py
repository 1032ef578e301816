"""The pocket teacher's head: what it is asked to match, how it is trained and how it is scored."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pocket_features import Picture
from torch import Tensor, nn

from attar.teachers.pocket import DIM, IMAGE_WIDTH, TextTower, Tokenize

TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a painting of a {}",
    "a cartoon of a {}",
    "a sketch of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "an emoji of a {}",
)
KEYWORDS = 3
"""Keywords that a longer caption of an emoji adds to its name."""
TEXT_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a head is trained."""

    steps: int = 1500
    batch_size: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.05
    noise: float = 0.5
    """Gaussian noise on the standardised features, in standard deviations."""
    cosine: float = 0.0
    """Weight of 1 - cos(image, its caption) beside the contrastive loss."""
    scale: float = 20.0
    """Where the learnt inverse temperature starts."""
    seed: int = 0


class Captions:
    """Unit text embeddings of every concept in every template, in one or more wordings."""

    def __init__(self, pictures: Sequence[Picture], text: TextTower, tokenize: Tokenize) -> None:
        longer: dict[str, str] = {}
        for picture in pictures:
            known = longer.setdefault(picture.name, picture.name)
            if known == picture.name and picture.keywords:
                words = ", ".join(picture.keywords[:KEYWORDS])
                longer[picture.name] = f"{picture.name}, {words}"
        self.index = {name: i for i, name in enumerate(longer)}
        texts = [t.format(p) for t in TEMPLATES for pair in longer.items() for p in pair]
        distinct = list(dict.fromkeys(texts))
        rows = {text: row for row, text in enumerate(distinct)}
        features = encode(distinct, text, tokenize)[[rows[text] for text in texts]]
        self.bank = features.view(len(TEMPLATES), len(longer), 2, DIM)

    def targets(self, pictures: Sequence[Picture]) -> Tensor:
        """Return each picture's concept [N]."""
        return torch.tensor([self.index[picture.name] for picture in pictures])

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return [C, D]: every concept in one template, half of them in their longer wording."""
        template = int(torch.randint(len(TEMPLATES), (), generator=generator))
        choice = torch.randint(2, (self.bank.shape[1],), generator=generator)
        return self.bank[template, torch.arange(self.bank.shape[1]), choice]


@torch.inference_mode()
def encode(texts: Sequence[str], text: TextTower, tokenize: Tokenize) -> Tensor:
    """Return unit embeddings [N, D]; texts of like length share a batch."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features = torch.empty(len(texts), DIM)
    for first in range(0, len(order), TEXT_BATCH):
        part = order[first : first + TEXT_BATCH]
        features[part] = F.normalize(text(tokenize([texts[i] for i in part])), dim=1)
    return features


@dataclass(frozen=True, kw_only=True)
class Head:
    """A trained head, on features as the backbone gives them, in the precision it is kept in."""

    weight: Tensor
    """fp16 [D, 1280]"""
    bias: Tensor
    """fp16 [D]"""
    logit_scale: float

    def __call__(self, features: Tensor) -> Tensor:
        """Return unit image features [N, D]."""
        return F.normalize(F.linear(features, self.weight.float(), self.bias.float()), dim=1)


def balance(pictures: Sequence[Picture]) -> Tensor:
    """Return sampling weights [N] under which a domain counts as the root of its size."""
    sizes = Counter(picture.group for picture in pictures)
    return torch.tensor([sizes[picture.group] ** -0.5 for picture in pictures])


def train_head(
    views: Sequence[Tensor], targets: Tensor, weights: Tensor, captions: Captions, recipe: Recipe
) -> Head:
    """Train a head: softmax over all concepts' captions with a learnt temperature.

    `views` are the backbone's features [N, 1280], one tensor a view; `targets` the concepts [N] and
    `weights` how often each picture is drawn [N].
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    mean, std = views[0].mean(0), views[0].std(0).clamp(min=1e-3)
    stacked = torch.stack([(view - mean) / std for view in views])
    head = nn.Linear(IMAGE_WIDTH, DIM)
    nn.init.normal_(head.weight, std=IMAGE_WIDTH**-0.5, generator=generator)
    nn.init.zeros_(head.bias)
    log_scale = nn.Parameter(torch.tensor(recipe.scale).log())
    groups = [
        {"params": [head.weight], "weight_decay": recipe.weight_decay},
        {"params": [head.bias, log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        rows = torch.multinomial(weights, recipe.batch_size, replacement=True, generator=generator)
        view = torch.randint(len(views), (recipe.batch_size,), generator=generator)
        noise = torch.randn((recipe.batch_size, IMAGE_WIDTH), generator=generator)
        image = F.normalize(head(stacked[view, rows] + recipe.noise * noise), dim=1)
        cosines = image @ captions.draw(generator).T
        loss = F.cross_entropy(cosines * log_scale.exp(), targets[rows])
        matched = cosines.gather(1, targets[rows].unsqueeze(1))
        loss = loss + recipe.cosine * (1 - matched).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    # The standardisation becomes part of the layer.
    weight = (head.weight / std).detach()
    bias = (head.bias - weight @ mean).detach()
    scale = log_scale.detach().exp().item()
    return Head(weight=weight.half(), bias=bias.half(), logit_scale=scale)
