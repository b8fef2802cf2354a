"""excise repair."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from excise.commands._options import Common, Inline, Model, Positional, Stopping, Texts
from excise.commands._shared import (
    NO_FLOOR,
    NO_TRIGGER,
    NOT_HELD_OUT,
    ONLY_UNLEARNED,
    check_scanned,
    hold_out,
    inputs_of,
    known_backdoor,
    load_floor,
    load_victim,
    plain,
    size,
    write,
)
from excise.commands._stopping import resumable
from excise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from excise.console import Console
    from excise.data import TextDataset
    from excise.method import Defense
    from excise.pipeline import Story
    from excise.result import Result
    from excise.scan_result import ScanResult
    from excise.victim import Victim

DEAR = 5
"""A repair that costs more points of CACC than this gets a hint."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Repair a suspect classifier with clean labelled texts."""

    model: Positional[Model]
    """The suspect: a checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts: CSV, TSV, JSONL, Parquet or a Hugging Face data set id."""
    out: Path
    """Folder for the repaired checkpoint."""
    method: str = "treatment"
    """Which defense (see: excise list). Its settings follow below."""
    test: str | None = None
    """Clean labelled texts to measure on; without it, a share of --data is held out."""
    holdout: float = 0.2
    """Share of --data held out to measure on when there is no --test; 0 repairs with all of it and measures on the same texts."""
    fraction: float = 1.0
    """Use a stratified random share of --data, drawn by the seed (the MBTSAD paper: 0.2 of the training set)."""
    backdoor: Path | None = None
    """A backdoor.json, if the trigger is known: then the ASR is measured too. The defense never sees it."""
    from_scan: Path | None = None
    """The scan.json of an `excise scan`: the triggers that it found are unlearned, and no scan is made again."""
    canaries: bool = False
    """Plant backdoors of our own in a copy of the model, repair the copy as well, and report how far they vanish: an estimate of the repair's effect
    for whoever does not know the trigger. Takes more than twice as long. The treatment does so by itself, unless triggers are given."""
    no_canaries: bool = False
    """Do not let the treatment do so."""
    tune: bool = False
    """Try a few settings of the method on such a copy and take the best. Each takes as long as a repair."""
    overwrite: bool = False
    """Replace an earlier result."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    stopping: Annotated[Stopping, Inline] = Stopping()
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, defense: Defense, console: Console) -> None:
    from excise.data import check_clean, split
    from excise.evaluation import triggered
    from excise.output import check_output
    from excise.pipeline import Story
    from excise.registry import settings
    from excise.result import data_record
    from excise.scan_result import load_scan
    from excise.seeds import derive

    if scan := load_scan(options.from_scan) if options.from_scan else None:
        defense = _with_triggers(defense, scan, options)
    _check(options, defense)
    story = Story(seed := options.common.seed)
    check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.test, options.backdoor))
    victim = load_victim(options.model, options.texts, options.common)
    check_output(options.out, overwrite=options.overwrite, needed=size(victim))
    trigger, target, twin = known_backdoor(options.backdoor, victim)
    story.inputs = inputs_of(options, defense, floor=twin)
    data = options.texts.load(options.data, victim.label_names)
    if options.fraction != 1:
        data, _ = split(data, options.fraction, seed=derive(seed, "fraction"))
    check_clean(data)
    clean, test = hold_out(options, data, victim.label_names, seed)
    if trigger is not None and target is not None:
        triggered(test or clean, trigger, target, seed=seed)  # it must be possible to measure, before any work

    if twin:
        story.victims["clean"] = load_floor(twin, victim, options.texts, options.common)
    story.victims["suspect"] = victim
    notes = _notes(scan, defense, is_held_out=test is not None, knows_trigger=trigger is not None, has_floor=bool(twin))
    records = {"clean": data_record(options.data, clean)}
    if test is not None:
        records["test" if options.test else "holdout"] = data_record(options.test or options.data, test)

    def work() -> Result:
        repair = _on_canaries(defense, victim, clean, test or clean, story, options)
        story.make(options.method, lambda: repair(victim, clean, seed=derive(seed, "defense")), method=repair)
        return story.tell(
            "repair",
            test or clean,
            trigger=trigger,
            target_label=target,
            settings=plain(options),
            model=options.model,
            data=records,
            notes=notes,
        )

    if options.dry_run:
        console.plan(work, clean, options.out)
        return
    console.say(f"Repairing {victim.source} with {options.method}: {len(clean)} clean texts, {victim.precision} on {victim.device}.")
    with resumable(options, settings(defense), console):
        result = work()
        write(options.out, options.overwrite, result, save=story.victims[options.method].save, card=True)
    console.scores(result)
    console.trials(result)
    _hint(result, victim.label_names, console)
    console.say(f"Wrote {options.out} (a Hugging Face folder), with report.html.")


def _notes(scan: ScanResult | None, defense: Defense, *, is_held_out: bool, knows_trigger: bool, has_floor: bool) -> list[str]:
    """What the scores do not say."""
    unknown = NO_FLOOR if knows_trigger else ONLY_UNLEARNED if getattr(defense, "triggers", ()) else NO_TRIGGER
    late = "; ".join(f"{row.name} ({', '.join(row.left_out)})" for row in scan.scanners if row.left_out) if scan else ""
    part = f"The scan left out, as its time was used up: {late}. There may be more than it found; scan again with a greater --budget."
    return [NOT_HELD_OUT] * (not is_held_out) + [part] * bool(late) + [unknown] * (not has_floor)


def _check(options: Options, defense: Defense) -> None:
    """Refuse what no repair of a checkpoint can be, before any work."""
    from excise.pipeline import check_needs

    if defense.guards:
        raise ConfigError(f"{options.method} guards a model's input and leaves its weights, so there is no repaired checkpoint. Use it in a recipe.")
    check_needs(defense)
    if options.no_canaries and (options.canaries or options.tune):
        raise ConfigError("--no-canaries contradicts --canaries and --tune, which is done on them. Leave out one.")
    if options.tune and not defense.alternatives():
        raise ConfigError(f"{options.method} names no settings to tune. Leave out --tune, or take another method.")


def _with_triggers(defense: Defense, scan: ScanResult, options: Options) -> Defense:
    """The defense with the triggers that a scan found.

    Raises:
        ConfigError: The defense takes none, or the scan found none.
    """
    from excise.finding import phrases

    if not hasattr(defense, "triggers"):
        raise ConfigError(f"{options.method} has no use for triggers. Leave out --from-scan, or take treatment or unlearn.")
    triggers = phrases(scan.triggers)
    if not triggers:
        suspected = phrases(trigger for row in scan.scanners for trigger in row.triggers)
        typed = f" To unlearn what it only suspects, leave out --from-scan and add: --triggers {shlex.join(suspected)}" if suspected else ""
        raise ConfigError(f"{options.from_scan} names no trigger ({scan.verdict}). Leave out --from-scan; the default repair needs none.{typed}")
    check_scanned(scan, options)
    return replace(defense, triggers=triggers)  # type: ignore[type-var]


def _on_canaries(defense: Defense, victim: Victim, clean: TextDataset, test: TextDataset, story: Story, options: Options) -> Defense:
    """Try the defense on a copy of the victim with canaries, with other settings too if they are to be tuned; what was found is part of the story.

    The treatment does so unless it is given triggers; where then no canary can be planted, that is noted, and the defense stays as it is.
    """
    asked = options.canaries or options.tune
    if not asked and (options.method != "treatment" or options.no_canaries or getattr(defense, "triggers", ())):
        return defense
    from excise.canaries import plant, trial_rows, try_all
    from excise.pipeline import check_needs
    from excise.progress import note, noting, stage
    from excise.seeds import derive

    seed, known = derive(story.seed, "canaries"), {"triggers": getattr(defense, "triggers", ())}
    if known["triggers"]:  # the canaries are not among them: the copy has to be scanned, too
        defense = replace(defense, triggers=())  # type: ignore[type-var]
        check_needs(defense)
    with stage("canaries"), noting(story.notes):
        try:
            planted = plant(victim, clean, seed=seed)
        except (DataError, ConfigError) as error:
            if asked:
                raise
            note(f"There is no estimate on canaries: {error}")
            return defense
        others = defense.alternatives() if options.tune else []
        trials = try_all([defense, *others], planted, clean, test, seed=seed)
    story.trials = trial_rows(trials, victim.label_names)
    best: Any = trials[0].defense
    return replace(best, **known) if known["triggers"] else best


def _hint(result: Result, labels: Sequence[str], console: Console) -> None:
    """What to do when a repair was dear, or when the texts do not seem to be the model's."""
    suspect = result.row("suspect")
    if suspect and suspect.cacc.high < 1 / len(labels):
        console.say(
            f"The model itself is right about only {100 * suspect.cacc.value:.1f} % of the texts, fewer than by chance. Make sure that their labels "
            f"are the model's ({', '.join(labels)}): a repair with wrong labels teaches them."
        )
    cost = 100 * (result.rows[-2].cacc.value - result.rows[-1].cacc.value)
    if cost > DEAR:
        console.say(
            f"The repair cost {cost:.1f} points of accuracy. Give more texts, or lower the learning rates of {result.rows[-1].name} "
            "(models wider than 384 need lower ones than the defaults): see excise repair --help."
        )
