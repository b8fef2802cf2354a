"""Folders kept by the hash of all that decides them: written whole or not at all, and made again if they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from excise.disk import disk_errors_of

__all__ = ["clear_leftovers", "digest", "digest_as_kept", "file_hash", "file_hashes", "is_whole", "keep_folder"]

LISTED = "files.json"
"""The hashes of the other files of a kept folder."""


def digest(content: Mapping[str, Any]) -> str:
    """The hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def digest_as_kept(content: Mapping[str, Any]) -> str:
    """The same before and after the data were in a result's JSON, which has no infinity and writes null."""
    return digest(from_json(to_json(content, inf_nan_mode="null", fallback=str)))


def is_whole(folder: Path) -> bool:
    """Whether every file of a kept folder is as it was written."""
    try:
        listed = json.loads((folder / LISTED).read_text())
        return listed == {name: value for name, value in file_hashes(folder).items() if name != LISTED}
    except (OSError, ValueError, RecursionError):
        return False


def keep_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder and rename it to its place, where it replaces a damaged one.

    Several processes may do so at once: what one of them has put there whole, the others leave, as readers may be in it.
    """
    with disk_errors_of(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            write(fresh)
            (fresh / LISTED).write_text(json.dumps(file_hashes(fresh)))
            if is_whole(place):
                return
            with contextlib.suppress(FileNotFoundError):
                place.rename(Path(temporary) / "damaged")
            try:
                fresh.rename(place)
            except OSError:
                if not is_whole(place):
                    raise


def clear_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-made in a folder of kept things; nobody else may be writing to it."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): file_hash(path) for path in files}


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
