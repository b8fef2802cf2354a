"""excise train-lm."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from excise.commands._options import Common, Inline, Model, Texts
from excise.training import FitConfig

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make a small language model from an encoder and clean texts, for onion (causal) and cwea (masked) where no better one is at hand."""

    data: str
    """Clean texts: CSV, TSV, JSONL, Parquet or a Hugging Face data set id; labels are not used."""
    out: Path
    """Folder for the language model."""
    kind: Literal["causal", "masked"] = "causal"
    """Causal: how likely a text is (onion). Masked: what could stand in a place (cwea)."""
    base: Model = "default"
    """The encoder to start from: a folder, a Hugging Face id, or default (an embedded MiniLM)."""
    holdout: float = 0.1
    """Share of the texts on which it is measured, in place of being learnt."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=5, learning_rate=2e-4))
    """How it is trained."""
    overwrite: bool = False
    """Replace an earlier one."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


def run(options: Options, console: Console) -> None:
    from excise.data import split
    from excise.errors import ConfigError
    from excise.language_model import train_language_model
    from excise.output import check_output, writing
    from excise.seeds import derive

    seed = options.common.seed
    if not 0 < options.holdout < 1:
        raise ConfigError(f"--holdout {options.holdout} was given; it must be above 0 and below 1.")
    check_output(options.out, overwrite=options.overwrite, inputs=(options.base, options.data))
    held, texts = split(options.texts.load(options.data), options.holdout, seed=derive(seed, "holdout"))
    length = options.texts.max_length or 128
    model = train_language_model(
        options.base, texts.texts, kind=options.kind, training=options.training, seed=seed, max_length=length, device=options.common.device
    )
    with writing(options.out, overwrite=options.overwrite) as folder:
        model.save(folder)
    measured = ""
    if options.kind == "causal":
        measured = f" The median perplexity of {len(held)} held-out texts is {model.perplexities(held.texts).median().item():.0f}."
    console.say(f"Wrote {options.out}, a {options.kind} language model made from {len(texts)} texts.{measured}")
