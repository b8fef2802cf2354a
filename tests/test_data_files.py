"""Files of texts from strangers: nothing in them is run, opened or fetched, and none takes the machine's memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from excise.data import load_dataset
from excise.errors import DataError

NAMES = ("negative", "positive")
_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "socket.connect", "socket.getaddrinfo"):
        _opened.append(str(arguments[0]))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What is opened or connected to, by name."""
    global _opened
    if _hook not in _HOOKED:
        sys.addaudithook(_hook)  # it stays for the life of the process
        _HOOKED.append(_hook)
    _opened = []
    yield _opened
    _opened = None


_HOOKED: list[object] = []


def refused(path: Path, *words: str) -> None:
    begun = time.process_time()
    with pytest.raises(DataError) as refusal:
        load_dataset(path, label_names=NAMES)
    assert time.process_time() - begun < 2
    for word in (path.name, *words):
        assert word in str(refusal.value)
    assert len(str(refusal.value)) < len(str(path)) + 300


def written(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, columns: dict[str, Any], **features: dict[str, object]) -> Path:
    """A Parquet file that says what its columns are in the words of Hugging Face's tools."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, compression="zstd")
    return path


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf"])
def test_a_column_of_paths_is_not_opened(kind: str, tmp_path: Path, opened: list[str]) -> None:
    """`datasets` decodes such a column when it is read: it would open the file, or fetch the address."""
    secret = written(tmp_path / "secret.txt", "secret")
    places = [{"bytes": None, "path": str(secret)}, {"bytes": None, "path": "http://127.0.0.1:9/x.png"}]
    path = parquet(tmp_path / "a.parquet", {"text": places, "label": [0, 1]}, text={"_type": kind})
    opened.clear()
    refused(path, "column 'text' holds", "texts or labels were expected")
    assert str(secret) not in opened
    assert not [name for name in opened if "127.0.0.1" in name]


def test_a_text_that_is_stored_once_and_stands_in_every_row(tmp_path: Path) -> None:
    """Two kilobytes that unpack to a hundred gigabytes."""
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, type=pa.int32()), pa.array(["x" * 1_000_000]))
    path = parquet(tmp_path / "a.parquet", {"text": once, "label": [0, 1] * 50_000})
    assert path.stat().st_size < 10_000
    refused(path, "column 'text' unpacks to more than 1 GB", "Give fewer texts")


def test_dictionaries_are_read(tmp_path: Path) -> None:
    texts, labels = pa.array(["a film", "a story", "a film"]).dictionary_encode(), pa.array([1, 0, 1])
    data = load_dataset(parquet(tmp_path / "a.parquet", {"text": texts, "label": labels}), label_names=NAMES)
    assert (data.texts, data.labels) == (("a film", "a story", "a film"), (1, 0, 1))


@pytest.mark.parametrize(
    "metadata", ["[]", "{", '{"info": 7}', '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [7]}}}}', "[" * 9_999]
)
def test_metadata_that_means_nothing(metadata: str, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_dataset(tmp_path / "a.parquet", label_names=NAMES).labels == (0, 1)


@pytest.mark.parametrize("deep", ['{"a":' * 100_000 + "1" + "}" * 100_000, "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("key", ["text", "other"])
def test_json_nested_deeply(key: str, deep: str, tmp_path: Path) -> None:
    """It ended the process while another library read it."""
    refused(written(tmp_path / "a.jsonl", f'{{"text": "a", "label": 1, "{key}": {deep}}}'), "could not be read as JSON", "line 1")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": "a \\ud800 b", "label": 1}', ["row 1", "half a character"]),
        ('{"text": "a", "label": "\\udfff"}', ["row 1", "label"]),
        ('{"text": "a", "text": "b", "label": 1}', ["line 1", "given twice"]),
        ('{"text": "a", "label": NaN}', ["line 1", "NaN"]),
        ('{"text": "a", "label": [1]}', ["row 1", "[1]", "no name of a class"]),
        ('{"text": "a", "label": {"x": 1}}', ["row 1", "no name of a class"]),
        ('{"text": "a", "label": "' + "x" * 2_000 + '"}', ["row 1", "no name of a class"]),
        ('{"text": "' + "x" * 2_000_001 + '", "label": 1}', ["row 1", "2000001 characters", "Cut or remove"]),
        ("7", ["row 1", "no object"]),
        ('{"text": "a", "label": ' + "9" * 5_000 + "}", ["line 1", "digits"]),
    ],
)
def test_json_that_is_odd(row: str, words: list[str], tmp_path: Path) -> None:
    refused(written(tmp_path / "a.jsonl", row), *words)


def test_a_list_of_objects_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '[{"text": "a film", "label": "positive"},', '{"text": "a story", "label": 0, "more": {"x": []}}]')
    assert load_dataset(path, label_names=NAMES).labels == (1, 0)


def test_times_and_missing_keys_stay_what_they_are(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "2020-01-01T00:00:00", "label": 1}', "", '{"label": 0}')
    assert load_dataset(path, label_names=NAMES, limit=1).texts == ("2020-01-01T00:00:00",)
    refused(path, "row 2", "empty text")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_files_that_are_too_large(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)  # it takes no room on the disk
    refused(tmp_path / name, "1024.0 GB", "at most 1 GB", "Give fewer texts")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    refused(tmp_path / "a.csv", "no ordinary file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,label\n" + b"a,1\n" * 100_000),
        ("b.csv", b"text" + b"," * 200_000 + b"\na,1\n"),
        ("a.tsv", b"text\tlabel\n" + b"a\t1\n" * 100_000),
        ("a.jsonl", b"{}\n" * 100_000),
        ("b.jsonl", b'{"text": "a", "label": 1, "x": [' + b"[]," * 100_000 + b"0]}"),
        ("a.json", b"[" + b"{}," * 100_000 + b"0]"),
    ],
)
def test_values_are_counted_before_they_are_read(name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of two characters takes sixty times its size; a file of a gigabyte would take the machine."""
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("excise.data_files.free_memory", lambda: 10 * 2**20)
    monkeypatch.setattr("excise.data_files._check_utf8", lambda _: pytest.fail("it was read"))
    refused(tmp_path / name, "GB of memory", "0.0 GB are free")


def test_rows_of_a_fixed_width_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored once, too, but are not read as a dictionary: a batch of them took gigabytes before anything was counted."""
    wide = pa.array([b"x" * 1_000_000] * 20, pa.binary(1_000_000))
    path = parquet(tmp_path / "a.parquet", {"text": wide, "label": [0] * 20})
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("excise.data_files.MOST_BYTES", 15_000_000)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was unpacked"))
    refused(path, "column 'text' unpacks to more than")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("label", ["1e999", "-1e999", "9" * 1_000, "nan"])
def test_numbers_without_end_are_no_labels(name: str, label: str, tmp_path: Path) -> None:
    row = f"a,{label}" if name == "a.csv" else f'{{"text": "a", "label": {label if label.isdigit() else json.dumps(label)}}}'
    rows = [row] if name == "a.jsonl" else ["text,label", row]
    refused(written(tmp_path / name, *rows), "label")


def test_a_column_named_twice_is_told_in_short(tmp_path: Path) -> None:
    refused(written(tmp_path / "a.csv", "text" + ",x" * 100_000), "names a column twice: 'x'")


def test_rows_that_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.data_files.MOST_ROWS", 2)
    refused(written(tmp_path / "a.csv", "text,label", "a,1", "b,0", "c,1", "d,1"), "more than 2 rows")
    refused(written(tmp_path / "a.jsonl", *['{"text": "a", "label": 1}'] * 3), "3 rows", "at most 2")


@pytest.mark.parametrize("name", ["evil.py", "./evil.py", "evil/evil.py"])
def test_loading_scripts_are_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    for path in ("evil.py", "evil/evil.py"):
        written(tmp_path / path, "import pathlib", "pathlib.Path('pwned').touch()")
    with pytest.raises(DataError):
        load_dataset(name)
    assert not (tmp_path / "pwned").exists()


def test_a_hub_data_set_is_read_as_it_is_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: list[str]) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image(), "label": datasets.ClassLabel(names=["neg", "pos"])})
    secret = written(tmp_path / "secret.png", "secret")
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "image": [str(secret)] * 3, "label": [1, 0, 1]}, features=features)
    opened.clear()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows.select([2, 0]))
    assert load_dataset("org/name", label_names=("neg", "pos")).texts == ("c", "a")
    with pytest.raises(DataError, match="no text"):
        load_dataset("org/name", text_column="image")
    assert str(secret) not in opened
