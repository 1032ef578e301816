"""Does `attar select-texts` find the sentences that images can see? Two experiments.

    python scripts/selection_table.py --images STORE --captions flickr8k-captions.txt \\
        --others wikitext2-sentences.txt --out runs/selection --results docs/results/text-selection
    python scripts/selection_table.py --scale 0.5 1 2.5 5 --out runs/selection \\
        --results docs/results/text-selection

The first mixes captions with encyclopedia sentences, selects a tenth, and writes mixture.json and
mixture.md to RESULTS: how well the score tells captions from the rest (AUROC, beside the length of
the sentence and a random order), and how well the chosen tenth covers the images beside a random
tenth; OUT/selected-tenth.txt and OUT/random-tenth.txt hold both. The second selects from synthetic
embeddings [N, 512], N in millions, each in a process of its own, and writes time and peak memory to
scale.json and scale.md; a size that is there is not run again.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from attar import pipeline
from attar.bench.markdown import markdown
from attar.data.sentences import read_sentences
from attar.files import read_json, sha256_file, write_json, write_text
from attar.language.selection import Selection, select, unit
from attar.language.selection_config import SelectionConfig
from attar.language.selection_search import nearest_cosines
from attar.run import DataConfig
from attar.store.store import Store

WIDTH, PART, IMAGES = 512, 65_536, 20_000


def measure_mixture(asked: argparse.Namespace) -> dict[str, Any]:
    """Select a tenth of captions and other sentences together; return every figure."""
    captions, others = read_sentences(asked.captions), read_sentences(asked.others)
    mixture = asked.out / "mixture.txt"
    write_text(mixture, "\n".join([*captions, *others]) + "\n")
    sentences = asked.out / "sentences"
    pipeline.embed(DataConfig(data=()), asked.teacher, sentences, texts=mixture)
    texts, images = Store.open(sentences), Store.open(asked.images)
    lines = texts.captions(np.arange(texts.num_texts))
    known = set(captions)
    is_caption = np.array([line in known for line in lines])
    config = SelectionConfig(count=texts.num_texts // 10, seed=asked.seed)
    selection = select(texts, images, config, asked.out / "parts")
    lengths = np.array([len(line) for line in lines])
    random = np.random.default_rng(asked.seed)
    drawn = random.choice(len(lines), config.count, replace=False)
    files = {}
    for name, rows in (("selected-tenth.txt", selection.chosen), ("random-tenth.txt", drawn)):
        write_text(asked.out / name, "\n".join(texts.captions(rows)) + "\n")
        files[name] = sha256_file(asked.out / name)
    drawn_captions = random.choice(np.flatnonzero(is_caption), config.count, replace=False)
    return {
        "sentences": len(lines),
        "captions": int(is_caption.sum()),
        "images": len(selection.anchors.features),
        "auroc": {
            "score": float(roc_auc_score(is_caption, selection.scores)),
            "shortness": float(roc_auc_score(is_caption, -lengths)),
            "random": float(roc_auc_score(is_caption, random.random(len(lines)))),
        },
        "chosen": config.count,
        "captions_chosen": float(is_caption[selection.chosen].mean()),
        "coverage": {
            "selected tenth": coverage(selection, texts, selection.chosen),
            "random tenth": coverage(selection, texts, drawn),
            "random tenth of captions alone": coverage(selection, texts, drawn_captions),
            "all": coverage(selection, texts, np.arange(len(lines))),
        },
        "sha256": files,
    }


def coverage(selection: Selection, texts: Store, rows: np.ndarray) -> float:
    """Return the mean over images of the greatest cosine with any of these sentences."""
    features = unit(texts.features_of_texts(np.sort(rows)))
    return float(nearest_cosines(selection.anchors.features, features).mean())


def mixture_table(found: dict[str, Any]) -> str:
    head = ["", "AUROC, captions against the rest", "coverage of the images"]
    body = [[name, f"{value:.3f}", ""] for name, value in found["auroc"].items()]
    body += [[name, "", f"{value:.4f}"] for name, value in found["coverage"].items()]
    note = (
        f"{found['captions']:,} captions among {found['sentences']:,} sentences, "
        f"{found['images']:,} images; {100 * found['captions_chosen']:.1f} % of the "
        f"{found['chosen']:,} chosen are captions. Coverage: mean over the images of the greatest "
        "cosine with a sentence of the set."
    )
    return f"{markdown(head, body)}\n\n{note}\n"


def make_synthetic(folder: Path, texts: int) -> tuple[Path, Path]:
    """Write stores of random sentences and images, [N, 512]."""
    from attar.store.writer import StoreWriter
    from attar.teachers.base import TeacherInfo

    teacher = TeacherInfo(name="random", identity="0" * 64, dim=WIDTH, logit_scale=100.0)
    random = np.random.default_rng(0)
    with StoreWriter.open(folder / "texts", teacher, shard_rows=PART, commit_seconds=1e9) as writer:
        for start in range(0, texts, PART):
            rows = range(start, min(start + PART, texts))
            features = random.standard_normal((len(rows), WIDTH), dtype=np.float32)
            writer.add_texts([f"sentence {row}" for row in rows], features)
    with StoreWriter.open(
        folder / "images", teacher, shard_rows=PART, commit_seconds=1e9
    ) as writer:
        names = [f"{row}.png" for row in range(IMAGES)]
        keys = [f"{row:064x}" for row in range(IMAGES)]
        writer.add_images(keys, names, "clean", random.standard_normal((IMAGES, WIDTH), np.float32))
    return folder / "texts", folder / "images"


def measure_synthetic(asked: argparse.Namespace, millions: float) -> dict[str, Any]:
    """Select from stores that are there, in this process, and say what it took."""
    texts = Store.open(asked.out / "synthetic" / "texts")
    images = Store.open(asked.out / "synthetic" / "images")
    config = SelectionConfig(count=texts.num_texts // 10, search=asked.search)
    began = time.monotonic()
    selection = select(texts, images, config, asked.out / "synthetic" / "parts")
    return {
        "sentences": texts.num_texts,
        "millions": millions,
        "images": IMAGES,
        "search": asked.search,
        "seconds": time.monotonic() - began,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "chosen": len(selection.chosen),
    }


def measure_scale(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each size that is not measured yet, in a process of its own."""
    file = asked.results / "scale.json"
    found = {line["millions"]: line for line in read_json(file)} if file.is_file() else {}
    for millions in asked.scale:
        if millions in found:
            continue
        folder = asked.out / "synthetic"
        shutil.rmtree(folder, ignore_errors=True)
        make_synthetic(folder, round(millions * 1e6))
        words = ["--measure", str(millions), "--out", asked.out, "--search", asked.search]
        said = subprocess.run(
            [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE
        )
        shutil.rmtree(folder)
        found[millions] = json.loads(said.stdout)
        write_json(file, [found[size] for size in sorted(found)])
    return [found[size] for size in sorted(found)]


def scale_table(found: Sequence[dict[str, Any]]) -> str:
    head = ["sentences", "chosen", "minutes", "peak memory, MB"]
    body = [
        [
            f"{line['sentences']:,}",
            f"{line['chosen']:,}",
            f"{line['seconds'] / 60:.1f}",
            f"{line['peak_mb']:,.0f}",
        ]
        for line in found
    ]
    note = f"Random embeddings of {WIDTH} numbers, {IMAGES:,} images, a tenth chosen, one process."
    return f"{markdown(head, body)}\n\n{note}\n"


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a store with images")
    parser.add_argument("--captions", type=Path, help="sentences that describe images")
    parser.add_argument("--others", type=Path, help="sentences that do not")
    parser.add_argument("--teacher", default="pocket")
    parser.add_argument("--scale", nargs="+", type=float, default=[], help="millions of sentences")
    parser.add_argument("--search", default="auto", help="as in attar select-texts")
    parser.add_argument("--out", type=Path, required=True, help="stores and parts")
    parser.add_argument("--results", type=Path, help="tables; OUT by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    asked.results = asked.results or asked.out
    if (
        asked.measure is None
        and not asked.scale
        and not (asked.images and asked.captions and asked.others)
    ):
        parser.error("give --images, --captions and --others, or --scale")
    return asked


def main(words: Sequence[str] | None = None) -> None:
    asked = read_options(words)
    if asked.measure is not None:
        sys.stdout.write(json.dumps(measure_synthetic(asked, asked.measure)))
        return
    if asked.images:
        found = measure_mixture(asked)
        write_json(asked.results / "mixture.json", found)
        write_text(asked.results / "mixture.md", mixture_table(found))
        sys.stdout.write(mixture_table(found))
    if asked.scale:
        table = scale_table(measure_scale(asked))
        write_text(asked.results / "scale.md", table)
        sys.stdout.write(table)


if __name__ == "__main__":
    main()
