"""A command that was stopped goes on only if asked, only as the same run, and then to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from excise.cli import main
from excise.disk import beside
from excise.errors import DataError, OutputError
from excise.kept import file_hash
from excise.progress import Progress, observe
from toy import save_toy, toy_data, toy_victim, write_csv

OFTEN = ["--checkpoint-every", "0", "--quiet"]
TRAINING = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8}
FLAGS = [word for key, value in TRAINING.items() for word in (f"--training.{key.replace('_', '-')}", str(value))]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def words(tmp_path: Path, out: Path) -> dict[str, list[str]]:
    """Commands that train, by name."""
    model, data = str(save_toy(tmp_path / "model")), str(write_csv(tmp_path / "texts.csv", toy_data(60)))
    recipe = {
        "name": "toy",
        "model": model,
        "train": {"source": data},
        "test_size": 20,
        "clean_fraction": 0.5,
        "attack": {"method": "badnets", "training": TRAINING},
        "defenses": [{"method": "cft", "training": TRAINING}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    to = ["--out", str(out), *OFTEN]
    return {
        "repair": ["repair", model, "--data", data, "--method", "cft", *FLAGS, *to],
        "attack": ["attack", "badnets", model, "--data", data, *FLAGS, *to],
        "run": ["run", str(tmp_path / "recipe.yaml"), *to],
    }


def stopped(words: list[str], *, after: int) -> int:
    """The exit code of a command that is interrupted after so many steps of training."""
    left = iter(range(after))

    def watch(progress: Progress) -> None:
        if "loss" in progress.values and next(left, None) is None:
            raise KeyboardInterrupt

    with observe(watch):
        return main(words)


def weights(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): file_hash(path) for path in out.rglob("*.safetensors")}


def undisturbed(words: list[str], out: Path) -> dict[str, str]:
    assert main(words) == 0
    found = weights(out)
    assert found
    shutil.rmtree(out)
    return found


@pytest.mark.parametrize("command", ["repair", "attack", "run"])
def test_it_goes_on_to_the_same_bits(
    command: str, words: dict[str, list[str]], out: Path, spared: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    line = words[command]
    expected = undisturbed(line, out)
    assert stopped(line, after=5) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "excise: interrupted; --resume goes on with it."
    assert not out.exists()
    assert main([*line, "--resume"]) == 0
    assert weights(out) == expected
    assert spared
    assert not beside(out, "state").exists()


def test_nothing_goes_on_unasked(words: dict[str, list[str]], out: Path, spared: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    line = words["repair"]
    assert stopped(line, after=5) == 130
    assert main(line) == 2
    assert "was stopped. Give --resume to go on with it, or --overwrite" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0
    assert not spared, "it began anew"
    assert not beside(out, "state").exists()
    line.remove("--quiet")
    assert main([*line, "--resume", "--overwrite"]) == 0
    assert "No earlier run left a state" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seed", "1"], "common.seed"),
        (["--training.epochs", "3"], "method.training.epochs"),
        (["--holdout", "0.3"], "holdout"),
    ],
)
def test_another_run_does_not_go_on(
    change: list[str], named: str, words: dict[str, list[str]], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words["repair"]
    assert stopped(line, after=5) == 130
    assert main([*line, *change, "--resume"]) == 2
    assert f"had another {named}." in capsys.readouterr().err
    assert beside(out, "state").exists(), "the right command can still go on"


def test_other_code_does_not_go_on(words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(words["repair"], after=5) == 130
    monkeypatch.setattr("excise.resume.version", lambda name: "0.0")
    assert main([*words["repair"], "--resume"]) == 2
    assert "had another accelerate, torch, transformers." in capsys.readouterr().err


@pytest.mark.parametrize("what", ["texts", "model"])
def test_what_has_changed_since_is_computed_again(what: str, words: dict[str, list[str]], out: Path, tmp_path: Path, spared: list[int]) -> None:
    """The names are the same, so the run is; each training looks at what is in them."""
    line = words["repair"]
    assert stopped(line, after=5) == 130
    if what == "texts":
        write_csv(tmp_path / "texts.csv", toy_data(60, seed=3))
    else:
        shutil.rmtree(tmp_path / "model")
        toy_victim(seed=5).save(tmp_path / "model")
    assert main([*line, "--resume"]) == 0
    assert not spared
    found = weights(out)
    shutil.rmtree(out)
    assert undisturbed(line, out) == found


@pytest.mark.parametrize(("error", "stays"), [(OutputError("The disk is full."), True), (DataError("Too few texts."), False)])
def test_an_error_that_may_pass_leaves_the_state(
    error: Exception, stays: bool, words: dict[str, list[str]], out: Path, spared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words["repair"]
    expected = undisturbed(line, out)
    with monkeypatch.context() as broken:
        broken.setattr("excise.commands.repair.write", raising(error))
        assert main(line) == 2
    assert beside(out, "state").exists() == stays
    if stays:
        assert main([*line, "--resume"]) == 0
        assert weights(out) == expected
        assert spared


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_several_processes_keep_no_state(words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("excise.commands._stopping.processes.count", lambda: 2)
    assert main([*words["repair"], "--resume"]) == 2
    assert "several processes keep no state" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "zoo"])
def test_a_grid_and_a_zoo_say_that_they_go_on_by_themselves(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"excise.commands.{command}.run", raising(KeyboardInterrupt()))  # type: ignore[arg-type]
    assert main([command, *(["build"] if command == "zoo" else []), "x", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "excise: interrupted; run it again to go on.\n"
