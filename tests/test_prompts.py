from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from attar.errors import UsageError
from attar.prompts import (
    TEMPLATES,
    class_texts,
    get_templates,
    mean_class_features,
    read_templates,
    texts_behind_context,
)


@dataclass(frozen=True)
class ClassList:
    names: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]


def plain(*names: str) -> ClassList:
    return ClassList(names, ((),) * len(names))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_named_set_fills_every_name(name: str) -> None:
    templates = get_templates(name)
    (texts,) = class_texts(plain("polar_bear"), templates)
    assert len(texts) == len(templates) == len(set(templates))
    assert all("polar bear" in text and "{" not in text for text in texts)


def test_openai_templates_are_those_of_open_clip() -> None:
    templates = get_templates("openai-80")
    assert len(templates) == 80
    (texts,) = class_texts(plain("dog"), templates)
    assert texts == [template("dog") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def test_unknown_template_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'photo'"):
        get_templates("phto")
    with pytest.raises(UsageError, match=r"mine\.txt does not exist"):
        get_templates("mine.txt")


def test_template_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("\ufeffa photo of a {c}.\n\n  a {c} in {braces} \n", encoding="utf-8")
    assert read_templates(path) == ("a photo of a {c}.", "a {c} in {braces}")
    assert get_templates(str(path)) == read_templates(path)
    assert class_texts(plain("dog"), read_templates(path)) == [
        ["a photo of a dog.", "a dog in {braces}"]
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a photo of a {c}\na photo of a {}\n", "line 2: 'a photo of a {}' lacks {c}"),
        ("\n\n", "holds no template"),
    ],
)
def test_wrong_template_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "templates.txt"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_templates(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_descriptions_follow_the_prompt_unless_they_name_the_class() -> None:
    classes = ClassList(
        ("guide_dog", "cat"),
        (("Wears a harness.", "A guide dog leads its owner."), ()),
    )
    texts = class_texts(classes, ["a photo of a {c}.", "a sketch of a {c}"])
    assert texts == [
        [
            "a photo of a guide dog. Wears a harness.",
            "A guide dog leads its owner.",
            "a sketch of a guide dog. Wears a harness.",
        ],
        ["a photo of a cat.", "a sketch of a cat"],
    ]


@pytest.mark.parametrize(
    ("name", "description", "text"),
    [
        ("guide_dog", "a photo of guide dog . It leads.", "guide dog . It leads."),
        ("guide_dog", "A photo of a Guide_Dog. It leads.", "guide dog . It leads."),
        ("guide dog", "guide dog . It leads.", "guide dog . It leads."),
        ("guide dog", "It leads.", "guide dog . It leads."),
        ("guide dog", "A guide dog leads.", "guide dog . A guide dog leads."),
        ("dog", "a photo of a dog in a park.", "dog . a photo of a dog in a park."),
        ("dog", "a photo of dogfish . It swims.", "dog . a photo of dogfish . It swims."),
        ("C.A.T (1)", "a photo of C.A.T (1) . It is.", "C.A.T (1) . It is."),
    ],
)
def test_learnt_prompts_stand_before_name_and_sentence(
    name: str, description: str, text: str
) -> None:
    classes = ClassList((name, "sea_bird"), ((description, "never read"), ()))
    assert texts_behind_context(classes) == [text, "sea bird"]


def test_no_template_is_refused() -> None:
    with pytest.raises(UsageError, match="no template"):
        class_texts(plain("dog"), [])


def test_mean_class_features_is_clips_ensemble() -> None:
    features = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features[0] *= 100  # the length of a text's feature has no say
    before = features.clone()
    result = mean_class_features(features, [2, 3])
    unit = F.normalize(features, dim=-1)
    expected = F.normalize(torch.stack([unit[:2].mean(0), unit[2:].mean(0)]), dim=-1)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    assert torch.equal(features, before)


@pytest.mark.parametrize("counts", [[], [2, 2], [5, 0], [6, -1]])
def test_counts_must_fit_the_texts(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="sum to the 5 texts"):
        mean_class_features(torch.ones(5, 2), counts)
