"""`describe`: one sentence (or more) about each class, in the JSON that every method accepts."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from attar.data.classes import ClassList, normalise_name, read_class_list
from attar.errors import AttarError, UsageError, unknown_name
from attar.files import check_writable, write_json
from attar.http import NoAnswer, Stopped
from attar.language.answers import AnswerLog, answers_path
from attar.language.chat import Answer, ChatClient, has_words
from attar.language.config import INSTRUCTIONS, SLOT, DescribeConfig
from attar.language.wordnet import WordNet
from attar.store.progress import Meter

__all__ = ["INSTRUCTIONS", "SOURCES", "Undescribed", "describe"]

log = logging.getLogger(__name__)

_PATIENCE = 5
"""Classes in a row (at least) without an answer after which the endpoint is given up."""


class Undescribed(AttarError):
    """Some classes have no description; the file is written and gives them the plain prompt."""

    def __init__(self, message: str, failed: Mapping[str, str]) -> None:
        super().__init__(message)
        self.failed = dict(failed)
        """Class -> reason."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a source knows."""

    texts: Mapping[str, Sequence[str]]
    """Class -> its descriptions; classes without any may be left out."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Class -> why it has none."""


def describe(classes: ClassList, source: str, out: Path, config: DescribeConfig) -> Path:
    """Write {class: [descriptions]} of all classes, in their order, to the JSON file `out`.

    The descriptions come from the source alone: those in `classes` are not taken over. A class
    without one gets an empty list, which is the plain prompt to everything that reads the file.

    Args:
        classes: C classes.
        source: a key of `SOURCES`.
        out: a .json file; the answers of a language model are kept beside it
            (`OUT.answers.jsonl`), so that a call made again asks only what has no answer.
        config: the source's options.

    Raises:
        UsageError: the request is wrong; no file is written.
        Undescribed: some classes failed; they are named and the file is written.
    """
    if source not in SOURCES:
        raise unknown_name("source", source, SOURCES)
    if out.suffix.lower() != ".json":
        raise UsageError(f"--out {out} is read as JSON by every command; call it NAME.json")
    check_writable(out.parent)
    found = SOURCES[source](classes, out, config)
    write_json(out, {name: list(found.texts.get(name, ())) for name in classes.names})
    if found.failed:
        _name_failed(found.failed)
        shown = ", ".join(map(repr, list(found.failed)[:5]))
        raise Undescribed(
            f"{len(found.failed):,} of {len(classes.names):,} classes have no description and keep "
            f"the plain prompt: {shown}{' …' if len(found.failed) > 5 else ''} (all are named "
            f"above); {out} is written with the others",
            found.failed,
        )
    return out


def _name_failed(failed: Mapping[str, str]) -> None:
    by_reason = defaultdict(list)
    for name, reason in failed.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        log.warning("not described, %s: %s", reason, ", ".join(names))


def _from_file(classes: ClassList, out: Path, config: DescribeConfig) -> _Found:
    if config.file is None:
        raise UsageError("--source file needs --file FILE: one sentence a line, or JSON")
    if config.file.suffix.lower() == ".json":
        return _from_json(classes, config.file)
    sentences = _lines(config.file)
    if len(sentences) != len(classes.names):
        raise UsageError(
            f"{config.file} has {len(sentences):,} lines for {len(classes.names):,} classes; they "
            "are matched by line number, so give one line a class ('.' for none)"
        )
    pairs = zip(classes.names, sentences, strict=True)
    return _without_empty({name: [sentence] for name, sentence in pairs})


def _lines(path: Path) -> list[str]:
    """Return the stripped lines; only empty ones at the end are dropped, which have no class."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    return [line.strip() for line in lines]


def _from_json(classes: ClassList, path: Path) -> _Found:
    given = read_class_list(path)
    known = {
        normalise_name(name): descriptions
        for name, descriptions in zip(given.names, given.descriptions, strict=True)
    }
    listed = {normalise_name(name): name for name in classes.names}
    missing = [name for key, name in listed.items() if key not in known]
    unused = len(known.keys() - listed.keys())
    if unused:
        log.info("%s also describes %d classes that are not listed", path, unused)
    found = _without_empty({name: known[key] for key, name in listed.items() if key in known})
    return _Found(texts=found.texts, failed=dict.fromkeys(missing, f"not in {path}"))


def _without_empty(texts: Mapping[str, Sequence[str]]) -> _Found:
    """Drop descriptions such as "." and name the classes that are left with none."""
    kept = {name: [d.strip() for d in given if has_words(d)] for name, given in texts.items()}
    empty = [name for name, descriptions in kept.items() if not descriptions]
    if empty:
        log.warning(
            "%d empty descriptions, these classes keep the plain prompt: %s",
            len(empty),
            ", ".join(empty),
        )
    return _Found(texts=kept)


def _from_wordnet(classes: ClassList, out: Path, config: DescribeConfig) -> _Found:
    wordnet = WordNet.shipped()
    pinned = wordnet.pinned(config.pin, classes.names)
    texts, failed = {}, {}
    for name in classes.names:
        meanings = [pinned[name]] if name in pinned else wordnet.meanings(name)
        if not meanings:
            failed[name] = "not among the nouns that timm ships"
            continue
        if len(meanings) > 1:
            log.info(
                "%r has %d meanings and the first is taken; --pin %r takes another:",
                name,
                len(meanings),
                f"{name}={meanings[1].wnid}",
            )
            for meaning in meanings:
                log.info("  %s", meaning)
        texts[name] = [meanings[0].definition]
    return _Found(texts=texts, failed=failed)


def _from_llm(classes: ClassList, out: Path, config: DescribeConfig) -> _Found:
    client = ChatClient(config)
    request = {
        "instruction": config.instruction_text,
        "model": config.model,
        "endpoint": config.endpoint.rstrip("/"),
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
    }
    with AnswerLog(answers_path(out)) as answers:
        kept = {a["class"]: a["text"] for a in answers.matching(request) if a.get("text")}
        todo = [name for name in classes.names if name not in kept]
        if len(todo) < len(classes.names):
            there = len(classes.names) - len(todo)
            log.info("%d of %d classes were answered before", there, len(classes.names))
        texts, failed = _ask_all(client, todo, answers, request, config)
    texts = {**kept, **texts}
    return _Found(
        texts={name: [texts[name]] for name in classes.names if name in texts}, failed=failed
    )


class _Asked(Meter):
    """Progress that tells of attempts made again."""

    def __init__(self, total: int, client: ChatClient) -> None:
        self._client = client
        super().__init__("classes", total, "classes")

    @property
    def summary(self) -> str:
        """One line for a log."""
        return f"{self.rate:,.2f} classes/s, {self._client.retries} asked again"


def _ask_all(
    client: ChatClient,
    names: Sequence[str],
    answers: AnswerLog,
    request: Mapping[str, object],
    config: DescribeConfig,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return {class: text} and {class: reason for none}; every answer is kept as it arrives."""
    texts: dict[str, str] = {}
    failed: dict[str, str] = {}
    cut: list[str] = []

    def ask(name: str) -> str:
        prompt = config.instruction_text.replace(SLOT, name.replace("_", " ").strip())

        def keep(answer: Answer) -> None:
            answers.append([_line(name, prompt, request, answer)])
            if answer.is_cut:
                cut.append(name)

        try:
            return client.ask(prompt, keep)
        except UsageError:  # every other class would meet it too
            client.stop()
            raise

    in_a_row = 0
    with _Asked(len(names), client) as meter, _threads(config.parallel, client) as pool:
        futures = {pool.submit(ask, name): name for name in names}
        for future in as_completed(futures):
            try:
                texts[futures[future]] = future.result()
                in_a_row = 0
            except NoAnswer as error:
                failed[futures[future]] = str(error)
                in_a_row += 1
            except Stopped:
                failed[futures[future]] = "not asked (again), the endpoint was given up"
            meter.advance(1)
            if in_a_row >= max(_PATIENCE, config.parallel):
                client.stop()
    if names:
        log.info("asked about %d classes: %s", len(names), meter.summary)
    if cut:
        log.warning(
            "%d answers end at the limit of tokens: %s", len(cut), ", ".join(dict.fromkeys(cut))
        )
    return texts, {name: failed[name] for name in names if name in failed}


def _line(
    name: str, prompt: str, request: Mapping[str, object], answer: Answer
) -> dict[str, object]:
    return {
        "class": name,
        **request,
        "prompt": prompt,
        "text": answer.text,
        "problem": answer.problem,
        "answer": answer.body,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def _threads(count: int, client: ChatClient) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool; on an error or Ctrl-C ask no more, but keep what is being answered."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


SOURCES: dict[str, Callable[[ClassList, Path, DescribeConfig], _Found]] = {
    "file": _from_file,
    "llm": _from_llm,
    "wordnet": _from_wordnet,
}
"""Where descriptions come from, by the name that a user gives."""
