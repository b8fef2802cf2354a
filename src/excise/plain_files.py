"""Files from strangers: ordinary ones only, of bounded size, with JSON that says each thing once, and safetensors headers that fit their file."""

from __future__ import annotations

import json
import math
import os
import stat
from codecs import iterdecode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

from excise.errors import CheckpointError
from excise.memory import json_cost

__all__ = ["Size", "Tensor", "opened", "read_header", "read_json", "refuse"]


class Size(NamedTuple):
    """The most that a JSON text may hold. Parsed values take far more memory than their text, so both are bounded."""

    bytes: int
    parsed: int
    """Bytes that its values may take in memory, by `json_cost`."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    """How it is read. latin-1 keeps a large text at one byte a character; characters beyond ASCII then look wrong, but the structure is the same."""


HEADER = Size(16 * 2**20, 160 * 2**20)
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Types of weights that are read, and their sizes."""


class Tensor(NamedTuple):
    """What the header of a safetensors file says about one weight."""

    dtype: str
    shape: tuple[int, ...]


@contextmanager
def opened(folder: Path, name: str, source: str) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of the folder, and its size; a link may lead within the folder, or to where the hub's cache keeps its files."""
    path, home = os.path.realpath(folder / name), Path(os.path.realpath(folder))
    cache = home.parents[1] / "blobs" if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--") else home
    if not any(Path(path).is_relative_to(place) for place in (home, cache)):
        refuse(source, f"{name} is a link that leads out of the folder. Put the file itself there.")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would wait, a device may act
            refuse(source, f"{name} is no ordinary file but a folder, pipe or device. Restore it.")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            yield file, os.fstat(descriptor).st_size
    except OSError as error:
        raise CheckpointError(f"{source}: {name} cannot be read ({error.strerror}). Check that the folder is complete.") from error


def refuse(source: str, what: str) -> NoReturn:
    """Raise a `CheckpointError` about the checkpoint that the user called `source`."""
    raise CheckpointError(f"{source}: {what}")


def read_json(folder: Path, name: str, most: Size, source: str) -> tuple[bytes, dict[str, Any]]:
    """The content of a JSON file, and the object that it holds.

    Raises:
        CheckpointError: It is no ordinary file of the folder, is too large, or is no JSON object; or it names a key twice, or a number that is none.
    """
    with opened(folder, name, source) as (file, size):
        if size > most.bytes:
            refuse(source, f"{name} is {size} bytes long, of at most {most.bytes}. Restore it.")
        content = file.read(most.bytes)
    return content, parse_json(content, most, name, source)


def parse_json(content: bytes, most: Size, name: str, source: str) -> dict[str, Any]:
    """The object in a JSON text."""
    if json_cost(content) > most.parsed:
        refuse(source, f"{name} holds more values than fit {most.parsed // 2**20} MB of memory. Restore it.")
    try:
        for _ in iterdecode((content[i : i + 2**20] for i in range(0, len(content), 2**20)), "utf-8"):
            pass
        found = json.loads(content.decode(most.encoding), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: {name} cannot be read ({str(error)[:100]}). Restore it.") from error
    if not isinstance(found, dict):
        refuse(source, f"{name} holds no JSON object. Restore it.")
    return found


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def read_header(folder: Path, name: str, source: str) -> dict[str, Tensor]:
    """The types and shapes of the weights in a safetensors file, which must fill it exactly.

    Raises:
        CheckpointError: The header is not what safetensors writes, or does not fit the file.
    """
    with opened(folder, name, source) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            refuse(source, f"{name} is cut short: {size} bytes. Check that the folder is complete.")
        if length > HEADER.bytes:
            refuse(source, f"the header of {name} is {length} bytes long, of at most {HEADER.bytes}. Restore the file.")
        header = parse_json(file.read(length), HEADER, f"the header of {name}", source)
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for key, entry in header.items():
        tensors[key], span = _tensor(key, entry, name, source)
        spans.append(span)
    end = 0
    for begin, after in sorted(spans):
        if begin != end:
            refuse(source, f"the weights in {name} overlap or leave a gap at byte {end}. Restore the file.")
        end = after
    if 8 + length + end != size:
        refuse(source, f"{name} should be {8 + length + end} bytes long but is {size}. Check that the folder is complete.")
    return tensors


def _tensor(key: str, entry: Any, name: str, source: str) -> tuple[Tensor, tuple[int, int]]:
    what = f"{name}: the weight {key[:80]!r}"
    if len(key) > 500 or not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(source, f"{what} is not described by dtype, shape and data_offsets. Restore the file.")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        refuse(source, f"{what} is of type {str(dtype)[:20]!r}; one of {', '.join(BYTES)} was expected. Save the weights unpacked.")
    if not (_are_counts(shape) and len(shape) <= 8 and _are_counts(span) and len(span) == 2):
        refuse(
            source, f"{what} has the shape {str(shape)[:60]} and the place {str(span)[:60]}; whole numbers from 0 were expected. Restore the file."
        )
    if span[1] - span[0] != BYTES[dtype] * math.prod(shape):
        refuse(source, f"{what} of shape {shape} takes {BYTES[dtype] * math.prod(shape)} bytes, but has {span[1] - span[0]}. Restore the file.")
    return Tensor(dtype, tuple(shape)), (span[0], span[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**40 for value in values)
