"""A grid says what is compared with what: attacks, defenses, data and seeds. YAML is its text form, and reading it is strict."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from excise import registry
from excise.data import is_file
from excise.errors import ConfigError, nearest
from excise.pipeline import check_needs
from excise.recipe import DataSource, Recipe, load_recipe, read_yaml
from excise.settings import Settings, validate

__all__ = ["NONE", "Grid", "Place", "load_grid", "part", "place_recipe", "places"]

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
    canaries: bool = False
    """Let every defense repair a copy of each model with canaries too, and keep what is left of those: what a user could know of the repair."""
    paper: dict[str, dict[str, tuple[float | None, float]]] | None = None
    """attack -> defense -> the paper's (CACC, ASR) in per cent, shown beside ours; a CACC that it does not give is null."""


@dataclass(frozen=True)
class Place:
    """One cell of the grid."""

    data: str
    attack: str
    defense: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data}, {self.attack}, {self.defense}, seed {self.seed}"


def load_grid(path: Path, *, train: str | None = None, test: str | None = None, seeds: tuple[int, ...] = ()) -> Grid:
    """Read a grid and refuse it whole if any of its methods, fields or data is unknown.

    Args:
        path: A YAML file.
        train: Where the training texts come from, in place of what the grid says; it must say the same of all its data.
        test: The same for the test texts.
        seeds: In place of the grid's.

    Raises:
        ConfigError: Something is not known or out of range, or a source is replaced that is not the only one; the message says where.
        DataError: A file of texts is not there.
        NeedsError: A defense lacks what it needs.
    """
    content = read_yaml(path, "grid")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no grid; keys such as name, data, attacks and defenses were expected.")
    grid = validate(Grid, {**content, **({"seeds": list(seeds)} if seeds else {})}, str(path))
    if not re.fullmatch(r"\w[\w .-]{0,80}", grid.name):
        raise ConfigError(f"{path}: name: {grid.name[:80]!r} cannot be the name of a file, which the tables have. Use letters, digits and dashes.")
    for role, source in (("train", train), ("test", test)):
        if source is not None:
            grid = replace(grid, data=_elsewhere(grid, role, source))
    if NONE in grid.defenses:
        raise ConfigError(f"{path}: defenses: {NONE!r} is always measured. Leave it out.")
    for place in places(grid):
        recipe = place_recipe(grid, place)
        for data in filter(None, (recipe.train, recipe.test)):
            is_file(data.source)  # raises if it must be one and is none
    attacks = [registry.build("attack", spec, f"{path}: attacks.{name}") for name, spec in grid.attacks.items()]
    attack = max(attacks, key=lambda attack: attack.poisons_texts, default=None)  # where another has no poisoned texts to show, its own cell fails
    for needing in attacks:
        check_needs(needing)
    for name, spec in grid.defenses.items():
        check_needs(registry.build("defense", spec, f"{path}: defenses.{name}"), attack=attack)
    return grid


def part(grid: Grid, *, attacks: Sequence[str] = (), defenses: Sequence[str] = ()) -> Grid:
    """The grid with these of its attacks and defenses alone; without names, all.

    Raises:
        ConfigError: It has none of that name.
    """

    def named(kind: str, all_: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        for name in names:
            if name not in all_:
                raise ConfigError(f"{grid.name} has no {kind} {name!r}; it has {', '.join(all_)}.{nearest(name, all_)}")
        return {name: all_[name] for name in all_ if name in names} if names else all_

    return replace(grid, attacks=named("attack", grid.attacks, attacks), defenses=named("defense", grid.defenses, defenses))


def _elsewhere(grid: Grid, role: str, source: str) -> dict[str, dict[str, Any]]:
    """The grid's data with another source of training or test texts."""
    if len({json.dumps(data.get(role), sort_keys=True) for data in grid.data.values()}) > 1:
        raise ConfigError(f"--{role} was given, but the data of {grid.name} come from different places. Edit a copy of the grid.")
    return {name: {**data, role: DataSource.elsewhere(data.get(role), source)} for name, data in grid.data.items()}


def places(grid: Grid) -> list[Place]:
    """Every cell, those that share a backdoored model side by side."""
    return [
        Place(data, attack, defense, seed)
        for data in grid.data
        for attack in grid.attacks
        for seed in grid.seeds
        for defense in (NONE, *grid.defenses)
    ]


def place_recipe(grid: Grid, place: Place) -> Recipe:
    """The cell as a recipe, checked."""
    defenses = [] if place.defense == NONE else [grid.defenses[place.defense]]
    content = {"name": grid.name, "model": grid.model, "attack": grid.attacks[place.attack], "defenses": defenses, "seed": place.seed}
    return load_recipe({**content, **grid.data[place.data]})
