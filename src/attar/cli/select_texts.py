"""`attar select-texts`: the sentences that images can see."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.language.selection_config import SelectionConfig


def select_texts(
    *,
    store: Path,
    out: Path,
    images: Path | None = None,
    options: Annotated[SelectionConfig, Parameter(name="*")],
) -> None:
    """Choose sentences of a store that its images can see and that together cover the images.

    OUT receives the chosen sentences (texts.jsonl) and a store of their embeddings alone (store),
    either to be given as `--texts`, a table of all sentences with score, nearest image and what
    became of them (selection.parquet), and a page with examples (page.md). The teacher is not
    asked; a killed command goes on where it stopped.

    For example:

    `attar select-texts --store store/ --count 10000 --out selected/`

    Parameters
    ----------
    store
        A store with sentences, made by `attar embed --texts`.
    out
        Folder for the results.
    images
        A store with images, of the same teacher; by default the same store.
    """
    import shutil

    from attar.device import prepare_process
    from attar.files import check_writable
    from attar.language.selection import select
    from attar.language.selection_output import PAGE, TEXTS, write_selection
    from attar.store.store import Store

    texts, pictures = Store.open(store), Store.open(images or store)
    check_writable(out)
    prepare_process()
    work = out / ".compared"  # not .parts: in a store those are other processes' embeddings
    selection = select(texts, pictures, options, work)
    covered = write_selection(selection, texts, pictures, options, out)
    shutil.rmtree(work)
    print(
        f"{out / TEXTS}: {len(selection.chosen):,} of {texts.num_texts:,} sentences; coverage "
        f"{covered.chosen:.3f}, {covered.random:.3f} at random; examples in {out / PAGE}"
    )
