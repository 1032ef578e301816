import json

import pytest
import torch

from attar import device as devices
from attar.errors import UsageError


def test_auto_is_the_best_device_here() -> None:
    device = devices.pick_device()
    if torch.cuda.is_available():
        assert device.type == "cuda"
    else:
        assert device.type in {"mps", "cpu"}
    assert torch.ones(2, device=device).sum() == 2


def test_devices_are_named_and_numbered() -> None:
    assert devices.pick_device("cpu") == torch.device("cpu")
    assert devices.pick_device("cpu:0").type == "cpu"


def test_the_environment_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTAR_DEVICE", "cpu")
    assert devices.pick_device() == torch.device("cpu")
    monkeypatch.setenv("ATTAR_DEVICE", "gpu")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        devices.pick_device()


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "cuda0", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        devices.pick_device(name)


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(UsageError, match="is not on this machine"):
        devices.pick_device("cuda:99")


def test_every_supported_precision_runs_and_fp32_is_exact() -> None:
    device = devices.pick_device()
    layer, x = torch.nn.Linear(8, 8).to(device), torch.randn(4, 8, device=device)
    expected = layer(x)
    precisions = devices.supported_precisions(device)
    assert precisions[0] == "fp32"
    for precision in precisions:
        with devices.autocast(device, precision):
            result = layer(x)
        assert result.dtype == devices.DTYPES[precision]
        assert torch.equal(result, expected) == (precision == "fp32")


def test_an_unsupported_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown precision on cpu 'fp8'.*bf16, fp32"):
        devices.autocast(torch.device("cpu"), "fp8")


def test_channels_last_changes_the_layout_only() -> None:
    layer = torch.nn.Conv2d(3, 8, 3)
    x = torch.randn(1, 3, 8, 8)
    expected = layer(x)
    assert devices.to_channels_last(layer) is layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), expected)


def test_threads_are_limited_to_the_usable_cores() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(devices.usable_cores() + 3)
        assert devices.limit_threads() == devices.usable_cores()
        assert devices.limit_threads(1) == torch.get_num_threads() == 1
        assert devices.limit_threads() == 1, "a lower number that was asked for is kept"
    finally:
        torch.set_num_threads(before)


def test_summary_is_plain_json() -> None:
    summary = devices.device_summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["torch"] == torch.__version__
    assert summary["cores"] >= 1
    devices.synchronize(devices.pick_device())


def test_full_fp32_is_undone_even_after_an_error() -> None:
    before = torch.backends.cudnn.allow_tf32
    with devices.full_fp32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(UsageError), devices.full_fp32():
        devices.pick_device("gpu")
    assert torch.backends.cudnn.allow_tf32 == before


class _Raising(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise RuntimeError("no such thing")


def test_what_a_living_worker_raises_stays_what_it_is() -> None:
    loader = torch.utils.data.DataLoader(_Raising(), num_workers=1)
    with (
        pytest.raises(RuntimeError, match="in DataLoader worker process 0") as raised,
        devices.naming_dead_workers("run it again"),
    ):
        list(loader)
    assert "no such thing" in str(raised.value)
