"""Measurements in a JSON file that is written after each one, so that a run that was stopped loses one at most and goes on from there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from excise.disk import write_whole

Figures = dict[str, float]
"""What one measurement found, such as seconds."""


class Store:
    """Rows by name: the settings they were measured with, every measurement of every form of the work, and what follows from them."""

    def __init__(self, path: Path | None = None) -> None:
        """Open a file; one that is not there yet is empty, and without a path nothing is written."""
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path and path.exists() else {}

    def save(self) -> None:
        """Write the file whole."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps({"rows": self.rows}, indent=1) + "\n")

    def open(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A row: the one in the file if it was measured with the same settings, else an empty one in its place."""
        wanted = json.loads(json.dumps(settings))
        if self.rows.get(name, {}).get("settings") != wanted:
            self.rows[name] = {"settings": wanted, "runs": {}}
        return self.rows[name]

    def is_done(self, name: str, settings: Mapping[str, Any], repeats: int) -> bool:
        """Whether a row was measured with the same settings, so many times or more."""
        row = self.rows.get(name, {})
        same = row.get("settings") == json.loads(json.dumps(settings))
        return same and "found" in row and all(len(runs) >= repeats for runs in row["runs"].values())

    def take_turns(self, name: str, forms: Mapping[str, Callable[[], Figures]], repeats: int) -> dict[str, Figures]:
        """Measure each form so many times, in turn, so that a drift of the machine meets all of them; what is there is not measured again.

        Returns:
            For each form, the median of each of its figures.
        """
        runs = self.rows[name]["runs"]
        for turn in range(repeats):
            for form, measure in forms.items():
                kept = runs.setdefault(form, [])
                if len(kept) <= turn:
                    kept.append(measure())
                    self.save()
        return {form: {key: statistics.median(run[key] for run in runs[form]) for key in runs[form][0]} for form in forms}

    def close(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep what a row comes to."""
        self.rows[name]["found"] = dict(found)
        self.save()
