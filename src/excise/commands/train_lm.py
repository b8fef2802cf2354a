"""excise train-lm."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from excise import processes
from excise.commands._options import Common, Inline, Model, Texts
from excise.commands._shared import plain
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
    from excise.checkpoint import resolve_checkpoint
    from excise.data import split
    from excise.errors import ConfigError
    from excise.language_model import train_language_model
    from excise.output import check_output, writing
    from excise.provenance import hash_inputs, save_sealed
    from excise.result import Environment, Record, command_line, data_record
    from excise.seeds import derive
    from excise.victim import resolve_precision

    begun, seed = time.monotonic(), options.common.seed
    if not 0 < options.holdout < 1:
        raise ConfigError(f"--holdout {options.holdout} was given; it must be above 0 and below 1.")
    check_output(options.out, overwrite=options.overwrite, inputs=(options.base, options.data))
    held, texts = split(options.texts.load(options.data), options.holdout, seed=derive(seed, "holdout"))
    inputs = hash_inputs(plain(options), checkpoint=(options.base, resolve_checkpoint(options.base)))
    length = options.texts.max_length or 128
    where = {"device": options.common.device, "precision": options.common.precision}
    model = train_language_model(options.base, texts.texts, kind=options.kind, training=options.training, seed=seed, max_length=length, **where)
    notes = [f"A {options.kind} language model made from {len(texts)} texts."]
    if options.kind == "causal":
        notes.append(f"The median perplexity of {len(held)} held-out texts is {model.perplexities(held.texts).median().item():.0f}.")
    record = Record(
        kind="train-lm",
        command=command_line(),
        environment=Environment.of(str(model.model.device), resolve_precision(options.common.precision, model.model.device)),
        seed=seed,
        settings=plain(options),
        model=options.base,
        data={"train": data_record(options.data, texts), "holdout": data_record(options.data, held)},
        seconds=time.monotonic() - begun,
        notes=tuple(notes),
        inputs=inputs,
    )
    if processes.index():
        return
    with writing(options.out, overwrite=options.overwrite) as folder:
        model.save(folder)
        save_sealed(record, folder / "excise-result.json")
    console.say(f"Wrote {options.out}. {' '.join(notes)}")
