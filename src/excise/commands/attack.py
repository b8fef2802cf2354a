"""excise attack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from excise.commands._options import Common, Inline, Model, Positional, Stopping, Texts
from excise.commands._shared import NO_FLOOR, hold_out, inputs_of, load_victim, plain, size, write
from excise.commands._stopping import resumable
from excise.errors import ConfigError

if TYPE_CHECKING:
    from excise.console import Console
    from excise.method import Attack, Backdoor
    from excise.result import Result
    from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Options:
    """Plant a backdoor of your own, to test defenses (research use)."""

    attack: Positional[Annotated[str, tyro.conf.arg(metavar="ATTACK")]]
    """Which attack (see: excise list). Its settings follow below."""
    model: Positional[Model]
    """The model to start from: a folder, a Hugging Face id, or default (an embedded MiniLM)."""
    data: str
    """Labelled training texts: CSV, TSV, JSONL, Parquet, a Hugging Face data set id, or default (embedded movie reviews)."""
    out: Path
    """Folder for the backdoored checkpoint."""
    test: str | None = None
    """Clean labelled texts to measure on; without it, a share of --data is held out."""
    holdout: float = 0.1
    """Share of --data held out to measure on when there is no --test."""
    no_clean_twin: bool = False
    """Do not train the same model without the backdoor, whose ASR is the floor; halves the time."""
    overwrite: bool = False
    """Replace an earlier result."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    stopping: Annotated[Stopping, Inline] = Stopping()
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, attack: Attack, console: Console) -> None:
    from excise.data import check_clean
    from excise.evaluation import clean_twin
    from excise.output import check_output
    from excise.pipeline import Story, check_needs, save_backdoor
    from excise.registry import settings
    from excise.result import data_record

    seed = options.common.seed
    story = Story(seed)
    check_needs(attack)
    check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.test))
    data = options.texts.load(options.data)
    victim = load_victim(options.model, options.texts, options.common, label_names=data.label_names, seed=seed)
    if victim.label_names != data.label_names:
        data = options.texts.load(options.data, victim.label_names)  # the checkpoint has a head: its labels count
    check_clean(data, what="training texts")
    check_output(options.out, overwrite=options.overwrite, needed=size(victim) * (1 if options.no_clean_twin else 2))
    story.inputs = inputs_of(options, attack)
    train, test = hold_out(options, data, victim.label_names, seed)
    if test is None:
        raise ConfigError("An attack has to be measured: give --test, or a --holdout above 0.")

    notes = ["This checkpoint has a backdoor, planted to test defenses. Do not pass it on as an ordinary model."]

    def work() -> tuple[Backdoor, Victim | None, Result]:
        backdoor = story.make("backdoored", lambda: attack(victim, train, seed=seed), method=attack)
        twin = None if options.no_clean_twin else story.make("clean", lambda: clean_twin(attack, victim, train, seed=seed))
        result = story.tell(
            "attack",
            test,
            trigger=backdoor.trigger,
            target_label=backdoor.target_label,
            settings=plain(options),
            model=options.model,
            data={"train": data_record(options.data, train), "test": data_record(options.test or options.data, test)},
            notes=notes if twin else [*notes, NO_FLOOR],
        )
        return backdoor, twin, result

    if options.dry_run:
        console.plan(work, train, options.out)
        return
    console.say(f"Planting a {options.attack} backdoor: {len(train)} training texts, {victim.precision} on {victim.device}.")
    with resumable(options, settings(attack), console):
        backdoor, twin, result = work()
        write(options.out, options.overwrite, result, save=lambda folder: save_backdoor(folder, backdoor, attack, seed, twin=twin))
    console.scores(result)
    console.examples(result.examples, "backdoored")
    console.say(f"Wrote {options.out}; backdoor.json in it says how the trigger works.")
