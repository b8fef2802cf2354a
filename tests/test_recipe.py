"""Recipes: YAML in, the same YAML out, and nothing that is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from excise.defenses.mbtsad import MBTSAD
from excise.errors import ConfigError
from excise.pipeline import load_corpus
from excise.recipe import Recipe, load_recipe
from excise.recipes import find_recipe, shipped_recipes


def recipe(**changes: Any) -> dict[str, Any]:
    return {"name": "small", "train": {"source": "default"}, "test_size": 40, "attack": {"method": "badnets"}, "defenses": ["mbtsad"], **changes}


FULL = recipe(
    test={"source": "test.csv", "text_column": "words", "label_column": "answer"},
    model="org/name@main",
    label_names=["no", "yes"],
    attack={"method": "badnets", "triggers": ["cf"], "target_label": "yes", "training": {"epochs": 1.5, "learning_rate": 1e-4}},
    defenses=["mbtsad", {"method": "ts_ft", "copies": 2, "augmentation": "token_splitting share=0.5"}],
    clean_fraction=0.1,
    train_size=100,
    max_length=32,
    seed=7,
)


@pytest.mark.parametrize("content", [recipe(), FULL])
def test_round_trip(content: dict[str, Any], tmp_path: Path) -> None:
    made = load_recipe(content)
    assert load_recipe(made.settings()) == made
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(yaml.safe_dump(_plain(made.settings())))))
    assert load_recipe(path) == made


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML and JSON hold them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def test_a_cut_text_has_its_first_words(tmp_path: Path) -> None:
    rows = [f"{word} {i},  and  so on,{i % 2}" for word in ("good", "bad") for i in range(100)]
    (tmp_path / "long.csv").write_text("text,label\n" + "\n".join(f'"{row.rpartition(",")[0]}",{row[-1]}' for row in rows))
    corpus = load_corpus(load_recipe(recipe(train={"source": str(tmp_path / "long.csv"), "most_words": 3})))
    assert "good 7, and" in {*corpus.train.texts, *corpus.test.texts}
    assert {len(text.split()) for data in (corpus.train, corpus.clean, corpus.test) for text in data.texts} == {3}


def test_values_arrive() -> None:
    made = load_recipe(FULL)
    assert made.attack.training.epochs == 1.5
    assert [type(defense).__name__ for defense in made.defenses] == ["MBTSAD", "TSFT"]
    assert made.defenses[0] == MBTSAD()
    assert (made.seed, made.max_length, made.label_names) == (7, 32, ("no", "yes"))


def test_overrides_replace() -> None:
    assert load_recipe(FULL, seed=8).seed == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sead": 1}, ["'sead'", "Did you mean 'seed'?"]),
        ({"train": {"sorce": "default"}}, ["train", "sorce", "Did you mean 'source'?"]),
        ({"attack": {"method": "badnets", "poison_rat": 0.1}}, ["attack", "'poison_rat'", "Did you mean 'poison_rate'?"]),
        ({"attack": {"method": "badnets", "training": {"epohcs": 1}}}, ["attack", "'training.epohcs'", "Did you mean 'epochs'?"]),
        ({"defenses": ["mbtsad", {"method": "mbtsad", "alhpa": 1}]}, ["defenses[1]", "'alhpa'", "Did you mean 'alpha'?"]),
        ({"attack": {"method": "badnet"}}, ["no attack 'badnet'", "Did you mean 'badnets'?"]),
        ({"attack": "mbtsad"}, ["no attack 'mbtsad'"]),
        ({"defenses": ["mbtsda"]}, ["no defense 'mbtsda'", "Did you mean 'mbtsad'?"]),
        ({"attack": {"poison_rate": 0.1}}, ["attack", "no 'method'", "badnets"]),
        ({"attack": {"method": 3}}, ["attack", "no 'method'"]),
        ({"defenses": "mbtsad"}, ["defenses", "list"]),
        ({"seed": "seven"}, ["seed", "integer", "'seven'"]),
        ({"seed": None}, ["seed", "integer"]),
        ({"train": "default"}, ["train"]),
        ({"name": ["small"]}, ["name", "string"]),
        ({"attack": {"method": "badnets", "poison_rate": "much"}}, ["attack", "poison_rate", "number", "'much'"]),
        ({"attack": {"method": "badnets", "triggers": "cf"}}, ["attack", "triggers"]),
        ({"attack": {"method": "badnets", "poison_rate": 1.5}}, ["attack", "poison_rate", "1.5", "less than or equal to 1"]),
        ({"attack": {"method": "badnets", "training": {"epochs": 0}}}, ["epochs", "greater than 0"]),
        ({"defenses": [{"method": "mbtsad", "copies": 1.5}]}, ["defenses[0]", "copies", "1.5"]),
        ({"defenses": [{"method": "mbtsad", "form": "mae"}]}, ["defenses[0]", "form", "'norm' or 'mse'"]),
        ({"clean_fraction": 1}, ["clean_fraction", "less than 1"]),
        ({"max_length": 4}, ["max_length", "at least 8"]),
        ({"test_size": 3}, ["test_size", "at least 20"]),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(**changes))
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("missing", ["name", "train", "attack", "defenses"])
def test_what_is_missing(missing: str) -> None:
    content = recipe()
    del content[missing]
    with pytest.raises(ConfigError, match=missing):
        load_recipe(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [", ["recipe.yaml", "no YAML"]),
        (b"\xff\xfe\xfd", ["recipe.yaml", "no YAML"]),
        (b"", ["holds no recipe", "defenses"]),
        (b"- a\n- b\n", ["holds no recipe"]),
        (b"!!python/object/apply:os.getcwd []", ["no YAML"]),
        (b"1: 2\n", ["1"]),
    ],
)
def test_file_that_is_no_recipe(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe(tmp_path / "gone.yaml")


@pytest.mark.parametrize("written", ["2e-5", "2.0e-5", "0.00002", "2E-5"])
def test_learning_rate_is_a_number(written: str, tmp_path: Path) -> None:
    """YAML 1.1 takes 2e-5 for a word."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: n\ntrain: {{source: default}}\nattack: {{method: badnets, training: {{learning_rate: {written}}}}}\n"
        f"defenses: [{{method: mbtsad, retraining: {{learning_rate: {written}}}}}]\n"
    )
    made = load_recipe(path)
    assert made.attack.training.learning_rate == made.defenses[0].retraining.learning_rate == 2e-5


@pytest.mark.parametrize("path", [pytest.param(path, id=name) for name, path in shipped_recipes().items()])
def test_shipped_recipes_parse(path: Path) -> None:
    made = load_recipe(path)
    assert isinstance(made, Recipe)
    assert made.name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# "), "the first line is what excise list shows"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: !!python/object/apply:os.system ['touch pwned']", ["no YAML", "the tag"]),
        ("name: !!python/name:os.system", ["no YAML", "the tag"]),
        ("seed: !!binary aGVsbG8=", ["no YAML", "the tag"]),
        ("seed: " + "9" * 5_000, ["no YAML", "a number of 5000 characters"]),
        ("name: 0x" + "f" * 6_000, ["no YAML", "a number of 6002 characters"]),
        ("seed: 1" + ":59" * 99_999, ["no YAML", "a number of"]),
        ("seed: 1" + ":59" * 99_999 + ".5", ["no YAML", "a number of"]),
        ("max_length: 2024-13-45", ["no YAML", "month"]),
        ("a: &a {x: 1}\nname: {<<: *a}", ["no YAML", "merge key"]),
        ("attack: \"badnets training='{<<: [{}]}'\"\nname: x\ntrain: {source: default}\ndefenses: []", ["attack", "was expected"]),
        ("name: &a [*a]\n", ["references", "more than 100000 values"]),
        ("name: x\nname: y\n", ["gives 'name' twice"]),
        ("name: {a: 1, a: 2}\n", ["gives 'a' twice"]),
        ("[" * 20_000, ["nested too deeply"]),
        ("name: " + "x" * 2**20, ["at most 1024 kB"]),
        ("name: \x00", ["no YAML"]),
        ("name: {[1, 2]: 3}", ["no YAML"]),
        ("", ["holds no recipe"]),
    ],
)
def test_yaml_from_a_stranger(content: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ConfigError) as refusal:
        load_recipe(tmp_path / "recipe.yaml")
    for word in words:
        assert word in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))
    assert not (tmp_path / "pwned").exists()


def test_a_few_merges_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Twenty lines that stand for 10^20 keys, before a single value is made of them."""
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 20)), "name: x"]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="merge key"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_few_references_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 64)), "name: *a63"]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 100000 values"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match="no file of at most"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_folder_of_texts_does_not_hide_the_grid_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imdb").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("imdb", folder="grids") == shipped_recipes("grids")["imdb"]


def test_a_folder_that_is_no_recipe_s_name_is_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever reads it can say what is wrong with it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine") == Path("mine")


def test_a_file_goes_before_the_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").write_text("name: ours")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == Path("demo")
