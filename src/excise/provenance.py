"""Where a result comes from and whether it is still what was written: SHA-256 of every file that went in and came out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from excise.errors import CheckpointError, DataError
from excise.front_door import files_of
from excise.kept import file_hash, file_hashes
from excise.output import RESULTS, SIGNATURE
from excise.plain_files import opened
from excise.result import MOST_BYTES, Record, read_bounded

__all__ = ["checkpoint_hashes", "hash_inputs", "save_sealed", "verify"]


def hash_inputs(settings: Any, *, checkpoint: tuple[str, Path] | None = None) -> dict[str, str]:
    """SHA-256 of every file, and of the files of every checkpoint folder, that settings name.

    Args:
        settings: Plain data, of options and methods; what stands under `out` is no input.
        checkpoint: A checkpoint by the name that the user gave it, and its folder, for one that is no folder by name.
    """
    places = {name: Path(os.path.expanduser(name)) for name in _texts(settings)}
    places |= dict([checkpoint] if checkpoint else [])
    found: dict[str, str] = {}
    for name, place in places.items():
        if os.path.isfile(place / "config.json"):
            found |= {f"{name}/{file}": value for file, value in checkpoint_hashes(place).items()}
        elif name and os.path.isfile(place):
            found[name] = file_hash(place)
    return found


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint that excise reads, as far as the front door lets them in; nothing else in the folder is opened."""
    found: dict[str, str] = {}
    for name in files_of(folder):
        with contextlib.suppress(CheckpointError), opened(folder, name, str(folder)) as (file, _):
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        if 0 < len(settings) < 4096 and "\0" not in settings:
            yield settings
            yield from _values(settings)
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            if key != "out":
                yield from _texts(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value)


def _values(words: str) -> Iterator[str]:
    """What a method in words, `name field=value ...`, says of its fields."""
    with contextlib.suppress(ValueError):  # an apostrophe, in what is no such thing
        for word in shlex.split(words)[1:]:
            yield from _texts(word.partition("=")[2])


def save_sealed(result: Record, path: Path) -> None:
    """Write a result last, with the hash of every other file of its folder."""
    others = {name: value for name, value in file_hashes(path.parent).items() if name != path.name}
    result.model_copy(update={"outputs": others}).save(path)


def verify(folder: Path, *, inputs: bool = False) -> tuple[dict[str, Any], int]:
    """Compare a folder with the result in it. A signature beside it is no part of what was written; `check_signature` looks at it.

    Args:
        folder: What `excise repair` or another command wrote.
        inputs: Look at the files that went in as well, which must be where they were.

    Returns:
        What the result file says, and how many files are as they were.

    Raises:
        DataError: There is no result, or it has no hashes, or a file is not what was written; the message names it.
    """
    path = next((folder / name for name in RESULTS if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds no result of excise ({', '.join(RESULTS)}). Give a folder that excise wrote.")
    record = _read(path)
    outputs: Any = record.get("outputs")
    given: Any = record.get("inputs")
    if not (_are_hashes(outputs) and _are_hashes(given)) or not outputs:
        raise DataError(f"{path} has no hashes of the files beside it: an earlier version of excise wrote it, or it is damaged. Make it again.")
    there = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()}
    there = {name: file for name, file in there.items() if name not in (path.name, SIGNATURE)}
    wrong = [f"{name} is missing" for name in outputs if name not in there]
    wrong += [f"{name} was added" for name in sorted(there.keys() - outputs.keys())]
    both = [(name, there[name]) for name in outputs if name in there]
    wrong += [f"{name} was changed" for name, file in both if not _is_plain(file) or file_hash(file) != outputs[name]]
    for name, value in given.items() if inputs else ():
        place = os.path.expanduser(name)
        now = file_hash(Path(place)) if os.path.isfile(place) else None
        if now != value:
            wrong.append(f"the input {name} {'was changed since' if now else 'is not there any more'}")
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataError(f"{folder} is not what excise wrote: {wrong[0]}{more}. Do not rely on it; make it again.")
    return record, len(outputs) + (len(given) if inputs else 0)


def _is_plain(file: Path) -> bool:
    """No link, which may lead anywhere, and no pipe, which may never end."""
    return file.is_file() and not file.is_symlink()


def _read(path: Path) -> dict[str, Any]:
    """The result as plain data: those of other versions can be verified too."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} is larger than {MOST_BYTES >> 20} MB, which no result is.")
        found = json.loads(read_bounded(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {str(error)[:100]}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no result.")
    return found


def _are_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
