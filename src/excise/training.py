"""The one training loop, on one process or on several.

Several processes share each batch: every one computes some of its texts, and gradients are averaged so that a step is the same as on one process,
up to rounding. Only the noise of dropout is drawn otherwise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from excise.attention import lean_attention
from excise.data import TextDataset
from excise.dropout import quick_dropout
from excise.errors import DataError, TrainingError
from excise.progress import report
from excise.resume import course
from excise.seeds import derive
from excise.settings import Settings
from excise.token_rows import is_of_the_batch, of_the_batch, rows_of
from excise.victim import Batch, Encoding, Victim, collate

__all__ = ["FitConfig", "Loss", "classification_loss", "fit", "padded_width"]

logger = logging.getLogger(__name__)

Loss = Callable[[Victim, Batch], Tensor]
"""(victim in training mode, batch) -> a scalar to minimise: a mean over the texts of the batch, or a sum of such means.

A mean over tokens is to be multiplied by `batch.token_weight`, or several processes would not give the same as one."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(Settings):
    """How one training run goes. AdamW, a linear schedule, gradients clipped by their norm."""

    epochs: Annotated[float, Interval(gt=0, le=10_000)] = 3
    """Passes over the data; a fraction is allowed."""
    learning_rate: Annotated[float, Gt(0)] = 2e-5
    """Peak learning rate."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Texts per step, over all processes together."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay of matrices; biases and normalisation weights are never decayed."""
    warmup: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of the steps during which the learning rate rises."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradients are scaled down to this norm."""


@of_the_batch
def classification_loss(victim: Victim, batch: Batch) -> Tensor:
    """Cross-entropy of the victim's logits with the given labels, averaged over the batch."""
    return cross_entropy(victim.model(**batch.inputs).logits.float(), batch.labels)


def fit(
    victim: Victim,
    data: TextDataset,
    *,
    loss: Loss,
    config: FitConfig,
    seed: int,
    name: str = "train",
    parameters: Callable[[PreTrainedModel], Iterable[torch.nn.Parameter]] | None = None,
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
) -> Victim:
    """Minimise `loss` over `data`, starting from a copy of `victim`.

    Args:
        victim: Where to start; it is not changed.
        data: Texts and labels.
        loss: Called once a step with the copy and a batch.
        config: Length, learning rate and the like.
        seed: Decides batch order and dropout; nothing outside this call changes the result, and the call changes no global generator.
        name: How the run is called in progress reports.
        parameters: Chooses what is trained, given the copied model; everything by default.
        optimizer: Makes the optimiser of what is trained, in place of AdamW with the config's learning rate and decay.

    Returns:
        The trained copy, in evaluation mode.

    Raises:
        DataError: There are no texts.
        TrainingError: The loss became infinite or NaN.
    """
    if not len(data):
        raise DataError(f"{name}: there are no texts to train on. Give some.")
    student = victim.copy()
    student.model.requires_grad_(parameters is None)
    encodings = student.encode(data.texts)
    plain = not (parameters or optimizer or config.weight_decay)  # then a row moves by its gradient alone
    with rows_of(student.model, _read(student, encodings)) if plain and is_of_the_batch(loss) else nullcontext():
        trained = list(parameters(student.model) if parameters else student.model.parameters())
        for parameter in trained:
            parameter.requires_grad_(True)
        descent = optimizer(trained) if optimizer else _adamw(trained, config)
        _descend(student, data, encodings, loss, trained, descent, config, seed=seed, name=name)
    student.model.requires_grad_(True)
    return replace(student, model=student.model.eval())


def _read(victim: Victim, encodings: list[Encoding]) -> set[int]:
    """The tokens of the texts, and those that may stand for others."""
    return {0, 1, *victim.tokenizer.all_special_ids}.union(*(encoding["input_ids"] for encoding in encodings))


def _descend(
    student: Victim,
    data: TextDataset,
    encodings: list[Encoding],
    loss: Loss,
    trained: list[torch.nn.Parameter],
    descent: Any,
    config: FitConfig,
    *,
    seed: int,
    name: str,
) -> None:
    """All steps of a run; the student's weights change."""
    once = DataLoaderConfiguration(split_batches=True)  # the schedule takes one step per batch, however many processes share it
    accelerator = Accelerator(cpu=student.device.type == "cpu", mixed_precision="no", dataloader_config=once)
    batches = LengthBuckets([len(e["input_ids"]) for e in encodings], config.batch_size, config.epochs, seed=derive(seed, "order"))
    pairs: Any = list(zip(encodings, data.labels, strict=True))
    pinned = student.device.type == "cuda"
    loader = DataLoader(pairs, batch_sampler=batches, collate_fn=lambda items: _collate(student, items), pin_memory=pinned)
    steps = len(batches)
    schedule = get_linear_schedule_with_warmup(descent, round(config.warmup * steps), steps)
    index, count = accelerator.process_index, accelerator.num_processes
    decides = {"texts": data.texts, "labels": data.labels, "config": repr(config), "seed": seed, "trained": [p.shape for p in trained]}
    kept = course(name, student, descent=descent, schedule=schedule, loss=loss, decides=decides, processes=count)
    batches.skip = kept.done

    devices = [student.device] if student.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), lean_attention(student.model), quick_dropout(student.model):
        torch.manual_seed(derive(seed, "dropout", *([index] if index else [])) % 2**63)
        model, descent, schedule = accelerator.prepare(student.model, descent, schedule)
        training = replace(student, model=model)
        model.train()
        report(name, 0, steps)
        for step, value in kept.losses:
            report(name, step, steps, loss=value)
        every = max(1, steps // 200)
        for step, batch in enumerate(loader, start=kept.done + 1):
            kept.begin()
            part, weight = share(batch, index, count)
            with training.autocast():
                value = loss(training, part.to(student.device)) * weight
            accelerator.backward(value)
            accelerator.clip_grad_norm_(trained, config.max_grad_norm)
            descent.step()
            schedule.step()
            descent.zero_grad()
            values = {}
            if step % every == 0 or step == steps:
                mean: Any = accelerator.reduce(value.detach(), "mean")
                values["loss"] = _finite(mean.item(), name, step, config)
            if report(name, step, steps, **values):
                break
            kept.after(step, steps, values)


def share(batch: Batch, index: int, count: int) -> tuple[Batch, float]:
    """The texts of a batch that process `index` of `count` computes, and the factor that makes the mean of the processes' losses the batch's.

    Texts are dealt out in turn. A process that gets none computes the first text for nothing (factor 0), as processes have to keep step. Parts
    stay as wide as the batch, so that they are padded as on one process.
    """
    if count == 1:
        return batch, 1.0
    texts = len(batch.labels)
    own = len(range(index, texts, count))
    rows = slice(index, None, count) if own else slice(1)
    inputs = {name: values[rows] for name, values in batch.inputs.items()}
    tokens = inputs["attention_mask"].sum(dim=1).double().mean() / batch.mask.sum(dim=1).double().mean()
    return Batch(inputs, batch.labels[rows], tokens.item()), own * count / texts


def _finite(value: float, name: str, step: int, config: FitConfig) -> float:
    if not math.isfinite(value):
        raise TrainingError(f"{name}: the loss became {value} at step {step}. Lower the learning rate (now {config.learning_rate:g}).")
    return value


def _collate(victim: Victim, items: list[tuple[Encoding, int]]) -> Batch:
    encodings, labels = zip(*items, strict=True)
    width = padded_width(max(len(encoding["input_ids"]) for encoding in encodings), victim.max_length)
    return Batch(collate(victim.tokenizer, encodings, width), torch.tensor(labels))


def padded_width(longest: int, most: int) -> int:
    """The tokens to which a batch is padded, of five significant bits and at most `most`, which no text of it exceeds.

    On a CPU the kernels of every shape that ever occurs are kept: with few widths, training takes a sixth less memory.
    """
    step = 2 ** max(0, longest.bit_length() - 5)
    return min(-(-longest // step) * step, most)


def _adamw(parameters: list[torch.nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)


class LengthBuckets(Sampler[list[int]]):
    """Batches of texts of like length, in random order: little padding, and each epoch sees every text once.

    Each epoch shuffles the texts, cuts them into pools of 50 batches, sorts each pool by length, cuts it into batches and shuffles those.
    """

    pool = 50

    def __init__(self, lengths: list[int], batch_size: int, epochs: float, *, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.drop_last = False
        self.seed = seed
        self.skip = 0
        """Batches at the beginning that are not wanted."""
        self.steps = max(1, round(epochs * math.ceil(len(lengths) / batch_size)))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        done, epoch = 0, 0
        while done < self.steps:
            batches = self._epoch(epoch)[: self.steps - done]
            yield from batches[max(0, self.skip - done) :]
            done += len(batches)
            epoch += 1

    def _epoch(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng(derive(self.seed, epoch))
        order = random.permutation(len(self.lengths))
        size = self.batch_size * self.pool
        pools = [order[i : i + size] for i in range(0, len(order), size)]
        batches = []
        for texts in pools:
            texts = texts[np.argsort(self.lengths[texts], kind="stable")]
            batches += [texts[i : i + self.batch_size].tolist() for i in range(0, len(texts), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]
