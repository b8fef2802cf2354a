"""The result of one command, as versioned JSON. Everything that is shown is made from it and from nothing else."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from excise.data import TextDataset
from excise.errors import DataError
from excise.evaluation import Scores
from excise.memory import json_cost
from excise.metrics import Rate, mean_interval
from excise.progress import Progress

__all__ = [
    "AblationRow",
    "AttentionMaps",
    "Attribution",
    "CanaryRow",
    "Curves",
    "Data",
    "Environment",
    "Example",
    "Group",
    "HeadRow",
    "LossRow",
    "Mean",
    "Measured",
    "ProbeRow",
    "Projection",
    "Record",
    "Result",
    "Row",
    "Strict",
    "Study",
    "TrialRow",
    "UnlearnedRow",
    "VectorRow",
    "data_record",
    "load_result",
    "read_bounded",
    "read_record",
    "row",
]

VERSION = 1
MOST_BYTES, MOST_PARSED = 64 * 2**20, 2**30
"""The largest result file that is read, and the most memory that its values may take."""


class Strict(BaseModel):
    """A part of a result: fixed once made, and no other fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Share = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6, allow_inf_nan=False)]
"""In [0, 1], up to rounding."""


class Measured(Strict):
    """A share with what it rests on."""

    value: Share
    hits: Annotated[int, Field(ge=0)]
    n: Annotated[int, Field(ge=0)]
    low: Share = Field(description="lower end of the 95 % Wilson interval")
    high: Share = Field(description="upper end of the 95 % Wilson interval")

    @classmethod
    def of(cls, rate: Rate) -> Measured:
        """From a `Rate`."""
        low, high = rate.interval
        return cls(value=rate.value, hits=rate.hits, n=rate.n, low=low, high=high)

    def surely_above(self, other: Measured) -> bool:
        """Whether the two intervals do not touch, and this one is the greater."""
        return self.low > other.high


class Row(Strict):
    """One model and its scores."""

    name: str = Field(description="'clean', 'backdoored', 'suspect', or the defense's name")
    method: dict[str, Any] | None = Field(default=None, description="the method that made the model, with all its settings")
    cacc: Measured
    asr: Measured | None = None
    clean_flip: Measured | None = None
    seconds: float | None = Field(default=None, description="wall-clock time that making the model took")


class Example(Strict):
    """One text before and after the trigger, as each model labels it."""

    text: str
    triggered: str
    marked: tuple[int, ...] = Field(description="positions of trigger words among the whitespace-separated words of `triggered`")
    label: str
    answers: dict[str, tuple[str, str]] = Field(description="model name -> (label without, label with the trigger)")


class CanaryRow(Strict):
    """What is left of a backdoor of our own in a copy of the suspect."""

    name: str
    words: tuple[str, ...] = Field(description="its trigger words")
    target_label: str
    floor: Measured = Field(description="ASR of the suspect, which has never seen it")
    before: Measured = Field(description="ASR of the copy before the repair")
    after: Measured = Field(description="ASR of the copy after the repair")


class TrialRow(Strict):
    """What one setting did to the copy with the canaries."""

    method: dict[str, Any]
    before: Measured = Field(description="CACC of the copy")
    after: Measured = Field(description="CACC of the repaired copy")
    canaries: tuple[CanaryRow, ...]


class UnlearnedRow(Strict):
    """What a word or phrase that was unlearned by name does to texts of other labels."""

    words: str
    target_label: str = Field(description="the label that it makes most more frequent in the suspect")
    before: Measured = Field(description="texts that get the label with it, from the suspect")
    after: Measured = Field(description="the same from the repaired model")
    without: Measured = Field(description="texts that get the label without it, from the repaired model")


class Data(Strict):
    """Texts that were used."""

    source: str
    n: int
    labels: dict[str, int] = Field(description="texts of each label")
    sha256: str = Field(description="of the texts and labels, in order")


class Environment(Strict):
    """Where it ran."""

    excise: str
    python: str
    torch: str
    transformers: str
    accelerate: str
    platform: str
    device: str
    threads: int
    precision: str

    @classmethod
    def of(cls, device: str, precision: str) -> Environment:
        """This process."""
        import torch

        versions = {name: version(name) for name in ("excise", "torch", "transformers", "accelerate")}
        system = f"{platform.system()} {platform.machine()}"
        return cls(**versions, python=platform.python_version(), platform=system, device=device, threads=torch.get_num_threads(), precision=precision)


class Mean(Strict):
    """A mean with what it rests on."""

    value: float
    n: int
    low: float = Field(description="lower end of the 95 % bootstrap interval (BCa)")
    high: float = Field(description="upper end of the 95 % bootstrap interval (BCa)")

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of two values or more."""
        low, high = mean_interval(values)
        return cls(value=fmean(values), n=len(values), low=low, high=high)


class LossRow(Strict):
    """What one augmentation costs one model."""

    model: str
    name: str = Field(description="the augmentation with its settings, or 'unchanged'")
    loss: Mean = Field(description="cross-entropy of one variant of each text")
    lead: Mean | None = Field(default=None, description="how much greater than the next augmentation's loss, text by text")
    changed_words: float = Field(description="Q: words replaced, removed or put in between, mean over texts")
    losses: tuple[float, ...] = Field(description="of each text, in the order of the data")


class Group(Strict):
    """Texts that are drawn alike."""

    name: str
    triggered: bool = False
    points: tuple[tuple[float, float], ...]


class Projection(Strict):
    """A t-SNE drawing of the class vectors of some texts in one model."""

    model: str
    groups: tuple[Group, ...]


class AttentionMaps(Strict):
    """Where one model looks in one text: for each layer, query token and key token, the mean over heads of the attention probability."""

    model: str
    tokens: tuple[str, ...]
    tokens_in_all: int = Field(description="more than are shown, if the text is long")
    layers: tuple[tuple[tuple[float, ...], ...], ...]


class Record(Strict):
    """What the result of every command says: enough to run it again, and pictures of what its models see."""

    version: Literal[1] = VERSION
    kind: str
    command: str = Field(description="what was typed")
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    environment: Environment
    seed: int
    settings: dict[str, Any] = Field(description="the recipe, or the options of the command")
    model: str
    data: dict[str, Data]
    seconds: float
    notes: tuple[str, ...] = ()
    projections: tuple[Projection, ...] = ()
    attention: tuple[AttentionMaps, ...] = ()
    inputs: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each file that was read")
    outputs: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each other file of the folder")

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


Kept = TypeVar("Kept", bound=Record)


class Result(Record):
    """One run: models and what they scored."""

    kind: Literal["run", "repair", "attack", "evaluate"]
    target_label: str | None = None
    rows: tuple[Row, ...]
    examples: tuple[Example, ...] = ()
    curves: dict[str, tuple[tuple[int, float], ...]] = Field(default_factory=dict, description="task -> (step, loss)")
    unlearned: tuple[UnlearnedRow, ...] = Field(default=(), description="what was unlearned by name, the first twelve")
    trials: tuple[TrialRow, ...] = Field(default=(), description="what was tried on a copy with canaries; the first setting was taken")

    def row(self, name: str) -> Row | None:
        """The row of that name."""
        return next((row for row in self.rows if row.name == name), None)


class Study(Record):
    """One look at models without scoring them: what augmentations cost them, and pictures."""

    kind: Literal["perturb", "plot"]
    rows: tuple[LossRow, ...] = Field(default=(), description="for each model the greatest loss first, the unchanged texts last")
    left_out: dict[str, str] = Field(default_factory=dict, description="augmentation that could not be used -> why")


class ProbeRow(Strict):
    """How well a classifier tells triggered from clean texts by their state at one layer."""

    layer: int = Field(description="0 is the embedding, 1 the first layer's output")
    accuracy: Measured
    across: tuple[float, ...] = Field(description="accuracy of the probe of this layer on the states of each layer")


class HeadRow(Strict):
    """What one attention head does for the backdoor."""

    layer: int = Field(description="from 1")
    head: int = Field(description="from 1")
    effect: Mean = Field(description="ACIE: rise of the target's probability in clean texts, once the head gives what it gives in triggered ones")


class AblationRow(Strict):
    """What a model scores without some of its heads."""

    name: str
    heads: tuple[tuple[int, int], ...] = Field(description="(layer, head), both from 1")
    cacc: Measured
    asr: Measured
    clean_flip: Measured


class VectorRow(Strict):
    """What the backdoor vector does at one layer."""

    layer: int = Field(description="from 1")
    added: Measured = Field(description="clean texts of other labels that get the target label once the vector is added")
    subtracted: Measured = Field(description="ASR of triggered texts once the vector is taken away")


class Attribution(Record):
    """Where in a model a known backdoor lives."""

    kind: Literal["attribute"]
    target_label: str
    trigger: dict[str, Any]
    probe: tuple[ProbeRow, ...]
    effects: tuple[tuple[float, ...], ...] = Field(description="ACIE of each head, a row a layer")
    heads: tuple[HeadRow, ...] = Field(description="those of the greatest effect, whose sum the backdoor vector is")
    ablations: tuple[AblationRow, ...] = Field(description="the model as it is, without those heads, without as many others")
    vector: tuple[VectorRow, ...]


def load_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        DataError: The file cannot be read or is no result of this version.
    """
    return read_record(path, Result, "result file")


def read_record(path: Path, kind: type[Kept], what: str) -> Kept:
    """Read what `Record.save` wrote.

    Raises:
        DataError: The file cannot be read or holds no such record of this version.
    """
    try:
        if not path.exists():
            raise DataError(f"There is no file {path}; a {what} was expected.")
        if not (path.is_file() and path.stat().st_size <= MOST_BYTES):
            raise DataError(f"{path} is no {what} of version {VERSION}: it is no ordinary file of at most {MOST_BYTES >> 20} MB.")
        return kind.model_validate_json(read_bounded(path))
    except (OSError, ValueError) as error:  # of pydantic and of decoding, too
        raise DataError(f"{path} is no {what} of version {VERSION}: {str(error).splitlines()[0]}.") from error


def read_bounded(path: Path) -> str:
    """The text of a JSON file, if its values fit into memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no UTF-8, or holds too much.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES or json_cost(content) > MOST_PARSED:
        raise ValueError(f"it holds more values than fit {MOST_PARSED >> 20} MB of memory")
    return content.decode("utf-8")


def row(name: str, scores: Scores, *, method: dict[str, Any] | None = None, seconds: float | None = None) -> Row:
    """A row from scores."""
    rates = {key: Measured.of(rate) for key in ("cacc", "asr", "clean_flip") if (rate := getattr(scores, key)) is not None}
    return Row(name=name, method=method, seconds=seconds, **rates)


def data_record(source: str, data: TextDataset) -> Data:
    """What was used, without the texts."""
    content = hashlib.sha256()
    for text, label in zip(data.texts, data.labels, strict=True):
        content.update(f"{label}\t{len(text)}\t{text}\n".encode("utf-8", "surrogatepass"))
    counts = {name: sum(label == i for label in data.labels) for i, name in enumerate(data.label_names)}
    return Data(source=source, n=len(data), labels=counts, sha256=content.hexdigest())


class Curves:
    """An observer that keeps every loss it is told."""

    def __init__(self) -> None:
        self.kept: dict[str, list[tuple[int, float]]] = {}

    def __call__(self, progress: Progress) -> None:
        """Keep a loss."""
        if "loss" in progress.values:
            self.kept.setdefault(progress.task, []).append((progress.done, round(progress.values["loss"], 5)))

    def frozen(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """In the form that a `Result` holds."""
        return {task: tuple(points) for task, points in self.kept.items()}


def command_line() -> str:
    """What was typed, with the program's name only."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "excise"), *sys.argv[1:]])
