"""Files with labelled texts from anyone: of bounded size, read as plain values, with nothing in them opened, fetched or decoded."""

from __future__ import annotations

import codecs
import csv
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from excise.errors import DataError, first_line
from excise.memory import free_memory, json_cost

__all__ = ["Table", "is_file", "read_file"]

FORMATS: dict[str, Literal["csv", "tsv", "json", "parquet"]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
MOST_BYTES = 2**30
"""The largest file, and the largest column that a compressed file may unpack to."""
MOST_ROWS = 20_000_000
ROW, CELL = 128, 56
"""Bytes of memory that a line and a cell take beside their characters."""


@dataclass(frozen=True)
class Table:
    """Columns of plain values."""

    columns: tuple[str, ...]
    rows: int
    column: Callable[[str], list[Any]]
    """The values of a column by its name."""
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For columns of class indices, the names of the classes."""


def is_file(name: str) -> bool:
    """Whether a file was named, in place of a data set of the hub.

    Raises:
        DataError: A folder was named, or a file that does not exist.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        raise DataError(f"{name} is a folder; a CSV, TSV, JSONL or Parquet file or a Hugging Face data set id was expected.")
    looks_local = path.suffix.lower() in FORMATS or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not os.path.exists(path):
        raise DataError(f"There is no file {name}. Give a CSV, TSV, JSONL or Parquet file or a Hugging Face data set id.")
    return os.path.exists(path)  # False, not an error, for what cannot be a name


def read_file(path: Path) -> Table:
    """Read a CSV, TSV, JSONL or Parquet file.

    Raises:
        DataError: It is no ordinary file, too large, empty, not UTF-8 or not of its format; or it vanished, or the disk cannot read it.
    """
    try:
        return _read_file(path)
    except OSError as error:  # pyarrow raises them for damaged files too
        raise DataError(f"{path} cannot be read ({first_line(error)}). Check that the file is there and whole.") from error


def _read_file(path: Path) -> Table:
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}; expected one of {', '.join(FORMATS)}. Rename or convert it.")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is no ordinary file but a pipe or device. Copy what it gives into a file.")
    if found.st_size == 0:
        raise DataError(f"{path} is empty; a file with a text and a label column was expected.")
    if found.st_size > MOST_BYTES:
        raise DataError(f"{path} has {found.st_size / 2**30:.1f} GB; at most {MOST_BYTES / 2**30:g} GB can be read. Give fewer texts.")
    if form != "parquet":
        _check_room(path, form)
        _check_utf8(path)
    try:
        match form:
            case "csv" | "tsv":
                table = _delimited(path, "," if form == "csv" else "\t")
            case "json":
                table = _json(path)
            case _:
                table = _parquet(path)
    except (DataError, OSError):
        raise
    except Exception as error:  # readers raise many kinds
        raise DataError(f"{path} could not be read as {form.upper()}: {first_line(error)}. Check the file's format.") from error
    if table.rows == 0:
        raise DataError(f"{path} has a header but no rows; labelled texts were expected.")
    if table.rows > MOST_ROWS:
        raise DataError(f"{path} has {table.rows} rows; at most {MOST_ROWS} can be read. Give fewer texts.")
    return table


def _delimited(path: Path, separator: str) -> Table:
    """Every column as text, nothing taken for a missing value: 'null', 'NA' and '007' are what they say."""
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    if separator not in header:  # many spreadsheets write semicolons
        separator = next((mark for mark in ",;\t" if mark in header), separator)
    rows = _rows(path, separator, csv.QUOTE_MINIMAL)
    if separator == "\t":
        # Many TSV files hold bare quotation marks. If honouring quotes would fail or swallow lines, they are plain characters.
        plain = _rows(path, separator, csv.QUOTE_NONE)
        if isinstance(rows, DataError) or (not isinstance(plain, DataError) and len(plain) > len(rows)):
            rows = plain
    if isinstance(rows, DataError):
        raise rows
    header, *body = rows or [[]]
    if len(set(header)) != len(header):
        raise _twice(path, header)

    def column(name: str) -> list[str]:
        place = header.index(name)
        return [row[place] for row in body]

    return Table(tuple(header), len(body), column)


def _twice(path: Path, names: Sequence[str]) -> DataError:
    name = next(name for name, count in Counter(names).items() if count > 1)
    return DataError(f"{path} names a column twice: {name[:40]!r}. Rename one.")


def _rows(path: Path, separator: str, quoting: Literal[0, 3]) -> list[list[str]] | DataError:
    """The header and the rows, all of one width, or what is wrong with them."""
    rows: list[list[str]] = []
    limit = csv.field_size_limit(2**31 - 1)  # a text may be long
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
            begun = 1
            for row in reader:
                if "".join(row).strip() or len(row) > 1:
                    if rows and len(row) != len(rows[0]):
                        return DataError(
                            f"{path}: line {begun} has {len(row)} fields, but the header has {len(rows[0])}. "
                            "Put texts that hold a separator between quotation marks."
                        )
                    rows.append(row)
                    if len(rows) > MOST_ROWS + 1:
                        return DataError(f"{path} has more than {MOST_ROWS} rows, which is the most that can be read. Give fewer texts.")
                begun = reader.line_num + 1
    except csv.Error as error:
        return DataError(f"{path}: line {begun} cannot be read: {error}. Write a quotation mark inside a quoted text twice.")
    finally:
        csv.field_size_limit(limit)
    return rows


def _json(path: Path) -> Table:
    """An object a line, or one list of objects."""
    with path.open(encoding="utf-8-sig") as file:
        if file.read(1) == "[":
            file.seek(0)
            rows = _parsed(file.read(), path, "the list")
        else:
            file.seek(0)
            rows = [_parsed(line, path, f"line {number}") for number, line in enumerate(file, start=1) if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path} could not be read as JSON: row {number} is no object with a text and a label. Check the file's format.")
    columns = dict.fromkeys(key for row in rows for key in row)
    return Table(tuple(columns), len(rows), lambda name: [row.get(name) for row in rows])


def _parsed(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} could not be read as JSON: {where}: {str(error)[:100]}. Check the file's format.") from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a column is given twice")
    return dict(pairs)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _parquet(path: Path) -> Table:
    """Values as they are stored: types that `datasets` would decode, such as images by their path, stay what they are."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        columns, rows = tuple(file.schema_arrow.names), file.metadata.num_rows
        if len(set(columns)) != len(columns):
            raise _twice(path, columns)
        names = class_names(file.schema_arrow.metadata)
        kinds = dict(zip(columns, file.schema_arrow.types, strict=True))

    def column(name: str) -> list[Any]:
        try:
            return _parquet_column(path, name, kinds[name])
        except DataError:
            raise
        except Exception as error:  # pages are first looked at here, and pyarrow raises many kinds
            raise DataError(f"{path}: column {name!r} is damaged ({first_line(error)}). Check that the file is whole.") from error

    return Table(columns, rows, column, names)


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of classes that Hugging Face's tools write into a Parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: feature["names"] for column, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {column: names for column, names in found.items() if isinstance(names, list) and all(isinstance(name, str) for name in names)}


def _parquet_column(path: Path, name: str, kind: Any) -> list[Any]:
    """The values of a column, counted before they are unpacked: a text that is stored once may stand in every row."""
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow.parquet import ParquetFile

    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(plain):
        raise DataError(f"{path}: column {name!r} holds {str(kind)[:40]}; texts or labels were expected. Name another column.")
    values: list[Any] = []
    with ParquetFile(path, read_dictionary=[name]) as file:
        # of all columns: pyarrow ends the process where what is said of a single one is damaged
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        if pa.types.is_fixed_size_binary(plain):  # not read as a dictionary
            size = max(size, plain.byte_width * file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=4096, columns=[name]) if size <= MOST_BYTES else ():
            array = batch.column(0)
            if pa.types.is_dictionary(array.type) and not pa.types.is_primitive(array.type.value_type):
                lengths = compute.call_function("binary_length", [array.dictionary])
                size += compute.call_function("sum", [lengths.take(array.indices)]).as_py() or 0
            if size > MOST_BYTES:
                break
            values += array.to_pylist()
    if size > MOST_BYTES:
        raise DataError(f"{path}: column {name!r} unpacks to more than {MOST_BYTES / 2**30:g} GB. Give fewer texts.")
    return values


def _check_room(path: Path, form: Literal["csv", "tsv", "json"]) -> None:
    """A few bytes can stand for a row, a cell or a list, which take far more memory; so they are counted before they are read."""
    cost, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(2**24):
            cost += json_cost(block) if form == "json" else CELL * sum(block.count(mark) for mark in (b",", b";", b"\t"))
            cost += ROW * (block.count(b"\n") + block.count(b"\r"))
    if (needed := 2 * size + cost * (2 if form == "tsv" else 1)) > (free := free_memory()):
        raise DataError(f"{path} may take {needed / 2**30:.1f} GB of memory, but {free / 2**30:.1f} GB are free. Give fewer texts.")


def _check_utf8(path: Path) -> None:
    offset = 0
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{path} is UTF-16; UTF-8 was expected. Convert it, for example with: iconv -f utf-16 -t utf-8.")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: byte 0x{line[error.start]:02x} in line {number} (offset {offset + error.start}). "
                    "Convert it, for example with: iconv -f latin1 -t utf-8."
                ) from None
            offset += len(line)
