"""What the numbers say, in plain words, and nothing that they do not."""

import math
from collections.abc import Sequence

from attar.report.tables import (
    ALL,
    HEADLINES,
    ROLES,
    SPLITS,
    ResultTable,
    Row,
    average_runs,
    metric_text,
    percent,
)


def verdict(tables: Sequence[ResultTable], num_runs: int) -> str:
    """One paragraph on the first table: the students against the teacher and the baselines."""
    if not tables:
        return "There are no results yet, so nothing can be said about this student."
    table = tables[0]
    if not any(row.series.role == "student" for row in table.rows):
        return f"Nobody measured a student on the {_place(table)}; the tables show what there is."
    many = num_runs > 1 and len(table.rows) > len({row.series for row in table.rows})
    spread = len([d for d in table.domains if d != ALL]) > 1 and num_runs > 1
    if many or spread:
        return _over_runs(table)
    sentences = [_one_student(table, row) for row in table.rows if row.series.role == "student"]
    if num_runs == 1:
        sentences.append("One run, one seed: how much another seed would change is not measured.")
    return " ".join(sentences)


def _one_student(table: ResultTable, student: Row) -> str:
    """A student's sentences: accuracy against the others, calibration, fidelity, spread."""
    metric = table.headline
    count = student.counts.get(ALL, 0)
    images = f" ({count:,} images)" if count else ""
    name = f"the student {_name(student)}"
    others = [row for row in table.rows if row.series.role != "student"]
    named = [row for row in others if row.series.role in ROLES]
    compared = _comparisons(metric, student, named)
    references = _comparisons(metric, student, [row for row in others if row not in named])
    value = student.value(metric)
    if not math.isfinite(value):
        return f"On the {_place(table)} {name} has no overall number."
    text = f"On the {_place(table)}{images} {name} {_does(metric, _share(value))}"
    text += (
        f": {_join(compared)}."
        if compared
        else "; there is no teacher or baseline to compare it with."
    )
    text += f" Against the references it is {_join(references)}." if references else ""
    return " ".join([text, *_worse(metric, student, others), *_details(table, student, others)])


def _does(metric: str, share: str) -> str:
    """Say in words what a student's headline number means."""
    if metric == "acc1":
        return f"is right on {share} of images"
    if metric == "agreement":
        return f"gives the teacher's answer on {share} of images"
    return f"has a {HEADLINES[metric]} of {share}"


def _worse(metric: str, student: Row, others: Sequence[Row]) -> list[str]:
    """Say it outright when a student falls below a baseline by more than rounding."""
    beaten_by = [
        _other(row)
        for row in others
        if row.series.role != "teacher"
        and round(1000 * (row.value(metric) - student.value(metric))) > 0
        and not _may_be_chance(metric, student, row, ALL)
    ]
    if not beaten_by:
        return []
    return [f"Here the student is worse than {_join(beaten_by)}."]


def _details(table: ResultTable, student: Row, others: Sequence[Row]) -> list[str]:
    sentences = []
    agreement, cosine = student.value("agreement"), student.value("mean_cosine")
    if math.isfinite(agreement) and table.headline != "agreement":
        text = f"It gives the teacher's answer on {_share(agreement)} of images"
        if math.isfinite(cosine):
            text += f", with a mean cosine of {metric_text('mean_cosine', cosine)}"
        sentences.append(text + ".")
    elif math.isfinite(cosine):
        text = f"Its features have a mean cosine of {metric_text('mean_cosine', cosine)}"
        sentences.append(text + " with the teacher's.")
    error = student.value("ece")
    if math.isfinite(error):
        text = f"Its confidence is off by {percent(error)} points on average"
        teachers = [row for row in others if row.series.role == "teacher"]
        if teachers and math.isfinite(teachers[0].value("ece")):
            text += f" (the teacher's, which nobody fitted, by {percent(teachers[0].value('ece'))})"
        sentences.append(text + ".")
    named = {d: student.value(table.headline, d) for d in table.domains if d != ALL}
    named = {domain: value for domain, value in named.items() if math.isfinite(value)}
    if len(named) > 1:
        low, high = min(named, key=named.__getitem__), max(named, key=named.__getitem__)
        sentences.append(
            f"Its weakest domain is {low} ({_share(named[low])}), "
            f"its strongest {high} ({_share(named[high])})."
        )
    return sentences


def _comparisons(metric: str, student: Row, others: Sequence[Row]) -> list[str]:
    texts = (_compare(metric, student, row, ALL) for row in others)
    return [text for text in texts if text is not None]


def _compare(metric: str, student: Row, other: Row, domain: str) -> str | None:
    """E.g. "15.7 points below the teacher pocket (82.0 %)"; None where a number is missing."""
    mine, theirs = student.value(metric, domain), other.value(metric, domain)
    if not (math.isfinite(mine) and math.isfinite(theirs)):
        return None
    if metric == "agreement" and other.series.role == "teacher":
        return None  # the teacher agrees with itself by definition
    text = f"{_difference(mine - theirs)} {_other(other)} ({_share(theirs)})"
    if _may_be_chance(metric, student, other, domain):
        count = student.counts.get(domain, 0)
        text += f", a gap that chance alone could make on {count:,} images"
    return text


def _difference(difference: float) -> str:
    points = round(100 * difference, 1)
    if points == 0:
        return "level with"
    word = "point" if abs(points) == 1 else "points"
    return f"{abs(points):.1f} {word} {'above' if points > 0 else 'below'}"


def _may_be_chance(metric: str, student: Row, other: Row, domain: str) -> bool:
    """Whether |p - q| < 1.96 · sqrt(p(1-p)/n + q(1-q)/m), the normal test of two proportions.

    It treats the two as independent; both saw the same images, so it errs on the careful side.
    """
    p, q = student.value(metric, domain), other.value(metric, domain)
    n, m = student.counts.get(domain, 0), other.counts.get(domain, 0)
    if not (n and m) or round(1000 * (p - q)) == 0:
        return False
    return abs(p - q) < 1.96 * math.sqrt(p * (1 - p) / n + q * (1 - q) / m)


def _over_runs(table: ResultTable) -> str:
    """Students averaged over runs, each compared on the domains that both have."""
    merged = average_runs(table)
    metric = table.headline
    named = [d for d in merged.domains if d != ALL] or [ALL]
    measured = [
        (row, [d for d in named if math.isfinite(row.value(metric, d))])
        for row in merged.rows
        if row.series.role == "student"
    ]
    what = HEADLINES[metric]
    sentences = []
    previous: list[str] = []
    for student, mine in sorted(
        (one for one in measured if one[1]),
        key=lambda item: -_mean(item[0], metric, item[1]),
    ):
        over = _count(mine) if mine != [ALL] else f"{len(student.runs)} runs"
        over = "the same domains" if mine == previous and len(mine) > 1 else over
        text = f"The student {_name(student)} has an average {what} of "
        text += f"{_share(_mean(student, metric, mine))} over {over}"
        compared = _average_comparisons(merged.rows, student, metric, mine)
        sentences.append(text + (f": {_join(compared)}." if compared else "."))
        previous = mine
    place = "held-out domains" if table.split == "held_out" else _place(table)
    return " ".join(
        [
            f"These are numbers on the {place}.",
            *sentences,
            "Every domain weighs alike, and differences are taken only over domains that both "
            "were measured on.",
        ]
    )


def _average_comparisons(
    rows: Sequence[Row], student: Row, metric: str, domains: Sequence[str]
) -> list[str]:
    """Compare with the teacher and each baseline, the one with most domains first."""
    texts = []
    teacher_done = False
    others = [row for row in rows if row.series.role != "student"]
    for other in sorted(others, key=lambda row: -len(row.values)):
        if other.series.role == "teacher" and (teacher_done or metric == "agreement"):
            continue
        both = [d for d in domains if math.isfinite(other.value(metric, d))]
        if not both:
            continue
        teacher_done = teacher_done or other.series.role == "teacher"
        gap = _mean(student, metric, both) - _mean(other, metric, both)
        text = f"{_difference(gap)} {_other(other)}"
        if len(both) > 1:
            better = sum(student.value(metric, d) > other.value(metric, d) for d in both)
            text += f" (better on {better} of {len(both)} domains)"
        elif list(both) != list(domains):
            text += f" (on {both[0]} only)"
        texts.append(text)
    return texts


def _share(value: float) -> str:
    return f"{percent(value)}\u00a0%"  # a line never breaks between the two


def _mean(row: Row, metric: str, domains: Sequence[str]) -> float:
    return sum(row.value(metric, d) for d in domains) / len(domains)


def _count(domains: Sequence[str]) -> str:
    if len(domains) == 1:
        return domains[0]
    shown = ", ".join(domains) if len(domains) <= 6 else ", ".join(domains[:6]) + ", …"
    return f"{len(domains)} domains ({shown})"


def _place(table: ResultTable) -> str:
    """E.g. "held-out domain sketch" or "test images of the training domains"."""
    words = SPLITS.get(table.split, table.split)
    named = [d for d in table.domains if d != ALL]
    return f"{words} {named[0]}" if table.split == "held_out" and len(named) == 1 else words


def _name(row: Row) -> str:
    """The method and the model, e.g. "vl2v-adip (tf_efficientnet_lite0)"."""
    method, model = row.series.method, row.series.model
    if method and model:
        return f"{method} ({model})"
    return method or model or row.series.role


_REFERENCES = {
    "untrained": "the untrained student",
    "constant-mean": "the constant mean embedding",
    "projection-only": "the backbone with only its projection fitted",
}


def _other(row: Row) -> str:
    """E.g. "the baseline erm"; a role beyond teacher and baseline needs no further name."""
    role, name = row.series.role, row.series.label.partition(" · ")[2]
    if role not in ROLES:
        return _REFERENCES.get(role, f"the {role}")
    if name in _REFERENCES:
        return f"the {role} ({_REFERENCES[name]})"
    return f"the {role} {name}".strip()


def _join(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    separator = "; " if any("," in part for part in parts) else ", "
    return separator.join(parts[:-1]) + " and " + parts[-1]
