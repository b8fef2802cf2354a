"""SIGKILL at random moments of repair, attack, scan, bench and zoo; then on to the end, and every bit is compared with a run that nobody disturbed.

    PYTHONPATH=src:tests python tests/faults/kill.py --kills 60 --seed 0

After each kill nothing half-written may stand under a final name. Each command runs in a fork of this process, in which the libraries are imported
already, so that kills fall into its work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import yaml

from excise.cell import Cell
from excise.cli import main
from excise.disk import beside
from excise.kept import file_hash, is_whole
from excise.provenance import verify
from toy import save_toy, toy_data, write_csv

TRAINING = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 8}


class Case(NamedTuple):
    """A command, how it is run again, and what of its output has to be the same."""

    words: list[str]
    again: list[str]
    content: Callable[[Path], Any]
    check: Callable[[Path], None]


def options(name: str) -> list[str]:
    return [word for key, value in TRAINING.items() for word in (f"--{name}.{key.replace('_', '-')}", str(value))]


def cases(place: Path) -> dict[str, Case]:
    """Each command on toys; with `--checkpoint-every 0.1` the state is kept ten times a second."""
    model, data = str(save_toy(place / "model")), ["--data", str(write_csv(place / "texts.csv", toy_data(80)))]
    attack = {"method": "badnets", "training": TRAINING}
    grid = {
        "name": "toy",
        "model": model,
        "data": {"A": {"train": {"source": data[1]}, "test_size": 30, "clean_fraction": 0.5}},
        "attacks": {"Bad": attack},
        "defenses": {"Fine": {"method": "cft", "training": TRAINING}, "Split": {"method": "ts_ft", "retraining": TRAINING}},
        "seeds": [0],
    }
    families = [{"part": "calibration", "data": "A", "attack": {**attack, "triggers": ["mn"]}, "clean": True, "seeds": [1]}]
    families.append({"part": "held out", "data": "A", "attack": attack, "seeds": [2]})
    path, zoo = place / "grid.yaml", place / "zoo.yaml"
    path.write_text(yaml.safe_dump(grid))
    zoo.write_text(yaml.safe_dump({**{name: grid[name] for name in ("name", "model", "data")}, "families": families}))
    go = ["--resume", "--overwrite"]
    every = ["--checkpoint-every", "0.1"]
    distil = [*options("retraining"), *options("distillation")]
    return {
        "repair mbtsad": Case(["repair", model, *data, "--method", "mbtsad", *distil, *every], go, weights, whole),
        "repair virtual_tokens": Case(["repair", model, *data, "--method", "virtual_tokens", *options("training"), *every], go, weights, whole),
        "attack badnets": Case(["attack", "badnets", model, *data, *options("training"), *every], go, weights, whole),
        "scan": Case(["scan", model, *data], ["--overwrite"], findings, whole),
        "bench": Case(["bench", str(path), *every], [], grid_content, cells_whole),
        "zoo": Case(["zoo", "scan", str(zoo), "--scanners", "embedding_rows", *every], [], zoo_content, models_whole),
    }


def weights(out: Path) -> Any:
    """Every file of a checkpoint but reports, which say when and how fast it was made, and what it scores."""
    record = json.loads((out / "excise-result.json").read_text())
    files = {str(p.relative_to(out)): file_hash(p) for p in sorted(out.rglob("*")) if p.is_file() and p.suffix in (".safetensors", ".txt")}
    assert files
    return files, [{**row, "seconds": 0} for row in record["rows"]], record["curves"]


def findings(out: Path) -> Any:
    return [{**row, "seconds": 0} for row in json.loads((out / "scan.json").read_text())["scanners"]]


def grid_content(out: Path) -> Any:
    cells = {p.name: {**json.loads(p.read_text()), "seconds": 0, "digest": ""} for p in sorted((out / "cells").glob("[!.]*.json"))}
    models = {p.name: file_hash(p / "model" / "model.safetensors") for p in sorted((out / "models").glob("[!.]*"))}
    assert not [*out.glob("*/.*"), *out.glob("state-*")], "nothing half-made is left"
    assert len(cells) == 3
    assert len(models) == 2
    return cells, models


def zoo_content(out: Path) -> Any:
    made = [json.loads(p.read_text()) for p in sorted((out / "specimens").glob("[!.]*.json"))]
    specimens = [{**one, "seconds": 0, "scans": [{**scan, "seconds": 0} for scan in one["scans"]]} for one in made]
    models = {p.name: file_hash(p / "model" / "model.safetensors") for p in sorted((out / "models").glob("[!.]*"))}
    assert len(specimens) == len(models) == 2
    assert not list(out.glob("state-*"))
    return specimens, models


def whole(out: Path) -> None:
    """The output is not there at all, or just as it was written."""
    if out.exists():
        verify(out)


def cells_whole(out: Path) -> None:
    for path in (out / "cells").glob("[!.]*.json"):
        cell = Cell.model_validate_json(path.read_text())
        assert cell == cell.sealed()
    models_whole(out)


def models_whole(out: Path) -> None:
    assert all(is_whole(path) for path in (out / "models").glob("[!.]*"))


def run(words: list[str], *, kill_after: float | None = None) -> tuple[bool, float]:
    """Run a command in a fork; whether it was killed, and its seconds."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            if kill_after is not None:
                os.dup2(silent, 2)
            code = main([*words, "--quiet"])
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status) not in (0, 2 if words[0] == "scan" else 0):
        raise AssertionError(f"exit code {os.WEXITSTATUS(status)}: {' '.join(words)}")
    return killed, time.monotonic() - begun


def campaign(place: Path, *, kills: int, seed: int, names: list[str] | None = None, tell: Callable[[str], None] = lambda _: None) -> Counter[str]:
    """So many kills of each command, at most three in a row before it may end; how many there were.

    Raises:
        AssertionError: Something was half-written, did not go on, or came out with other bits.
    """
    count: Counter[str] = Counter()
    for name, case in cases(place).items():
        if names and name not in names:
            continue
        random, reference, out = Random(f"{seed} {name}"), place / "reference", place / "out"
        run([*case.words, "--out", str(reference)])  # warms up
        shutil.rmtree(reference)
        _, seconds = run([*case.words, "--out", str(reference)])
        expected = case.content(reference)
        while count[name] < kills:
            words = [*case.words, "--out", str(out)]
            for _ in range(random.randint(1, 3)):
                killed, _ = run(words, kill_after=random.uniform(0, seconds))
                case.check(out)
                count[name] += killed
                words = [*case.words, "--out", str(out), *case.again]
            run(words)
            assert case.content(out) == expected, f"{name}: other bits after a kill"
            left = sorted(p.name for p in place.iterdir() if p.name.startswith(f".{out.name}."))
            assert not left, f"{name}: {left} was left"
            shutil.rmtree(out)
            count["ends compared"] += 1
        shutil.rmtree(reference)
        tell(f"{name}: {count[name]} kills, {seconds:.1f} s undisturbed; all bits the same")
        assert not beside(reference, "state").exists()
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    import excise.commands.scan
    import excise.pipeline  # noqa: F401  (before the forks)

    with tempfile.TemporaryDirectory() as folder:
        total = campaign(Path(folder), kills=given.kills, seed=given.seed, tell=lambda text: print(text, flush=True))
    print(f"{sum(total.values()) - total['ends compared']} kills, {total['ends compared']} ends compared, seed {given.seed}")
    sys.exit(0)
