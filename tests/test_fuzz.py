"""The short form of tests/fuzz/parsers.py, and what the long one has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from excise.data import load_dataset
from excise.data_files import Table
from excise.errors import ConfigError, DataError, NetworkError
from excise.zoo import load_zoo
from fuzz.parsers import fuzz, targets


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    count, broken = fuzz(targets(tmp_path), tmp_path, inputs=800, seed=1)
    assert not broken
    assert sum(count.values()) == 800


def test_damaged_pages_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"film {i}" for i in range(40)], "label": [0, 1] * 20}), path)
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet"):
        load_dataset(path)


def test_a_parquet_file_that_ended_the_process(tmp_path: Path) -> None:
    """pyarrow does not catch its own exception where a column's statistics are damaged; this file was found by fuzzing."""
    with pytest.raises(DataError, match=r"histogram\.parquet"):
        load_dataset(Path(__file__).parent / "fuzz" / "found" / "histogram.parquet")


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/a.csv", "a\0b.csv"])
def test_texts_whose_name_can_be_none(name: str) -> None:
    with pytest.raises((DataError, NetworkError)):
        load_dataset(name)


@pytest.mark.parametrize(("texts", "labels"), [(0, 0), (3, 2), (0, 3)])
def test_columns_that_hold_less_than_the_file_says(texts: int, labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    columns = {"text": ["a film"] * texts, "label": ["good"] * labels}
    monkeypatch.setattr("excise.data.read_file", lambda _: Table(("text", "label"), 3, columns.__getitem__))
    with pytest.raises(DataError, match=f"holds {texts} texts and {labels} labels"):
        load_dataset(tmp_path / "a.parquet")


@pytest.mark.parametrize("family", [3, None, "x", []])
def test_a_family_that_is_no_mapping(family: Any, tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(json.dumps({"name": "toy", "data": {}, "families": [family]}))
    with pytest.raises(ConfigError, match="settings by name"):
        load_zoo(path)
