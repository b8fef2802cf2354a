"""excise evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from excise.commands._options import Common, Inline, Model, Positional, Texts
from excise.commands._shared import NO_FLOOR, inputs_of, known_backdoor, load_floor, load_victim, plain, write
from excise.errors import ConfigError

if TYPE_CHECKING:
    from excise.console import Console
    from excise.result import Result


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a classifier on clean texts and, if the trigger is known, on triggered ones."""

    model: Positional[Model]
    """A checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts that the model was not trained on."""
    backdoor: Path | None = None
    """A backdoor.json, as excise attack writes it or by hand."""
    floor_model: str | None = None
    """A model trained alike that never saw the trigger; by default the clean twin beside backdoor.json."""
    out: Path | None = None
    """Folder for excise-result.json and report.html."""
    overwrite: bool = False
    """Replace an earlier result."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, console: Console) -> None:
    from excise.data import check_clean
    from excise.output import check_output
    from excise.pipeline import Story
    from excise.result import data_record

    story = Story(options.common.seed)
    if options.out:
        check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.backdoor, options.floor_model))
    if options.floor_model and not options.backdoor:
        raise ConfigError("--floor-model was given without --backdoor: a floor needs a trigger to measure. Give both.")
    victim = load_victim(options.model, options.texts, options.common)
    trigger, target, twin = known_backdoor(options.backdoor, victim)
    test = options.texts.load(options.data, victim.label_names)
    check_clean(test, what="test texts")
    floor = options.floor_model or twin
    story.inputs = inputs_of(options, floor=floor)
    if floor and trigger is not None:
        story.victims["clean"] = load_floor(floor, victim, options.texts, options.common)
    story.victims["model"] = victim

    def work() -> Result:
        return story.tell(
            "evaluate",
            test,
            trigger=trigger,
            target_label=target,
            settings=plain(options),
            model=options.model,
            data={"test": data_record(options.data, test)},
            notes=[NO_FLOOR] if trigger is not None and not floor else [],
        )

    if options.dry_run:
        console.plan(work, test, options.out)
        return
    result = work()
    if options.out:
        write(options.out, options.overwrite, result)
    console.scores(result)
