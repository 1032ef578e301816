"""`attar store`: look after a folder of teacher embeddings."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.run import DataConfig


def info(store: Path, /) -> None:
    """Show whose embeddings a store holds, how many, and in which views.

    For example:

    `attar store info store/`

    Parameters
    ----------
    store
        The store's folder.
    """
    from attar.store.store import store_info

    print(json.dumps(store_info(store), indent=2, ensure_ascii=False))


def verify(
    store: Path,
    /,
    *,
    data: Annotated[DataConfig | None, Parameter(name="*")] = None,
    teacher: str | None = None,
    sample: int = 64,
    tolerance: float = 0.999,
    repair: bool = False,
) -> None:
    """Check a store's files, and ask the teacher again for a random sample; fail on drift.

    For example:

    `attar store verify store/ --data photos/ --teacher ViT-B-32/openai`

    `attar store verify store/ --repair`

    Parameters
    ----------
    store
        The store's folder.
    teacher
        The teacher to ask again; without it only the files are checked.
    sample
        How many images and texts to ask for.
    tolerance
        Smallest cosine between the stored and the new answer.
    repair
        Drop damaged shards, so that `attar embed` fills them again.
    """
    from attar.errors import AttarError, UsageError
    from attar.stages.images import read_image_table
    from attar.store.store import Store
    from attar.store.verify import check_files, repair_store, verify_store
    from attar.teachers.normalisation import as_known
    from attar.teachers.registry import load_teacher

    if repair:
        dropped = repair_store(store)
        print(f"{store}: {len(dropped)} damaged files dropped; `attar embed` asks for them again")
        return
    if teacher is None or data is None:
        damaged = check_files(store)
        if damaged:
            raise AttarError(
                f"{damaged[0].file}: {damaged[0].reason}; `attar store verify {store} --repair` "
                "drops damaged shards"
            )
        if data is not None or teacher is not None:
            raise UsageError("to ask the teacher again give both --data and --teacher")
        print(f"{store}: every file has its checksum")
        return
    table = read_image_table(data, None, store)
    asked = as_known(load_teacher(teacher), Store.open(store).info.teacher.identity)
    print(verify_store(store, asked, table, sample=sample, tolerance=tolerance))


def import_(
    folder: Path,
    /,
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    teacher: str,
    out: Path,
    logit_scale: float = 100.0,
) -> None:
    """Take over embeddings that someone published in clip-retrieval's layout.

    Images are matched by path relative to --data; published texts come along. A run can then
    distil with `--store OUT` and never ask the teacher.

    For example:

    `attar store import published/ --data photos/ --teacher ViT-L-14/openai --out store/`

    Parameters
    ----------
    folder
        Folder with img_emb/, metadata/ and perhaps text_emb/.
    teacher
        The name of the model that made the embeddings, as it will be shown.
    out
        The store to fill.
    logit_scale
        The teacher's factor on cosines.
    """
    from attar.stages.images import read_image_table
    from attar.store.importing import import_store, imported_teacher

    table = read_image_table(data, None, out)
    print(import_store(folder, table, out, imported_teacher(folder, teacher, logit_scale)))
