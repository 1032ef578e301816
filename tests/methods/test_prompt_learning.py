"""Learnt prompts: the tower's own features, gradient to the context alone, any C in chunks."""

import copy
import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tests.doubles import (
    make_hf_clip_folder,
    make_openclip_folder,
    make_openclip_folder_with_bert,
)
from torch import nn

from attar.data.sources import read_sources
from attar.data.splits import SourceSplits
from attar.errors import UsageError
from attar.methods.base import Sizes
from attar.methods.dualcoop import METHOD, MultiLabelOptions, PositiveNegativePrompts
from attar.methods.prompt_learning import KEPT_BYTES, LearntPrompts, activation_bytes
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.students.config import StudentConfig
from attar.students.student import build_student
from attar.teachers import pocket
from attar.teachers.base import Teacher
from attar.teachers.registry import load_teacher
from attar.teachers.text_embedding import PromptEncoder, prompt_encoder
from attar.training.checkpoint import load_own_state, own_state
from attar.training.config import TrainingConfig
from attar.training.feed import Feed
from attar.training.loop import train

CPU = torch.device("cpu")
NAMES = ["dog", "domestic cat", "red house by the sea", "horse", "car"]
TEXT_TOWERS = {
    "clip": {"custom_text": False},
    "custom-text": {"custom_text": True},
    "bidirectional-last": {
        "custom_text": True,
        "text_cfg": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "causal-eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "causal-last": {"custom_text": True, "text_cfg": {"pool_type": "last"}},
}
"""OpenCLIP text towers by how they look at a text and where they read its feature."""
SIZES = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def load_tower(name: str, folder: Path) -> Teacher:
    if name == "pocket":
        for package in pocket.PACKAGES:
            if importlib.util.find_spec(package) is None:
                pytest.skip("the pocket teacher needs pip install 'attar[demo]'")
        return load_teacher("pocket", CPU)
    options = TEXT_TOWERS[name]
    text = {**SIZES, **options.get("text_cfg", {})}
    made = make_openclip_folder(folder, custom_text=options["custom_text"], text_cfg=text)
    return load_teacher(str(made), CPU)


@pytest.fixture(scope="module", params=[*TEXT_TOWERS, "pocket"])
def teacher(request, tmp_path_factory) -> Teacher:
    return load_tower(request.param, tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Teacher:
    return load_tower("clip", tmp_path_factory.mktemp("teacher") / "model")


def words(encoder: PromptEncoder, text: str) -> torch.Tensor:
    """Return the embeddings of a text's own words, without what the tokenizer puts around them."""
    with_words, without = encoder.tokenize([text]), encoder.tokenize([""])
    length = int((with_words["input_ids"] != 0).sum() - (without["input_ids"] != 0).sum())
    start = 1  # after the beginning-of-text token
    return encoder.embed(with_words)[0, start : start + length]


def test_ordinary_embeddings_give_the_teachers_own_features(teacher: Teacher) -> None:
    encoder = prompt_encoder(teacher)
    tokens = encoder.tokenize(NAMES)
    embeddings = encoder.embed(tokens)
    assert embeddings.shape == (*tokens["input_ids"].shape, encoder.width)
    features = encoder.encode(embeddings, tokens)
    assert features.shape == (len(NAMES), teacher.info.dim) == (len(NAMES), encoder.dim)
    torch.testing.assert_close(features, teacher.encode_texts(NAMES), rtol=0, atol=1e-5)
    assert features.std(dim=0).max() > 1e-4


def test_a_context_of_words_is_the_prompt_of_these_words(teacher: Teacher) -> None:
    encoder = prompt_encoder(teacher)
    context = words(encoder, "a photo of the")
    assert context.shape == (4, encoder.width)
    prompts = LearntPrompts(encoder, NAMES, length=4)
    with torch.no_grad():
        prompts.context.copy_(context)
    expected = teacher.encode_texts([f"a photo of the {name}." for name in NAMES])
    torch.testing.assert_close(prompts(), F.normalize(expected, dim=-1), rtol=0, atol=1e-5)


def test_gradient_reaches_the_context_alone(teacher: Teacher) -> None:
    prompts = LearntPrompts(prompt_encoder(teacher), NAMES)
    assert dict(prompts.named_parameters()).keys() == {"context"}
    assert prompts.state_dict().keys() == {"context"}
    assert list(prompts.modules()) == [prompts]
    prompts.train()
    assert not teacher.towers.text.training
    features = prompts()
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(NAMES)))
    (features @ torch.linspace(-1, 1, features.shape[1])).square().sum().backward()
    assert prompts.context.grad.shape == (8, prompts.context.shape[1])
    assert (prompts.context.grad.abs().sum(dim=1) > 0).all(), "every context vector is heard"
    for weight in teacher.towers.text.parameters():
        assert weight.grad is None
        assert not weight.requires_grad


def test_gradient_is_that_of_finite_differences(clip: Teacher) -> None:
    prompts = LearntPrompts(prompt_encoder(clip), NAMES, length=3)
    weights = torch.randn(len(NAMES), clip.info.dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # far from zero, where a layer norm bends less
        prompts.context.mul_(50)
    (prompts() * weights).sum().backward()
    direction = prompts.context.grad / prompts.context.grad.norm()
    step = 1e-2
    with torch.no_grad():
        values = []
        for sign in (1, -2):
            prompts.context.add_(sign * step * direction)
            values.append(float((prompts().double() * weights).sum()))
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float((prompts.context.grad * direction).sum()), rel=2e-2)


def test_other_classes_share_the_context(clip: Teacher) -> None:
    prompts = LearntPrompts(prompt_encoder(clip), NAMES)
    others = prompts.for_classes(["house", "dog"])
    assert others.context is prompts.context
    torch.testing.assert_close(others()[1], prompts()[0])
    before = others().detach()
    with torch.no_grad():
        prompts.context.add_(0.5)
    assert not torch.allclose(others(), before)


def test_the_context_is_drawn_by_its_seed(clip: Teacher) -> None:
    encoder = prompt_encoder(clip)
    torch.manual_seed(0)
    one = LearntPrompts(encoder, NAMES, length=16, seed=5).context
    torch.manual_seed(1)
    assert torch.equal(one, LearntPrompts(encoder, NAMES, length=16, seed=5).context)
    assert not torch.equal(one, LearntPrompts(encoder, NAMES, length=16, seed=6).context)
    assert one.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("keep", [0, 6e4, 1e9])  # none, some, and all of the activations
def test_chunks_change_nothing(teacher: Teacher, keep: float) -> None:
    encoder = prompt_encoder(teacher)
    weights = torch.arange(1.0, len(NAMES) + 1)  # a class in another's place would be noticed
    results = []
    for options in ({}, {"chunk": 2, "keep": keep}):
        prompts = LearntPrompts(encoder, NAMES, **options)
        features = prompts()
        (features[:, 0].square() * weights).sum().backward()
        results.append((features.detach(), prompts.context.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def kept_bytes(prompts: LearntPrompts) -> int:
    """Return how many bytes a forward pass keeps, each storage once, beside the tower's weights."""
    (encoder,) = prompts._encoder
    tower = encoder._tower if hasattr(encoder, "_tower") else encoder._parts
    known = {weight.untyped_storage().data_ptr() for weight in tower.parameters()}
    found = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no place comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prompts()
    return sum(size for place, (size, _) in found.items() if place not in known)


def test_what_is_kept_is_about_what_is_reckoned(teacher: Teacher) -> None:
    encoder = prompt_encoder(teacher)
    prompts = LearntPrompts(encoder, NAMES * 20)
    reckoned = sum(activation_bytes(encoder, tokens) for tokens in prompts._parts)
    assert 0.5 < kept_bytes(prompts) / reckoned < 2


def test_more_is_computed_again(clip: Teacher) -> None:
    encoder = prompt_encoder(clip)
    all_kept, some, none = (
        LearntPrompts(encoder, NAMES * 8, chunk=4, keep=keep) for keep in (1e9, 6e5, 0)
    )
    assert kept_bytes(none) < kept_bytes(some) < kept_bytes(all_kept)
    assert kept_bytes(none) < kept_bytes(all_kept) / 10
    for other in (copy.deepcopy(none), none.for_classes(NAMES * 8)):
        assert kept_bytes(other) < kept_bytes(all_kept) / 10
    alone = LearntPrompts(encoder, NAMES, keep=0)  # one chunk: nothing would be saved
    assert kept_bytes(alone) == kept_bytes(LearntPrompts(encoder, NAMES))
    pair = PositiveNegativePrompts.draw(encoder, NAMES)
    assert pair.positive._keep + pair.negative._keep == KEPT_BYTES


def test_texts_of_like_length_pass_the_tower_together(teacher: Teacher) -> None:
    encoder, lengths = prompt_encoder(teacher), []
    prompts = LearntPrompts(encoder, [*NAMES, "cat", "a very long name of a house"], chunk=2)
    encode = encoder.encode

    def noting(embeddings: torch.Tensor, tokens: dict) -> torch.Tensor:
        lengths.append(embeddings.shape[1])
        return encode(embeddings, tokens)

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(type(encoder), "encode", lambda self, *words: noting(*words))
        prompts()
    assert lengths == sorted(lengths)
    tokens = encoder.tokenize([f"{'X ' * 8}{name}." for name in ("dog", "red house by the sea")])
    of_dog = int(encoder.lengths(tokens)[0])
    assert lengths[0] == of_dog  # [dog, horse], cut to what is read of them
    # Towers that look at the padding have no length of their own for a text.
    cut = int(encoder.lengths(tokens)[0]) < tokens["input_ids"].shape[1]
    assert (lengths[0] < lengths[-1]) == cut


def test_a_long_description_is_cut_and_its_end_kept(clip: Teacher, caplog) -> None:
    encoder = prompt_encoder(clip)
    long = "dog. " + "it has four legs and a tail and " * 4
    with caplog.at_level(logging.WARNING, logger="attar"):
        prompts = LearntPrompts(encoder, [long, f"{long} and a nose", "cat"])
    assert len(caplog.records) == 1
    assert "2 of 3 prompts" in caplog.records[0].getMessage()
    ids = encoder.tokenize([long, "cat"])["input_ids"]
    assert ids.shape[1] == SIZES["context_length"]
    assert (ids == 49407).sum(dim=1).tolist() == [1, 1]
    first, second, third = prompts()
    assert torch.equal(first, second), "what differs lies behind the cut"
    assert not torch.allclose(first, third)


def test_padding_behind_the_longest_text_is_not_computed(clip: Teacher) -> None:
    assert prompt_encoder(clip).tokenize(["dog"])["input_ids"].shape == (1, 3)


@pytest.mark.parametrize("length", [18, 19, 40])
def test_a_context_without_room_for_names_is_refused(clip: Teacher, length: int) -> None:
    with pytest.raises(UsageError, match=f"{length} context vectors leave no room"):
        LearntPrompts(prompt_encoder(clip), ["dog", "cat"], length=length)


def test_other_text_towers_are_refused_by_name(tmp_path: Path) -> None:
    folders = {
        "HFTextEncoder": make_openclip_folder_with_bert(tmp_path / "bert"),
        "TextTower": make_hf_clip_folder(tmp_path / "hf"),
    }
    for kind, folder in folders.items():
        other = load_teacher(str(folder), CPU)
        with pytest.raises(UsageError, match=kind) as raised:
            prompt_encoder(other)
        assert other.info.name in str(raised.value)


def test_learnt_prompts_separate_what_names_do_not(clip: Teacher) -> None:
    """A few steps of classification through the frozen tower lower the loss."""
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(20, clip.info.dim, generator=generator), dim=-1)
    labels = torch.arange(20) % len(NAMES)
    prompts = LearntPrompts(prompt_encoder(clip), NAMES)
    optimizer = torch.optim.Adam(prompts.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(images @ prompts().T / 0.07, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_positive_and_negative_prompts_stand_one_after_the_other(clip: Teacher) -> None:
    prompts = PositiveNegativePrompts.draw(prompt_encoder(clip), NAMES, length=4, seed=3)
    features = prompts()
    assert features.shape == (2 * len(NAMES), clip.info.dim)
    torch.testing.assert_close(features[: len(NAMES)], prompts.positive())
    torch.testing.assert_close(features[len(NAMES) :], prompts.negative())
    assert not torch.allclose(*features.chunk(2))
    few = prompts.for_classes(["horse"])
    torch.testing.assert_close(few(), features[[3, 3 + len(NAMES)]])
    assert {id(p) for p in few.parameters()} == {id(p) for p in prompts.parameters()}
    features.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in prompts.parameters())


def test_a_checkpoint_holds_the_contexts_alone(clip: Teacher) -> None:
    encoder = prompt_encoder(clip)
    prompts = PositiveNegativePrompts.draw(encoder, NAMES, seed=1)
    state = own_state([], prompts)
    assert state.keys() == {"class_features.positive.context", "class_features.negative.context"}
    resumed: nn.Module = PositiveNegativePrompts.draw(encoder, NAMES, seed=2)
    load_own_state(state, [], resumed)
    assert torch.equal(resumed(), prompts())


def test_the_loop_trains_and_keeps_prompts_and_bias(clip: Teacher, tmp_path: Path) -> None:
    """A short run of the several-labels method on pictures, store and all."""
    generator = np.random.default_rng(0)
    rows = ["path,labels"]
    for i in range(8):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{['dog|cat', 'cat', 'dog|horse', ''][i % 4]}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    table = read_sources([tmp_path / "list.csv"])
    info = clip.info
    with StoreWriter.open(tmp_path / "store", info) as writer:
        features = generator.standard_normal((8, info.dim))
        writer.add_images(table.keys, table.names, "clean", features)
    nothing = table.select([])
    config = TrainingConfig(
        steps=3, batch_size=4, workers=0, lr=0.01, warmup=0, schedule="constant", precision="fp32"
    )
    source = SourceSplits(train=table, val=nothing, few_shot=nothing)
    feed = Feed(source, Store.open(tmp_path / "store"), config, 64)
    prompts = PositiveNegativePrompts.draw(prompt_encoder(clip), table.class_names, length=4)
    before = [parameter.detach().clone() for parameter in prompts.parameters()]
    student = build_student("test_resnet", info.dim, StudentConfig(weights="none", image_size=64))
    sizes = Sizes(dim=info.dim, trunk_width=1, num_classes=3, num_domains=0)
    phases = METHOD.phases(MultiLabelOptions(), 3, sizes)
    train(student, phases, feed, prompts, config, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "objective.safetensors")
    assert kept.keys() == {
        "distill.bias",
        "class_features.positive.context",
        "class_features.negative.context",
    }
    assert kept["distill.bias"] != 0
    for old, new in zip(before, prompts.parameters(), strict=True):
        assert not torch.equal(old, new)
    assert torch.equal(kept["class_features.positive.context"], prompts.positive.context)
    assert all(weight.grad is None for weight in clip.towers.text.parameters())
