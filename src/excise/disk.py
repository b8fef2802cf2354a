"""Files that survive faults: a place has one writer at a time, a file is there whole or not at all, and a full disk is told as what it is."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from excise import processes
from excise.errors import OutputError

__all__ = ["alone_on", "beside", "disk_errors_of", "write_whole"]

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
"""Faults of a disk rather than of a program."""
TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What a lock answers that another process holds; anything else means that the file system has no locks."""
_held: set[Path] = set()


def beside(place: Path, ending: str) -> Path:
    """The hidden neighbour of an output that excise keeps for it, such as `.fixed.excise-lock` of `fixed`."""
    place = place.absolute()
    return place.with_name(f".{place.name}.excise-{ending}")


@contextlib.contextmanager
def alone_on(place: Path, *, part: str = "lock") -> Iterator[None]:
    """Keep other processes from writing to `place` until the block ends; inside such a block of the same process it does nothing.

    The lock is the operating system's, on a file beside the place, so it ends with the process however that ends. Of several processes that
    compute together only the first, which writes, takes it.

    Args:
        place: A folder or file, which need not exist.
        part: Writers of different parts do not exclude each other.

    Raises:
        OutputError: Another process is writing to it.
    """
    path = beside(Path(os.path.realpath(place)), part)
    if processes.index() or path in _held:
        yield
        return
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError:  # nothing can be made there; whoever writes will say so, and why
        yield
        return
    if file is None:
        raise OutputError(f"Another run is writing to {place}. Wait until it has ended, or give another --out.")
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            path.unlink()  # while the lock is held: whoever opens the name from now on makes a file of its own
        file.close()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # unless something is in it


def _locked(path: Path) -> IO[bytes] | None:
    """The file, opened and locked; None if another process holds it."""
    while True:
        file = path.open("ab")
        try:
            _lock(file)
        except OSError as error:
            if error.errno in TAKEN:
                file.close()
                return None
            return file  # a file system without locks: better to work without than not at all
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # its owner ended, and took the name away, between our opening it and our locking it


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_whole(path: Path, content: str) -> None:
    """Write a text file that is there whole or, after a fault at whatever moment, as it was before.

    Raises:
        OutputError: The disk is full, read-only or ill.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_text(content, encoding="utf-8")
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def disk_errors_of(place: Path) -> Iterator[None]:
    """Tell faults of the disk inside the block as an `OutputError` about `place`."""
    try:
        yield
    except Exception as error:
        if _is_disk_error(error):
            raise OutputError(f"{place} could not be written: {error}. Free some space, or give another --out that you may write to.") from error
        raise


def _is_disk_error(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK
    return type(error).__name__ == "SafetensorError" and any(f"os error {code})" in str(error) for code in DISK)
