"""What one cell of a grid holds, and the hash of all that decides it, by which its file is named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from excise.disk import write_whole
from excise.evaluation import twin_settings
from excise.grid import NONE, Grid, Place, place_recipe, places
from excise.kept import digest, digest_as_kept, file_hash
from excise.method import Method, Scanner
from excise.pipeline import Corpus
from excise.provenance import checkpoint_hashes
from excise.recipe import Recipe
from excise.registry import name_of
from excise.result import CanaryRow, Measured

__all__ = ["Cell", "cell_key", "keep", "kept", "kept_cells", "model_decides", "twin_decides", "versions"]

VERSION = 1
"""Counts changes of how cells are measured (bench.py) that change what they hold; part of every key."""
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


def kept_cells(grid: Grid, folder: Path) -> list[Cell]:
    """The cells of a grid that were measured before with the same settings on data of the same name, from their files.

    Of several rather one that has canaries, if the grid asks for them, then one of the same copy of the backdoored model as 'none', then the newest.
    """
    files = sorted((folder / "cells").glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
    measured: dict[str, list[Cell]] = {}
    for cell in filter(None, (kept(folder, path.stem) for path in files)):
        measured.setdefault(_data_and_settings(cell.place, cell.settings), []).append(cell)
    found, suspects = list[Cell](), dict[Place, str | None]()
    for place in places(grid):  # 'none' comes first
        group = replace(place, defense=NONE)
        if same := measured.get(_data_and_settings(place, place_recipe(grid, place).settings())):
            suspect = suspects.get(group)
            best = max(same, key=lambda cell: (grid.canaries and bool(cell.canaries), cell.suspect == suspect))
            suspects.setdefault(group, best.suspect)
            found.append(best.named(place))
    return found


def _data_and_settings(place: Place, settings: Mapping[str, Any]) -> str:
    return digest_as_kept({"data": place.data, **{name: value for name, value in settings.items() if name not in ELSEWHERE}})


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
    arithmetic = {"precision": precision, "versions": versions()}
    files = {**_local(recipe.model), **_local(settings["attack"])}
    return {"bench": VERSION, "settings": settings, "texts": texts, "labels": corpus.train.label_names, "base": files, **arithmetic}


def versions() -> dict[str, str]:
    """Those of the packages that compute."""
    return {name: version(name) for name in ("torch", "transformers")}


def _local(settings: Any) -> dict[str, dict[str, str]]:
    """The hashes of every local checkpoint and file that settings name: another model in the same folder is another model."""
    if isinstance(settings, str):
        if settings and os.path.isfile(os.path.join(settings, "config.json")):
            return {settings: checkpoint_hashes(Path(settings))}
        return {settings: {"": file_hash(Path(settings))}} if os.path.isfile(settings) else {}
    inner = settings.values() if isinstance(settings, Mapping) else settings if isinstance(settings, (list, tuple)) else ()
    return {name: files for value in inner for name, files in _local(value).items()}


def model_decides(recipe: Recipe, corpus: Corpus, precision: str) -> dict[str, Any]:
    """All that decides a backdoored model: neither the defender's share of the texts nor what is measured on."""
    whole = _decides(recipe, corpus, precision)
    settings = {key: value for key, value in whole["settings"].items() if key not in ("clean_fraction", "test_size")}
    return {**whole, "settings": settings, "texts": {"train": whole["texts"]["train"]}}


def twin_decides(recipe: Recipe, corpus: Corpus, precision: str) -> dict[str, Any]:
    """All that decides its clean twin; attacks with the same training have the same."""
    decides = model_decides(recipe, corpus, precision)
    return {**decides, "base": _local(recipe.model), "settings": {**decides["settings"], "attack": twin_settings(recipe.attack)}}


def kept(folder: Path, key: str) -> Cell | None:
    """A cell that was measured before, if its file is whole."""
    try:
        cell = Cell.model_validate_json((folder / "cells" / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return cell if cell.key == key and cell == cell.sealed() else None


def keep(folder: Path, cell: Cell) -> None:
    """Write a cell to its file."""
    write_whole(folder / "cells" / f"{cell.key}.json", cell.model_dump_json(indent=1) + "\n")
