"""Writing results whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from excise import processes
from excise.disk import alone_on, beside, disk_errors_of
from excise.errors import OutputError

__all__ = ["check_output", "writing"]

RESULTS = ("result.json", "excise-result.json", "scan.json")
SIGNATURE = "model.sig"
"""What `excise sign` and model-signing's own tools put into a folder."""
LONGEST_NAME = 240
"""Bytes in the name of an output folder: 255 is the limit of most file systems, and what excise keeps beside it has a longer name."""
WRITTEN = {".json", ".safetensors", ".html", ".sarif", ".jinja", ".model", ".png", ".svg"}
"""Endings of what excise writes, apart from four files of fixed names."""


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
    _recover(folder)
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
    if any("\ud800" <= c <= "\udfff" for c in str(folder.absolute())):
        raise OutputError(f"{folder.absolute()} is no UTF-8, which libraries need to write there. Give another --out.")
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
    """A hidden folder beside `folder` that takes its place only if the block ends well.

    A kill at any moment leaves the earlier result or the new one, and perhaps the hidden folder, which the next run clears away.

    Raises:
        OutputError: Another run is writing there, or something cannot be written, for example because the disk is full.
    """
    folder = folder.absolute()
    place = beside(folder, "part")
    with alone_on(folder), disk_errors_of(folder):
        check_output(folder, overwrite=overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        try:
            (fresh := place / "new").mkdir(parents=True)
            yield fresh
            old = place / "old"
            if folder.exists():
                folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)  # better the earlier result than none
                raise
        finally:
            if folder.exists() or not (place / "old").exists():
                shutil.rmtree(place, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Finish what a kill between the two renamings of `writing` left: the new result whole, but not in its place, and the earlier one aside."""
    place = beside(folder, "part")
    if (place / "old").exists() and not folder.exists():
        with alone_on(folder), disk_errors_of(folder):
            (place / "new" if (place / "new").exists() else place / "old").rename(folder)


def _is_result(path: Path) -> bool:
    """Whether a file is a result of excise, without trusting what else it says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"version", "kind", "environment"} <= found.keys()


def _is_written(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return (path / "config.json").is_file() and all(map(_is_written, path.iterdir()))
    return path.suffix in WRITTEN or path.name in ("README.md", "vocab.txt", "merges.txt", SIGNATURE)
