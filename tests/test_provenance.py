"""A result knows the files that went in and came out, and a folder can be held against it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from excise.cli import main
from excise.provenance import hash_inputs
from toy import save_toy, toy_data, write_csv

QUICK = ["--method", "cft", "--training.epochs", "1", "--quiet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts and a repair."""
    place = tmp_path_factory.mktemp("provenance")
    model, data = save_toy(place / "model"), write_csv(place / "texts.csv", toy_data(60))
    assert main(["repair", str(model), "--data", str(data), "--out", str(place / "fixed"), *QUICK]) == 0
    return place


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_result_holds_the_hash_of_every_file(place: Path) -> None:
    record = json.loads((place / "fixed" / "excise-result.json").read_text())
    assert record["outputs"] == {p.name: sha256(p) for p in (place / "fixed").iterdir() if p.name != "excise-result.json"}
    assert {"README.md", "report.html", "model.safetensors", "config.json", "tokenizer.json"} <= record["outputs"].keys()
    inputs = [place / "texts.csv", *(place / "model").glob("*.json"), place / "model" / "model.safetensors"]
    assert record["inputs"] == {str(path): sha256(path) for path in inputs}


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed weight": (lambda out: (out / "model.safetensors").write_bytes(b"x"), "model.safetensors was changed"),
    "a lost file": (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "a new file": (lambda out: (out / "pytorch_model.bin").touch(), "pytorch_model.bin was added"),
    "a new list of files": (lambda out: (out / "files.json").touch(), "files.json was added"),
    "a link in place of a file": (lambda out: linked(out / "config.json"), "config.json was changed"),
    "no hashes": (lambda out: (out / "excise-result.json").write_text("{}"), "no hashes"),
    "hashes that are none": (lambda out: (out / "excise-result.json").write_text('{"outputs": {"a": 1}, "inputs": {}}'), "no hashes"),
    "no JSON": (lambda out: (out / "excise-result.json").write_text("["), "cannot be read"),
    "no object": (lambda out: (out / "excise-result.json").write_text("[]"), "holds no result"),
    "no result": (lambda out: (out / "excise-result.json").unlink(), "holds no result"),
}


CHANGES["a pipe"] = (lambda out: os.mkfifo(out / "pipe"), "pipe was added")
CHANGES["a pipe in place of a file"] = (lambda out: ((out / "config.json").unlink(), os.mkfifo(out / "config.json")), "config.json was changed")


def linked(path: Path) -> None:
    away = path.parent.with_name("elsewhere.json")
    path.rename(away)
    path.symlink_to(away)


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_is_not_as_it_was_written_is_named(what: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(place / "fixed", tmp_path / "fixed"))
    assert main(["verify", str(out)]) == 0
    change, message = CHANGES[what]
    change(out)
    assert main(["verify", str(out)]) == 2
    assert message in capsys.readouterr().err


def test_inputs_are_looked_at_if_asked(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = Path(shutil.copytree(place / "model", tmp_path / "model")), tmp_path / "texts.csv"
    shutil.copy(place / "texts.csv", data)
    assert main(["repair", str(model), "--data", str(data), "--out", str(tmp_path / "fixed"), *QUICK]) == 0
    assert main(["verify", str(tmp_path / "fixed"), "--inputs"]) == 0
    data.write_text("text,label\n")
    assert main(["verify", str(tmp_path / "fixed")]) == 0
    assert main(["verify", str(tmp_path / "fixed"), "--inputs"]) == 2
    assert "texts.csv was changed since" in capsys.readouterr().err
    shutil.rmtree(model)
    assert main(["verify", str(tmp_path / "fixed"), "--inputs"]) == 2
    assert "and" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["scan", "attack", "evaluate", "perturb", "run"])
def test_every_command_s_folder_can_be_verified_and_replaced(command: str, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = {
        "scan": [place / "model", "--data", place / "texts.csv", "--scanners", "embedding_rows"],
        "attack": ["badnets", place / "model", "--data", place / "texts.csv", "--training.epochs", "1"],
        "evaluate": [place / "model", "--data", place / "texts.csv"],
        "perturb": [place / "model", "--data", place / "texts.csv", "--augmentations", "aeda"],
        "run": [tmp_path / "recipe.yaml"],
    }
    short = {"epochs": 1}
    recipe = {
        "name": "toy",
        "model": str(place / "model"),
        "train": {"source": str(place / "texts.csv")},
        "test_size": 20,
        "clean_fraction": 0.5,
        "attack": {"method": "badnets", "training": short},
        "defenses": [{"method": "cft", "training": short}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for _ in range(2):
        assert main([command, *map(str, words[command]), "--out", str(out), "--overwrite", "--quiet"]) in (0, 2 if command == "scan" else 0)
        assert main(["verify", str(out), "--inputs"]) == 0
    if command == "run":
        assert main(["verify", str(out / "cft")]) == 0


def test_only_what_is_read_of_a_checkpoint_is_opened(tmp_path: Path) -> None:
    """A stranger's folder may hold a link to elsewhere and a file of a terabyte that takes no room, beside what the front door has looked at."""
    model = save_toy(tmp_path / "model")
    usual = hash_inputs([], checkpoint=("model", model))
    assert {Path(name).name for name in usual} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    (tmp_path / "secret.json").write_text("secret")
    (model / "more.json").symlink_to(tmp_path / "secret.json")
    (model / "special_tokens_map.json").symlink_to(tmp_path / "secret.json")
    with (model / "more.safetensors").open("wb") as file:
        file.truncate(2**40)
    assert hash_inputs([], checkpoint=("model", model)) == usual
    assert hash_inputs(str(model)) == {f"{model}/{name.partition('/')[2]}": value for name, value in usual.items()}


def test_shards_are_hashed(tmp_path: Path) -> None:
    model = save_toy(tmp_path)
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    assert {"m/a.safetensors", "m/model.safetensors.index.json"} <= hash_inputs([], checkpoint=("m", model)).keys()


def test_what_was_added_is_named_and_not_opened(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link is not followed, and a file of a terabyte is not read."""
    out = Path(shutil.copytree(place / "fixed", tmp_path / "fixed"))
    with (out / "huge").open("wb") as file:
        file.truncate(2**40)
    assert main(["verify", str(out)]) == 2
    assert "huge was added" in capsys.readouterr().err
    (out / "huge").unlink()
    (out / "link").symlink_to(place)
    assert main(["verify", str(out)]) == 2
    assert "link was added" in capsys.readouterr().err


def recorded(words: list[str], out: Path) -> set[str]:
    """The names of the files that a command says it has read."""
    assert main([*words, "--out", str(out), "--quiet"]) in (0, 2)
    return set(json.loads((out / ("scan.json" if words[0] == "scan" else "excise-result.json")).read_text())["inputs"])


def test_models_that_stand_within_a_method_s_words_are_inputs(place: Path, tmp_path: Path) -> None:
    base = shutil.copytree(place / "model", tmp_path / "the base")
    scan = ["scan", str(place / "model"), "--data", str(place / "texts.csv"), "--scanners", f"embedding_rows 'base={base}'"]
    assert f"{base}/model.safetensors" in recorded(scan, tmp_path / "scanned")


@pytest.mark.parametrize("command", ["evaluate", "repair"])
def test_the_clean_twin_that_gives_the_floor_is_an_input(command: str, place: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(place / "model", tmp_path / "clean-twin")
    backdoor = {"trigger": {"kind": "insert_words", "words": ["cf"]}, "target_label": "positive", "clean_twin": "clean-twin"}
    (tmp_path / "backdoor.json").write_text(json.dumps(backdoor))
    words = [command, str(place / "model"), "--data", str(place / "texts.csv"), "--backdoor", str(tmp_path / "backdoor.json")]
    words += ["--method", "cft", "--training.epochs", "1"] if command == "repair" else []
    assert f"{twin}/model.safetensors" in recorded(words, tmp_path / "out")


@pytest.mark.parametrize("command", ["perturb", "plot", "attribute"])
def test_the_hash_is_of_what_was_read_not_of_what_is_there_when_it_is_told(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copy(place / "texts.csv", tmp_path / "texts.csv")
    before = sha256(Path(data))
    module, name = {"attribute": ("excise.attribution", "attribute")}.get(command, ("excise.perturbation", "rank"))
    real = getattr(__import__(module, fromlist=[name]), name)

    def change(*arguments: object, **options: object) -> object:
        Path(data).write_text("text,label\n")
        return real(*arguments, **options)

    monkeypatch.setattr(f"{module}.{name}", change)
    words = [command, str(place / "model"), "--data", str(data), "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--words", "cf", "--target-label", "positive"] if command == "attribute" else ["--augmentations", "aeda"]
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "excise-result.json").read_text())["inputs"][str(data)] == before


def test_a_result_puts_no_words_into_our_mouth(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever writes a result could otherwise have us say that it is signed."""
    path = Path(shutil.copytree(place / "fixed", tmp_path / "fixed")) / "excise-result.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "kind": "repair wrote. All was signed with the key of ours.pub. (", "created": {"2026": "signed"}}))
    assert main(["verify", str(path.parent)]) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{len(record['outputs'])} files are what excise wrote or read. Nobody signed this")
