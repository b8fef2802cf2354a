"""Writing results whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from excise import processes
from excise.errors import OutputError

__all__ = ["check_output", "writing"]

RESULTS = ("result.json", "excise-result.json")
LONGEST_NAME = 240
"""Bytes in the name of an output folder: 255 is the limit of most file systems, and the temporary folder beside it has a longer name."""
WRITTEN = {".json", ".safetensors", ".html", ".jinja", ".model", ".png", ".svg"}
"""Endings of what excise writes, apart from three files of fixed names."""


def check_output(folder: Path, *, overwrite: bool, needed: int = 0, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse an output folder before any work is done; of several processes only the first, which writes, looks.

    Args:
        folder: Where the result shall go.
        overwrite: Whether a result that is there may be replaced.
        needed: Bytes that will be written, about.
        inputs: What the command reads; replacing it is refused.

    Raises:
        OutputError: The folder exists, cannot be made, or the disk is too full.
    """
    if processes.index():
        return
    if folder.exists() or folder.is_symlink():
        if not overwrite:
            raise OutputError(f"{folder} exists. Give another --out, or --overwrite to replace it.")
        if folder.is_symlink() or not folder.is_dir() or (any(folder.iterdir()) and not any(_is_result(folder / name) for name in RESULTS)):
            raise OutputError(f"{folder} was not written by excise, so --overwrite does not replace it. Give another --out.")
        foreign = sorted(path.name for path in folder.iterdir() if not _is_written(path))
        if foreign:
            raise OutputError(
                f"{folder} also holds {foreign[0]!r}, which excise did not write, so --overwrite does not replace it. Give another --out."
            )
        for source in filter(None, inputs):
            path = Path(source).expanduser()
            if path.exists() and path.resolve().is_relative_to(folder.resolve()):
                raise OutputError(f"{folder} holds {source}, which this command reads, so it cannot be replaced. Give another --out.")
    if len(os.fsencode(folder.name)) > LONGEST_NAME:
        length = len(os.fsencode(folder.name))
        raise OutputError(f"{folder.name[:40]}... is {length} bytes long; at most {LONGEST_NAME} are possible. Give another --out.")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{folder} cannot be written: {parent} is not a folder that you may write to. Give another --out.")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(f"{folder} needs about {needed / 1e6:.0f} MB, but the disk has {free / 1e6:.0f} MB left. Free some space.")


@contextmanager
def writing(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place only if the block ends well.

    Raises:
        OutputError: Something cannot be written, for example because the disk is full. Nothing is left behind.
    """
    check_output(folder, overwrite=overwrite)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
            fresh = Path(place) / "new"
            fresh.mkdir()
            yield fresh
            old = Path(place) / "old"
            if folder.exists():
                folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)  # better the earlier result than none
                raise
    except Exception as error:
        if _is_disk_error(error):
            raise OutputError(f"{folder} could not be written: {error}. Nothing was kept; free some space or give another --out.") from error
        raise


def _is_result(path: Path) -> bool:
    """Whether a file is a result of excise, without trusting what else it says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"version", "kind", "environment", "rows"} <= found.keys()


def _is_written(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return (path / "config.json").is_file() and all(map(_is_written, path.iterdir()))
    return path.suffix in WRITTEN or path.name in ("README.md", "vocab.txt", "merges.txt")


def _is_disk_error(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG)
    if isinstance(error, OSError):
        return error.errno in codes
    return type(error).__name__ == "SafetensorError" and any(f"os error {code}" in str(error) for code in codes)
