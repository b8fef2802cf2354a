"""excise bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from excise import processes
from excise.commands._options import Positional
from excise.errors import ConfigError, ExciseError
from excise.recipes import find_recipe

if TYPE_CHECKING:
    from excise.cluster import Cluster
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
    attacks: tuple[str, ...] = ()
    """Measure only these of the grid's attacks, by their names; the table is of all that --out has."""
    defenses: tuple[str, ...] = ()
    """Measure only these of its defenses, and 'none'."""
    no_models: bool = False
    """Do not keep the backdoored models, which other defenses could use later."""
    no_run: bool = False
    """Measure nothing: make the table of what is in --out, even where the texts are not at hand."""
    dry_run: bool = False
    """Check the grid and list what would be measured."""
    cluster: str | None = None
    """Measure on Ray: local (this machine), auto (the cluster it belongs to) or ray://host:port. Needs excise[cluster]."""
    cpus_per_task: float = 1
    """With --cluster: CPU cores for each backdoored model and its cells."""
    gpus_per_task: float = 0
    """With --cluster: GPUs for the same; a share such as 0.5 is possible, 0 is none."""
    retries: int = 2
    """With --cluster: how often a model whose worker was lost is tried again."""
    checkpoint_every: float = 60
    """Seconds of training that a kill may cost: so often its state is kept, in --out. With --cluster a kill costs the cell."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    device: str | None = None
    """cpu, cuda, mps ...; by default a GPU if there is one."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from excise.bench import run_grid
    from excise.cell import Cell, kept_cells
    from excise.disk import write_whole
    from excise.grid import load_grid, part, places
    from excise.kept import clear_leftovers
    from excise.reports.figures import correlation, estimate_figure
    from excise.reports.grid import csv_table, estimates, latex_table, markdown_table, noted, scores, table_rows, terminal_table

    spread = _spread(options)
    path = find_recipe(options.grid, folder="grids")
    grid = load_grid(path, train=options.train, test=options.test, seeds=options.seeds)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"{options.out} is a file; a folder for the results was expected.")
    wanted = part(grid, attacks=options.attacks, defenses=options.defenses)
    if options.dry_run:
        models = len(wanted.data) * len(wanted.attacks) * len(wanted.seeds)
        console.say(f"{len(places(wanted))} cells, with {models} backdoored models. Nothing was written.")
        return

    def arrived(cell: Cell) -> None:
        console.say(f"{cell.place}: {f'failed: {cell.error}' if cell.error else scores(cell)}")

    if options.no_run:
        cells = kept_cells(grid, options.out)
        console.say(f"{len(cells)} of {len(places(grid))} cells have been measured.")
        if not cells:
            raise ConfigError(f"{options.out} has no cell of {grid.name}. Leave out --no-run to measure.")
    else:
        models = {"precision": options.precision, "device": options.device, "keep_models": not options.no_models}
        for kept in ("cells", "models"):
            clear_leftovers(options.out / kept)
        cells = run_grid(wanted, options.out, **models, spread=spread, on_cell=arrived, every=options.checkpoint_every)
        if wanted != grid:
            cells = kept_cells(grid, options.out)
    rows = table_rows(cells, grid.paper or {})
    console.show(terminal_table(rows))
    for note in noted(rows):
        console.say(note)
    for name, text in (("md", markdown_table(rows)), ("csv", csv_table(rows)), ("tex", latex_table(rows))):
        write_whole(options.out / f"{grid.name}.{name}", text)
    if found := estimates(cells):
        console.say(f"Canaries and the truth, {correlation(found)}.")
        write_whole(options.out / f"{grid.name}-canaries.svg", estimate_figure(found).decode())
    if any(cell.error for cell in cells):
        raise ExciseError(f"{sum(bool(cell.error) for cell in cells)} of {len(cells)} cells failed; run it again to retry them.")


def _spread(options: Options) -> Cluster | None:
    """Who measures; None is this process."""
    if processes.count() > 1:
        raise ConfigError(
            "A grid is not shared among the processes of a launcher. Run excise bench alone, with --cluster local for several models at once."
        )
    taken = {name: getattr(options, name) for name in ("cpus_per_task", "gpus_per_task", "retries")}
    if options.cluster is not None:
        from excise.cluster import Cluster

        return Cluster(address=options.cluster, **taken)
    for name, value in taken.items():
        if value != getattr(Options, name):
            raise ConfigError(f"--{name.replace('_', '-')} {value} was given without --cluster. Give both or neither.")
    return None
