"""`--method.label-weight auto`, from the folder of images to the weights."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.doubles import make_openclip_folder
from tiny_runs import write_pictures

from attar import pipeline
from attar.data.splits import SplitConfig
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import features_from_store
from attar.methods.label_weight import STREAM, reliability
from attar.run import DataConfig, RunConfig, RunFolder
from attar.stages import class_space, label_weight, planning
from attar.stages.embedding import consult
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig

DOMAINS = ("art", "photo", "sketch")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("weights")
    make_openclip_folder(root / "teacher", embed_dim=16, image_size=32, context_length=8)
    for place, domain in enumerate(DOMAINS):
        write_pictures(root / "data" / domain, ("cat", "dog"), 8, seed=1000 * place)
    return RunConfig(
        data=DataConfig(data=(root / "data",)),
        teacher=f"local-dir:{root / 'teacher'}",
        student="mobilenetv3_small_050",
        method="vl2v-adip",
        method_options={"label_weight": "auto"},
        store=root / "store",
        splits=SplitConfig(held_out_domain="sketch", val_fraction=0.25),
        student_config=StudentConfig(weights="none", image_size=32),
        training=TrainingConfig(steps=4, batch_size=4, workers=0, precision="fp32"),
        embed=EmbedConfig(workers=0),
        evaluation=EvaluationConfig(workers=0),
        references=False,
    )


@pytest.fixture(scope="module")
def job(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return pipeline._prepare(pipeline.request.resolve(config), RunFolder(folder), folder)


@pytest.fixture(scope="module")
def knowledge(job):
    return consult(job.teacher, job.images, job.texts, job.config.store, job.config.embed)


def streams_of(job, knowledge):
    return label_weight.streams(job, knowledge, class_space.provider(job, knowledge))


def test_reliability_comes_from_the_source_training_images_alone(job, knowledge):
    (name,), (stream,) = zip(*streams_of(job, knowledge).items(), strict=True)
    train = job.source.train
    store = Store.open(job.config.store)
    features = torch.tensor(store.image_features(store.image_rows(train.keys))).float()
    answers = (features @ knowledge.class_features.T).argmax(dim=1)
    labels, domains = torch.tensor(train.labels), torch.tensor(train.domains)
    assert name == STREAM
    assert torch.equal(stream(0), stream(3))
    wanted = reliability(answers == labels, domains, labels, len(train.domain_names), 2)
    assert torch.equal(stream(0), wanted)
    # No image of the held-out domain was looked at: its row is the overall share.
    held_out = train.domain_names.index("sketch")
    assert held_out not in train.domains
    overall = (int((answers == labels).sum()) + 1) / (len(train) + 2)
    assert stream(0)[held_out].tolist() == pytest.approx([overall] * 2)


def test_the_answers_are_those_under_the_class_features_that_are_trained_towards(job, knowledge):
    means = replace(job.recipe[1], class_embedding="source-images")
    other = replace(job, recipe=(job.recipe[0], means))
    found = streams_of(other, knowledge)[STREAM](0)
    train = job.source.train
    features = torch.from_numpy(features_from_store(knowledge.store, train))
    labels, domains = torch.tensor(train.labels), torch.tensor(train.domains)
    units = F.normalize(features, dim=-1)
    centres = torch.stack([units[labels == label].mean(dim=0) for label in range(2)])
    right = (units @ F.normalize(centres, dim=-1).T).argmax(dim=1) == labels
    wanted = reliability(right, domains, labels, len(train.domain_names), 2)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, streams_of(job, knowledge)[STREAM](0))


def test_the_log_says_the_weight_on_each_domain(job, knowledge, caplog):
    with caplog.at_level(logging.INFO, logger="attar"):
        found = streams_of(job, knowledge)[STREAM](0)
    said = [line for line in caplog.messages if line.startswith("label weight on ")]
    assert [line.split()[3].rstrip(":") for line in said] == ["art", "photo"]
    train = job.source.train
    of_art = [
        1 - 0.5 * found[d, c].item()
        for d, c in zip(train.domains, train.labels, strict=True)
        if train.domain_names[d] == "art"
    ]
    assert f"art: {sum(of_art) / len(of_art):.2f} (at most {max(of_art):.2f}, " in said[0]


def test_other_weights_need_no_stream(job, knowledge):
    plain = replace(job.recipe[1], label_weight=0.5)
    other = replace(job, recipe=(job.recipe[0], plain))
    assert streams_of(other, knowledge) == {}
    assert label_weight.stand_in(other) == {}


def test_a_run_is_timed_trained_and_repeated(config, job, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, logger="attar")  # as the command line does
    assert label_weight.stand_in(job)[STREAM](0).shape == (len(DOMAINS) + 1, 2)
    assert planning.estimate(job, config.store).training_steps == 4
    runs = [pipeline.distill(config, tmp_path / name, estimated=False) for name in ("a", "b")]
    logs = [(run / "train.log").read_text() for run in runs]
    assert all("label weight on art" in log for log in logs)
    states = [(run / "student" / "model.safetensors").read_bytes() for run in runs]
    assert states[0] == states[1]
    labels = replace(config, method_options={"label_weight": 1.0})
    other = pipeline.distill(labels, tmp_path / "c", estimated=False)
    assert (other / "student" / "model.safetensors").read_bytes() != states[0]
