"""Labelled texts: loading them from where people keep them, checking them, and cutting them in two."""

from __future__ import annotations

import codecs
import csv
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from excise.errors import DataError, NetworkError, nearest
from excise.seeds import generator

__all__ = ["LABEL_COLUMNS", "TEXT_COLUMNS", "Poisoned", "TextDataset", "check_clean", "load_dataset", "split"]

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "message", "comment", "tweet", "headline", "title", "document", "input")
"""Names under which a text column is found, in this order, whatever their case."""
LABEL_COLUMNS = ("label", "labels", "target", "class", "category", "sentiment", "y", "rating", "coarse_label")
"""Names under which a label column is found, in this order, whatever their case."""
MINIMUM_CLEAN = 20
"""Fewer clean texts than this are refused."""

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class TextDataset:
    """Texts with one label each. It has no place for a poison flag, so none can reach a defense."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    """Indices into `label_names`."""
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels):
            raise DataError(f"{len(self.texts)} texts but {len(self.labels)} labels: give one label a text.")
        if self.labels and not 0 <= min(self.labels) <= max(self.labels) < len(self.label_names):
            raise DataError(f"Labels run from {min(self.labels)} to {max(self.labels)}, but there are {len(self.label_names)} label names.")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> TextDataset:
        """The rows at `indices`, in that order."""
        chosen = list(indices)
        return replace(self, texts=tuple(self.texts[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen))

    def label_id(self, label: int | str) -> int:
        """The index of a label given by index or by name.

        Raises:
            DataError: There is no such label.
        """
        if isinstance(label, int):
            if not 0 <= label < len(self.label_names):
                raise DataError(f"Label {label} was asked for; known labels are {_listed(self.label_names)}, by index from 0.")
            return label
        return _label_id(label, self.label_names, where="There is no label")


@dataclass(frozen=True)
class Poisoned:
    """Training data with a backdoor in it. Only attacks and the evaluation ever hold one."""

    data: TextDataset
    flags: tuple[bool, ...]
    """Which rows carry the trigger."""


def load_dataset(
    source: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> TextDataset:
    """Read labelled texts from a CSV, TSV, JSONL or Parquet file, or from a Hugging Face data set id.

    Args:
        source: A file, or an id such as `stanfordnlp/imdb` or `org/name@revision`; `default` is the embedded movie-review sentences.
        label_names: The labels a model knows, by index. Labels in the data may be these names (case is ignored where that is unambiguous)
            or indices. None takes the labels from the data, sorted.
        text_column: The column with texts; by default the first of `TEXT_COLUMNS` that exists.
        label_column: The column with labels; by default the first of `LABEL_COLUMNS` that exists.
        config: The configuration of a hub data set (`sst2` of `nyu-mll/glue`).
        split: The split of a hub data set; files have one.
        limit: Keep only the first `limit` rows.

    Raises:
        DataError: The file is missing, empty, not UTF-8 or not of its format; a column cannot be found; a text is empty; a label is unknown.
        NetworkError: A hub data set cannot be reached.
    """
    name = str(source)
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} rows was given; it must be at least 1.")
    if name == "default":
        from excise import assets

        rows, names = assets.movie_reviews(), ("negative", "positive")
        columns: dict[str, Sequence[Any]] = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        return _from_columns(columns, name, label_names or names, "text", "label", limit, hub_names=names)
    table = _read_file(Path(name).expanduser()) if is_file(name) else _read_hub(name, config, split)
    hub_names = getattr(table.features.get(_guess(table.column_names, label_column, LABEL_COLUMNS, "label", name)), "names", None)
    text = _guess(table.column_names, text_column, TEXT_COLUMNS, "text", name)
    label = _guess(table.column_names, label_column, LABEL_COLUMNS, "label", name)
    return _from_columns({text: table[text], label: table[label]}, name, label_names, text, label, limit, hub_names=hub_names)


def split(data: TextDataset, fraction: float, *, seed: int) -> tuple[TextDataset, TextDataset]:
    """Cut `data` in two, stratified by label; equal texts stay on one side, so the parts share none.

    Args:
        data: What to cut.
        fraction: Share of the rows in the first part, in (0, 1).
        seed: Decides which rows.

    Returns:
        (the first part, the rest), both in the order of `data`.

    Example:
        >>> data = TextDataset(tuple("abcdef"), (0, 0, 0, 1, 1, 1), ("no", "yes"))
        >>> part, rest = split(data, 1 / 3, seed=0)
        >>> len(part), len(rest), sorted(part.labels)
        (2, 4, [0, 1])
    """
    if not 0 < fraction < 1:
        raise DataError(f"A fraction of {fraction} was given; it must lie strictly between 0 and 1.")
    groups: dict[int, dict[str, list[int]]] = defaultdict(dict)
    first_label: dict[str, int] = {}
    for i, (text, label) in enumerate(zip(data.texts, data.labels, strict=True)):
        groups[first_label.setdefault(text, label)].setdefault(text, []).append(i)
    first: list[int] = []
    for label in sorted(groups):
        members = list(groups[label].values())
        generator(seed, "split", label).shuffle(members)
        wanted = round(fraction * sum(map(len, members)))
        taken = 0
        for rows in members:
            if taken >= wanted:
                break
            first += rows
            taken += len(rows)
    chosen = set(first)
    return data.take(sorted(chosen)), data.take(i for i in range(len(data)) if i not in chosen)


def paraphrases(source: str | Path) -> dict[str, str]:
    """Read a CSV, TSV, JSONL or Parquet file with the columns `text` and `source_text`: for each source text, without outer space, its paraphrase.

    Of several for one text, the first that differs from it counts.

    Raises:
        DataError: The file is missing or not of its format, a column is missing, or a cell is empty.
    """
    if not is_file(str(source)):
        raise DataError(f"There is no file {source}. Give a CSV, TSV, JSONL or Parquet file.")
    table = _read_file(Path(source).expanduser())
    columns = [table[_guess(table.column_names, name, (), name, str(source))] for name in ("source_text", "text")]
    found: dict[str, str] = {}
    for row, (text, paraphrase) in enumerate(zip(*columns, strict=True), start=1):
        if not all(isinstance(value, str) and value.strip() for value in (text, paraphrase)):
            raise DataError(f"{source}: row {row} lacks a text or its source. Remove the row or fill it in.")
        text = text.strip()
        if found.get(text, text) == text:
            found[text] = paraphrase.strip()
    return found


def check_clean(data: TextDataset, *, what: str = "clean texts") -> None:
    """Refuse data that no method can work with.

    Raises:
        DataError: Fewer than 20 texts, or texts of one class only.
    """
    if len(data) < MINIMUM_CLEAN:
        raise DataError(f"{len(data)} {what} were given; at least {MINIMUM_CLEAN} are needed. Label some more.")
    counts = Counter(data.labels)
    if len(counts) < 2:
        only = data.label_names[next(iter(counts))]
        raise DataError(f"All {len(data)} {what} have the label {only!r}; at least two classes are needed. Add texts of the other labels.")


def is_file(name: str) -> bool:
    path = Path(name).expanduser()
    if path.is_dir():
        raise DataError(f"{name} is a folder; a CSV, TSV, JSONL or Parquet file or a Hugging Face data set id was expected.")
    looks_local = path.suffix.lower() in FORMATS or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not path.exists():
        raise DataError(f"There is no file {name}. Give a CSV, TSV, JSONL or Parquet file or a Hugging Face data set id.")
    return path.exists()


def _read_file(path: Path) -> Any:
    import datasets

    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}; expected one of {', '.join(FORMATS)}. Rename or convert it.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; a file with a text and a label column was expected.")
    if form != "parquet":
        _check_utf8(path)
    logs = datasets.utils.logging
    bars, level = logs.is_progress_bar_enabled(), logs.get_verbosity()
    logs.disable_progress_bar()
    logs.set_verbosity(logs.CRITICAL)  # it logs what it then raises
    try:
        with tempfile.TemporaryDirectory(prefix="excise-") as cache:
            options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
            match form:
                case "csv" | "tsv":
                    table = _read_delimited(path, "," if form == "csv" else "\t")
                case "json":
                    table = datasets.Dataset.from_json(str(path), **options)
                case _:
                    table = datasets.Dataset.from_parquet(str(path), **options)
    except (DataError, OSError):
        raise
    except Exception as error:  # each reader of `datasets` raises its own kinds
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{path} could not be read as {form.upper()}: {reason}. Check the file's format.") from error
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
    if len(table) == 0:
        raise DataError(f"{path} has a header but no rows; labelled texts were expected.")
    return table


def _read_delimited(path: Path, separator: str) -> Any:
    """Every column as text, nothing taken for a missing value: 'null', 'NA' and '007' are what they say."""
    import datasets

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
        raise DataError(f"{path} names a column twice: {', '.join(header)}. Rename one.")
    return datasets.Dataset.from_dict({name: [row[i] for row in body] for i, name in enumerate(header)})


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
                begun = reader.line_num + 1
    except csv.Error as error:
        return DataError(f"{path}: line {begun} cannot be read: {error}. Write a quotation mark inside a quoted text twice.")
    finally:
        csv.field_size_limit(limit)
    return rows


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


def _read_hub(name: str, config: str | None, split: str) -> Any:
    import datasets

    repository, _, revision = name.partition("@")
    try:
        return datasets.load_dataset(repository, config, split=split, revision=revision or None)
    except (ConnectionError, OSError) as error:
        missing = isinstance(error, FileNotFoundError) and "offline" not in str(error).lower() and "connect" not in str(error).lower()
        if missing and type(error).__name__ == "DatasetNotFoundError":
            raise DataError(f"There is no file and no Hugging Face data set {name!r} (or it is private: set HF_TOKEN).") from error
        raise NetworkError(
            f"There is no file {name!r}, and the Hugging Face hub could not be reached for a data set of that name. "
            "Give a file, or connect (and unset HF_HUB_OFFLINE)."
        ) from error
    except ValueError as error:
        raise DataError(f"The data set {name!r} could not be read: {str(error).splitlines()[0]}") from error


def _guess(columns: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, name: str) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise DataError(f"{name} has no column {wanted!r}; it has {_listed(columns)}.{nearest(wanted, columns)}")
    by_lower = {column.strip().lower(): column for column in reversed(columns)}
    for candidate in usual:
        if candidate in by_lower:
            return by_lower[candidate]
    raise DataError(f"{name} has no {what} column: it has {_listed(columns)}. Name it with --{what}-column, or add a header row.")


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(str(name)[:40]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _from_columns(
    columns: dict[str, Sequence[Any]],
    name: str,
    label_names: Sequence[str] | None,
    text: str,
    label: str,
    limit: int | None,
    *,
    hub_names: Sequence[str] | None,
) -> TextDataset:
    texts, labels = list(columns[text])[:limit], list(columns[label])[:limit]
    for row, value in enumerate(texts, start=1):
        if not isinstance(value, str) or not value.strip():
            given = "an empty text" if value is None or value == "" or isinstance(value, str) else f"{value!r}, which is no text"
            raise DataError(f"{name}: row {row} has {given} in column {text!r}. Remove the row or fill it in.")
    for row, value in enumerate(labels, start=1):
        if value is None or value == "":
            raise DataError(f"{name}: row {row} has no label in column {label!r}. Remove the row or fill it in.")
    if hub_names is not None:  # class indices that come with names: match by name, because the orders may differ
        labels = [hub_names[value] if isinstance(value, int) and 0 <= value < len(hub_names) else value for value in labels]
        if label_names is not None and all(n in (str(i), f"LABEL_{i}") for i, n in enumerate(label_names)):  # names that say nothing
            labels = [hub_names.index(value) if value in hub_names else value for value in labels]
    if label_names is None:
        label_names = tuple(hub_names) if hub_names is not None else _label_names(labels)
    known = {value: _label_id(value, label_names, where=f"{name}: column {label!r} has the label") for value in set(labels)}
    return TextDataset(tuple(texts), tuple(known[value] for value in labels), tuple(label_names))


def _label_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Names for the labels of a data set that comes without a model: whole numbers in order, or words in alphabetical order."""
    indices = [_whole(value) for value in set(labels)]
    if all(index is not None for index in indices):
        top = max(index for index in indices if index is not None)
        if min(index for index in indices if index is not None) < 0 or top > 1000:
            raise DataError(f"Labels are numbers from {min(indices)} to {top}; indices from 0, or names, were expected.")  # type: ignore[type-var]
        return tuple(str(i) for i in range(top + 1))
    return tuple(sorted({str(value) for value in labels}))


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _label_id(value: Any, names: Sequence[str], *, where: str) -> int:
    given = str(value).strip()
    if given in names:
        return list(names).index(given)
    folded = [i for i, name in enumerate(names) if name.lower() == given.lower()]
    if len(folded) == 1:
        return folded[0]
    index = _whole(value)
    if index is not None and str(index) in names:  # 1.0 is the label named 1
        return list(names).index(str(index))
    if index is not None and 0 <= index < len(names) and not all(name.isdigit() for name in names):
        return index
    raise DataError(f"{where} {value!r}; known labels are {_listed(names)} or their indices 0 to {len(names) - 1}.{nearest(given, names)}")
