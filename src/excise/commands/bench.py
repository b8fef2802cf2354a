"""excise bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from excise.commands._options import Positional
from excise.errors import ConfigError, ExciseError
from excise.recipes import find_recipe

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a grid of attacks, defenses, data sets and seeds; what is in --out already is not measured again."""

    grid: Positional[Annotated[str, tyro.conf.arg(metavar="GRID")]]
    """A YAML file, or the name of a shipped grid (see: excise list)."""
    out: Path
    """Folder of the results; an earlier run of the same or another grid is continued."""
    train: str | None = None
    """Training texts in place of the grid's: a file or a Hugging Face data set id."""
    test: str | None = None
    """Test texts in place of the grid's."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the grid's."""
    no_models: bool = False
    """Do not keep the backdoored models, which other defenses could use later."""
    dry_run: bool = False
    """Check the grid and list what would be measured."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    device: str | None = None
    """cpu, cuda, mps ...; by default a GPU if there is one."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from excise.bench import load_grid, places, run_grid
    from excise.reports.grid import csv_table, latex_table, markdown_table, table_rows, terminal_table

    path = find_recipe(options.grid, folder="grids")
    grid = load_grid(path, train=options.train, test=options.test, seeds=options.seeds)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"{options.out} is a file; a folder for the results was expected.")
    if options.dry_run:
        console.say(f"{len(places(grid))} cells, with {len(grid.data) * len(grid.attacks) * len(grid.seeds)} backdoored models. Nothing was written.")
        return
    cells = run_grid(grid, options.out, precision=options.precision, device=options.device, keep_models=not options.no_models)
    rows = table_rows(cells, grid.paper or {})
    console.show(terminal_table(rows))
    for name, text in (("md", markdown_table(rows)), ("csv", csv_table(rows)), ("tex", latex_table(rows))):
        (options.out / f"{grid.name}.{name}").write_text(text, encoding="utf-8")
    for cell in cells:
        if cell.error:
            console.say(f"{cell.data}, {cell.attack}, {cell.defense}, seed {cell.seed} failed: {cell.error}")
    if any(cell.error for cell in cells):
        raise ExciseError(f"{sum(bool(cell.error) for cell in cells)} of {len(cells)} cells failed; run it again to retry them.")
