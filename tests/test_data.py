"""Reading texts and labels as they are written, and cutting them in two."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.data import LABEL_COLUMNS, TEXT_COLUMNS, TextDataset, load_dataset, split
from excise.errors import DataError

Row = dict[str, Any]
NAMES = ("negative", "positive")


def _delimited(separator: str, quoting: Any = csv.QUOTE_MINIMAL) -> Callable[[Path, list[Row]], None]:
    def write(path: Path, rows: list[Row]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, quoting=quoting)
            writer.writeheader()
            writer.writerows(rows)

    return write


def _jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: list[Row]) -> None:
    datasets.Dataset.from_list(rows).to_parquet(str(path))


WRITERS = {
    "a.csv": _delimited(","),
    "a.tsv": _delimited("\t"),
    "a.jsonl": _jsonl,
    "a.ndjson": _jsonl,
    "a.parquet": _parquet,
    "A.CSV": _delimited(","),
}

TEXTS = (
    "null",
    "NA",
    "NaN",
    "None",
    "007",
    "1.50",
    "true",
    "-",
    "na\xefve \u65e5\u672c\u8a9e \U0001f600",
    'he said "no" twice',
    '"Great" film',
    '"whole"',
    '"opened and not closed',
    "it's, well, fine;",
    "  spaces around  ",
    "# no comment",
    "back\\slash \\n",
    "line one\nline two",
    "line\r\nend",
    "a\ttab",
    "x" * 200_000,
)


@pytest.fixture(autouse=True, scope="module")
def _no_bars() -> None:
    datasets.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", WRITERS)
def test_texts_are_what_they_say(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": NAMES[i % 2]} for i, text in enumerate(TEXTS)]
    WRITERS[name](tmp_path / name, rows)
    data = load_dataset(tmp_path / name)
    assert data == TextDataset(TEXTS, tuple(i % 2 for i in range(len(TEXTS))), NAMES)


@pytest.mark.parametrize(
    "lines",
    [
        ['"Great" film', "a film"],
        ['a "great" film', '6" tall'],
        ['"opened and not closed', "a film"],
        ['"opened here', 'closed there"', "a film"],
        ['"a" or "b"', '""', "''"],
    ],
)
def test_bare_quotation_marks_in_tsv(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"{line}\t1\n" for line in lines), encoding="utf-8")
    assert load_dataset(path).texts == tuple(lines)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_quoted_file(separator: str, tmp_path: Path) -> None:
    path = tmp_path / {",": "a.csv", "\t": "a.tsv"}[separator]
    _delimited(separator, csv.QUOTE_ALL)(path, [{"text": 'a "fine" film', "label": "1"}, {"text": "two\nlines", "label": "0"}])
    assert load_dataset(path).texts == ('a "fine" film', "two\nlines")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_mark_and_line_ends(end: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{mark}text,label{end}{end}a film,1{end}{end}a story,0{end}".encode())
    assert load_dataset(path).texts == ("a film", "a story")


def test_byte_order_mark_in_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a film", "label": 1}\n')
    assert load_dataset(path).texts == ("a film",)


# Columns


@pytest.mark.parametrize(("text", "label"), [*((name, "label") for name in TEXT_COLUMNS), *(("text", name) for name in LABEL_COLUMNS)])
@pytest.mark.parametrize("spelt", [str, str.upper, " {} ".format])
def test_usual_columns_are_found(text: str, label: str, spelt: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    _delimited(",")(path, [{"id": "9", spelt(text): "a film", spelt(label): "positive"}])
    assert load_dataset(path, label_names=NAMES) == TextDataset(("a film",), (1,), NAMES)


def test_first_of_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    _delimited(",")(path, [{"title": "x", "text": "a film", "rating": "5", "label": "1"}])
    assert load_dataset(path, label_names=NAMES) == TextDataset(("a film",), (1,), NAMES)


def test_columns_that_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    _delimited(",")(path, [{"text": "x", "words": "a film", "answer": "1", "label": "7"}])
    assert load_dataset(path, label_names=NAMES, text_column="words", label_column="answer") == TextDataset(("a film",), (1,), NAMES)


def test_column_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    _delimited(",")(path, [{"text": "x", "answer": "1"}])
    with pytest.raises(DataError, match="Did you mean 'answer'"):
        load_dataset(path, label_column="anwser")


# Labels


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (["positive", "negative"], NAMES, (1, 0)),
        (["POSITIVE", "Negative"], NAMES, (1, 0)),
        ([" positive ", "negative"], NAMES, (1, 0)),
        (["1", "0"], NAMES, (1, 0)),
        (["1.0", "0.0"], NAMES, (1, 0)),
        (["1", "0"], ("LABEL_0", "LABEL_1"), (1, 0)),
        (["label_1", "LABEL_0"], ("LABEL_0", "LABEL_1"), (1, 0)),
        (["1", "0"], ("1", "0"), (0, 1)),  # a name comes before an index
        (["A", "a"], ("a", "A"), (1, 0)),
        (["02", "2"], ("x", "y", "z"), (2, 2)),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_labels_of_a_model(name: str, values: list[str], names: tuple[str, ...], labels: tuple[int, ...], tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [{"text": f"text {i}", "label": value} for i, value in enumerate(values)])
    assert load_dataset(tmp_path / name, label_names=names) == TextDataset(("text 0", "text 1"), labels, names)


@pytest.mark.parametrize("values", [[1, 0], [1.0, 0.0], [True, False]])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_labels_that_are_numbers(name: str, values: list[Any], tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [{"text": f"text {i}", "label": value} for i, value in enumerate(values)])
    assert load_dataset(tmp_path / name, label_names=NAMES).labels == (1, 0)


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (["b", "c", "a"], ("a", "b", "c"), (1, 2, 0)),
        (["2", "0"], ("0", "1", "2"), (2, 0)),
        (["2.0", "0.0"], ("0", "1", "2"), (2, 0)),
        (["10", "9"], tuple(map(str, range(11))), (10, 9)),  # in the order of numbers
        (["1", "one"], ("1", "one"), (0, 1)),
    ],
)
def test_labels_without_a_model(values: list[str], names: tuple[str, ...], labels: tuple[int, ...], tmp_path: Path) -> None:
    _delimited(",")(tmp_path / "a.csv", [{"text": f"text {i}", "label": value} for i, value in enumerate(values)])
    data = load_dataset(tmp_path / "a.csv")
    assert (data.label_names, data.labels) == (names, labels)


@pytest.mark.parametrize("values", [["-1", "1"], ["0", "99999"]])
def test_numbers_that_are_no_indices(values: list[str], tmp_path: Path) -> None:
    _delimited(",")(tmp_path / "a.csv", [{"text": "a film", "label": value} for value in values])
    with pytest.raises(DataError, match="indices from 0"):
        load_dataset(tmp_path / "a.csv")


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "nan", "inf", "1e999", "neutral"])
def test_label_that_a_model_does_not_know(value: str, tmp_path: Path) -> None:
    _delimited(",")(tmp_path / "a.csv", [{"text": "a film", "label": value}])
    with pytest.raises(DataError, match=r"known labels are 'negative', 'positive' or their indices 0 to 1"):
        load_dataset(tmp_path / "a.csv", label_names=NAMES)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (None, (1, 0, 1)),
        (("neg", "pos"), (1, 0, 1)),
        (("pos", "neg"), (0, 1, 0)),  # by name, although the order differs
        (("POS", "other", "Neg"), (0, 2, 0)),
        (("LABEL_0", "LABEL_1"), (1, 0, 1)),  # no name in common, so by index
    ],
)
def test_class_indices_with_names(names: tuple[str, ...] | None, labels: tuple[int, ...], tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    data = load_dataset(tmp_path / "a.parquet", label_names=names)
    assert (data.labels, data.label_names) == (labels, names or ("neg", "pos"))


def test_class_index_of_an_unlabelled_row(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="label -1"):
        load_dataset(tmp_path / "a.parquet")


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (99, 5), (None, 5)])
def test_limit(limit: int | None, expected: int, tmp_path: Path) -> None:
    _delimited(",")(tmp_path / "a.csv", [{"text": f"text {i}", "label": "0"} for i in range(5)])
    data = load_dataset(tmp_path / "a.csv", limit=limit, label_names=NAMES)
    assert data.texts == tuple(f"text {i}" for i in range(expected))


def test_limit_below_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1"):
        load_dataset(tmp_path / "a.csv", limit=0)


def test_inputs_are_checked() -> None:
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        TextDataset(("a", "b"), (0,), NAMES)
    with pytest.raises(DataError, match="2 label names"):
        TextDataset(("a",), (2,), NAMES)


# Cutting in two

texts_and_labels = st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.integers(0, 2)), max_size=60)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32)


def dataset(rows: list[tuple[str, int]]) -> TextDataset:
    return TextDataset(tuple(text for text, _ in rows), tuple(label for _, label in rows), ("x", "y", "z"))


def rows_of(data: TextDataset) -> list[tuple[str, int]]:
    return list(zip(data.texts, data.labels, strict=True))


@given(texts_and_labels, fractions, seeds)
def test_split_keeps_every_row_and_shares_no_text(rows: list[tuple[str, int]], fraction: float, seed: int) -> None:
    first, rest = split(dataset(rows), fraction, seed=seed)
    assert Counter(rows_of(first)) + Counter(rows_of(rest)) == Counter(rows)
    assert not set(first.texts) & set(rest.texts)
    inside = set(first.texts)
    assert rows_of(first) == [row for row in rows if row[0] in inside], "in the order of the data"
    assert rows_of(rest) == [row for row in rows if row[0] not in inside]


@given(texts_and_labels, fractions, seeds)
def test_split_repeats(rows: list[tuple[str, int]], fraction: float, seed: int) -> None:
    assert split(dataset(rows), fraction, seed=seed) == split(dataset(rows), fraction, seed=seed)


@given(st.lists(st.integers(0, 2), max_size=80), fractions, seeds)
def test_split_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    data = dataset([(f"text {i}", label) for i, label in enumerate(labels)])
    first, _ = split(data, fraction, seed=seed)
    assert Counter(first.labels) == +Counter({label: round(fraction * n) for label, n in Counter(labels).items()})


@given(texts_and_labels, fractions, seeds)
def test_split_is_near_the_fraction_with_repeated_texts(rows: list[tuple[str, int]], fraction: float, seed: int) -> None:
    first, _ = split(dataset(rows), fraction, seed=seed)
    most = max(Counter(text for text, _ in rows).values(), default=0)
    assert abs(len(first) - fraction * len(rows)) <= 3 * (most + 0.5)


def test_split_depends_on_the_seed() -> None:
    data = dataset([(f"text {i}", i % 2) for i in range(40)])
    assert len({split(data, 0.5, seed=seed)[0].texts for seed in range(5)}) == 5


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        split(dataset([("a", 0)]), fraction, seed=0)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ",")])
def test_the_header_shows_the_separator(name: str, separator: str, tmp_path: Path) -> None:
    rows = [{"text": f"good, {i}; or; bad", "label": NAMES[i % 2]} for i in range(4)]
    _delimited(separator)(tmp_path / name, rows)
    found = load_dataset(tmp_path / name, label_names=NAMES)
    assert found.texts == tuple(row["text"] for row in rows)
    assert found.labels == (0, 1, 0, 1)


def test_names_win_over_places(tmp_path: Path) -> None:
    """A number is a label's place only where it cannot be a name."""
    path = tmp_path / "stars.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": float(i % 5 + 1)}) + "\n" for i in range(10)))
    assert load_dataset(path, label_names=("1", "2", "3", "4", "5")).labels == tuple(i % 5 for i in range(10))
    path.write_text(json.dumps({"text": "zero stars", "label": 0}) + "\n")
    with pytest.raises(DataError, match="known labels are '1'"):
        load_dataset(path, label_names=("1", "2", "3"))
