from pathlib import Path

import pytest

from attar import pipeline


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that are run from here on."""
    names: list[str] = []
    distill = pipeline.distill

    def noting(config: object, out: Path, **rest: object) -> Path:
        names.append("/".join(out.parts[-3:]))
        return distill(config, out, **rest)

    monkeypatch.setattr(pipeline, "distill", noting)
    return names
