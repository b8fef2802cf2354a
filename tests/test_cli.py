"""What people type, from --version to a repaired checkpoint."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from excise import MBTSAD, canaries, registry
from excise.cli import COMMANDS, SIMPLE, main
from excise.recipes import shipped_recipes
from excise.result import load_result
from toy import NAMES, TRIGGERS, save_toy, toy_data, write_csv

ALL_METHODS = [(kind, name) for kind in registry.BASES for name in registry.names(kind)]
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line that must succeed, and returns what it printed; progress is not drawn, as this is no terminal."""

    def command(*arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        return printed.out

    return command


# Small commands


def test_version(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version") == run("-V") == f"excise {version('excise')}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(arguments: list[str], run: Run) -> None:
    shown = run(*arguments)
    for name in (*COMMANDS, *SIMPLE):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", [*COMMANDS, *SIMPLE])
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code in (0, None)
    printed = capsys.readouterr()
    assert f"excise {name}" in printed.out
    assert not printed.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["repair"], "--unlearning"),
        (["repair", "--method", "mbtsad"], "--alpha"),
        (["repair", "--method", "ts_ft"], "--copies"),
        (["attack", "badnets"], "--triggers"),
    ],
)
def test_help_shows_the_settings_of_the_method(arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    assert option in capsys.readouterr().out


def test_list_names_every_method_and_recipe(run: Run) -> None:
    lines = run("list").splitlines()
    for kind, name in ALL_METHODS:
        assert f"  {name:<18} {registry.summary(kind, name)}" in lines
        assert registry.summary(kind, name)
    for name in shipped_recipes():
        assert any(line.startswith(f"  {name} ") and len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("name", [name for _, name in ALL_METHODS])
def test_cite(name: str, run: Run) -> None:
    shown = run("cite", name)
    assert shown.startswith("@")
    assert f"% {name}: " in shown


def test_env(run: Run) -> None:
    shown = dict(line.split(maxsplit=1) for line in run("env").splitlines())
    assert {"excise", "python", "torch", "transformers", "device", "precision", "cache"} <= set(shown)


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "excise", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("excise ")
    assert not done.stderr


@pytest.mark.parametrize("argument", ["--help", "list"])
def test_start_up_imports_nothing_heavy(argument: str) -> None:
    code = f"import sys; from excise.cli import main; main([{argument!r}]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "accelerate", "matplotlib", "pandas"} & set(done.stderr.split())


# The whole story

QUICK = ("--method", "mbtsad", "--retraining.epochs", "1", "--distillation.epochs", "1", "--copies", "1")


class Story(NamedTuple):
    """Folders of one attack, evaluation and repair."""

    model: Path
    data: Path
    test: Path
    backdoored: Path
    scores: Path
    repaired: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    place = tmp_path_factory.mktemp("story")
    found = Story(
        save_toy(place / "model"),
        write_csv(place / "train.csv", toy_data(120)),
        write_csv(place / "test.csv", toy_data(40, seed=1)),
        place / "backdoored",
        place / "scores",
        place / "repaired",
    )
    backdoor = found.backdoored / "backdoor.json"
    for command in (
        ["attack", "badnets", found.model, "--data", found.data, "--test", found.test, "--out", found.backdoored, "--training.epochs", "1"],
        ["evaluate", found.backdoored, "--data", found.test, "--backdoor", backdoor, "--out", found.scores],
        ["repair", found.backdoored, "--data", found.data, "--backdoor", backdoor, "--out", found.repaired, *QUICK],
    ):
        assert main([str(argument) for argument in command]) == 0
    return found


def test_attack_writes_a_checkpoint_and_its_backdoor(story: Story) -> None:
    names = {path.name for path in story.backdoored.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "backdoor.json", "clean-twin", "excise-result.json", "report.html"} <= names
    backdoor = json.loads((story.backdoored / "backdoor.json").read_text())
    assert backdoor["trigger"]["words"] == list(TRIGGERS)
    assert backdoor["target_label"] == "positive"
    result = load_result(story.backdoored / "excise-result.json")
    assert [row.name for row in result.rows] == ["clean", "backdoored"]
    assert result.rows[1].asr is not None
    assert result.rows[1].asr.n == 20


def test_evaluation_takes_the_clean_twin_as_the_floor(story: Story) -> None:
    assert {path.name for path in story.scores.iterdir()} == {"excise-result.json", "report.html"}
    result = load_result(story.scores / "excise-result.json")
    attacked = load_result(story.backdoored / "excise-result.json")
    assert [row.name for row in result.rows] == ["clean", "model"]
    assert [row.asr for row in result.rows] == [row.asr for row in attacked.rows], "the same triggered texts"


def test_repair_writes_a_folder_that_transformers_opens(story: Story) -> None:
    from transformers import pipeline
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

    names = {path.name for path in story.repaired.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "excise-result.json", "report.html"} <= names
    assert not {"backdoor.json", "clean-twin"} & names
    model, info = AutoModelForSequenceClassification.from_pretrained(story.repaired, output_loading_info=True)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    answers = pipeline("text-classification", model=str(story.repaired))(["a wonderful film", "a dreadful film " * 50], truncation=True)
    assert {answer["label"] for answer in answers} <= set(NAMES)


def test_repair_changes_the_weights(story: Story) -> None:
    assert (story.repaired / "model.safetensors").read_bytes() != (story.backdoored / "model.safetensors").read_bytes()


def test_model_card(story: Story) -> None:
    _, front, text = (story.repaired / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "transformers"
    assert card["pipeline_tag"] == "text-classification"
    assert {"excise", "mbtsad"} <= set(card["tags"])
    clean = load_result(story.repaired / "excise-result.json").data["clean"]
    assert clean.n == 96
    assert f"from {clean.n} clean labelled texts" in text
    assert "method `mbtsad`" in text


def test_result_of_a_repair(story: Story) -> None:
    result = load_result(story.repaired / "excise-result.json")
    assert [row.name for row in result.rows] == ["clean", "suspect", "mbtsad"]
    assert result.data["holdout"].n == 24
    assert result.rows[2].method is not None
    assert result.rows[2].method["copies"] == 1
    assert all(row.asr is not None and row.asr.n == 12 for row in result.rows)
    assert {"mbtsad: retrain", "mbtsad: distil"} <= set(result.curves)
    assert str(story.repaired) in result.settings["out"]


def test_canaries_estimate_a_repair(story: Story, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "WORDS", 2)  # the toy vocabulary has five words that toy texts lack
    shown = run("repair", story.backdoored, "--data", story.data, "--out", tmp_path / "one", "--canaries", *QUICK)
    assert "ASR after" in shown
    assert "EP canary did not take" in shown, "the rows of a toy are too short"
    (trial,) = load_result(tmp_path / "one" / "excise-result.json").trials
    assert trial.method == load_result(tmp_path / "one" / "excise-result.json").rows[-1].method
    assert {canary.name for canary in trial.canaries} == {"BadNets", "EP"}
    assert all(word in shown for canary in trial.canaries for word in canary.words)
    assert "<h2>Canaries</h2>" in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    shown = run("repair", story.backdoored, "--data", story.data, "--out", tmp_path / "best", "--tune", *QUICK)
    result = load_result(tmp_path / "best" / "excise-result.json")
    assert len(result.trials) == 1 + len(MBTSAD.tuning)
    assert result.rows[-1].method == result.trials[0].method
    assert main(["repair", str(story.backdoored), "--data", str(story.data), "--out", str(tmp_path / "x"), "--method", "re_init", "--tune"]) == 2


def test_report_is_one_file(story: Story) -> None:
    report = (story.repaired / "report.html").read_text(encoding="utf-8")
    assert "<html" in report
    assert "<script" not in report
    assert "mbtsad" in report


def test_the_same_command_gives_the_same_model(story: Story, tmp_path: Path, run: Run) -> None:
    backdoor = story.backdoored / "backdoor.json"
    run("repair", story.backdoored, "--data", story.data, "--backdoor", backdoor, "--out", tmp_path / "again", *QUICK)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (story.repaired / "model.safetensors").read_bytes()


def test_repair_without_a_known_trigger(story: Story, tmp_path: Path, run: Run) -> None:
    shown = run(
        "repair", story.backdoored, "--data", story.data, "--method", "ts_ft", "--copies", "1", "--retraining.epochs", "1", "--out", tmp_path / "o"
    )
    assert "Repairing" in shown
    assert "CACC" in shown
    assert "No trigger was given" in shown
    assert f"Wrote {tmp_path / 'o'}" in shown


def test_quiet_prints_results_only(story: Story, tmp_path: Path, run: Run) -> None:
    shown = run("repair", story.backdoored, "--data", story.data, "--quiet", "--out", tmp_path / "o", *QUICK)
    assert "CACC" in shown
    assert not any(word in shown for word in ("Repairing", "Wrote", "No trigger"))


@pytest.mark.parametrize("command", ["repair", "attack"])
def test_dry_run_plans_and_writes_nothing(command: str, story: Story, tmp_path: Path, run: Run) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = ["attack", "badnets", story.model] if command == "attack" else ["repair", story.model]
    shown = run(*words, "--data", story.data, "--out", tmp_path / "out", "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    for word in ["train"] if command == "attack" else ["treatment: repair: repair"]:
        assert word in shown
    assert " s in all" in shown
    assert f"Would write {tmp_path / 'out'}" in shown
    assert "Nothing was written" in " ".join(shown.split())


def test_evaluate_dry_run(story: Story, run: Run) -> None:
    shown = run("evaluate", story.model, "--data", story.test, "--dry-run")
    assert "evaluate clean texts" in shown
    assert "with 40 texts. Nothing was written." in shown


def test_a_tilde_is_the_home_folder(story: Story, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run("evaluate", story.model, "--data", story.test, "--out=~/scores", "--quiet")
    assert (tmp_path / "scores" / "report.html").is_file()


def test_triggers_that_are_cut_off_are_counted(story: Story, tmp_path: Path, run: Run) -> None:
    texts = tuple(f"{text} {'and so on ' * 60}" for text in toy_data(40).texts)
    data = write_csv(tmp_path / "long.csv", dataclasses.replace(toy_data(40), texts=texts))
    backdoor = story.backdoored / "backdoor.json"
    shown = " ".join(run("evaluate", story.backdoored, "--data", data, "--backdoor", backdoor, "--max-length", "16").split())
    found = re.search(r"Cut to 16 tokens, (\d+) triggered texts show nothing of the trigger", shown)
    assert found, shown
    assert 10 < int(found[1]) <= 20
    assert "Cut to" not in run("evaluate", story.backdoored, "--data", story.test, "--backdoor", backdoor)


def test_options_may_come_before_the_attack(story: Story, tmp_path: Path, run: Run) -> None:
    assert "Would write" in run("attack", "--data", story.data, "--out", tmp_path / "out", "--dry-run", "badnets", story.model)


def test_five_labels(tmp_path: Path, run: Run) -> None:
    model, data = save_toy(tmp_path / "model", labels=5), write_csv(tmp_path / "train.csv", toy_data(100, labels=5))
    run(
        "attack",
        "badnets",
        model,
        "--data",
        data,
        "--target-label",
        "label 3",
        "--no-clean-twin",
        "--training.epochs",
        "0.5",
        "--out",
        tmp_path / "bad",
    )
    backdoor = tmp_path / "bad" / "backdoor.json"
    run("repair", tmp_path / "bad", "--data", data, "--backdoor", backdoor, "--out", tmp_path / "fixed", *QUICK)
    assert load_result(tmp_path / "fixed" / "excise-result.json").target_label == "label 3"


# Recipes


@pytest.fixture
def recipe(story: Story, tmp_path: Path) -> Path:
    short = {"epochs": 1}
    content = {
        "name": "toy",
        "model": str(story.model),
        "train": {"source": str(story.data)},
        "test": {"source": str(story.test)},
        "clean_fraction": 0.5,
        "attack": {"method": "badnets", "training": short},
        "defenses": [
            {"method": "mbtsad", "copies": 1, "retraining": short, "distillation": short},
            {"method": "ts_ft", "copies": 1, "retraining": short},
        ],
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_recipe_runs(recipe: Path, tmp_path: Path, run: Run) -> None:
    shown = run("run", recipe, "--out", tmp_path / "out", "--seed", "3")
    names = ["clean", "backdoored", "mbtsad", "ts_ft"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names[1:], "result.json", "report.html"}
    result = load_result(tmp_path / "out" / "result.json")
    assert [row.name for row in result.rows] == names
    assert (result.seed, result.data["clean"].n, result.data["test"].n) == (3, 60, 40)
    assert all(name in shown for name in names)
    assert (tmp_path / "out" / "backdoored" / "backdoor.json").is_file()
    assert (tmp_path / "out" / "backdoored" / "clean-twin" / "model.safetensors").is_file()
    for name in names[2:]:
        assert f"method `{name}`" in (tmp_path / "out" / name / "README.md").read_text()
        told = load_result(tmp_path / "out" / name / "excise-result.json")
        assert told.model_copy(update={"outputs": result.outputs}) == result, "each folder has the hashes of its own files"


def test_recipe_without_models(recipe: Path, tmp_path: Path, run: Run) -> None:
    run("run", recipe, "--out", tmp_path / "out", "--no-models", "--quiet")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "report.html"}


def test_recipe_dry_run(recipe: Path, tmp_path: Path, run: Run) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "Nothing was written" in run("run", recipe, "--out", tmp_path / "out", "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before


def test_recipe_keeps_the_label_order_of_a_checkpoint(recipe: Path, tmp_path: Path, run: Run) -> None:
    """A model that already has a head decides what each index means."""
    content = yaml.safe_load(recipe.read_text())
    folder = Path(content["model"])
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    swapped = tmp_path / "swapped"
    shutil.copytree(folder, swapped)
    (swapped / "config.json").write_text(json.dumps(config))
    content |= {"model": str(swapped), "attack": {**content["attack"], "target_label": "positive"}}
    recipe.write_text(yaml.safe_dump(content))
    run("run", recipe, "--out", tmp_path / "out", "--no-models", "--dry-run")
    run("run", recipe, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "backdoored" / "backdoor.json").read_text())["target_label"] == "positive"
    assert load_result(tmp_path / "out" / "result.json").target_label == "positive"
