"""Every parser of files from outside, fed with damaged files: each is read, or refused with an `ExciseError`, and nothing else happens.

    PYTHONPATH=src:tests python tests/fuzz/parsers.py --inputs 100000 --seed 0

Inputs are good files with values exchanged for odd ones, bytes changed, cut, doubled or put in between, drawn by the seed. What breaks the promise is
printed with its number, by which it can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from excise import tokenizer_file
from excise.attacks._triggers import InsertWords
from excise.backdoor_file import BackdoorFile
from excise.cell import kept
from excise.data import load_dataset
from excise.errors import CheckpointError, ExciseError
from excise.front_door import SIZES, inspect, read_config
from excise.grid import load_grid
from excise.plain_files import read_header, read_json
from excise.provenance import verify
from excise.recipe import load_recipe
from excise.recipes import shipped_recipes
from excise.result import load_result
from excise.resume import run_of
from excise.scan_result import load_scan
from excise.zoo import load_zoo
from excise.zoo_result import Specimen
from toy import save_toy, toy_data, write_csv

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    -0.0,
    1e308,
    "",
    "x" * 5000,
    "\0",
    "../../etc/passwd",
    "é\u202e",
    "\ud800",
    "=1+1",
    [],
    {},
]
ODD += [[[]], {"": {}}, ["a"] * 300, {"a": [1, {"b": None}]}, "1e9", "null", "*a", "!!python/object:os.system", "NaN", float("nan"), float("inf")]
BYTES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b'"',
    b"'",
    b",",
    b"\t",
    b"{",
    b"[" * 2000,
    b"]",
    b"}",
    b":",
    b"- ",
    b"&a ",
    b"*a",
    b"%",
    b"\xed\xa0\x80",
]
PARTS = (("calibration", "cf"), ("held out", "mn"))
MOST_SECONDS = 20


class Target(NamedTuple):
    """A parser and good files for it."""

    name: str
    """Of the file."""
    seeds: list[bytes]
    read: Callable[[Path], object]
    form: str = ""
    """json or yaml: values are exchanged too."""


def targets(place: Path) -> dict[str, Target]:
    """Every parser; each reads from a folder of its own in `place`."""
    model = save_toy(place / "seed")
    good = {path.name: path.read_bytes() for path in model.iterdir()}
    data = toy_data(30)
    csv = write_csv(place / "seed.csv", data).read_bytes()
    rows = [{"text": text, "label": label} for text, label in zip(data.texts, data.labels, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), place / "seed.parquet")
    weight_map = dict.fromkeys(
        json.loads(good["model.safetensors"][8 : 8 + int.from_bytes(good["model.safetensors"][:8], "little")]), "model.safetensors"
    )
    weight_map.pop("__metadata__", None)
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    backdoor = BackdoorFile(trigger=InsertWords(words=("cf",)), target_label="positive", attack={"method": "badnets"}, seed=0)
    backdoor.save(place / "backdoor.json")

    recipes = [path.read_bytes() for path in shipped_recipes(".").values()]
    texts = {"train": {"source": "default"}, "test_size": 30, "clean_fraction": 0.5}
    attack = {"method": "badnets", "training": {"epochs": 1}}
    grid = {"name": "toy", "data": {"A": texts}, "attacks": {"Bad": attack}, "defenses": {"Fine": "cft"}, "seeds": [0]}
    grid["paper"] = {"Bad": {"none": [90.0, 99.5], "Fine": [None, 12.0]}}
    families = [{"part": part, "data": "A", "attack": {**attack, "triggers": [word]}, "seeds": [i]} for i, (part, word) in enumerate(PARTS)]
    zoo = {"name": "toy", "data": {"A": texts}, "families": [*families, {**families[0], "clean": True, "layers": 2}]}

    def tokenizer(path: Path) -> None:
        with _refusals():
            tokenizer_file.check(read_json(path.parent, path.name, SIZES["tokenizer.json"], "it")[1])

    def tokenizer_settings(path: Path) -> None:
        with _refusals():
            tokenizer_file.settings(found := read_json(path.parent, path.name, SIZES["tokenizer.json"], "it")[1])
            tokenizer_file.special_tokens(found)

    def with_index(path: Path) -> None:
        for name, content in good.items():
            if name != "model.safetensors" and not (path.parent / name).exists():
                (path.parent / name).write_bytes(content)
        if not (path.parent / "shard.safetensors").exists():
            (path.parent / "shard.safetensors").write_bytes(good["model.safetensors"])
        inspect(path.parent, "it")

    results = _results(place, model)
    return {
        "config": Target("config.json", [good["config.json"]], lambda path: read_config(path.parent, "it"), "json"),
        "header": Target("model.safetensors", [_tiny()], lambda path: read_header(path.parent, path.name, "it")),
        "index": Target("model.safetensors.index.json", [index.replace(b"model.safetensors", b"shard.safetensors")], with_index, "json"),
        "tokenizer": Target("tokenizer.json", [good["tokenizer.json"]], tokenizer, "json"),
        "tokenizer settings": Target("tokenizer_config.json", [good["tokenizer_config.json"]], tokenizer_settings, "json"),
        "csv": Target("a.csv", [csv, csv.replace(b",", b";")], load_dataset),
        "tsv": Target("a.tsv", [csv.replace(b",", b"\t")], load_dataset),
        "jsonl": Target("a.jsonl", ["\n".join(map(json.dumps, rows)).encode(), json.dumps(rows).encode()], load_dataset),
        "parquet": Target("a.parquet", [(place / "seed.parquet").read_bytes()], load_dataset),
        "recipe": Target("a.yaml", recipes, load_recipe, "yaml"),
        "grid": Target("b.yaml", [yaml.safe_dump(grid).encode()], load_grid, "yaml"),
        "zoo": Target("c.yaml", [yaml.safe_dump(zoo).encode()], load_zoo, "yaml"),
        "backdoor": Target("backdoor.json", [(place / "backdoor.json").read_bytes()], BackdoorFile.load, "json"),
        "result": Target("excise-result.json", [results["result"]], load_result, "json"),
        "verify": Target("excise-result.json", [results["result"]], lambda path: verify(path.parent, inputs=True), "json"),
        "scan": Target("scan.json", [results["scan"]], load_scan, "json"),
        "cell": Target("cells/a.json", [results["cell"]], lambda path: kept(path.parents[1], "a"), "json"),
        "specimen": Target("specimen.json", [b'{"version": 1, "key": "a", "part": "calibration"}'], Specimen.load, "json"),
        "state": Target("run.json", [b'{"seed": 0, "torch": "2"}'], lambda path: run_of(path.parent), "json"),
    }


@contextlib.contextmanager
def _refusals() -> Any:
    """The tokenizer's checks raise ValueErrors, which `inspect` turns into refusals."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _tiny() -> bytes:
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "b": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]}}
    )
    return len(header).to_bytes(8, "little") + header.encode() + bytes(24)


def _results(place: Path, model: Path) -> dict[str, bytes]:
    from excise.cli import main

    data = write_csv(place / "texts.csv", toy_data(40))
    common = [str(model), "--data", str(data), "--quiet"]
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        assert main(["repair", *common, "--method", "cft", "--training.epochs", "1", "--out", str(place / "fixed")]) == 0
        assert main(["scan", *common, "--scanners", "embedding_rows", "--out", str(place / "scan")]) in (0, 1, 2)
    cell = {"key": "a", "data": "A", "attack": "Bad", "defense": "none", "seed": 0, "settings": {}, "digest": "x"}
    result, scan = (place / "fixed" / "excise-result.json").read_bytes(), (place / "scan" / "scan.json").read_bytes()
    return {"result": result, "scan": scan, "cell": json.dumps(cell).encode()}


def damaged(target: Target, random: Random) -> bytes:
    """A good file with one to four things changed."""
    content = random.choice(target.seeds)
    if target.form and random.random() < 0.6:
        load, dump = (json.loads, json.dumps) if target.form == "json" else (yaml.safe_load, yaml.safe_dump)
        value = load(content)
        for _ in range(random.randint(1, 3)):
            value = _exchanged(value, random)
        with contextlib.suppress(Exception):  # YAML cannot write a lone surrogate
            return dump(value).encode("utf-8", "surrogatepass")
    found = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(found) + 1), min(len(found), 2 ** random.randint(0, 8))
        match random.randrange(6):
            case 0:
                found[at : at + length] = b""
            case 1:
                found[at:at] = random.choice(BYTES)
            case 2:
                found[at : at + length] = found[at : at + length] * 2
            case 3:
                found[at : at + 1] = bytes([random.randrange(256)])
            case 4:
                found = found[:at] if random.random() < 0.3 else found
            case 5:
                found[at:at] = str(random.choice(ODD)).encode("utf-8", "surrogatepass")
    return bytes(found)


def _exchanged(value: Any, random: Random) -> Any:
    """The value with something in it, at whatever depth, exchanged, left out or added."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {other: inner for other, inner in value.items() if other != key}
            case 1:
                return {**value, random.choice(["x", "auto_map", key + "x" if isinstance(key, str) else "y"]): random.choice(ODD)}
        return {**value, key: _exchanged(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        return [*value[:at], _exchanged(value[at], random), *value[at + 1 :]]
    return random.choice(ODD)


def fuzz(found: dict[str, Target], place: Path, *, inputs: int, seed: int, first: int = 0) -> tuple[Counter[str], list[str]]:
    """So many inputs, in turn over the parsers; (how many of each were read or refused, what else happened)."""
    count: Counter[str] = Counter()
    broken: list[str] = []
    for number in range(first, first + inputs):
        name = list(found)[number % len(found)]
        target, random = found[name], Random(f"{seed} {number}")
        path = place / "fuzz" / name.replace(" ", "-") / target.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(target, random))
        begun = time.monotonic()
        try:
            target.read(path)
            count[f"{name}: read"] += 1
        except ExciseError:
            count[f"{name}: refused"] += 1
        except Exception as error:
            broken.append(f"{name}, input {number}: {type(error).__name__}: {str(error)[:200]}")
        if (seconds := time.monotonic() - begun) > MOST_SECONDS:
            broken.append(f"{name}, input {number}: {seconds:.1f} s")
    return count, broken


def in_forks(found: dict[str, Target], inputs: int, seed: int, *, at_once: int = 1000) -> tuple[Counter[str], list[str]]:
    """`fuzz`, a thousand inputs a process: a library that ends the process is a finding, too."""
    count: Counter[str] = Counter()
    broken: list[str] = []
    for first in range(0, inputs, at_once):
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "told.json"
            if (child := os.fork()) == 0:
                code = 1
                try:
                    counted, failures = fuzz(found, Path(folder), inputs=min(at_once, inputs - first), seed=seed, first=first)
                    told.write_text(json.dumps([counted, failures]))
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            if told.exists():
                counted, failures = json.loads(told.read_text())
                count.update(counted)
                broken += failures
            else:
                last = max((Path(folder) / "fuzz").rglob("*"), key=lambda path: path.stat().st_mtime_ns)
                broken.append(f"{last.parent.name}: one of the inputs from {first} on ended the process (status {status})")
    return count, broken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as good:
        counted, failures = in_forks(targets(Path(good)), given.inputs, given.seed)
    for what, number in sorted(counted.items()):
        print(f"{what} {number}")
    print("\n".join(failures[:50]))
    print(f"{given.inputs} inputs, seed {given.seed}: {len(failures)} neither read nor refused")
    sys.exit(bool(failures))
