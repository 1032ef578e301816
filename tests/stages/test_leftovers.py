"""What a kill in the middle of a write leaves in a run's folder is gone when the run has ended."""

from pathlib import Path

import pytest
from tiny_runs import distil


@pytest.mark.parametrize(
    "place", [".", "features", "checkpoints/last", "references/untrained", "predictions"]
)
def test_a_half_written_file_is_removed(root: Path, place: str) -> None:
    run = distil(root, "killed")
    half = run / place / ".state.json.17.partial"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text('{"st')
    (run / "done").unlink()  # as if it had been killed before its end
    assert distil(root, "killed") == run
    assert not half.exists()
    assert (run / "done").is_file()
