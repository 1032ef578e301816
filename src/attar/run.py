"""A run: its resolved configuration and its folder, which is the truth about what was done."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from filelock import FileLock, Timeout

from attar.config import coerce_options, dump_yaml, to_plain
from attar.data.splits import SplitConfig
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.files import check_writable, write_json, write_text
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, of which classes."""

    data: tuple[Path, ...]
    """Folders, manifests or tars of images (data-{000..009}.tar, also by URL); labelled and
    unlabelled ones may stand side by side."""
    classes: Path | None = None
    """Class list: a text file (one a line) or JSON {class: [descriptions]}."""
    templates: str = "photo"
    """Prompt templates: a known name, or a file with one "{c}" template a line."""
    unlabelled: bool = False
    """Ignore labels that the folders' names would give."""
    subset: Literal["all", "odd", "even"] = "all"
    """Only the images whose name's sha256 is odd or even (what the pocket teacher saw is even)."""
    strict: bool = False
    """Stop at the first image that cannot be read, instead of setting it aside."""

    @property
    def name(self) -> str:
        """What results call these images: the last part of each path, "photos+list.csv"."""
        return "+".join(path.name for path in self.data)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the outcome of `attar distill`."""

    data: DataConfig
    teacher: str | None
    """The teacher, or None when a store holds all it said or the method needs none."""
    student: str
    method: str = "vl2v-adip"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    store: Path | None = None
    """Where the teacher's embeddings are kept; RUN/store by default."""
    splits: SplitConfig = field(default_factory=SplitConfig)
    protocol: Literal["folder", "domainbed"] = "folder"
    """How images are divided: stratified fractions, or DomainBed's exact splits."""
    student_config: StudentConfig = field(default_factory=StudentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    references: bool = True
    """Also measure the untrained student, the mean embedding, and the backbone whose projection
    alone was fitted."""
    baseline: Path | None = None
    """A run (of `erm`, say) whose student is shown beside this one."""
    start_from: Path | None = None
    """A run whose trained student this one starts from, instead of pretrained weights."""
    texts: Path | None = None
    """Sentences that nothing pairs with the images, to learn from: a file or a store."""


_SECTIONS = {"student_config": "student", "training": "training", "embed": "embed"}
_SECTIONS |= {"evaluation": "evaluation", "method_options": "method", "splits": "splits"}


def to_options(config: RunConfig) -> dict[str, Any]:
    """Return the configuration under the names of the command line's options.

    A section that shares its name with an option (`--student NAME`, `--student.weights`) holds it
    under `name`, so that `attar distill --config FILE` reads the same file back.
    """
    plain = to_plain(config)
    options: dict[str, Any] = dict(plain.pop("data"))
    for name, value in plain.items():
        section = _SECTIONS.get(name)
        if section is None:
            target = options.setdefault(name, {}) if name in _SECTIONS.values() else options
            if target is options:
                options[name] = value
            else:
                target["name"] = value
        elif isinstance(options.get(section), dict):
            options[section].update(value)
        else:
            options[section] = value
    held_out = options.get("splits", {}).pop("held_out_domain", None)
    options["held_out_domain"] = held_out
    return {k: v for k, v in options.items() if v not in (None, {}, [])}


def from_options(options: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `to_options` wrote, e.g. to a run's config.yaml.

    Raises:
        UsageError: an option that does not exist, or a value of the wrong type.
    """
    rest = {k.replace("-", "_"): v for k, v in options.items() if v is not None}
    sections: dict[str, Any] = {}
    for attribute, section in _SECTIONS.items():
        values = rest.pop(section, None) or {}
        if isinstance(values, str):
            values = {"name": values}
        if "name" in values:
            rest[section] = values["name"]
        sections[attribute] = {k: v for k, v in values.items() if k != "name"}
    held_out = rest.pop("held_out_domain", None)
    data = {f.name: rest.pop(f.name) for f in fields(DataConfig) if f.name in rest}
    data["data"] = [str(path) for path in data.get("data", ())]
    kinds: dict[str, Any] = {
        "student_config": StudentConfig,
        "training": TrainingConfig,
        "embed": EmbedConfig,
        "evaluation": EvaluationConfig,
        "splits": SplitConfig,
    }
    built: dict[str, Any] = {
        name: coerce_options(kind, sections[name], f"--{_SECTIONS[name]}.")
        for name, kind in kinds.items()
    }
    built["splits"] = replace(built["splits"], held_out_domain=held_out)
    others: dict[str, Any] = {k: Path(v) if k in _PATHS else v for k, v in rest.items()}
    return RunConfig(
        data=coerce_options(DataConfig, data, "--"),
        method_options=sections["method_options"],
        teacher=others.pop("teacher", None),
        student=others.pop("student"),
        **built,
        **others,
    )


T = TypeVar("T")
_PATHS = ("store", "baseline", "start_from", "texts")


def with_method_defaults(section: T, defaults: Mapping[str, Any], prefix: str) -> T:
    """Return a section with the method's defaults, then attar's, where the user said nothing."""
    own: Any = section
    values = {f.name: getattr(own, f.name) for f in fields(own)}
    known = {**own.UNSET, **defaults}
    filled = {k: known.get(k) if v is None else v for k, v in values.items()}
    return coerce_options(type(section), filled, prefix)


_BEFORE_THE_START = {
    ".lock",
    "files.parquet",
    "set_aside.json",
    "shards",
    "command.txt",
    "environment.json",
    "store",
}
"""What a request that was refused, or killed before it began, may leave in its folder."""


@dataclass(frozen=True)
class RunFolder:
    """Where the pieces of a run are."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def images(self) -> Path:
        """Parquet of the image table."""
        return self.path / "images.parquet"

    @property
    def set_aside(self) -> Path:
        """Files that could not be read, with reasons."""
        return self.path / "set_aside.json"

    @property
    def store(self) -> Path:
        """The teacher's embeddings, unless a store was given."""
        return self.path / "store"

    @property
    def corpus(self) -> Path:
        """How many texts of a store are learnt from."""
        return self.path / "corpus.json"

    @property
    def checkpoints(self) -> Path:
        """Where training stands; there once it has begun."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """The trained student."""
        return self.path / "student"

    @property
    def snapshots(self) -> Path:
        """Students kept at the ends of the last epochs."""
        return self.path / "snapshots"

    @property
    def results(self) -> Path:
        """One measurement a line."""
        return self.path / "results.jsonl"

    @property
    def bundle(self) -> Path:
        """The exported bundle."""
        return self.path / "bundle"

    @property
    def classes(self) -> Path:
        """The classes by name, each with the prompts that describe it."""
        return self.path / "classes.json"

    @property
    def done(self) -> Path:
        """Present when the run is complete."""
        return self.path / "done"

    def options(self) -> dict[str, Any]:
        """Return the resolved configuration of a run made before.

        Raises:
            UsageError: the folder holds no run.
        """
        if not self.config.is_file():
            raise UsageError(f"{self.path} is no run folder; make one with `attar distill`")
        options: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return options

    def option(self, name: str) -> Any:
        """Return one option of a run made before, e.g. "method"; None when it was not set."""
        value = self.options().get(name)
        return value.get("name") if isinstance(value, dict) and "name" in value else value

    def lock(self) -> AbstractContextManager[Any]:
        """Hold the folder for this process; released when the process ends, however it ends.

        Raises:
            UsageError: another process is working on this run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(self.path / ".lock", blocking=False).acquire()
        except Timeout as error:
            raise UsageError(
                f"{self.path} is being worked on by another process; wait for it or stop it"
            ) from error

    def is_done(self, config: RunConfig) -> bool:
        """Say whether this very run is complete; refuse a folder that cannot be used for it.

        Raises:
            UsageError: the folder holds another run or something else, or cannot be written to.
        """
        check_writable(self.path)
        if self.config.is_file():
            changed = differences(self.options(), plain_options(config))
            if changed:
                raise UsageError(
                    f"{self.path} holds a run with another configuration ({'; '.join(changed)}); "
                    "choose another --out, or delete the folder"
                )
        elif self.path.is_dir():
            names = {p.name for p in self.path.iterdir() if not p.name.endswith(".partial")}
            if names - _BEFORE_THE_START:
                raise UsageError(f"{self.path} is not empty and is no run; choose another --out")
        return self.config.is_file() and self.done.is_file()

    def open(self, config: RunConfig, command: str) -> None:
        """Write down what is about to be run, and where; remove what a kill left half written."""
        for leftover in self.path.rglob(".*.partial"):
            # The store's writer clears up behind itself, and may be another process.
            if leftover.is_file() and self.store not in leftover.parents:
                leftover.unlink()
        write_text(self.path / "command.txt", command + "\n")
        write_json(self.path / "environment.json", environment())
        write_text(self.config, dump_yaml(to_options(config)))


def plain_options(config: RunConfig) -> dict[str, Any]:
    """Return the options of a configuration as a file of them would be read back."""
    options: dict[str, Any] = yaml.safe_load(dump_yaml(to_options(config)))
    return options


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the options that differ, e.g. "training.lr 0.001 there, 0.01 asked".

    An option that the old side does not know, because it is younger, had its default there: what
    attar sets, since a method that now sets another did not then.
    """
    # On use: methods load torch, for which `attar --help` need not wait.
    from attar.methods.registry import METHODS, method_options

    silent = RunConfig(data=DataConfig(data=()), teacher=None, student="")
    defaults = plain_options(
        replace(
            silent,
            training=with_method_defaults(silent.training, {}, "--training."),
            student_config=with_method_defaults(silent.student_config, {}, "--student."),
        )
    )
    named = new.get("method")
    if isinstance(named, Mapping) and named.get("name") in METHODS:
        options = method_options(METHODS[str(named["name"])], {})
        defaults["method"] = to_plain(options)
    return _differences(old, new, defaults, "")


_MAY_CHANGE = {
    f"embed.{name}."
    for name in (
        "budget",
        "price",
        "request_size",
        "parallel",
        "rate",
        "attempts",
        "backoff",
        "timeout",
    )
} | {f"{section}.workers." for section in ("embed", "evaluation", "training")}
"""How a teacher is paid and asked, and how many processes read, may change while a run goes on.

What the teacher answers and which batches are made does not change by it.
"""


def _differences(old: Any, new: Any, default: Any, prefix: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        known = default if isinstance(default, Mapping) else {}
        return [
            line
            for name in dict.fromkeys([*old, *new])
            for line in _differences(
                old.get(name, known.get(name)), new.get(name), known.get(name), f"{prefix}{name}."
            )
        ]
    if prefix in _MAY_CHANGE:
        return []
    return [] if old == new else [f"{prefix[:-1]} {old} there, {new} asked"]


_PACKAGES = (
    "attar",
    "torch",
    "torchvision",
    "timm",
    "open-clip-torch",
    "accelerate",
    "numpy",
    "pillow",
    "transformers",
    "onnxruntime",
)


def environment() -> dict[str, Any]:
    """Return versions of Python, the platform and every library the result depends on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    from attar.device import device_summary

    return {**device_summary(), "packages": versions}
