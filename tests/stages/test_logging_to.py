"""What a failing run says, and what it keeps in its log."""

import logging
from pathlib import Path

import pytest
import torch

from attar.errors import AttarError
from attar.run import RunFolder
from attar.stages.request import logging_to


def test_memory_that_ran_out_names_the_way_on_and_keeps_the_traceback(tmp_path: Path) -> None:
    with (
        pytest.raises(AttarError, match=r"memory ran out .*train\.log.*fewer --jobs") as caught,
        logging_to(RunFolder(tmp_path)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    log = (tmp_path / "train.log").read_text()
    assert "Traceback" in log
    assert "Tried to allocate 20.00 MiB" in log


def test_any_other_failure_goes_on_as_it_is_with_the_place_of_its_traceback(tmp_path: Path) -> None:
    handlers = list(logging.getLogger("attar").handlers)
    with pytest.raises(ZeroDivisionError) as caught, logging_to(RunFolder(tmp_path)):
        1 / 0  # noqa: B018
    assert caught.value.__notes__ == [f"traceback: {tmp_path / 'train.log'}"]
    assert "ZeroDivisionError" in (tmp_path / "train.log").read_text()
    assert logging.getLogger("attar").handlers == handlers
