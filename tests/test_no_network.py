"""With files of one's own nothing connects anywhere, and no program is started.

Apart from ids of the hub only the defaults are fetched, by pip and by their hash: the default model and texts, and WordNet for the
augmentations that need it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from excise.cli import COMMANDS, SIMPLE
from hostile import commands
from toy import save_toy, toy_data, write_csv

SMALL = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command tried, in one process in which the hub is not switched off."""
    place = tmp_path_factory.mktemp("commands")
    model, data = str(save_toy(place / "model")), str(write_csv(place / "clean.csv", toy_data(80)))
    (place / "backdoor.json").write_text('{"trigger": {"kind": "insert_words", "words": ["cf"]}, "target_label": "positive"}')
    backdoor = ["--backdoor", str(place / "backdoor.json")]
    short = {"epochs": 0.2}
    source = {"A": {"train": {"source": data}, "test_size": 20, "clean_fraction": 0.5}}
    bad, common = {"method": "badnets", "training": short}, {"name": "toy", "model": model}
    files = {
        "recipe": {**common, **source["A"], "attack": bad, "defenses": [{"method": "cft", "training": short}]},
        "grid": {**common, "data": source, "attacks": {"Bad": bad}, "defenses": {"Fine": {"method": "cft", "training": short}}, "seeds": [0]},
        "zoo": {**common, "data": source, "families": [{"part": "calibration", "data": "A", "attack": bad, "seeds": [1]}]},
    }
    paths = {name: str(place / f"{name}.yaml") for name in files}
    for name, content in files.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(content))
    every = {
        "list": ["list"],
        "env": ["env"],
        "cite": ["cite", "mbtsad"],
        "help": ["repair", "--help"],
        "evaluate": ["evaluate", model, "--data", data, *backdoor, "--out", str(place / "evaluated"), *SMALL],
        "repair": ["repair", model, "--data", data, "--method", "ts_ft", "--retraining.epochs", "0.2", "--out", str(place / "fixed"), *SMALL],
        "attack": ["attack", "badnets", model, "--data", data, "--training.epochs", "0.2", "--out", str(place / "attacked"), *SMALL],
        "plot": ["plot", model, "--data", data, "--augmentations", "aeda", "--out", str(place / "drawn"), *SMALL],
        "perturb": ["perturb", model, "--data", data, "--augmentations", "aeda", "--out", str(place / "perturbed"), *SMALL],
        "verify": ["verify", str(place / "fixed")],
        "scan": ["scan", model, "--data", data, "--out", str(place / "scanned"), *SMALL],
        "run": ["run", paths["recipe"], "--out", str(place / "run"), *SMALL[2:]],
        "bench": ["bench", paths["grid"], "--out", str(place / "bench"), *SMALL],
        "zoo": ["zoo", "scan", paths["zoo"], "--scanners", "embedding_rows", "--out", str(place / "zoo"), *SMALL],
        "attribute": ["attribute", model, "--data", data, *backdoor, "--out", str(place / "attributed"), *SMALL],
        "train-lm": ["train-lm", "--data", data, "--base", model, "--training.epochs", "0.2", "--out", str(place / "lm"), *SMALL],
        "sign": ["sign", str(place / "fixed"), "--private-key", str(place / "no key")],
        "hub": ["evaluate", "org/no-such-model", "--data", data],
    }
    quiet = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EXCISE_CACHE": str(place / "cache"), "HF_HOME": str(place / "hub")}
    quiet.pop("HF_HUB_OFFLINE", None)
    asked = json.dumps(list(every.values()))
    done = subprocess.run([sys.executable, commands.__file__], input=asked, capture_output=True, text=True, check=False, env=quiet, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[" ".join(arguments)] for name, arguments in every.items()}


ENDS = {"scan": (0, 1, 2), "sign": (2,)}
"""Other exit codes than 0: what was found in a toy, and a key that is not there."""


@pytest.mark.parametrize("name", [*sorted({*COMMANDS, *SIMPLE} - {"demo"}), "help"])
def test_local_files_need_no_network(name: str, told: dict[str, Any]) -> None:
    """No command but demo, which is there to fetch the defaults."""
    assert told[name]["code"] in ENDS.get(name, (0,)), told[name]["error"]
    assert not told[name]["tried"]


def test_an_id_of_the_hub_does_connect(told: dict[str, Any]) -> None:
    """Otherwise the test above could not fail."""
    assert told["hub"]["code"] == 2
    assert any(event.startswith("socket.") for event in told["hub"]["tried"])
