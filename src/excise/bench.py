"""A grid of attack x defense x data x seed: every cell measured once, kept by the hash of all that decides it, resumed after a kill.

A cell is one repaired model and its scores. Cells of one (data, attack, seed) share the backdoored model and its clean twin, which are kept in
`models/`; scores are kept in `cells/`, small enough to be committed. An entry whose content does not fit its own digest is made again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from excise.canaries import Planted, plant, trial_rows, try_all
from excise.disk import write_whole
from excise.errors import ConfigError, ExciseError
from excise.evaluation import Scores, clean_twin, evaluate, twin_settings
from excise.grid import Grid, Place, place_recipe, places
from excise.kept import digest, digest_as_kept, file_hash, is_whole, keep_folder
from excise.method import Attack, Backdoor, Defense, Method, Scanner
from excise.pipeline import Corpus, load_corpus, method_notes, with_training_set
from excise.progress import noting, report, stage
from excise.provenance import checkpoint_hashes
from excise.recipe import Recipe
from excise.registry import name_of
from excise.result import CanaryRow, Measured
from excise.resume import going_on, weights_hash
from excise.seeds import derive
from excise.victim import Precision, Victim, default_device, resolve_precision

__all__ = ["Cell", "kept_cells", "run_grid"]

VERSION = 1
"""Counts changes of this file that change what a cell measures; part of every key."""
ELSEWHERE = ("name", "train", "test", "label_names")
"""Settings that decide nothing beside the texts and the names of labels themselves."""


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
    suspect: str | None = None
    """The hash of the backdoored model's weights; another machine's bits differ, and with them everything that is measured after it."""
    canaries: tuple[CanaryRow, ...] | None = None
    """What the same repair left of canaries in a copy of the suspect; None where that was not asked for."""
    notes: tuple[str, ...] = ()
    error: str | None = None
    digest: str = ""

    @property
    def place(self) -> Place:
        """Where in the grid it stands."""
        return Place(self.data, self.attack, self.defense, self.seed)

    @property
    def estimate(self) -> float | None:
        """The ASR above the floor that is left of the canaries, mean over those that took; None if none did."""
        left = [row.after.value - row.floor.value for row in self.canaries or () if row.before.surely_above(row.floor)]
        return fmean(left) if left else None

    def sealed(self) -> Cell:
        """As its file has it: plain data, with the digest of everything else."""
        plain = self.model_dump(exclude={"digest"} | ({"canaries"} if self.canaries is None else set()), mode="json")
        return Cell.model_validate({**plain, "digest": digest(plain)})

    def named(self, place: Place) -> Cell:
        """The same, as that place of a grid."""
        return self.model_copy(update=vars(place)).sealed()


@dataclass(frozen=True)
class _Shared:
    """What the cells of one (data, attack, seed) have in common."""

    corpus: Corpus
    backdoor: Backdoor
    floor: Scores
    """What the clean twin scores."""
    suspect: str
    """The hash of the backdoored model's weights."""
    seed: int
    """The grid's."""

    @cached_property
    def planted(self) -> Planted:
        """The backdoored model, and its copy with canaries."""
        return plant(self.backdoor.victim, self.corpus.clean, seed=derive(self.seed, "canaries"))


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    precision: Precision = "auto",
    device: str | None = None,
    keep_models: bool = True,
    on_cell: Callable[[Cell], None] | None = None,
    spread: Spread | None = None,
    every: float = 60,
) -> list[Cell]:
    """Measure every cell that is not there yet; a cell that fails becomes a cell with its error, and the grid goes on.

    Args:
        grid: What to measure.
        folder: Where cells and models are kept.
        precision: Arithmetic; `auto` is what this process would take, for workers elsewhere too.
        device: Where models go.
        keep_models: Whether backdoored models stay in `folder` for other defenses later.
        on_cell: Called with each cell when it is measured or found.
        spread: Who measures: this process, one group after another, or a `Cluster`. Only this process writes cells.
        every: Seconds of training that a kill may cost; with a `Cluster`, it costs the cell.
    """
    cells: dict[Place, Cell] = {}
    everything = places(grid)
    chosen = resolve_precision(precision, default_device(device))

    def arrived(cell: Cell) -> None:
        cells[cell.place] = cell
        report("grid", len(cells), len(everything))
        if on_cell:
            on_cell(cell)

    def left() -> Iterator[Work]:
        for work, found in _groups(grid, folder, chosen):
            for cell in found:
                arrived(cell)
            if work:
                yield work

    report("grid", 0, len(everything))
    how = How(grid, folder.absolute() / "models" if keep_models else None, chosen, device, None if spread else folder.absolute(), every)
    with contextlib.closing((spread or in_turn)(how, left())) as measured:
        for cell in measured:
            if not cell.error:
                _keep(folder, cell)
            arrived(cell)
    return [cells[place] for place in everything]


def kept_cells(grid: Grid, folder: Path) -> list[Cell]:
    """The cells of a grid that were measured before with the same settings on data of the same name, from their files; the newest of several."""
    found = dict[str, Cell]()
    for path in sorted((folder / "cells").glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name)):
        if cell := _kept(folder, path.stem):
            found[_data_and_settings(cell.place, cell.settings)] = cell
    asked = {place: _data_and_settings(place, place_recipe(grid, place).settings()) for place in places(grid)}
    return [found[same].named(place) for place, same in asked.items() if same in found]


def _data_and_settings(place: Place, settings: Mapping[str, Any]) -> str:
    return digest_as_kept({"data": place.data, **{name: value for name, value in settings.items() if name not in ELSEWHERE}})


@dataclass(frozen=True)
class How:
    """What every group of a run has in common; plain data, for workers elsewhere too."""

    grid: Grid
    models: Path | None
    """Where models are kept."""
    precision: Literal["bf16", "fp32"]
    device: str | None
    states: Path | None = None
    """Where training that was stopped is kept."""
    every: float = 60

    def going_on(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Inside it, training goes on where an earlier run of the same was stopped."""
        if self.states is None:
            return contextlib.nullcontext()
        return going_on(self.states / f"state-{key}", {"precision": self.precision, "device": self.device}, every=self.every)


@dataclass(frozen=True)
class Work:
    """What is to be measured of one group, that is of one (data, attack, seed)."""

    corpus: Corpus
    keys: Mapping[Place, str]


Spread = Callable[[How, Iterator[Work]], Generator[Cell]]
"""Measures every cell of every group and gives them in any order."""


def in_turn(how: How, groups: Iterator[Work]) -> Generator[Cell]:
    """In this process, one after another."""
    for work in groups:
        group = Group(how, work.corpus)
        for place, key in work.keys.items():
            yield group.measure(place, key)


class Group:
    """Measures cells of one group, one after another; the models that they share are made for the first."""

    def __init__(self, how: How, corpus: Corpus) -> None:
        self.how, self.corpus = how, corpus
        self.shared: _Shared | None = None

    def measure(self, place: Place, key: str) -> Cell:
        """One cell; whatever goes wrong is written in it, so that the others are measured."""
        recipe = place_recipe(self.how.grid, place)
        try:
            canaries = self.how.grid.canaries
            if cell_key(recipe, self.corpus, self.how.precision, canaries=canaries) != key:
                raise ConfigError(f"The worker has {_versions()}, or checkpoints in the folders of the settings, that differ from the driver's.")
            with stage(str(place)):
                if self.shared is None:
                    self.shared = _Models(self.how).shared(recipe, self.corpus)
                with self.how.going_on(key):
                    return _measure(place, key, recipe, self.shared, canaries=canaries).sealed()
        except Exception as error:
            return failed(self.how.grid, place, error)


def failed(grid: Grid, place: Place, error: Exception) -> Cell:
    """The cell of what could not be measured; it is not kept, so another run tries again."""
    text = str(error) if isinstance(error, ExciseError) else f"{type(error).__name__}: {error}"
    return Cell(key="", settings=place_recipe(grid, place).settings(), error=" ".join(text.split())[:500], **vars(place))


def _groups(grid: Grid, folder: Path, precision: str) -> Iterator[tuple[Work | None, list[Cell]]]:
    """Every group, in order, with its cells that an earlier run left, or that fail because their texts cannot be read."""
    corpora: dict[tuple[str, int], Corpus] = {}
    for (data, _, seed), members in groupby(places(grid), key=lambda place: (place.data, place.attack, place.seed)):
        keys: dict[Place, str] = {}
        found: list[Cell] = []
        for place in members:
            recipe = place_recipe(grid, place)
            try:
                if (data, seed) not in corpora:
                    corpora = {name: corpus for name, corpus in corpora.items() if name[0] == data}
                    corpora[data, seed] = load_corpus(recipe)
                keys[place] = cell_key(recipe, corpora[data, seed], precision, canaries=grid.canaries)
            except Exception as error:
                found.append(failed(grid, place, error))
                continue
            if cell := _kept(folder, keys[place]):
                found.append(cell.named(place))
                del keys[place]
        yield (Work(corpora[data, seed], keys) if keys else None), found


def cell_key(recipe: Recipe, corpus: Corpus, precision: str, *, canaries: bool = False) -> str:
    """The hash of all that decides a cell: every setting, the texts themselves wherever they are, the arithmetic, and the versions that compute."""
    defenses, scanners = recipe.settings()["defenses"], _scanner_versions(recipe.defenses)
    asked = {**({"canaries": True} if canaries and defenses else {}), **({"scanners": scanners} if scanners else {})}
    return digest({**_decides(recipe, corpus, precision), "defenses": defenses, "local": _local(defenses), **asked})


def _scanner_versions(methods: Iterable[Method]) -> dict[str, int]:
    """The versions of the scanners that methods ask, at any depth: with them, what is repaired changes."""
    inner = [value for method in methods for value in vars(method).values() if isinstance(value, Method)]
    own = {name_of(one): one.version for one in inner if isinstance(one, Scanner)}
    return own | _scanner_versions(inner) if inner else {}


def _decides(recipe: Recipe, corpus: Corpus, precision: str) -> dict[str, Any]:
    settings = {key: value for key, value in recipe.settings().items() if key not in (*ELSEWHERE, "defenses")}
    texts = {role: data.sha256 for role, data in corpus.record(recipe).items()}
    arithmetic = {"precision": precision, "versions": _versions()}
    files = {**_local(recipe.model), **_local(settings["attack"])}
    return {"bench": VERSION, "settings": settings, "texts": texts, "labels": corpus.train.label_names, "base": files, **arithmetic}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers")}


def _local(settings: Any) -> dict[str, dict[str, str]]:
    """The hashes of every local checkpoint and file that settings name: another model in the same folder is another model."""
    if isinstance(settings, str):
        if settings and os.path.isfile(os.path.join(settings, "config.json")):
            return {settings: checkpoint_hashes(Path(settings))}
        return {settings: {"": file_hash(Path(settings))}} if os.path.isfile(settings) else {}
    inner = settings.values() if isinstance(settings, Mapping) else settings if isinstance(settings, (list, tuple)) else ()
    return {name: files for value in inner for name, files in _local(value).items()}


def _makes(recipe: Recipe, corpus: Corpus, precision: str) -> dict[str, Any]:
    """All that decides a backdoored model: neither the defender's share of the texts nor what is measured on."""
    whole = _decides(recipe, corpus, precision)
    settings = {key: value for key, value in whole["settings"].items() if key not in ("clean_fraction", "test_size")}
    return {**whole, "settings": settings, "texts": {"train": whole["texts"]["train"]}}


@dataclass(frozen=True)
class _Models:
    """Trained models, kept in a folder by the hash of all that decides them."""

    how: How

    def shared(self, recipe: Recipe, corpus: Corpus) -> _Shared:
        """The backdoored model and its twin; attacks with the same training have the same twin."""
        attack: Attack = recipe.attack
        seed = derive(recipe.seed, "attack")
        options: dict[str, Any] = {"max_length": recipe.max_length, "precision": self.how.precision, "device": self.how.device}

        def base() -> Victim:
            return Victim.load(recipe.model, label_names=corpus.train.label_names, seed=recipe.seed, **options)

        decides = _makes(recipe, corpus, self.how.precision)
        bad = self._model(decides, lambda: attack(base(), corpus.train, seed=seed).victim, options)
        alike = {**decides, "base": _local(recipe.model), "settings": {**decides["settings"], "attack": twin_settings(attack)}}
        twin = self._model(alike, lambda: clean_twin(attack, base(), corpus.train, seed=seed), options)
        backdoor = Backdoor(bad, attack.trigger, corpus.train.label_id(attack.target_label))
        return _Shared(corpus, backdoor, _scores(twin, corpus, backdoor, recipe.seed), weights_hash(bad.model), recipe.seed)

    def _model(self, decides: Mapping[str, Any], make: Callable[[], Victim], options: Mapping[str, Any]) -> Victim:
        """From its folder if it is there whole, otherwise made, and kept."""
        key = digest(decides)
        place = self.how.models and self.how.models / key
        if place and is_whole(place):
            return Victim.load(place / "model", **options)
        with self.how.going_on(key):
            victim = make()
            if place:
                keep_folder(place, lambda fresh: victim.save(fresh / "model"))
        return victim


def _measure(place: Place, key: str, recipe: Recipe, shared: _Shared, *, canaries: bool) -> Cell:
    begun = time.monotonic()
    backdoor, defended = shared.backdoor, shared.backdoor.victim
    notes: list[str] = []
    repairs = [with_training_set(d, recipe.attack, shared.corpus.train, seed=derive(recipe.seed, "attack")) for d in recipe.defenses]
    for repair in repairs:
        with noting(notes):
            defended = repair(backdoor.victim, shared.corpus.clean, seed=derive(recipe.seed, "defense"))
        notes += method_notes(repair)
    seconds = time.monotonic() - begun
    with noting(notes):
        left = _left_of_canaries(repairs, shared) if canaries and repairs else None
    scores, floor = _scores(defended, shared.corpus, backdoor, recipe.seed), shared.floor
    found = {name: Measured.of(rate) for name, rate in vars(scores).items() if rate is not None}
    return Cell(
        key=key,
        settings=recipe.settings(),
        floor=floor.asr and Measured.of(floor.asr),
        twin_cacc=Measured.of(floor.cacc),
        seconds=round(seconds, 1),
        precision=defended.precision,
        suspect=shared.suspect,
        canaries=left,
        notes=tuple(note.removeprefix(f"{place}: ") for note in notes),
        **found,
        **vars(place),
    )


def _left_of_canaries(repairs: Sequence[Defense], shared: _Shared) -> tuple[CanaryRow, ...]:
    """What is left of each canary when its copy of the suspect is repaired alike; the test texts are those of the cell."""
    with stage("canaries"):
        trials = try_all(repairs, shared.planted, shared.corpus.clean, shared.corpus.test, seed=derive(shared.seed, "canaries"))
    return trial_rows(trials, shared.corpus.train.label_names)[0].canaries


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
    write_whole(folder / "cells" / f"{cell.key}.json", cell.model_dump_json(indent=1) + "\n")
