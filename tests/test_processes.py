"""Two processes train as one does, and only the first writes and prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import two_processes
from excise.cli import main
from excise.processes import count, index
from excise.training import share
from excise.victim import Batch
from toy import save_toy, toy_data, toy_victim, write_csv

TESTS = Path(__file__).parent
TOLERANCE = 5e-5
"""Training changes weights by 1e-2 or so here; the order of sums, through Adam, by 1e-5 at most."""


def launched(*command: str, folder: Path) -> str:
    """What a command prints under `accelerate launch` on two processes; --multi_gpu means several processes, on the CPU where there is no GPU."""
    paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "EXCISE_CACHE": str(folder / "cache")}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run([*launcher, *command], env={**os.environ, **hidden}, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_a_recipe_on_two_processes_gives_the_models_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attack and clean twin train by classification, MBTSAD distils attention and hidden states; batches of 7 cannot be halved."""
    two_processes.still(toy_victim()).save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | still))
    training = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 7}
    recipe = {
        "name": "pair",
        "model": str(tmp_path / "model"),
        "train": {"source": str(write_csv(tmp_path / "texts.csv", toy_data(80)))},
        "test_size": 22,
        "clean_fraction": 0.5,
        "attack": {"method": "badnets", "training": training},
        "defenses": [{"method": "mbtsad", "beta": 10, "copies": 1, "retraining": training, "distillation": training}],
    }
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(recipe))
    exact = ["--precision", "fp32"]  # bf16 rounds what two halves of a batch add up to far more than the tolerance
    assert main(["run", str(path), *exact, "--out", str(tmp_path / "one")]) == 0
    shown = launched("-m", "excise", "run", str(path), *exact, "--out", str(tmp_path / "two"), folder=tmp_path)
    assert shown.count("Wrote ") == capsys.readouterr().out.count("Wrote ") == 1, "the other process prints nothing"
    assert not list(tmp_path.glob(".two*")), "and leaves nothing"
    names = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*")}
    assert {str(p.relative_to(tmp_path / "two")) for p in (tmp_path / "two").rglob("*")} == names
    before = load_file(tmp_path / "model" / "model.safetensors")
    for name in ("backdoored", "backdoored/clean-twin", "mbtsad"):
        one, two = (load_file(tmp_path / folder / name / "model.safetensors") for folder in ("one", "two"))
        assert furthest(one, before) > 100 * TOLERANCE, "the tolerance is far below what training changes"
        assert furthest(one, two) < TOLERANCE, name
    one, two = (json.loads((tmp_path / folder / "result.json").read_text())["rows"] for folder in ("one", "two"))
    assert [row["cacc"] for row in one] == [row["cacc"] for row in two]


@pytest.mark.slow
def test_every_architecture_and_loss_trains_on_two_processes_as_on_one(tmp_path: Path) -> None:
    launched(str(TESTS / "two_processes.py"), str(tmp_path), folder=tmp_path)
    first, second = (load_file(tmp_path / f"{i}.safetensors") for i in range(2))
    assert furthest(first, second) == 0, "the processes agree"
    alone = {f"{name}/{key}": value for name, victim in two_processes.trained().items() for key, value in victim.model.state_dict().items()}
    assert furthest(alone, first) < TOLERANCE


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), parts=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_the_mean_over_parts_is_the_mean_over_the_batch(lengths: list[int], parts: int, seed: int) -> None:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    per_token = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    batch = Batch({"input_ids": torch.arange(mask.numel()).view(mask.shape), "attention_mask": mask}, torch.arange(len(lengths)))
    shared = [share(batch, i, parts) for i in range(parts)]
    assert sorted(label for part, weight in shared if weight for label in part.labels.tolist()) == list(range(len(lengths)))
    assert all(len(part.labels) and part.mask.shape[1] == mask.shape[1] for part, _ in shared)
    assert max(len(part.labels) for part, _ in shared) - min(len(part.labels) * (weight > 0) for part, weight in shared) <= 1

    def text_mean(part: Batch) -> torch.Tensor:
        return per_token[part.labels, 0].mean()

    def token_mean(part: Batch) -> torch.Tensor:
        return (per_token[part.labels] * part.mask).sum() / part.mask.sum() * part.token_weight

    for mean in (text_mean, token_mean):
        assert sum(mean(part) * weight for part, weight in shared) / parts == pytest.approx(mean(batch).item())


def test_a_process_that_is_not_the_first_writes_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (count(), index()) == (1, 0)
    model, data = save_toy(tmp_path / "model"), write_csv(tmp_path / "texts.csv", toy_data(30))
    arguments = ["evaluate", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "out").mkdir()  # the first process may be done already
    (tmp_path / "out" / "mine").touch()
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    assert main(["evaluate", str(tmp_path / "none"), "--data", str(data)]) == 2
    assert "excise: process 1: " in capsys.readouterr().err
