"""A grid is measured once, resumed, and shown beside the paper."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from excise import bench, canaries
from excise import cell as cell_module
from excise.attacks._triggers import InsertWords
from excise.attacks.badnets import BadNets
from excise.bench import run_grid
from excise.cell import Cell, cell_key, keep, kept, kept_cells
from excise.cli import main
from excise.errors import ConfigError, DataError, NeedsError
from excise.grid import Grid, load_grid, place_recipe, places
from excise.kept import digest
from excise.metrics import Rate
from excise.pipeline import load_corpus
from excise.recipes import shipped_recipes
from excise.reports.figures import correlation, estimate_figure
from excise.reports.grid import HEADINGS, Estimate, csv_table, estimates, latex_table, markdown_table, noted, table_rows, terminal_table
from excise.result import CanaryRow, Measured
from toy import save_toy, toy_data, write_csv

SHORT = {"epochs": 1, "learning_rate": 1e-3}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "toy",
        "model": str(save_toy(tmp_path / "model")),
        "data": {
            "A": {"train": {"source": str(write_csv(tmp_path / "a.csv", toy_data(80)))}, "test_size": 30, "clean_fraction": 0.5},
        },
        "attacks": {"Bad": {"method": "badnets", "training": SHORT}},
        "defenses": {"Fine": {"method": "cft", "training": SHORT}, "Refuse": "reject"},
        "seeds": [0, 1],
        "paper": {"Bad": {"none": [90.0, 99.5], "Fine": [89.0, 12.0]}},
    }


@pytest.fixture
def grid(content: dict[str, Any], tmp_path: Path) -> Grid:
    return load_grid(written(content, tmp_path))


def written(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often models were made and cells measured."""
    counts = {"models": 0, "cells": 0, "attacks": 0}
    twin, measure, attack = bench.clean_twin, bench._measure, BadNets.__call__

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(bench, "clean_twin", counted("models", twin))
    monkeypatch.setattr(bench, "_measure", counted("cells", measure))
    monkeypatch.setattr(BadNets, "__call__", counted("attacks", attack))
    return counts


def test_each_model_is_made_once_and_each_cell_measured_once(grid: Grid, tmp_path: Path, count: dict[str, int]) -> None:
    cells = run_grid(grid, tmp_path / "out")
    assert [(cell.data, cell.attack, cell.defense, cell.seed) for cell in cells] == [
        ("A", "Bad", defense, seed) for seed in (0, 1) for defense in ("none", "Fine", "Refuse")
    ]
    assert count == {"models": 2, "cells": 6, "attacks": 2}
    assert not any(cell.error for cell in cells)
    assert run_grid(grid, tmp_path / "out") == cells
    assert count == {"models": 2, "cells": 6, "attacks": 2}, "nothing is made again"


def test_the_same_texts_in_another_place_are_the_same_cells(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    test = write_csv(tmp_path / "test.csv", toy_data(30, seed=9))
    content["data"]["A"] = {**content["data"]["A"], "test": {"source": str(test)}, "test_size": None}
    cells = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    test.rename(tmp_path / "b-test.csv")
    content["data"]["A"] |= {"train": {"source": str(tmp_path / "b.csv")}, "test": {"source": str(tmp_path / "b-test.csv")}}
    count.update(models=0, cells=0, attacks=0)
    assert run_grid(load_grid(written(content, tmp_path)), tmp_path / "out") == cells
    assert count == {"models": 0, "cells": 0, "attacks": 0}


def test_cells_of_the_same_settings_have_the_name_that_was_asked_for(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    """Another grid may call a defense or the data otherwise, and a grid may have one thing under two names."""
    out, fine = tmp_path / "out", content["defenses"]["Fine"]
    content |= {"seeds": [0], "defenses": {"Fine": fine}}
    first = run_grid(load_grid(written(content, tmp_path)), out)
    content["defenses"] = {"Again": fine, "Tuned": fine}
    content["attacks"] = {"Worse": content["attacks"]["Bad"]}
    named = load_grid(written(content, tmp_path))
    asked = ["none", "Again", "Tuned"]
    assert [cell.defense for cell in kept_cells(named, out)] == asked
    content["data"] = dict.fromkeys(("B", "C"), content["data"]["A"])
    count.update(models=0, cells=0, attacks=0)
    cells = run_grid(load_grid(written(content, tmp_path)), out)
    assert [(cell.data, cell.attack, cell.defense) for cell in cells] == [(data, "Worse", name) for data in "BC" for name in asked]
    assert {cell.asr for cell in cells} == {cell.asr for cell in first}
    assert all(cell == cell.sealed() for cell in cells)
    assert not any(count.values())


def test_names_of_labels_that_the_texts_have_anyway_make_no_other_cell(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    cells = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    content["data"]["A"]["label_names"] = list(toy_data(2).label_names)
    count.update(models=0, cells=0, attacks=0)
    grid = load_grid(written(content, tmp_path))
    assert run_grid(grid, tmp_path / "out") == cells == kept_cells(grid, tmp_path / "out")
    assert not any(count.values())
    place = places(grid)[0]
    recipe, corpus = place_recipe(grid, place), load_corpus(place_recipe(grid, place))
    other = replace(corpus, train=replace(corpus.train, label_names=("no", "yes")))
    assert cell_key(recipe, other, "fp32") != cell_key(recipe, corpus, "fp32"), "other names are another task"


def test_a_killed_grid_goes_on_where_it_was(grid: Grid, tmp_path: Path, count: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_grid(grid, tmp_path / "whole")
    keep = bench.keep
    kept: list[Cell] = []

    def dying(folder: Path, cell: Cell) -> None:
        keep(folder, cell)
        kept.append(cell)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(bench, "keep", dying)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path / "out")
    monkeypatch.setattr(bench, "keep", keep)
    count.update(models=0, cells=0, attacks=0)
    again = run_grid(grid, tmp_path / "out")
    assert count == {"models": 1, "cells": 4, "attacks": 1}, "the first model and two cells were there"
    assert [(c.key, c.cacc, c.asr, c.floor) for c in again] == [(c.key, c.cacc, c.asr, c.floor) for c in whole]


def test_attacks_with_the_same_training_share_their_twin(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    content |= {"seeds": [0], "attacks": {"Bad": content["attacks"]["Bad"], "Worse": {**content["attacks"]["Bad"], "poison_rate": 0.3}}}
    cells = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    assert (count["models"], count["attacks"]) == (1, 2)
    assert cells[0].twin_cacc == cells[3].twin_cacc


def test_pruned_models_share_a_twin_that_is_pruned_alike(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    bad = content["attacks"]["Bad"]
    small = {"method": "pruned", "layers": 1, "heads": 2, "training": SHORT}
    attacks = {
        "Small": {**small, "attack": bad},
        "Worse": {**small, "attack": {**bad, "poison_rate": 0.3}},
        "Less": {**small, "heads": 1, "attack": bad},
    }
    content |= {"seeds": [0], "attacks": {**attacks, "Bad": bad}, "defenses": {}}
    cells = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    assert not any(cell.error for cell in cells)
    assert (count["models"], count["attacks"]) == (3, 4)
    configs = [path.read_text() for path in (tmp_path / "out" / "models").rglob("config.json")]
    assert sum('"num_hidden_layers": 1' in config for config in configs) == 5, "three models and two twins"


def test_defenders_with_more_or_fewer_texts_share_the_backdoored_model(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    content |= {"seeds": [0], "data": {str(f): {**content["data"]["A"], "clean_fraction": f} for f in (0.4, 0.5)}}
    cells = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    assert (count["models"], count["attacks"], count["cells"]) == (1, 1, 6)
    assert cells[0].asr == cells[3].asr
    assert cells[1].key != cells[4].key


def test_another_model_in_the_same_folder_is_another_model(content: dict[str, Any], tmp_path: Path, count: dict[str, int]) -> None:
    content |= {"seeds": [0]}
    content["defenses"] = {"Mix": {"method": "fine_mixing", "pretrained_weights": content["model"], "training": SHORT}}
    run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    assert count == {"models": 1, "attacks": 1, "cells": 2}
    save_toy(tmp_path / "other", labels=5)
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model" / "model.safetensors")
    again = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    assert all(cell.error for cell in again), "nothing of the old model is used"


def test_other_paraphrases_in_the_same_file_are_another_attack(content: dict[str, Any], tmp_path: Path) -> None:
    said = tmp_path / "said.csv"
    attack = {"method": "paraphrase", "paraphrases": [str(said)], "training": SHORT}
    keys = []
    for how in ("so", "thus"):
        said.write_text("text,source_text\n" + "".join(f"{how} {text},{text}\n" for text in toy_data(80).texts))
        grid = load_grid(written(content | {"attacks": {"Said": attack}, "seeds": [0], "defenses": {}}, tmp_path))
        recipe = place_recipe(grid, places(grid)[0])
        keys.append(cell_key(recipe, bench.load_corpus(recipe), "fp32"))
    assert keys[0] != keys[1]


def test_sources_and_seeds_can_be_given_from_outside(content: dict[str, Any], tmp_path: Path) -> None:
    mine, ours = (str(write_csv(tmp_path / name, toy_data(80))) for name in ("mine.csv", "ours.csv"))
    grid = load_grid(written(content, tmp_path), train=mine, test=ours, seeds=(7,))
    assert grid.data["A"]["train"] == {"source": mine}
    assert grid.data["A"]["test"] == {"source": ours}
    assert {place.seed for place in places(grid)} == {7}
    content["data"]["B"] = {**content["data"]["A"], "train": {"source": "other.csv"}}
    with pytest.raises(ConfigError, match=r"--train was given, but the data of .* come from different places"):
        load_grid(written(content, tmp_path), train=mine)


def test_a_grid_without_its_files_is_refused_whole(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file nothing\.csv"):
        load_grid(written(content, tmp_path), train="nothing.csv")


def test_damaged_entries_are_made_again(grid: Grid, tmp_path: Path, count: dict[str, int]) -> None:
    out = tmp_path / "out"
    whole = run_grid(grid, out)
    cell = out / "cells" / f"{whole[1].key}.json"
    cell.write_text(cell.read_text().replace('"hits": ', '"hits": 1'))
    before = max(path.stat().st_mtime_ns for path in (out / "models").iterdir())
    weights = next((out / "models").rglob("model/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    for path in (out / "cells").iterdir():
        if path != cell:
            path.unlink()
    count.update(models=0, cells=0, attacks=0)
    again = run_grid(grid, out)
    assert sorted(path.stat().st_mtime_ns for path in (out / "models").iterdir())[-1] > before, "the damaged model is made again"
    assert count["models"] + count["attacks"] == 1, "and no other"
    assert count["cells"] == 6
    assert [(c.cacc, c.asr) for c in again] == [(c.cacc, c.asr) for c in whole]


@pytest.mark.parametrize("change", ["defense", "seed", "data", "size", "precision"])
def test_the_key_holds_all_that_decides_a_cell(change: str, content: dict[str, Any], tmp_path: Path) -> None:
    def keys(content: dict[str, Any], precision: str = "fp32") -> list[str]:
        grid = load_grid(written(content, tmp_path))
        found = []
        for place in places(grid):
            recipe = place_recipe(grid, place)
            found.append(cell_key(recipe, bench.load_corpus(recipe), precision))
        return found

    before = keys(content)
    assert len(set(before)) == 6
    assert keys(content) == before
    match change:
        case "defense":
            content["defenses"]["Fine"] = {"method": "cft", "training": {**SHORT, "epochs": 2}}
        case "seed":
            content["seeds"] = [5, 6]
        case "data":
            source = Path(content["data"]["A"]["train"]["source"])
            source.write_text(source.read_text().replace("film", "movie"))
        case "size":
            content["data"]["A"]["clean_fraction"] = 0.4
    changed = [a != b for a, b in zip(before, keys(content, "bf16" if change == "precision" else "fp32"), strict=True)]
    assert changed == ([False, True, False] * 2 if change == "defense" else [True] * 6)


def test_another_version_of_a_scanner_is_another_cell(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.scanners.trigger_search import TriggerSearch

    def keys() -> dict[str, str]:
        grid = load_grid(written(content, tmp_path))
        recipes = {place.defense: place_recipe(grid, place) for place in places(grid)}
        return {defense: cell_key(recipe, bench.load_corpus(recipe), "fp32") for defense, recipe in recipes.items()}

    content["defenses"] = {"Fine": "cft", "Treat": "treatment", "Both": {"method": "chain", "first": "treatment", "then": "cft"}}
    before = keys()
    monkeypatch.setattr(TriggerSearch, "version", TriggerSearch.version + 1)
    assert {defense for defense, key in keys().items() if key != before[defense]} == {"Treat", "Both"}


def test_a_failing_cell_is_a_row_and_the_others_go_on(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.defenses.cft import CFT

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(CFT, "__call__", fail)
    cells = run_grid(grid, tmp_path / "out")
    assert [cell.error for cell in cells] == [None, "RuntimeError: out of memory", None] * 2
    row = table_rows(cells, {})[1]
    assert row.note == "2 failed: RuntimeError: out of memory"
    assert row.cacc == "-"
    monkeypatch.undo()
    assert not any(cell.error for cell in run_grid(grid, tmp_path / "out")), "it is tried again"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"defenses": {"X": "mbstad"}}, ConfigError, "mbstad.*mbtsad"),
        ({"defenses": {"X": {"method": "cft", "epochz": 1}}}, ConfigError, "epochz"),
        ({"defenses": {"none": "cft"}}, ConfigError, "always measured"),
        ({"defenses": {"X": "fine_mixing"}}, NeedsError, "fine_mixing needs clean pre-trained weights"),
        ({"attacks": {"X": "badnet"}}, ConfigError, "badnets"),
        ({"sedes": [1]}, ConfigError, "seeds"),
        ({"data": {"A": {"trian": {"source": "x"}}}}, ConfigError, "train"),
    ],
)
def test_a_wrong_grid_is_refused_whole(change: dict[str, Any], error: type[Exception], words: str, content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        load_grid(written(content | change, tmp_path))
    assert not (tmp_path / "out").exists()


# The table


def share(hits: int) -> Measured:
    return Measured.of(Rate(hits, 100))


def cell(defense: str, seed: int, asr: int, *, floor: int = 10, cacc: int = 90) -> Cell:
    return Cell(
        key="k",
        data="A|B",
        attack="Bad_1",
        defense=defense,
        seed=seed,
        settings={},
        cacc=share(cacc),
        asr=share(asr),
        floor=share(floor),
        clean_flip=share(12),
    )


CELLS = [cell("none", 0, 99), cell("=Fix", 0, 20, cacc=80), cell("none", 1, 97), cell("=Fix", 1, 30)]


def test_lines_are_means_over_seeds_beside_the_paper() -> None:
    lines = table_rows(CELLS, {"Bad_1": {"=Fix": (90.17, 9.65)}})
    assert [line.defense for line in lines] == ["none", "=Fix"]
    assert (lines[1].seeds, lines[1].cacc, lines[1].asr) == ("2", "85.0 (80.0-90.0)", "25.0 (20.0-30.0)")
    assert (lines[1].paper_cacc, lines[1].paper_asr) == ("90.17", "9.65")
    assert (lines[0].paper_cacc, lines[0].note) == ("", "")
    assert table_rows(CELLS[:1], {})[0].asr == "99.0 [94.6-99.8]"


def test_nothing_is_scored_where_there_was_nothing_to_repair() -> None:
    cells = [*CELLS[:2], cell("none", 1, 14), cell("=Fix", 1, 1)]
    line = table_rows(cells, {})[1]
    assert (line.seeds, line.asr[:4]) == ("1", "20.0")
    assert line.note == "1 not scored: the undefended ASR is not above the floor"


def test_a_clean_model_is_scored_and_called_one(content: dict[str, Any], tmp_path: Path) -> None:
    clean = {"method": "badnets", "training": SHORT, "poison_rate": 0}
    content |= {"attacks": {"Bad": content["attacks"]["Bad"], "None": clean}, "seeds": [0]}
    cells = run_grid(load_grid(written(content, tmp_path)), tmp_path / "out")
    assert not any(cell.error for cell in cells if cell.attack == "None")
    suspect = next(cell for cell in cells if (cell.attack, cell.defense) == ("None", "none"))
    assert (suspect.asr, suspect.cacc) == (suspect.floor, suspect.twin_cacc), "it is its own twin"
    lines = {(line.attack, line.defense): line for line in table_rows(cells, {})}
    for defense in ("none", "Fine", "Refuse"):
        line = lines["None", defense]
        assert line.seeds == "1"
        assert "-" not in (line.cacc, line.asr, line.floor)
        assert "nothing was planted" in line.note
    assert "nothing was planted" not in lines["Bad", "Fine"].note
    nested = [cell.model_copy(update={"settings": {"attack": {"method": "x", "attack": cell.settings["attack"]}}}) for cell in cells]
    assert {line.attack: line.note for line in table_rows(nested, {}) if line.defense == "Fine"}["None"].startswith("nothing was planted")


def test_rows_of_another_copy_of_the_backdoored_model_say_so(grid: Grid, tmp_path: Path) -> None:
    """A machine with other arithmetic plants the same backdoor in other bits; what is measured after it must not pass for the same model."""
    cells = run_grid(grid, tmp_path / "out", precision="fp32")
    assert len({cell.suspect for cell in cells}) == 2, "one model a seed"
    assert not any("another copy" in line.note for line in table_rows(cells, {}))
    others = run_grid(grid, tmp_path / "out", precision="bf16")
    assert {cell.suspect for cell in others}.isdisjoint(cell.suspect for cell in cells)
    mixed = [other if cell.place.defense == "Fine" and cell.seed else cell for cell, other in zip(cells, others, strict=True)]
    notes = [line.note for line in table_rows(mixed, {})]
    assert ["1 measured on another copy of the backdoored model than 'none'" in note for note in notes] == [False, True, False]


def test_every_form_of_the_table_holds_every_line() -> None:
    lines = table_rows(CELLS, {})
    assert terminal_table(lines).row_count == 2
    assert noted([line._replace(note="why") for line in lines[:1]]) == [f"{lines[0].data}, {lines[0].attack}, {lines[0].defense}: why"]
    assert noted([line._replace(note="") for line in lines]) == []
    markdown = markdown_table(lines).splitlines()
    assert len(markdown) == 4
    assert all(line.replace("\\|", "").count("|") == 12 for line in markdown)
    rows = list(csv.reader(io.StringIO(csv_table(lines))))
    assert [len(row) for row in rows] == [11] * 3
    assert rows[2][2] == "'=Fix", "no formula"
    latex = latex_table(lines)
    assert r"A|B & Bad\_1 & =Fix & 2 & 85.0 (80.0-90.0)" in latex
    assert latex.count(r"\\") == 3


# Canaries


def canary(floor: int, before: int, after: int) -> CanaryRow:
    return CanaryRow(name="c", words=("cf",), target_label="positive", floor=share(floor), before=share(before), after=share(after))


def test_an_estimate_is_what_is_left_of_canaries_that_took() -> None:
    plain = cell("Fix", 0, 30)
    assert plain.estimate is None
    took, not_took = canary(10, 99, 25), canary(40, 45, 90)
    assert plain.model_copy(update={"canaries": (took, not_took)}).estimate == pytest.approx(0.15)
    assert plain.model_copy(update={"canaries": (took, canary(0, 90, 5))}).estimate == pytest.approx(0.10)
    assert plain.model_copy(update={"canaries": (not_took,)}).estimate is None


def test_estimates_stand_beside_the_truth_where_there_was_something_to_repair() -> None:
    none, fixed = cell("none", 0, 99), cell("Fix", 0, 30).model_copy(update={"canaries": (canary(10, 99, 25),)})
    weak = [cell("none", 1, 14), fixed.model_copy(update={"seed": 1})]
    planted_nothing = {"settings": {"attack": {"poison_rate": 0}}, "attack": "Clean"}
    clean = [one.model_copy(update=planted_nothing) for one in (none, fixed)]
    found = estimates([none, fixed, cell("Other", 0, 20), *weak, *clean])
    assert [one.defense for one in found] == ["Fix"]
    assert found[0][1:] == pytest.approx((0.15, 0.20))


def test_the_correlation_is_drawn_and_said() -> None:
    found = [Estimate(f"<D{i % 2}>", i / 10, [0.0, 0.3, 0.2, 0.5][i]) for i in range(4)]
    wanted = np.corrcoef([one.estimate for one in found], [one.truth for one in found])[0, 1]
    assert f"4 cells: Pearson's r = {wanted:.2f} (" in correlation(found)
    drawn = estimate_figure(found).decode()
    assert f"r = {wanted:.2f}" in drawn
    assert "&lt;D0&gt;" in drawn
    for few in (found[:3], [one._replace(truth=0.1) for one in found]):
        assert "no correlation" in correlation(few)
        assert estimate_figure(few).startswith(b"<?xml")


def test_cells_keep_what_is_left_of_canaries(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted: list[Any] = []

    def plant(suspect: Any, data: Any, *, seed: int) -> Any:
        planted.append((suspect, data, seed))
        return canaries.Planted(suspect, suspect, (canaries.Canary("BadNets", InsertWords(words=("zq",)), 0),))

    monkeypatch.setattr(bench, "plant", plant)
    without = load_grid(written(content | {"seeds": [0]}, tmp_path))
    plain = run_grid(without, tmp_path / "out")
    assert not planted
    grid = load_grid(written(content | {"seeds": [0], "canaries": True}, tmp_path))
    cells = run_grid(grid, tmp_path / "out")
    assert not any(cell.error for cell in cells)
    assert len(planted) == 1, "the copy is shared"
    assert [len(cell.canaries or ()) for cell in cells] == [0, 1, 1]
    assert [one.key == other.key for one, other in zip(plain, cells, strict=True)] == [True, False, False]
    assert [(c.cacc, c.asr) for c in cells] == [(c.cacc, c.asr) for c in plain], "the repair of the suspect is the same"
    assert run_grid(grid, tmp_path / "out") == cells
    assert kept_cells(grid, tmp_path / "out") == cells
    for one in plain[1:]:
        (tmp_path / "out" / "cells" / f"{one.key}.json").touch()
    assert kept_cells(grid, tmp_path / "out") == cells, "whatever the time of a file"
    for one in cells[1:]:
        keep(tmp_path / "out", one.model_copy(update={"suspect": "another"}).sealed())
    assert kept_cells(without, tmp_path / "out") == plain, "those are of another copy of the model than 'none'"
    assert [bool(cell.canaries) for cell in kept_cells(grid, tmp_path / "out")] == [False, True, True], "but of no other is there an estimate"
    at_once = run_grid(grid, tmp_path / "other")
    but_time = {"seconds", "digest"}
    assert [c.model_dump(exclude=but_time) for c in at_once] == [c.model_dump(exclude=but_time) for c in cells]


@pytest.mark.parametrize("suspect", ["the same", "another"])
def test_a_kept_cell_gets_its_canaries_without_a_second_repair(
    suspect: str, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(suspect: Any, data: Any, *, seed: int) -> Any:
        return canaries.Planted(suspect, suspect, (canaries.Canary("BadNets", InsertWords(words=("zq",)), 0),))

    repaired = list[str]()
    repair = bench._repaired
    monkeypatch.setattr(bench, "plant", plant)
    monkeypatch.setattr(bench, "_repaired", lambda place, *args: repaired.append(place.defense) or repair(place, *args))
    plain = run_grid(load_grid(written(content | {"seeds": [0]}, tmp_path)), tmp_path / "out")
    assert len(repaired) == len(plain) == 3
    changed = {"asr": None, "suspect": plain[1].suspect if suspect == "the same" else "0" * 64}
    bench.keep(tmp_path / "out", plain[1].model_copy(update=changed).sealed())
    cells = run_grid(load_grid(written(content | {"seeds": [0], "canaries": True}, tmp_path)), tmp_path / "out")
    again = [] if suspect == "the same" else [plain[1].defense]
    assert repaired[3:] == again, "what was measured on a model with other weights is measured anew"
    assert plain[1].asr
    assert cells[1].asr == (plain[1].asr if again else None)
    assert [len(cell.canaries or ()) for cell in cells] == [0, 1, 1]


def test_the_command_draws_what_canaries_foretold(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = [
        cell("none", 0, 99),
        *(cell(f"Fix {i}", 0, 20 + 9 * i).model_copy(update={"canaries": (canary(5, 99, 7 + 8 * i),)}) for i in range(4)),
    ]
    monkeypatch.setattr(cell_module, "kept_cells", lambda *_: measured)
    assert main(["bench", str(written(content, tmp_path)), "--out", str(tmp_path / "out"), "--no-run"]) == 0
    assert "Canaries and the truth, 4 cells: Pearson's r = 1.00" in " ".join(capsys.readouterr().out.split())
    assert "Fix 3" in (tmp_path / "out" / "toy-canaries.svg").read_text()
    monkeypatch.setattr(cell_module, "kept_cells", lambda *_: measured[:1])
    assert main(["bench", str(written(content, tmp_path)), "--out", str(tmp_path / "other"), "--no-run"]) == 0
    assert not list((tmp_path / "other").glob("*.svg"))


def test_cells_of_before_there_were_canaries_are_known(tmp_path: Path) -> None:
    plain = cell("Fix", 0, 30).model_dump(exclude={"digest", "canaries"}, mode="json")
    path = tmp_path / "cells" / "k.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**plain, "digest": digest(plain)}))
    assert kept(tmp_path, "k") == cell("Fix", 0, 30).sealed()


# The command


def test_the_command_measures_and_writes_tables(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(content | {"seeds": [0]}, tmp_path)
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "3 cells, with 1 backdoored models" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--no-models"]) == 0
    shown = capsys.readouterr().out
    assert "Refuse" in shown
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"cells", "toy.md", "toy.csv", "toy.tex"}
    assert "99.50" in (tmp_path / "out" / "toy.md").read_text()
    assert main(["bench", "tabel2", "--out", str(tmp_path / "x")]) == 2
    assert "Did you mean 'table2'?" in capsys.readouterr().err


def test_tables_come_from_kept_cells_without_the_texts(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["bench", str(written(content, tmp_path)), "--out", str(out), "--no-models", "--seeds", "1"]) == 0
    assert "A, Bad, Fine, seed 1: CACC" in capsys.readouterr().out
    elsewhere = {**content["data"]["A"], "train": {"source": "somebody/texts"}}
    grid = written({**content, "name": "again", "data": {"A": elsewhere}}, tmp_path)
    assert main(["bench", str(grid), "--out", str(out), "--no-run"]) == 0
    assert "3 of 6 cells" in capsys.readouterr().out
    assert (out / "again.csv").read_text() == (out / "toy.csv").read_text()
    content["defenses"]["Fine"]["training"] = {**SHORT, "epochs": 2}
    assert main(["bench", str(written(content, tmp_path)), "--out", str(out), "--no-run", "--seeds", "1"]) == 0
    assert "2 of 3 cells" in capsys.readouterr().out, "another setting is another cell"
    assert main(["bench", str(grid), "--out", str(tmp_path / "none"), "--no-run"]) == 2


def test_kept_cells_with_a_setting_without_end_are_found(content: dict[str, Any], tmp_path: Path) -> None:
    endless = {"method": "badnets", "training": {**SHORT, "max_grad_norm": float("inf")}}  # JSON has no infinity; EP has one by default
    grid = load_grid(written(content | {"attacks": {"Bad": endless}, "defenses": {}, "seeds": [0]}, tmp_path))
    assert len(run_grid(grid, tmp_path / "out")) == len(kept_cells(grid, tmp_path / "out")) == 1


def test_a_part_of_a_grid_is_measured_and_the_table_is_of_all_there_is(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content |= {"seeds": [0], "defenses": {**content["defenses"], "Again": {"method": "cft", "training": {**SHORT, "epochs": 2}}}}
    grid, out = str(written(content, tmp_path)), tmp_path / "out"
    assert main(["bench", grid, "--out", str(out), "--defenses", "Fine"]) == 0
    assert "Again" not in capsys.readouterr().out
    assert len(list((out / "cells").iterdir())) == 2
    assert main(["bench", grid, "--out", str(out), "--attacks", "Bad", "--defenses", "Again"]) == 0
    assert [line.split(",")[2] for line in (out / "toy.csv").read_text().splitlines()] == ["defense", "none", "Again", "Fine"]
    assert main(["bench", grid, "--out", str(out), "--defenses", "fine"]) == 2
    assert "toy has no defense 'fine'; it has" in capsys.readouterr().err
    assert main(["bench", grid, "--out", str(out), "--attacks", "Good"]) == 2


@pytest.mark.parametrize("path", shipped_recipes("grids").values(), ids=shipped_recipes("grids"))
def test_shipped_grids_are_valid(path: Path) -> None:
    grid = load_grid(path)
    assert grid.name == path.stem
    for attack, row in (grid.paper or {}).items():
        assert attack in grid.attacks
        assert set(row) <= {"none", *grid.defenses}


@pytest.mark.parametrize(
    "bad",
    [
        *("=1+1", "+1+1", "-1+1", "@SUM(A1)", "|calc", "%0A", "\t=1", "\r=1", " =1", "\x00=1", "\u200b=1"),
        *(
            "<script>alert(1)</script>",
            "[a](javascript:alert(1))",
            "![a](http://evil.example/x.png)",
            "https://evil.example",
            "a | b\n# c",
            "\u202etxt",
        ),
    ],
)
def test_names_become_no_formula_and_no_markup(bad: str) -> None:
    line = table_rows([cell(bad, 0, 50)], {})[0]
    found = next(iter(list(csv.reader(io.StringIO(csv_table([line]))))[1:]))
    assert len(found) == len(HEADINGS)
    assert found[2].strip()[:1] not in tuple("=+-@|%\t\r"), found[2]
    markdown = markdown_table([line]).splitlines()
    assert len(markdown) == 3
    assert not re.search(r"(?<!\\)[<>\[!]|://", markdown[2])
    assert not re.search(r"[\x00-\x08\u200b\u202e]", csv_table([line]) + markdown[2] + latex_table([line]))
    assert latex_table([line]).count("\n") == 7


@pytest.mark.parametrize("text", ["-", "-1.5", "+2", "12", "85.0 (80.0-90.0)", ""])
def test_numbers_stay_numbers(text: str) -> None:
    line = table_rows([cell("a", 0, 50)], {})[0]._replace(note=text)
    assert list(csv.reader(io.StringIO(csv_table([line]))))[1][-1] == text


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "", ".", "..", "a\\b", "a\0b", "x" * 200])
def test_a_grid_s_name_leads_nowhere(name: str, content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables have it as their file name."""
    assert main(["bench", str(written(content | {"name": name}, tmp_path)), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "cannot be the name of a file" in capsys.readouterr().err
