"""The model under attack or suspicion, with its tokenizer: opened safely, asked for predictions, saved as an ordinary folder."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from excise.attention import EachText, Statistic, recorded_attention
from excise.budget import spent
from excise.checkpoint import TRIAL, longest_input, open_checkpoint, surviving_panics
from excise.errors import CheckpointError, ConfigError, OutputError, TimeUpError, first_line
from excise.progress import report

__all__ = ["REJECTED", "Batch", "Encoding", "Precision", "Trace", "Victim", "collate", "default_device", "resolve_precision", "token_batches"]

logger = logging.getLogger(__name__)

Precision = Literal["auto", "bf16", "fp32"]
Encoding = Mapping[str, list[int]]
"""One tokenised text: `input_ids`, `attention_mask` and what else the model takes."""


WORTH = 512
"""Tokens from which on a larger batch is no longer filled up at the price of much padding."""
TOKENISED = 512
"""Texts that are tokenised at a time: what a tokenizer tells of each of them takes many times the room of its tokens."""
TOKENS = {"cpu": 512, "cuda": 8192}
"""Most tokens in a batch that is only read, by device: more are no faster on a CPU, and take more room."""
LEAST = 8
"""Tokens that a model has to be able to read."""
REJECTED = -1
"""What a guarded victim answers to a text it refuses."""


class Batch(NamedTuple):
    """Tokenised texts padded to one length, and their labels."""

    inputs: dict[str, Int[Tensor, "batch token"]]
    labels: Int[Tensor, " batch"]
    token_weight: float = 1.0
    """Real tokens per text, relative to the whole batch where this is one process's part of it: what a mean over tokens has to be multiplied by."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device; to a GPU without waiting, if the memory is pinned."""
        later = device.type == "cuda"
        inputs = {name: values.to(device, non_blocking=later) for name, values in self.inputs.items()}
        return self._replace(inputs=inputs, labels=self.labels.to(device, non_blocking=later))

    @property
    def mask(self) -> Int[Tensor, "batch token"]:
        """1 for real tokens, 0 for padding."""
        return self.inputs["attention_mask"]


class Trace(NamedTuple):
    """What one forward pass shows."""

    logits: Float[Tensor, "batch label"]
    hidden: tuple[Float[Tensor, "batch token hidden"], ...]
    """The embedding output, then each layer's output: one more than there are layers. Empty if not asked for."""
    attention: tuple[Tensor, ...]
    """What the statistic kept of each layer's attention probabilities. Empty if not asked for."""


@dataclass(frozen=True)
class Victim:
    """A sequence classifier and its tokenizer. Methods never change the victim they are given; they return another."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest input in tokens; longer texts are cut."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of matrix products; weights are always fp32."""
    source: str = ""
    """What the user called it."""
    purify: Callable[[Sequence[str]], Sequence[str]] | None = None
    """An input guard: `predict` reads what it returns in place of each text."""
    reject: Callable[[Sequence[str]], Sequence[bool]] | None = None
    """An input guard: `predict` answers `REJECTED` to the texts that it flags."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        label_names: Sequence[str] | None = None,
        max_length: int | None = None,
        precision: Precision = "auto",
        device: str | None = None,
        seed: int = 0,
    ) -> Victim:
        """Open a checkpoint without running anything that comes with it.

        Args:
            source: A folder, a Hugging Face id `org/name[@revision]`, or `default` for the embedded MiniLM.
            label_names: If given, a checkpoint without a classification head gets a new one for these labels. Otherwise every weight must be there.
            max_length: Longest input in tokens; by default what the model allows, at most 512.
            precision: `auto` takes bf16 where the hardware computes it, else fp32.
            device: Where the model goes; by default a GPU if there is one.
            seed: Draws the weights of a new head.

        Raises:
            CheckpointError: The folder is no checkpoint, wants to run code, has no safetensors weights, or its weights are incomplete, not finite,
                or do not fit its tokenizer, or it cannot read a text.
            NetworkError: A hub id was given and the hub cannot be reached.
            ConfigError: `max_length` is less than 8.
        """
        if max_length is not None and max_length < LEAST:
            raise ConfigError(f"A max_length of {max_length} tokens was given; it must be at least {LEAST}.")
        model, tokenizer = open_checkpoint(source, label_names=label_names, seed=seed)
        where = default_device(device)
        try:
            model.to(where)  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            raise _no_device(device, error) from error
        if (most := longest_input(model, tokenizer)) < LEAST:
            raise CheckpointError(
                f"{source} reads {most} tokens at most, but at least {LEAST} are needed. Restore config.json and tokenizer_config.json."
            )
        found = cls(model.eval(), tokenizer, min(max_length or 512, most), resolve_precision(precision, where), str(source))
        found._try_out()
        return found

    def _try_out(self) -> None:
        """Read a few texts: what cannot be computed shall be said now, and not after an hour of other work.

        Raises:
            CheckpointError: They cannot be read.
        """
        try:
            self.each_encoded(self.encode(TRIAL))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if "memory" in str(error):
                raise
            raise CheckpointError(
                f"{self.source} cannot read a text ({first_line(error)}). Restore config.json and the tokenizer's files."
            ) from error

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def label_names(self) -> tuple[str, ...]:
        """Label names by index."""
        names: Any = self.model.config.id2label
        return tuple(str(names[i]) for i in range(len(names)))

    @property
    def is_guarded(self) -> bool:
        """Whether an input guard stands before the model; a checkpoint cannot hold one."""
        return self.purify is not None or self.reject is not None

    @property
    def module(self) -> Any:
        """The model itself, where several processes have wrapped it in another module."""
        return getattr(self.model, "module", self.model)

    def copy(self) -> Victim:
        """A victim with weights of its own."""
        return replace(self, model=copy.deepcopy(self.model))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenise texts, cut to `max_length`, without padding."""
        accepted = inspect.signature(self.model.forward).parameters
        found = list[Encoding]()
        for part in (texts[i : i + TOKENISED] for i in range(0, len(texts), TOKENISED)):
            with surviving_panics(self.source):
                encoded = self.tokenizer(list(part), truncation=True, max_length=self.max_length, padding=False)
            columns = {name: values for name, values in encoded.items() if name in accepted}
            columns.setdefault("attention_mask", [[1] * len(ids) for ids in encoded["input_ids"]])
            found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return found

    def autocast(self) -> torch.autocast:
        """The context in which this victim computes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def logits(self, texts: Sequence[str], *, tokens_per_batch: int | None = None, name: str = "predict") -> Float[Tensor, "text label"]:
        """The logits of each text, in order, on the CPU. They do not depend on a text's neighbours beyond rounding."""
        return self.each_encoded(self.encode(texts), tokens_per_batch=tokens_per_batch, name=name)

    def each(
        self,
        texts: Sequence[str],
        read: Callable[[Batch], Float[Tensor, "batch width"]],
        *,
        width: int,
        tokens_per_batch: int | None = None,
        name: str | None = None,
    ) -> Float[Tensor, "text width"]:
        """What `read` finds in each text, in order, on the CPU; texts of like length share a batch.

        Args:
            texts: What is read.
            read: Called with each batch, whose labels mean nothing.
            width: How many numbers it gives a text.
            tokens_per_batch: Most tokens in a batch, padding included; by default what suits the device.
            name: How this is called in progress reports; None reports nothing. Stopped early, it leaves zeros.

        Raises:
            CheckpointError: A number is NaN or infinite.
            TimeUpError: There is a budget of time, and it was used up.
        """
        return self.each_encoded(self.encode(texts), read, width=width, tokens_per_batch=tokens_per_batch, name=name)

    def each_encoded(
        self,
        encodings: Sequence[Encoding],
        read: Callable[[Batch], Float[Tensor, "batch width"]] | None = None,
        *,
        width: int | None = None,
        tokens_per_batch: int | None = None,
        name: str | None = None,
    ) -> Float[Tensor, "text width"]:
        """`each`, of texts that are tokenised already; without `read`, their logits."""
        read, width = read or (lambda batch: self.model(**batch.inputs).logits), width or len(self.label_names)
        most = tokens_per_batch or TOKENS.get(self.device.type, 8192)
        order = sorted(range(len(encodings)), key=lambda i: len(encodings[i]["input_ids"]))
        found = torch.zeros(len(encodings), width)
        done = 0
        if name:
            report(name, 0, len(encodings))
        with torch.inference_mode(), self.autocast():
            for rows in token_batches(order, encodings, most):
                if spent():
                    raise TimeUpError("The time was used up before it had an answer. Give more (--budget).")
                inputs = {k: v.to(self.device) for k, v in collate(self.tokenizer, [encodings[i] for i in rows]).items()}
                found[rows] = read(Batch(inputs, torch.zeros(len(rows), dtype=torch.long))).float().cpu()
                done += len(rows)
                if name and report(name, done, len(encodings)):
                    break
        if not found.isfinite().all():
            raise CheckpointError(f"{self.source or 'The model'} gives numbers that are NaN or infinite: broken weights, or diverged training.")
        return found

    def predict(self, texts: Sequence[str], *, name: str = "predict") -> list[int]:
        """The most likely label of each text, or `REJECTED` where a guard flags it."""
        if not texts:
            return []
        read = self.purify(texts) if self.purify else texts
        flags = self.reject(texts) if self.reject else [False] * len(texts)
        labels = self.logits(read, name=name).argmax(dim=1).tolist()
        return [REJECTED if flagged else label for label, flagged in zip(labels, flags, strict=True)]

    def trace(self, batch: Batch, *, hidden: bool = True, attention: Statistic | EachText | None = None) -> Trace:
        """One forward pass that keeps hidden states and a statistic of each layer's attention probabilities, taken before dropout.

        Raises:
            AttentionError: The model's attention cannot be read.
        """
        if attention is None:
            output = self.model(**batch.inputs, output_hidden_states=hidden)
            kept: list[Tensor] = []
        else:
            with recorded_attention(self.module, attention) as kept:
                output = self.model(**batch.inputs, output_hidden_states=hidden)
        states = getattr(output, "hidden_states", None) or ()  # models with an encoder and a decoder have other names for them
        return Trace(output.logits, tuple(states) if hidden else (), tuple(kept))

    def check_attention(self) -> None:
        """Make sure that attention maps can be read.

        Raises:
            AttentionError: They cannot.
        """
        inputs = {name: values.to(self.device) for name, values in collate(self.tokenizer, self.encode(["a"])).items()}
        with torch.inference_mode():
            self.trace(Batch(inputs, torch.zeros(1, dtype=torch.long)), hidden=False, attention=lambda probabilities: probabilities)

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder: config, safetensors, tokenizer.

        Raises:
            OutputError: `folder` is a file, or the victim has a guard, which no checkpoint can hold.
        """
        folder = Path(folder)
        if self.is_guarded:
            raise OutputError("A model with an input guard cannot be saved as a checkpoint. Save the model it guards.")
        if folder.is_file():
            raise OutputError(f"{folder} is a file; a folder to save in was expected.")
        self.model.save_pretrained(folder)
        tokenizer = copy.deepcopy(self.tokenizer)
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_truncation()  # how we cut and pad is not part of the checkpoint
            backend.no_padding()
        tokenizer.save_pretrained(folder)


def collate(tokenizer: PreTrainedTokenizerBase, encodings: Sequence[Encoding], width: int = 1) -> dict[str, Int[Tensor, "batch token"]]:
    """Pad on the right to the longest, or to `width` if that is more; to one token where a tokenizer finds none in any text."""
    longest = max(1, width, *(len(e["input_ids"]) for e in encodings))
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {name: torch.tensor([[*e[name], *[fill.get(name, 0)] * (longest - len(e[name]))] for e in encodings]) for name in encodings[0]}


def default_device(device: str | None) -> torch.device:
    """The device that was named, else a GPU if there is one, else the CPU."""
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise _no_device(device, error) from error


def _no_device(device: str | None, error: Exception) -> ConfigError:
    return ConfigError(f"The device {device!r} cannot be used: {first_line(error)}. Give cpu, or leave it out.")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """What `auto` means on `device`: bf16 on a GPU that has it or a CPU with AVX512-BF16 or AMX, otherwise fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    checks = [getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return "bf16" if device.type == "cpu" and any(check() for check in checks) else "fp32"


def token_batches(order: Sequence[int], encodings: Sequence[Encoding], budget: int, *, worth: int = WORTH) -> Iterator[list[int]]:
    """Cut texts sorted by length into batches of at most `budget` tokens, padding included, and 256 texts.

    A batch that is worth its while (so many tokens) also ends where the next text would bring its padding over a twentieth.
    """
    rows, tokens = list[int](), 0
    for i in order:
        length = len(encodings[i]["input_ids"])
        padded = (len(rows) + 1) * length
        if rows and (len(rows) == 256 or padded > budget or (tokens >= worth and padded > 1.05 * (tokens + length))):
            yield rows
            rows, tokens = [], 0
        rows.append(i)
        tokens += length
    if rows:
        yield rows
