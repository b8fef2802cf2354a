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
        "hub": ["evaluate", "org/no-such-model", "--data", data],
    }
    quiet = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EXCISE_CACHE": str(place / "cache"), "HF_HOME": str(place / "hub")}
    quiet.pop("HF_HUB_OFFLINE", None)
    asked = json.dumps(list(every.values()))
    done = subprocess.run([sys.executable, commands.__file__], input=asked, capture_output=True, text=True, check=False, env=quiet, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[" ".join(arguments)] for name, arguments in every.items()}


@pytest.mark.parametrize("name", ["list", "env", "cite", "help", "evaluate", "repair", "attack", "plot", "perturb"])
def test_local_files_need_no_network(name: str, told: dict[str, Any]) -> None:
    assert told[name]["code"] == 0, told[name]["error"]
    assert not told[name]["tried"]


def test_an_id_of_the_hub_does_connect(told: dict[str, Any]) -> None:
    """Otherwise the test above could not fail."""
    assert told["hub"]["code"] == 2
    assert any(event.startswith("socket.") for event in told["hub"]["tried"])
