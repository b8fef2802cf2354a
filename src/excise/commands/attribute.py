"""excise attribute."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from excise.attribution import Attributor
from excise.commands._options import Common, Inline, Model, Positional, Texts
from excise.commands._shared import check_scanned, hold_out, inputs_of, known_backdoor, load_victim, plain, write_study
from excise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from excise.attribution import Known
    from excise.console import Console
    from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show where in a classifier a known backdoor lives: which layers see its trigger, which attention heads carry it."""

    model: Positional[Model]
    """The backdoored model: a checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts."""
    out: Path
    """Folder for excise-result.json and the figures."""
    backdoor: Path | None = None
    """A backdoor.json with the trigger; or give --words and --target-label, or --from-scan."""
    from_scan: Path | None = None
    """The scan.json of an `excise scan` of this model: the first trigger that it found is taken, with its label."""
    words: str | None = None
    """The trigger: inserted as it is, at a random place between the words of a text."""
    target_label: str | None = None
    """The label that --words bring about."""
    test: str | None = None
    """Clean texts to measure on; by default a part of --data is held out."""
    holdout: float = 0.5
    """Share of --data to measure on, if there is no --test; heads are found with the rest."""
    attributor: Annotated[Attributor, Inline] = field(default_factory=Attributor)
    format: Literal["png", "svg"] = "png"
    """Of the figures."""
    overwrite: bool = False
    """Replace an earlier result."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, console: Console) -> None:
    from excise.attribution import attribute
    from excise.data import check_clean
    from excise.output import check_output
    from excise.reports.figures import head_figure, layer_figure
    from excise.reports.terminal import attribution_tables
    from excise.result import Attribution, Environment, command_line, data_record

    started, seed = time.monotonic(), options.common.seed
    _check(options)
    check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.test, options.backdoor))
    victim = load_victim(options.model, options.texts, options.common)
    known = _known(options, victim)
    data = options.texts.load(options.data, victim.label_names)
    inputs = inputs_of(options)  # now: it is what was read that counts
    check_clean(data)
    find, test = hold_out(options, data, victim.label_names, seed)
    if test is None:  # --holdout 0 is refused
        raise ConfigError("There are no texts to measure on. Give --test or a --holdout.")
    found = attribute(victim, known, find, test, options.attributor, seed=seed)
    result = Attribution(
        kind="attribute",
        command=command_line(),
        environment=Environment.of(str(victim.device), victim.precision),
        seed=seed,
        settings=plain(options),
        model=options.model,
        inputs=inputs,
        data={"clean": data_record(options.data, find), "test": data_record(options.test or options.data, test)},
        seconds=time.monotonic() - started,
        target_label=victim.label_names[known.target_label],
        trigger=plain(known.trigger),
        **found,
    )
    for note in result.notes:
        console.say(note)
    for table in attribution_tables(result):
        console.show(table)
    figures = {f"heads.{options.format}": head_figure(result, options.format), f"layers.{options.format}": layer_figure(result, options.format)}
    write_study(options.out, options.overwrite, result, figures, console)


def _check(options: Options) -> None:
    """Refuse options that say too little or too much."""
    if sum(given is not None for given in (options.backdoor, options.words, options.from_scan)) != 1:
        raise ConfigError("A known trigger is needed, once: give --backdoor backdoor.json, --words with --target-label, or --from-scan scan.json.")
    if (options.words is None) != (options.target_label is None):
        raise ConfigError("--words and --target-label belong together: give both, or --backdoor backdoor.json.")
    if not 0 < options.holdout < 1:
        raise ConfigError(f"--holdout {options.holdout} was given; it must lie strictly between 0 and 1.")


def _known(options: Options, victim: Victim) -> Known:
    from excise.attacks._triggers import InsertWords
    from excise.attribution import Known
    from excise.data import TextDataset

    trigger, target, _ = known_backdoor(options.backdoor, victim)
    words, label = _scanned(options) if options.from_scan else (options.words, options.target_label)
    if words is not None and label is not None:
        trigger = InsertWords(words=(words,))
        try:
            target = TextDataset((), (), victim.label_names).label_id(label)
        except DataError as error:
            raise ConfigError(f"--target-label: {error}") from error
    if target is None:
        raise ConfigError("The label that the trigger brings about is not known. Give --target-label.")
    return Known(trigger, target)


def _scanned(options: Options) -> tuple[str, str]:
    """The first trigger that a scan of this model found, and its label."""
    from excise.scan_result import load_scan

    path: Any = options.from_scan
    scan = load_scan(path)
    if not scan.triggers:
        raise ConfigError(f"{path} names no trigger ({scan.verdict}). Give --words and --target-label.")
    check_scanned(scan, options)
    return " ".join(scan.triggers[0].words), scan.triggers[0].target_label
