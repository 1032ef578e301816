"""Everything that depends on the device: choosing it, its precisions, threads, seeds and facts."""

import ctypes
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import PartialState
from torch import nn

from attar.errors import AttarError, UsageError, unknown_name

Precision = Literal["fp32", "bf16", "fp16"]
Module = TypeVar("Module", bound=nn.Module)

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str | None = None) -> torch.device:
    """Return the named device, or with "auto" the best one here: CUDA, then MPS, then CPU.

    The name is that in the environment's `ATTAR_DEVICE`, else "auto", where none is given. A GPU
    may be numbered ("cuda:1"). Raises `UsageError` for a name that is no device and for a device
    that this machine lacks.
    """
    name = os.environ.get("ATTAR_DEVICE", "auto") if name is None else name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isdecimal()):
        raise unknown_name("device", name, DEVICES)
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}[kind]
    if int(index or 0) >= count:
        raise UsageError(
            f"device {name!r} is not on this machine (it has {count} {kind}); use 'auto' or 'cpu'"
        )
    return torch.device(name)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def supported_precisions(device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions `autocast` can run on `device`, the exact one first.

    fp16 is left out on the CPU: autocast accepts it there, but its range needs a gradient scaler,
    which bf16 does without.
    """
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "bf16", "fp16") if bf16 else ("fp32", "fp16")
    if device.type == "mps":
        return ("fp32", "fp16")
    return ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass on `device` runs in `precision`.

    "fp32" is a plain context. Raises `UsageError` for a precision the device does not support.
    """
    supported = supported_precisions(device)
    if precision not in supported:
        raise unknown_name(f"precision on {device.type}", precision, supported)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def to_channels_last(module: Module) -> Module:
    """Store the 4-D weights of `module` as NHWC, which convolutions run faster on; returns it."""
    return module.to(memory_format=torch.channels_last)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Compute fp32 convolutions on a GPU in fp32; by default cuDNN rounds their inputs to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` is done, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def usable_cores() -> int:
    """Return how many cores this process may use: affinity and container quota counted."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")  # "max 100000" or "<quota> <period>"
    if quota_file.is_file():
        quota, _, period = quota_file.read_text().partition(" ")
        if quota.isdecimal() and int(period) > 0:
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def limit_threads(threads: int | None = None) -> int:
    """Give torch `threads` threads (default: no more than the usable cores) and return how many.

    In a container torch counts the host's cores, and threads beyond the quota slow every step.
    A lower number that the user set (OMP_NUM_THREADS) is kept.
    """
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of returning it to the system; say whether it does.

    A training step on the CPU allocates and frees the same large activations again and again. By
    default glibc maps and unmaps each of them, and every page is cleared by the kernel anew: with
    tf_efficientnet_lite0 at 128 px that is 40 % of a step. The price is memory that stays at its
    peak, so nothing is done on other systems, on a GPU, or where MALLOC_* variables are set.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc" or pick_device().type != "cpu":
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return bool(libc.mallopt(mmap_max, 0)) and bool(libc.mallopt(trim_threshold, 2**31 - 1))


class Processes:
    """The processes that run one command together; one alone where nothing launched more.

    `torchrun` and `accelerate launch` start the same command several times. What writes files is
    then done by the main process, and the others find it done.
    """

    def __init__(self) -> None:
        # Waiting for the main process to embed a large folder may take days.
        patience = (
            {"timeout": timedelta(days=7)} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
        )
        self._state = PartialState(cpu=pick_device().type == "cpu", **patience)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._state.process_index)

    @property
    def world(self) -> int:
        """How many processes there are."""
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self._state.is_main_process)

    def main_first(self) -> AbstractContextManager[Any]:
        """Hold the others back until the main process has left the block."""
        context: AbstractContextManager[Any] = self._state.main_process_first()
        return context

    def wait(self) -> None:
        """Wait until every process is here."""
        self._state.wait_for_everyone()


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers when it has put things right.

    What a DataLoader calls in each worker. One that is interrupted itself may hold a lock that the
    main process then waits for, or write its traceback to the screen.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def naming_dead_workers(advice: str) -> Iterator[None]:
    """Say in one line that a DataLoader's worker died, and what to do: `advice`.

    It belongs around what reads and around what computes between two batches, as a block or as a
    decorator: PyTorch raises its error in the main thread the moment a worker dies.

    Raises:
        AttarError: a worker died, most often because the system ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        # What a living worker raised arrives with "DataLoader worker" in its text as well.
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise AttarError(
            f"a process that reads images died ({str(error).rstrip(' .')}); {advice}"
        ) from error


def prepare_process() -> None:
    """Set this process up for long computing: threads within the quota, memory kept."""
    limit_threads()
    keep_freed_memory()


def device_summary() -> dict[str, Any]:
    """Return facts about this machine for environment.json: plain JSON values."""
    summary: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": str(pick_device()),
    }
    if torch.cuda.is_available():
        summary["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        summary["cuda"] = torch.version.cuda
        summary["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return summary


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
