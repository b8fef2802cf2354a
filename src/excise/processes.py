"""One command on several processes, as `accelerate launch` and `torchrun` start them: all of them compute, the first one writes and prints."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

__all__ = ["count", "index", "taking_part"]

_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
_LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


def count() -> int:
    """How many processes run this command together."""
    return _number(_COUNT, 1)


def index() -> int:
    """Which of them this one is; the first, 0, is the one that writes and prints."""
    return _number(_INDEX, 0)


@contextlib.contextmanager
def taking_part() -> Iterator[None]:
    """Around a command: one of several processes takes the GPU of its number, prints nothing unless it is the first, and leaves the group."""
    if count() == 1:
        yield
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(_number(_LOCAL, 0) % torch.cuda.device_count())
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing if index() else sys.stdout):
        try:
            yield
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdecimal()), default)
