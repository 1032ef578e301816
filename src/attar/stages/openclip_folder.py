"""From a run to a folder that OpenCLIP loads as one of its own models."""

import logging
from pathlib import Path

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.export.config import OpenCLIPConfig
from attar.export.openclip import check_openclip, export_openclip
from attar.files import read_json
from attar.methods.registry import find_method
from attar.stages.bundling import facts_of, finished_run
from attar.stages.class_space import learnt_features
from attar.students.student import load_student
from attar.teachers.loading import PROBE_TEXTS

log = logging.getLogger(__name__)


def export(run_dir: Path, out: Path, config: OpenCLIPConfig, samples: int = 16) -> Path:
    """Export a run's student as an OpenCLIP model, proven on `samples` of its images.

    Raises:
        UsageError: the run is not finished, or OpenCLIP cannot express its student.
        AttarError: what OpenCLIP reads back is not the student.
    """
    run = finished_run(run_dir)
    method = find_method(str(run.option("method")))
    if method.gives_several_labels:
        raise UsageError(
            f"{run_dir}: method {method.name} tells labels by prompts that it learnt, in pairs, "
            "and OpenCLIP compares an image with one text; measure it with attar evaluate"
        )
    spec = load_student(run_dir).spec
    check_openclip(spec, config, str(run_dir))
    classes = read_json(run.classes)
    if learnt_features(run.path, classes["names"]) is not None:
        log.warning(
            "%s learnt features for its classes, which an OpenCLIP model has no place for: there, "
            "classes are told by the teacher's text tower",
            run_dir,
        )
    prompts = [of_class[0] for of_class in classes["texts"][:samples] if of_class]
    return export_openclip(
        run_dir,
        out,
        sample_images=ImageTable.load(run.images).paths[-samples:],
        sample_texts=[*PROBE_TEXTS, *prompts],
        config=config,
        facts=facts_of(run, spec, classes["names"]),
    )
