"""`attar describe`: words about the classes, for the teacher to read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from attar.language.config import DescribeConfig

if TYPE_CHECKING:
    from attar.data.classes import ClassList
    from attar.language.textspace import TextSpace
    from attar.teachers.base import Teacher


def describe(
    classes: Path,
    /,
    *,
    source: Literal["file", "llm", "wordnet"],
    out: Path,
    options: Annotated[DescribeConfig, Parameter(name="*")] = DescribeConfig(),
    teacher: str | None = None,
    templates: str = "photo",
    near: float = 0.95,
) -> None:
    """Write descriptions of the classes, to be given as `--classes` to every other command.

    They come from a file of sentences, from a language model behind any OpenAI-compatible endpoint
    (each answer is kept beside OUT; a command given again asks only for what is missing), or from
    the WordNet definitions that timm ships. A class that the source says nothing about keeps the
    plain prompt, is named, and makes the exit status 1.

    For example:

    `attar describe classes.txt --source wordnet --pin "crane=n02012849" --out described.json`

    `attar describe classes.txt --source llm --model llama3.2 --out described.json --teacher pocket`

    Parameters
    ----------
    classes
        Class list: a text file (one a line) or JSON.
    source
        Where descriptions come from.
    out
        The JSON file {class: [descriptions]}.
    teacher
        Say how well this teacher tells the classes apart, before and after; as in `attar distill`.
    templates
        Prompt templates for --teacher: a known name or a file.
    near
        Cosine of class features above which two classes are named as too near.
    """
    from attar.data.classes import read_class_list
    from attar.errors import UsageError
    from attar.language import describe as work

    listed = read_class_list(classes)
    if out.resolve() == classes.resolve():
        raise UsageError(f"--out {out} is the class list itself; choose another file")
    known = _introduce(teacher, templates)
    failure = None
    try:
        work.describe(listed, source, out, options)
    except work.Undescribed as error:
        failure = error
    described = read_class_list(out)
    number = sum(bool(descriptions) for descriptions in described.descriptions)
    print(f"{out}: {number:,} of {len(described.names):,} classes described")
    if known is not None:
        _compare(known, listed, described, templates, near)
    if failure is not None:
        raise failure


def _introduce(spec: str | None, templates: str) -> "Teacher | None":
    """Load the teacher before anything is asked or paid, so that wrong use is refused first."""
    if spec is None:
        return None
    from attar.prompts import get_templates
    from attar.teachers.registry import load_teacher

    get_templates(templates)
    return load_teacher(spec)


def _compare(
    teacher: "Teacher", listed: "ClassList", described: "ClassList", templates: str, near: float
) -> None:
    from attar.data.classes import make_class_list
    from attar.language.textspace import inspect_text_space
    from attar.prompts import get_templates

    prompts = get_templates(templates)
    before = inspect_text_space(teacher, make_class_list(listed.names), prompts, near)
    after = inspect_text_space(teacher, described, prompts, near)
    _print_spectra(before, after, teacher.info.name)
    if after.num_cut:
        print(
            f"{after.num_cut:,} of {after.num_texts:,} texts are longer than "
            f"{teacher.info.name} reads; it sees their beginning"
        )
    print(
        f"pairs of classes nearer than cosine {near:g}: {before.num_near:,} before, "
        f"{after.num_near:,} after" + (", the nearest:" if after.nearest else "")
    )
    for first, second, cosine in after.nearest:
        print(f"  {cosine:.3f}  {first} / {second}")


def _print_spectra(before: "TextSpace", after: "TextSpace", teacher: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"class features of {teacher}", title_justify="left")
    for heading in ("", "names alone", "described"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "mean cosine of two classes", f"{before.mean_cosine:.4f}", f"{after.mean_cosine:.4f}"
    )
    pairs = zip(before.spectrum, after.spectrum, strict=True)
    for number, (old, new) in enumerate(pairs, start=1):
        table.add_row(f"singular value {number}", f"{old:.3f}", f"{new:.3f}")
    Console(width=80).print(table)
