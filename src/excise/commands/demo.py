"""excise demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from excise.commands._recipe import run_recipe
from excise.recipes import find_recipe

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Backdoor a small classifier, repair it, and show before and after."""

    out: Path = Path("excise-demo")
    """Folder for both checkpoints, result.json and report.html."""
    quick: bool = False
    """Fewer texts: about a minute, and too few for a good model or repair."""
    overwrite: bool = False
    """Replace an earlier demo."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    seed: int | None = None
    """Instead of the recipe's."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from excise.output import check_output
    from excise.recipe import load_recipe

    overrides: dict[str, Any] = {} if options.seed is None else {"seed": options.seed}
    recipe = load_recipe(find_recipe("demo-quick" if options.quick else "demo"), **overrides)
    check_output(options.out, overwrite=options.overwrite, needed=300_000_000)
    if not options.dry_run:
        console.say("excise demo: backdoor a small classifier of movie reviews, then repair it without knowing the trigger.")
        if options.quick:
            console.say("--quick uses so few texts that it shows the steps, not what a repair can do.")
    run_recipe(recipe, options, console, keep_models=True)
