"""excise scan."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from excise import registry
from excise.commands._options import Common, Inline, Model, Positional, Texts
from excise.commands._shared import inputs_of, load_victim, plain
from excise.errors import ConfigError, ExciseError

if TYPE_CHECKING:
    from excise.console import Console
    from excise.data import TextDataset
    from excise.method import Scanner
    from excise.scan_result import LayerProbe, ScannerRow, ScanResult
    from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look for a backdoor in a classifier, with clean labelled texts and nothing else.

    Exit code 0: no evidence was found. 1: a backdoor was found. 2: suspicious, or something was skipped, or an error. 3: no scanner could look.
    """

    model: Positional[Model]
    """The suspect: a checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts: CSV, TSV, JSONL, Parquet or a Hugging Face data set id. A few hundred are enough."""
    out: Path | None = None
    """Folder for scan.json, report.html and scan.sarif; without it, the terminal is all there is."""
    scanners: tuple[str, ...] = ()
    """Which scanners, each a name or 'name field=value ...' (see: excise list); by default all but ban, which is there for comparison."""
    base: str | None = None
    """The checkpoint that the model was fine-tuned from, a folder or a Hugging Face id, if it is known: embedding_rows compares with it."""
    budget: float = 600
    """Seconds after which no further scanner begins, and no further part of a search; what is left out is said."""
    most_texts: int = 2000
    """Read at most so many of the texts, a stratified share drawn by the seed."""
    overwrite: bool = False
    """Replace an earlier result."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, console: Console) -> int:
    from excise.data import check_clean, split
    from excise.output import check_output
    from excise.scan import scan
    from excise.seeds import derive

    begun = time.monotonic()
    scanners = chosen(options.scanners)
    if options.base:
        scanners = _with_base(scanners, options.base)
    if not options.budget > 0 or options.most_texts < 1:
        raise ConfigError(f"--budget {options.budget:g} and --most-texts {options.most_texts} must be above 0.")
    if options.out:
        check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data))
    victim = load_victim(options.model, options.texts, options.common)
    data = options.texts.load(options.data, victim.label_names)
    inputs = inputs_of(options)
    if len(data) > options.most_texts:
        data, _ = split(data, options.most_texts / len(data), seed=derive(options.common.seed, "most texts"))
    check_clean(data)
    where = f"{len(data)} clean texts, {victim.precision} on {victim.device}; at most {options.budget:g} s"
    console.say(f"Scanning {victim.source} with {', '.join(scanners)}: {where}.")
    rows = scan(victim, data, scanners, seed=options.common.seed, budget=options.budget)
    result = _told(options, victim, data, rows, inputs, begun)
    if options.out:
        _write(options.out, result, overwrite=options.overwrite)
    console.scan(result)
    if options.out:
        console.say(f"Wrote {options.out}: scan.json, report.html, scan.sarif.")
    return exit_code(result)


def chosen(specs: tuple[str, ...]) -> dict[str, Scanner]:
    """The scanners by name, in the order in which they are asked."""
    from excise.scan import BY_NAME, ORDER

    names = [name for name in registry.names("scanner") if name not in BY_NAME]
    specs = specs or tuple(sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))
    found: dict[str, Scanner] = {}
    for spec in specs:
        scanner = registry.build("scanner", spec, "--scanners")
        scanner.check_modules()
        if (name := registry.name_of(scanner)) in found:
            raise ConfigError(f"--scanners names {name} twice. Give each once.")
        found[name] = scanner
    return found


def _with_base(scanners: dict[str, Scanner], base: str) -> dict[str, Scanner]:
    """The scanners, those that can compare with a base told of it.

    Raises:
        CheckpointError: There is no such base.
        ConfigError: None of them can.
    """
    from excise.checkpoint import resolve_checkpoint

    if not any(hasattr(one, "base") for one in scanners.values()):
        raise ConfigError(f"--base {base}: none of {', '.join(scanners)} compares with a base. Leave it out, or ask embedding_rows as well.")
    resolve_checkpoint(base)
    return {name: replace(one, base=base) if hasattr(one, "base") else one for name, one in scanners.items()}  # type: ignore[type-var]


def _told(options: Options, victim: Victim, data: TextDataset, rows: tuple[ScannerRow, ...], inputs: dict[str, str], begun: float) -> ScanResult:
    from excise.result import Environment, command_line, data_record
    from excise.scan_result import ScanResult, verdict_of

    probe, notes = _probe(victim, data, rows, options)
    return ScanResult(
        command=command_line(),
        environment=Environment.of(str(victim.device), victim.precision),
        seed=options.common.seed,
        settings=plain(options),
        model=options.model,
        inputs=inputs,
        data={"clean": data_record(options.data, data)},
        seconds=time.monotonic() - begun,
        verdict=verdict_of(rows),
        scanners=rows,
        probe=probe,
        notes=notes,
    )


def _probe(victim: Victim, data: TextDataset, rows: tuple[ScannerRow, ...], options: Options) -> tuple[LayerProbe | None, tuple[str, ...]]:
    """Where the model sees the first trigger that was found, if there is a report to show it in; or a note why that could not be looked at."""
    from excise.attribution import probe_found

    found = next((trigger for row in rows if row.level == "found" for trigger in row.triggers), None)
    if not found or not options.out:
        return None, ()
    try:
        return probe_found(victim, data, found, seed=options.common.seed), ()
    except ExciseError as error:
        return None, (f"At which layers the model sees the words was not looked at: {error}",)


def _write(out: Path, result: ScanResult, *, overwrite: bool) -> None:
    from excise.output import writing
    from excise.provenance import save_sealed
    from excise.reports.html import scan_report
    from excise.reports.sarif import sarif

    with writing(out, overwrite=overwrite) as folder:
        (folder / "report.html").write_text(scan_report(result), encoding="utf-8")
        (folder / "scan.sarif").write_text(sarif(result), encoding="utf-8")
        save_sealed(result, folder / "scan.json")


def exit_code(result: ScanResult) -> int:
    """0: no evidence. 1: backdoor found. 2: inconclusive. 3: nothing could look."""
    return {"nothing found": 0, "backdoor found": 1, "suspicious": 2, "inconclusive": 2, "not scanned": 3}[result.verdict]
