"""`attar bench embeddings`: what should stand for a class?"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.run import DataConfig
from attar.store.config import EmbedConfig


def embeddings(
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    out: Path,
    teacher: str | None = None,
    store: Path | None = None,
    domains: tuple[str, ...] = (),
    neighbours: int = 10,
    seed: int = 0,
    embed: Annotated[EmbedConfig, Parameter(name="--embed")] = EmbedConfig(),
) -> None:
    """Measure a teacher under six class embeddings, E1 to E6 of VL2V, with each domain held out.

    Prompts, prompts of the source domains, mean images and nearest images; nothing is trained. Two
    of the six are oracles, made of the held-out domain's own labelled images, and say so.

    For example:

    `attar bench embeddings --data PACS/ --teacher pocket --out runs/embeddings`

    Parameters
    ----------
    out
        Folder of results.jsonl, table.md and, unless another is given, the store.
    teacher
        As in `attar distill`; not needed when --store holds everything already.
    store
        Where the teacher's answers are kept.
    domains
        A domain to hold out; may be given several times; all by default.
    neighbours
        How many of a class's images next to the image that is asked about stand for it.
    seed
        Of DomainBed's splits: the source images are the training part.
    """
    from attar.bench.embeddings import EmbeddingsRequest, run_embeddings
    from attar.device import prepare_process

    prepare_process()
    folder = run_embeddings(
        EmbeddingsRequest(
            data=data,
            teacher=teacher,
            out=out,
            store=store,
            domains=domains,
            neighbours=neighbours,
            seed=seed,
            embed=embed,
        )
    )
    print((folder / "table.md").read_text(encoding="utf-8"))
