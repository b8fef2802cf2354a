"""A grid of attack x defense x data x seed: every cell measured once, kept by the hash of all that decides it, resumed after a kill.

A cell is one repaired model and its scores. Cells of one (data, attack, seed) share the backdoored model and its clean twin, which are kept in
`models/`; scores are kept in `cells/`, small enough to be committed. An entry whose content does not fit its own digest is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from excise import registry
from excise.errors import ConfigError, ExciseError
from excise.evaluation import Scores, clean_twin, evaluate
from excise.method import Attack, Backdoor
from excise.pipeline import Corpus, check_needs, load_corpus, with_training_set
from excise.progress import report, stage
from excise.recipe import Recipe, load_recipe
from excise.result import Measured
from excise.seeds import derive
from excise.settings import Settings, validate
from excise.victim import Precision, Victim

__all__ = ["Cell", "Grid", "Place", "load_grid", "run_grid"]

VERSION = 1
"""Counts changes of this file that change what a cell measures; part of every key."""
NONE = "none"
"""The defense that does nothing."""


@dataclass(frozen=True, kw_only=True)
class Grid(Settings):
    """What is compared with what. Mappings go from the name shown in the table to settings."""

    name: str
    data: dict[str, dict[str, Any]]
    """What a recipe says of data: train, test, label_names, train_size, test_size, clean_fraction, max_length."""
    attacks: dict[str, dict[str, Any] | str]
    defenses: dict[str, dict[str, Any] | str]
    """Without 'none', which is always measured."""
    model: str = "default"
    seeds: tuple[int, ...] = (0, 1, 2)
    paper: dict[str, dict[str, tuple[float, float]]] | None = None
    """attack -> defense -> the paper's (CACC, ASR) in per cent, shown beside ours."""


@dataclass(frozen=True)
class Place:
    """One cell of the grid."""

    data: str
    attack: str
    defense: str
    seed: int


class Cell(BaseModel):
    """What one cell found, or why it failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    data: str
    attack: str
    defense: str
    seed: int
    settings: dict[str, Any]
    cacc: Measured | None = None
    asr: Measured | None = None
    clean_flip: Measured | None = None
    floor: Measured | None = None
    """The ASR of the clean twin."""
    twin_cacc: Measured | None = None
    seconds: float | None = None
    precision: str | None = None
    error: str | None = None
    digest: str = ""

    def sealed(self) -> Cell:
        """As its file has it: plain data, with the digest of everything else."""
        plain = self.model_dump(exclude={"digest"}, mode="json")
        return Cell.model_validate({**plain, "digest": _digest(plain)})


@dataclass(frozen=True)
class _Shared:
    """What the cells of one (data, attack, seed) have in common."""

    corpus: Corpus
    backdoor: Backdoor
    floor: Scores
    """What the clean twin scores."""


def load_grid(path: Path) -> Grid:
    """Read a grid and refuse it whole if any of its methods, fields or data is unknown.

    Raises:
        ConfigError: Something is not known or out of range; the message says where.
        NeedsError: A defense lacks what it needs.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no grid {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no grid; keys such as name, data, attacks and defenses were expected.")
    grid = validate(Grid, content, str(path))
    if NONE in grid.defenses:
        raise ConfigError(f"{path}: defenses: {NONE!r} is always measured. Leave it out.")
    for place in places(grid):
        _recipe(grid, place)
    attacks = [registry.build("attack", spec, f"{path}: attacks.{name}") for name, spec in grid.attacks.items()]
    attack = max(attacks, key=lambda attack: attack.poisons_texts, default=None)  # where another has no poisoned texts to show, its own cell fails
    for name, spec in grid.defenses.items():
        check_needs(registry.build("defense", spec, f"{path}: defenses.{name}"), attack=attack)
    return grid


def places(grid: Grid) -> list[Place]:
    """Every cell, those that share a backdoored model side by side."""
    return [
        Place(data, attack, defense, seed)
        for data in grid.data
        for attack in grid.attacks
        for seed in grid.seeds
        for defense in (NONE, *grid.defenses)
    ]


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    keep_models: bool = True,
    on_cell: Callable[[Cell], None] | None = None,
) -> list[Cell]:
    """Measure every cell that is not there yet; a cell that fails becomes a cell with its error, and the grid goes on.

    Args:
        grid: What to measure.
        folder: Where cells and models are kept.
        precision: Arithmetic.
        device: Where models go.
        keep_models: Whether backdoored models stay in `folder` for other defenses later.
        on_cell: Called with each cell, in order, whether it was measured now or found.
    """
    cells: list[Cell] = []
    shared: tuple[str, _Shared] | None = None
    corpora: dict[str, Corpus] = {}
    everything = places(grid)
    for done, place in enumerate(everything):
        report("grid", done, len(everything))
        recipe = _recipe(grid, place)
        name = json.dumps([place.data, place.seed])
        try:
            if name not in corpora:
                corpora = {name: load_corpus(recipe)}
            key = cell_key(recipe, corpora[name])
            cell = _kept(folder, key)
            if cell is None:
                with stage(f"{place.data} {place.attack} {place.defense} {place.seed}"):
                    group = _digest(_decides(recipe, corpora[name]))
                    if shared is None or shared[0] != group:
                        models = _Models(folder / "models" if keep_models else None, precision, device)
                        shared = (group, models.shared(recipe, corpora[name]))
                    cell = _measure(place, key, recipe, shared[1]).sealed()
                    _keep(folder, cell)
        except Exception as error:  # whatever happens in one cell, the others are measured
            text = str(error) if isinstance(error, ExciseError) else f"{type(error).__name__}: {error}"
            cell = Cell(key="", settings=recipe.settings(), error=" ".join(text.split())[:500], **vars(place))
        cells.append(cell)
        if on_cell:
            on_cell(cell)
    report("grid", len(everything), len(everything))
    return cells


def cell_key(recipe: Recipe, corpus: Corpus) -> str:
    """The hash of all that decides a cell: every setting, the texts themselves, and the versions that compute."""
    return _digest({**_decides(recipe, corpus), "defenses": recipe.settings()["defenses"]})


def _decides(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    settings = {key: value for key, value in recipe.settings().items() if key not in ("name", "defenses")}
    texts = {role: data.sha256 for role, data in corpus.record(recipe).items()}
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"bench": VERSION, "settings": settings, "texts": texts, "versions": versions}


def _recipe(grid: Grid, place: Place) -> Recipe:
    """The cell as a recipe, checked."""
    defenses = [] if place.defense == NONE else [grid.defenses[place.defense]]
    content = {"name": grid.name, "model": grid.model, "attack": grid.attacks[place.attack], "defenses": defenses, "seed": place.seed}
    return load_recipe({**content, **grid.data[place.data]})


@dataclass(frozen=True)
class _Models:
    """Trained models, kept in a folder by the hash of all that decides them."""

    folder: Path | None
    precision: Precision
    device: str | None

    def shared(self, recipe: Recipe, corpus: Corpus) -> _Shared:
        """The backdoored model and its twin; attacks with the same training have the same twin."""
        attack: Attack = recipe.attack
        seed = derive(recipe.seed, "attack")
        options: dict[str, Any] = {"max_length": recipe.max_length, "precision": self.precision, "device": self.device}

        def base() -> Victim:
            return Victim.load(recipe.model, label_names=corpus.train.label_names, seed=recipe.seed, **options)

        decides = _decides(recipe, corpus)
        bad = self._model(decides, lambda: attack(base(), corpus.train, seed=seed).victim, options)
        training = {"training": registry.settings(attack)["training"]}
        alike = {**decides, "settings": {**decides["settings"], "attack": training}}
        twin = self._model(alike, lambda: clean_twin(attack, base(), corpus.train, seed=seed), options)
        backdoor = Backdoor(bad, attack.trigger, corpus.train.label_id(attack.target_label))
        return _Shared(corpus, backdoor, _scores(twin, corpus, backdoor, recipe.seed))

    def _model(self, decides: Mapping[str, Any], make: Callable[[], Victim], options: Mapping[str, Any]) -> Victim:
        """From its folder if it is there whole, otherwise made, and kept."""
        if self.folder is None:
            return make()
        place = self.folder / _digest(decides)
        if _is_whole(place):
            return Victim.load(place / "model", **options)
        victim = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder) as temporary:
            fresh = Path(temporary) / "new"
            victim.save(fresh / "model")
            (fresh / "files.json").write_text(json.dumps(_files(fresh)))
            shutil.rmtree(place, ignore_errors=True)
            fresh.rename(place)
        return victim


def _measure(place: Place, key: str, recipe: Recipe, shared: _Shared) -> Cell:
    begun = time.monotonic()
    backdoor, defended = shared.backdoor, shared.backdoor.victim
    for defense in recipe.defenses:
        repair = with_training_set(defense, recipe.attack, shared.corpus.train, seed=derive(recipe.seed, "attack"))
        defended = repair(backdoor.victim, shared.corpus.clean, seed=derive(recipe.seed, "defense"))
    seconds = time.monotonic() - begun
    scores, floor = _scores(defended, shared.corpus, backdoor, recipe.seed), shared.floor
    found = {name: Measured.of(rate) for name, rate in vars(scores).items() if rate is not None}
    return Cell(
        key=key,
        settings=recipe.settings(),
        floor=floor.asr and Measured.of(floor.asr),
        twin_cacc=Measured.of(floor.cacc),
        seconds=round(seconds, 1),
        precision=defended.precision,
        **found,
        **vars(place),
    )


def _scores(victim: Victim, corpus: Corpus, backdoor: Backdoor, seed: int) -> Scores:
    return evaluate(victim, corpus.test, trigger=backdoor.trigger, target_label=backdoor.target_label, seed=seed)


def _kept(folder: Path, key: str) -> Cell | None:
    """A cell that was measured before, if its file is whole."""
    try:
        cell = Cell.model_validate_json((folder / "cells" / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return cell if cell.key == key and cell == cell.sealed() else None


def _keep(folder: Path, cell: Cell) -> None:
    cells = folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cells, prefix=".", suffix=".json", delete=False, encoding="utf-8") as file:
        file.write(cell.model_dump_json(indent=1) + "\n")
    Path(file.name).replace(cells / f"{cell.key}.json")


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / "files.json").read_text()) == _files(folder)
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the models in a folder."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "files.json":
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
