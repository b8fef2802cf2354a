"""excise plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from excise.commands._options import Common, Inline, Model, Positional, Texts
from excise.commands._shared import inputs_of, known_backdoor, load_victim, plain, write_study
from excise.errors import AttentionError, ConfigError

if TYPE_CHECKING:
    from excise.console import Console
    from excise.inspection import Sample
    from excise.result import AttentionMaps, Projection
    from excise.victim import Victim

Name = Literal["losses", "tsne", "attention"]
NAMES: tuple[Name, ...] = ("losses", "tsne", "attention")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw what a classifier sees in texts, before and after a repair."""

    model: Positional[Model]
    """The suspect: a checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts."""
    out: Path
    """Folder for the figures and excise-result.json, which has their numbers."""
    after: str | None = None
    """The repaired model, to be shown beside it."""
    backdoor: Path | None = None
    """A backdoor.json, if the trigger is known: then triggered texts are shown too."""
    figure: tuple[Name, ...] = ()
    """losses: what each augmentation costs; tsne: texts as the head reads them; attention: maps of one text. By default all that can be made."""
    augmentations: tuple[str, ...] = ()
    """For losses: which, such as: aeda "token_splitting share=0.5". By default all of them."""
    text: str | None = None
    """For attention: which text; by default a short one of the data, with the trigger if it is known, drawn by the seed."""
    tokens: int = 24
    """For attention: at most so many tokens."""
    format: Literal["png", "svg"] = "png"
    """Of the figures."""
    overwrite: bool = False
    """Replace earlier figures."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, console: Console) -> None:
    from excise.data import check_clean
    from excise.inspection import draw_sample, loss_rows
    from excise.output import check_output
    from excise.perturbation import checked, rank
    from excise.pipeline import Story
    from excise.reports.figures import attention_figure, loss_figure, projection_figure
    from excise.result import data_record

    story, seed = Story(options.common.seed), options.common.seed
    wanted = options.figure or NAMES
    _check(options, wanted)
    for spec in options.augmentations:
        checked(spec)
    check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.after, options.backdoor))
    victims = _load(options)
    victim = next(iter(victims.values()))
    trigger, target, _ = known_backdoor(options.backdoor, victim)
    data = options.texts.load(options.data, victim.label_names)
    inputs = inputs_of(options)  # now: it is what was read that counts
    check_clean(data)
    sample = draw_sample(data, trigger, target, seed=seed)

    rankings = {name: rank(one, data, options.augmentations, seed=seed) for name, one in victims.items()} if "losses" in wanted else {}
    study = story.study(
        "plot",
        victim,
        options.augmentations,
        settings=plain(options),
        model=options.model,
        inputs=inputs,
        data={"clean": data_record(options.data, data)},
        rows=tuple(row for name, ranking in rankings.items() for row in loss_rows(name, ranking)),
        left_out={name: why for ranking in rankings.values() for name, why in ranking.left_out.items()},
        projections=_projections(victims, sample, seed) if "tsne" in wanted else (),
        attention=_attention(victims, sample, options, console) if "attention" in wanted else (),
    )
    console.left_out(study.left_out)
    for note in study.notes:
        console.say(note)
    made = {
        "losses": loss_figure(study.rows, options.format) if study.rows else b"",
        "tsne": projection_figure(study.projections, options.format) if study.projections else b"",
        "attention": attention_figure(study.attention, options.format) if study.attention else b"",
    }
    write_study(options.out, options.overwrite, study, {f"{name}.{options.format}": drawing for name, drawing in made.items() if drawing}, console)


def _check(options: Options, wanted: tuple[Name, ...]) -> None:
    """Refuse options that would be of no use."""
    if options.augmentations and "losses" not in wanted:
        raise ConfigError("--augmentations was given, but no figure of losses was asked for. Add losses to --figure, or leave it out.")
    if options.text is not None and "attention" not in wanted:
        raise ConfigError("--text was given, but no figure of attention was asked for. Add attention to --figure, or leave it out.")
    if options.text is not None and not options.text.strip():
        raise ConfigError("--text is blank; a text with a word was expected.")
    if not 2 <= options.tokens <= 64:
        raise ConfigError(f"--tokens {options.tokens} was given; 2 to 64 can be drawn.")


def _load(options: Options) -> dict[str, Victim]:
    suspect = load_victim(options.model, options.texts, options.common)
    if options.after is None:
        return {"suspect": suspect}
    repaired = load_victim(options.after, options.texts, options.common)
    if repaired.label_names != suspect.label_names:
        raise ConfigError(f"The repaired model has the labels {repaired.label_names}, the suspect has {suspect.label_names}. Give its repair.")
    return {"suspect": suspect, "repaired": repaired}


def _projections(victims: dict[str, Victim], sample: Sample, seed: int) -> tuple[Projection, ...]:
    from excise.inspection import project

    return tuple(found for name, victim in victims.items() if (found := project(name, victim, sample, seed=seed)))


def _attention(victims: dict[str, Victim], sample: Sample, options: Options, console: Console) -> tuple[AttentionMaps, ...]:
    """Maps of one text; an error if they were asked for and cannot be read."""
    from excise.inspection import attention_maps, pick_text

    texts, seed = sample.stamped or sample.clean.texts, options.common.seed
    text = pick_text(next(iter(victims.values())), texts, seed=seed, most=options.tokens) if options.text is None else options.text
    try:
        return tuple(attention_maps(name, victim, text, most=options.tokens) for name, victim in victims.items())
    except AttentionError as error:
        if options.figure:
            raise
        console.say(f"No attention maps: {error}")
        return ()
