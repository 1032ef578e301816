"""The way out that a run with a damaged student is told leads to the same student."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import distil

from attar.errors import AttarError
from attar.records import read_records
from attar.run import DataConfig
from attar.stages.comparing import Comparison, gather


def test_students_that_were_cut_are_made_again_as_told(root: Path) -> None:
    run = distil(root, "cut")
    file = run / "student" / "model.safetensors"
    whole, records = file.read_bytes(), len(list(read_records(run / "results.jsonl")))
    file.write_bytes(whole[: len(whole) // 2])
    asked = Comparison(run=run, data=DataConfig(data=(root / "new",)), out=root / "never")
    with pytest.raises(AttarError, match=r"delete it and the file `done` of its run"):
        gather(asked)
    shutil.rmtree(run / "student")
    reference = run / "references" / "untrained"
    untrained = (reference / "model.safetensors").read_bytes()
    shutil.rmtree(reference)
    (run / "done").unlink()
    distil(root, "cut")
    assert file.read_bytes() == whole
    assert (reference / "model.safetensors").read_bytes() == untrained
    assert len(list(read_records(run / "results.jsonl"))) == records
