"""excise zoo."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from excise.commands._options import Positional
from excise.errors import ConfigError
from excise.recipes import find_recipe

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make many clean and backdoored models, scan them all, and see how well the scanners tell them apart; what is in --out is not made again."""

    action: Positional[Annotated[Literal["build", "scan", "table"], tyro.conf.arg(metavar="{build,scan,table}")]]
    """Only make the models; make and scan them; or make the tables of what has been scanned."""
    zoo: Positional[Annotated[str, tyro.conf.arg(metavar="ZOO")]] = "zoo"
    """A YAML file, or the name of a shipped zoo (see: excise list)."""
    out: Path
    """Folder of the zoo; an earlier run is continued."""
    sources: tuple[str, ...] = ()
    """Texts in place of the zoo's, each as DATA.train=SOURCE or DATA.test=SOURCE."""
    scanners: tuple[str, ...] = ()
    """Which scanners, each a name or 'name field=value ...'; by default those of excise scan."""
    shard: str = "1/1"
    """k/n: only each n-th model, from the k-th on, so that n processes or machines share the work."""
    checkpoint_every: float = 60
    """Seconds of training that a kill may cost: so often its state is kept, in --out."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    device: str | None = None
    """cpu, cuda, mps ...; by default a GPU if there is one."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from excise.commands.scan import chosen
    from excise.disk import write_whole
    from excise.reports.zoo import markdown_tables, specimen_line, terminal_tables
    from excise.scan_result import judged
    from excise.track_record import save_tracks
    from excise.zoo import load_zoo, measure, members
    from excise.zoo_result import kept_specimens, tracks

    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"{options.out} is a file; a folder for the zoo was expected.")
    scanners = chosen(options.scanners)
    zoo = load_zoo(find_recipe(options.zoo, folder="zoos"), sources=_sources(options.sources))
    if options.action != "table":
        asked = scanners if options.action == "scan" else {}
        how = {"precision": options.precision, "device": options.device, "every": options.checkpoint_every}
        for specimen in measure(zoo, options.out, asked, shard=_shard(options.shard), **how):
            console.say(specimen_line(specimen))
    if options.action == "build":
        return
    specimens = [
        one.model_copy(update={"scans": tuple(judged(row, scanner) for scanner in scanners.values() if (row := one.scan_of(scanner)))})
        for one in members(zoo, kept_specimens(options.out))
    ]
    if not any(specimen.scans for specimen in specimens):
        raise ConfigError(f"{options.out} holds no scanned model. Run excise zoo scan first.")
    for table in terminal_tables(specimens):
        console.show(table)
    save_tracks(tracks(specimens), options.out / "track_record.json")
    write_whole(options.out / "zoo.md", markdown_tables(specimens))


def _sources(specs: tuple[str, ...]) -> dict[str, str]:
    pairs = [spec.partition("=") for spec in specs]
    for name, equals, source in pairs:
        if not (name and equals and source):
            raise ConfigError(f"--sources {name}{equals}{source}: DATA.train=SOURCE or DATA.test=SOURCE was expected.")
    return {name: source for name, _, source in pairs}


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard {text} was given; k/n with 1 <= k <= n was expected, such as 2/3.")
    return int(match[1]), int(match[2])
