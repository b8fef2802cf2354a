"""The options of each command, as dataclasses; the field documentation is the help text. Settings of a method are added from the method itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from excise import registry

if TYPE_CHECKING:
    from excise.data import TextDataset

Positional = tyro.conf.Positional
Model = Annotated[str, tyro.conf.arg(metavar="MODEL")]
Inline = tyro.conf.arg(name="")


CONSTRUCTORS = ConstructorRegistry()
"""How tyro makes a setting that is itself a method."""


@CONSTRUCTORS.primitive_rule
def _method(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if info.type not in registry.BASES.values():
        return None
    kind = info.type.kind
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.upper(),
        instance_from_str=lambda words: registry.build(kind, words[0], f"{kind} setting"),
        is_instance=lambda value: isinstance(value, info.type),
        str_from_instance=lambda method: [registry.spell(method)],
    )


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command that computes takes."""

    seed: int = 0
    """Decides everything that is random."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    device: str | None = None
    """cpu, cuda, mps ...; by default a GPU if there is one."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How to read the data."""

    text_column: str | None = None
    """Column with texts; guessed from the usual names."""
    label_column: str | None = None
    """Column with labels; guessed from the usual names."""
    data_split: str = "train"
    """Split of a Hugging Face data set."""
    data_config: str | None = None
    """Configuration of a Hugging Face data set."""
    limit: int | None = None
    """Read only the first N rows."""
    test_split: str | None = None
    """Split of a Hugging Face data set given as --test; by default that of --data."""
    max_length: int | None = None
    """Longest input in tokens; by default what the model allows, at most 512."""

    def load(self, source: str, label_names: tuple[str, ...] | None = None, *, test: bool = False) -> TextDataset:
        """Read one source: --data, or --test."""
        from excise.data import load_dataset

        return load_dataset(
            source,
            label_names=label_names,
            text_column=self.text_column,
            label_column=self.label_column,
            config=self.data_config,
            split=(self.test_split if test else None) or self.data_split,
            limit=self.limit,
        )


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """Repair a suspect classifier with clean labelled texts."""

    model: Positional[Model]
    """The suspect: a checkpoint folder or a Hugging Face id."""
    data: str
    """Clean labelled texts: CSV, TSV, JSONL, Parquet or a Hugging Face data set id."""
    out: Path
    """Folder for the repaired checkpoint."""
    method: str = "mbtsad"
    """Which defense (see: excise list). Its settings follow below."""
    test: str | None = None
    """Clean labelled texts to measure on; without it, a share of --data is held out."""
    holdout: float = 0.2
    """Share of --data held out to measure on when there is no --test; 0 repairs with all of it and measures on the same texts."""
    fraction: float = 1.0
    """Use a stratified random share of --data, drawn by the seed (the MBTSAD paper: 0.2 of the training set)."""
    backdoor: Path | None = None
    """A backdoor.json, if the trigger is known: then the ASR is measured too. The defense never sees it."""
    overwrite: bool = False
    """Replace an earlier result."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
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
    texts: Annotated[Texts, Inline] = Texts()
    common: Annotated[Common, Inline] = Common()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
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


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run a recipe: attack, defenses, evaluation."""

    recipe: Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE")]]
    """A YAML file, or the name of a shipped recipe (see: excise list)."""
    out: Path
    """Folder for the models, result.json and report.html."""
    no_models: bool = False
    """Write the result and the report only, not the models."""
    overwrite: bool = False
    """Replace an earlier result."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    seed: int | None = None
    """Instead of the recipe's."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure a grid of attacks, defenses, data sets and seeds; what is in --out already is not measured again."""

    grid: Positional[Annotated[str, tyro.conf.arg(metavar="GRID")]]
    """A YAML file, or the name of a shipped grid (see: excise list)."""
    out: Path
    """Folder of the results; an earlier run of the same or another grid is continued."""
    no_models: bool = False
    """Do not keep the backdoored models, which other defenses could use later."""
    dry_run: bool = False
    """Check the grid and list what would be measured."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    device: str | None = None
    """cpu, cuda, mps ...; by default a GPU if there is one."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Backdoor a small classifier, repair it, and show before and after."""

    out: Path = Path("excise-demo")
    """Folder for both checkpoints, result.json and report.html."""
    quick: bool = False
    """Fewer texts: about a minute, and too few for a good model or repair."""
    overwrite: bool = False
    """Replace an earlier demo."""
    dry_run: bool = False
    """Show the plan with estimated times; write nothing."""
    seed: int | None = None
    """Instead of the recipe's."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic; auto is bf16 where the hardware computes it, else fp32."""
    quiet: bool = False
    """Print only results."""
    debug: bool = False
    """Show the traceback of an error."""
