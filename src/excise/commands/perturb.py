"""excise perturb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from excise.commands._options import Common, Inline, Model, Positional, Texts
from excise.commands._shared import inputs_of, load_victim, plain, write_study

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Rank augmentations by the loss they cause in a suspect classifier."""

    model: Positional[Model]
    """The suspect: a checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts: CSV, TSV, JSONL, Parquet or a Hugging Face data set id."""
    augmentations: tuple[str, ...] = ()
    """Which, such as: aeda "token_splitting share=0.5" (see: excise list). By default all of them."""
    out: Path | None = None
    """Folder for excise-result.json and the figure of the losses."""
    format: Literal["png", "svg"] = "png"
    """Of the figure."""
    overwrite: bool = False
    """Replace an earlier result."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, console: Console) -> None:
    from excise.data import check_clean
    from excise.inspection import loss_rows
    from excise.output import check_output
    from excise.perturbation import checked, rank
    from excise.pipeline import Story
    from excise.reports.figures import loss_figure
    from excise.reports.terminal import loss_table
    from excise.result import data_record

    story = Story(options.common.seed)
    for spec in options.augmentations:
        checked(spec)
    if options.out:
        check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data))
    victim = load_victim(options.model, options.texts, options.common)
    data = options.texts.load(options.data, victim.label_names)
    inputs = inputs_of(options)  # now: it is what was read that counts
    check_clean(data)

    ranking = rank(victim, data, options.augmentations, seed=options.common.seed)
    study = story.study(
        "perturb",
        victim,
        options.augmentations,
        settings=plain(options),
        model=options.model,
        inputs=inputs,
        data={"clean": data_record(options.data, data)},
        rows=loss_rows("suspect", ranking),
        left_out=dict(ranking.left_out),
    )
    console.show(loss_table(study.rows))
    console.left_out(study.left_out)
    for note in study.notes:
        console.say(note)
    best = study.rows[0]
    lead = best.lead
    console.say(
        f"The maximiser is {best.name}"
        + (f": {lead.value:.4f} ({lead.low:.4f} to {lead.high:.4f}) above the next, text by text." if lead else ", the only candidate.")
        + (" An interval that holds 0 leaves open which of the two it is." if lead and lead.low <= 0 else "")
    )
    if options.out:
        write_study(options.out, options.overwrite, study, {f"losses.{options.format}": loss_figure(study.rows, options.format)}, console)
