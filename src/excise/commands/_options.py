"""What commands have in common on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from excise import registry
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


@CONSTRUCTORS.primitive_rule
def _texts(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Texts that Python may give as they are; typed, their source."""
    if info.type != str | TextDataset:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="DATA",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str | TextDataset),
        str_from_instance=lambda value: [str(value)],
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
class Stopping:
    """What commands that train take, in case they are stopped."""

    resume: bool = False
    """Go on where an earlier run of the same command was stopped; the result has the same bits."""
    checkpoint_every: float = 60
    """Seconds of training that a kill may cost: so often the state is kept, beside --out, until the command has ended well."""


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
