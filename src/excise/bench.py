"""A grid of attack x defense x data x seed: every cell measured once, kept by the hash of all that decides it, resumed after a kill.

A cell is one repaired model and its scores. Cells of one (data, attack, seed) share the backdoored model and its clean twin, which are kept in
`models/`; scores are kept in `cells/`, small enough to be committed. An entry whose content does not fit its own digest is made again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from excise.canaries import Planted, plant, trial_rows, try_all
from excise.cell import Cell, cell_key, keep, kept, model_decides, twin_decides, versions
from excise.errors import ConfigError, ExciseError
from excise.evaluation import Scores, clean_twin, evaluate
from excise.grid import Grid, Place, place_recipe, places
from excise.kept import digest, is_whole, keep_folder
from excise.method import Attack, Backdoor, Defense
from excise.pipeline import Corpus, load_corpus, method_notes, with_training_set
from excise.progress import noting, report, stage
from excise.recipe import Recipe
from excise.result import CanaryRow, Measured
from excise.resume import going_on, weights_hash
from excise.seeds import derive
from excise.victim import Precision, Victim, default_device, resolve_precision

__all__ = ["run_grid"]


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
                keep(folder, cell)
            arrived(cell)
    return [cells[place] for place in everything]


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


class Task(NamedTuple):
    """One cell that is to be measured."""

    place: Place
    key: str
    plain: Cell | None = None
    """The same cell without canaries, if that is kept and they are asked for."""


@dataclass(frozen=True)
class Work:
    """What is to be measured of one group, that is of one (data, attack, seed)."""

    corpus: Corpus
    tasks: tuple[Task, ...]


Spread = Callable[[How, Iterator[Work]], Generator[Cell]]
"""Measures every cell of every group and gives them in any order."""


def in_turn(how: How, groups: Iterator[Work]) -> Generator[Cell]:
    """In this process, one after another."""
    for work in groups:
        group = Group(how, work.corpus)
        for task in work.tasks:
            yield group.measure(task)


class Group:
    """Measures cells of one group, one after another; the models that they share are made for the first."""

    def __init__(self, how: How, corpus: Corpus) -> None:
        self.how, self.corpus = how, corpus
        self.shared: _Shared | None = None

    def measure(self, task: Task) -> Cell:
        """One cell; whatever goes wrong is written in it, so that the others are measured."""
        place, key, _ = task
        recipe = place_recipe(self.how.grid, place)
        try:
            canaries = self.how.grid.canaries
            if cell_key(recipe, self.corpus, self.how.precision, canaries=canaries) != key:
                raise ConfigError(f"The worker has {versions()}, or checkpoints in the folders of the settings, that differ from the driver's.")
            with stage(str(place)):
                if self.shared is None:
                    self.shared = _Models(self.how).shared(recipe, self.corpus)
                with self.how.going_on(key):
                    return _measure(task, recipe, self.shared, canaries=canaries).sealed()
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
        tasks: list[Task] = []
        found: list[Cell] = []
        for place in members:
            recipe = place_recipe(grid, place)
            try:
                if (data, seed) not in corpora:
                    corpora = {name: corpus for name, corpus in corpora.items() if name[0] == data}
                    corpora[data, seed] = load_corpus(recipe)
                key = cell_key(recipe, corpora[data, seed], precision, canaries=grid.canaries)
                plain = cell_key(recipe, corpora[data, seed], precision) if grid.canaries else None
            except Exception as error:
                found.append(failed(grid, place, error))
                continue
            if cell := kept(folder, key):
                found.append(cell.named(place))
            else:
                tasks.append(Task(place, key, kept(folder, plain) if plain else None))
        yield (Work(corpora[data, seed], tuple(tasks)) if tasks else None), found


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

        deciding = recipe, corpus, self.how.precision
        bad = self._model(model_decides(*deciding), lambda: attack(base(), corpus.train, seed=seed).victim, options)
        twin = self._model(twin_decides(*deciding), lambda: clean_twin(attack, base(), corpus.train, seed=seed), options)
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


def _measure(task: Task, recipe: Recipe, shared: _Shared, *, canaries: bool) -> Cell:
    """Repaired and scored, and with what is left of canaries; a cell that was measured without them gets them."""
    repairs = [with_training_set(d, recipe.attack, shared.corpus.train, seed=derive(recipe.seed, "attack")) for d in recipe.defenses]
    plain = task.plain
    cell = plain if plain and plain.suspect == shared.suspect else _repaired(task.place, recipe, repairs, shared)
    notes: list[str] = []
    with noting(notes):
        left = _left_of_canaries(repairs, shared) if canaries and repairs else None
    noted = tuple(note.removeprefix(f"{task.place}: ") for note in (*cell.notes, *notes))
    return cell.model_copy(update={**vars(task.place), "key": task.key, "canaries": left, "notes": noted})


def _repaired(place: Place, recipe: Recipe, repairs: Sequence[Defense], shared: _Shared) -> Cell:
    begun = time.monotonic()
    backdoor, defended = shared.backdoor, shared.backdoor.victim
    notes: list[str] = []
    for repair in repairs:
        with noting(notes):
            defended = repair(backdoor.victim, shared.corpus.clean, seed=derive(recipe.seed, "defense"))
        notes += method_notes(repair)
    seconds = time.monotonic() - begun
    scores, floor = _scores(defended, shared.corpus, backdoor, recipe.seed), shared.floor
    found = {name: Measured.of(rate) for name, rate in vars(scores).items() if rate is not None}
    return Cell(
        key="",
        settings=recipe.settings(),
        floor=floor.asr and Measured.of(floor.asr),
        twin_cacc=Measured.of(floor.cacc),
        seconds=round(seconds, 1),
        precision=defended.precision,
        suspect=shared.suspect,
        notes=tuple(notes),
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
