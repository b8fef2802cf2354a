"""excise run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from excise.commands._options import Inline, Positional, Stopping
from excise.commands._recipe import run_recipe
from excise.recipes import find_recipe

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run a recipe: attack, defenses, evaluation."""

    recipe: Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """A YAML file, or the name of a shipped recipe (see: excise list)."""
    out: Path
    """Folder for the models, result.json and report.html."""
    no_models: bool = False
    """Write the result and the report only, not the models."""
    overwrite: bool = False
    """Replace an earlier result."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    seed: int | None = None
    """Instead of the recipe's."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    stopping: Annotated[Stopping, Inline] = Stopping()
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from excise.output import check_output
    from excise.recipe import load_recipe

    path = find_recipe(options.recipe)
    recipe = load_recipe(path, **({} if options.seed is None else {"seed": options.seed}))
    sources = (recipe.train.source, recipe.test.source if recipe.test else None)
    check_output(options.out, overwrite=options.overwrite, inputs=(path, recipe.model, *sources))
    run_recipe(recipe, options, console, keep_models=not options.no_models)
