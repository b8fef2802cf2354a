"""Going on where a run was stopped, with the same bits.

Inside `resuming(folder)` every `fit` keeps its whole state there from time to time, and once more when it ends: weights, optimiser, schedule, the
position in its batches, torch's generators, the losses so far and what the loss remembers. When the same run begins again, each `fit` goes on from
its state; all else follows from the seed and is computed again. Methods know nothing of it.

A state belongs to one `fit`: it is found by the hash of the weights it starts from, its texts, settings, seed and name, and by its turn among equal
ones. What a loss remembers is looked for in what its function holds. Generators and whatever has `state_dict` and `load_state_dict` are kept;
numbers, texts, tensors, collections and other models must be the same at the end as at the beginning. A loss that holds anything else, or whose
numbers changed, is never resumed: that `fit` is computed from its beginning, so that no run goes on with other numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import os
import shutil
import time
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from excise.disk import write_whole
from excise.errors import ExciseError, OutputError
from excise.kept import digest
from excise.progress import named
from excise.victim import Victim

__all__ = ["Course", "States", "course", "going_on", "resuming", "run_of", "same_machine", "weights_hash"]

logger = logging.getLogger(__name__)
ABOUT = "run.json"
SHARE = 20
"""Keeping a state may take one part in so many of the time."""


class States:
    """The folder of one run's states."""

    def __init__(self, folder: Path, about: Mapping[str, Any], every: float) -> None:
        self.folder, self.about, self.every = folder, about, every
        self.turns: Counter[str] = Counter()
        self.due = time.monotonic() + every

    def write(self, name: str, tensors: dict[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Keep one state, whole or not at all; if the disk cannot, the run goes on without."""
        begun, path = time.monotonic(), self.folder / f"{name}.safetensors"
        fresh = path.with_suffix(f".{os.getpid()}")
        try:
            if not path.parent.exists():
                write_whole(self.folder / ABOUT, json.dumps(self.about))
            save_file(tensors, fresh, metadata={"state": json.dumps(plain)})
            fresh.replace(path)
        except (OSError, SafetensorError, ExciseError) as error:
            logger.warning("The state of the run could not be kept: %s", error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
        now = time.monotonic()
        self.due = now + max(self.every, SHARE * (now - begun))

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept, if it is there and whole."""
        try:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None


_states: ContextVar[States | None] = ContextVar("states", default=None)


@contextlib.contextmanager
def resuming(folder: Path, about: Mapping[str, Any], *, every: float = 60) -> Iterator[None]:
    """Keep the state of every `fit` inside the block in `folder`, and go on from those that are there.

    Args:
        folder: Made when there is something to keep; the caller removes it when the run has ended well.
        about: What decides the run, as plain data; `run_of` reads it.
        every: Seconds of training that a kill may cost.
    """
    token = _states.set(States(folder, about, every))
    try:
        yield
    finally:
        _states.reset(token)


@contextlib.contextmanager
def going_on(folder: Path, about: Mapping[str, Any], *, every: float = 60) -> Iterator[None]:
    """`resuming`, where nobody has to ask: states of other work or another machine go first, and those of this block when it has ended.

    A stop leaves them, and so does a full disk; other errors of excise would only come again.
    """
    about = {**about, **same_machine()}
    if run_of(folder) != about:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with resuming(folder, about, every=every):
            yield
    except OutputError:
        raise
    except ExciseError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def run_of(folder: Path) -> dict[str, Any] | None:
    """What decided the run whose states are in `folder`; None if there are none."""
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def same_machine() -> dict[str, Any]:
    """What has to be the same for the same bits: this code, the libraries that compute, threads, and what the processor can do."""
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {**versions, "excise": _code(), "threads": torch.get_num_threads(), "processor": torch.backends.cpu.get_cpu_capability()}


@functools.cache
def _code() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


class Course:
    """One `fit`, which may have begun in an earlier run."""

    def __init__(self, states: States | None, name: str, model: Any, descent: Any, schedule: Any, loss: Any) -> None:
        self.states, self.name = states, name
        self.model, self.descent, self.schedule, self.loss = model, descent, schedule, loss
        self.memory = Memory.of(loss) if states and _is_known(descent) else None
        self.writes = self.memory.writes if self.memory else []
        self.done, self.losses = 0, []
        """Steps that an earlier run made, and (step, loss) of them."""
        self.begun = time.monotonic()
        self.generators: dict[str, Tensor] = {}
        if states and self.memory and (found := states.read(name)):
            self._load(*found)

    def _load(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        weights = dict(_weights(self.model))
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(tensors[f"model.{name}"])
        if "optimizer" in plain:
            kept: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in plain["optimizer"]["state"].items()}
            for key, value in _below(tensors, "optimizer").items():
                i, _, name = key.partition(".")
                kept.setdefault(int(i), {})[name] = value
            self.descent.load_state_dict({"state": kept, "param_groups": plain["optimizer"]["param_groups"]})
            self.schedule.load_state_dict(plain["schedule"])
        self.memory.load(_below(tensors, "loss"), plain["loss"])  # type: ignore[union-attr]
        self.generators = _below(tensors, "generator")
        self.done, self.losses = plain["step"], [(step, value) for step, value in plain["losses"]]

    def begin(self) -> None:
        """Set torch's generators; to be called in the first step, as making an iterator over the batches draws from them."""
        if self.generators:
            torch.set_rng_state(self.generators["cpu"])
            if "cuda" in self.generators:
                torch.cuda.set_rng_state(self.generators["cuda"], self.model.device)
            self.generators = {}

    def after(self, step: int, steps: int, values: Mapping[str, float]) -> None:
        """A step has been made; keep the state if it is time."""
        if self.states is None or self.memory is None:
            return
        if "loss" in values:
            self.losses.append((step, values["loss"]))
        now, last = time.monotonic(), step == steps
        if now < self.states.due and not (last and now - self.begun >= self.states.every / 10):
            return
        memory = Memory.of(self.loss)
        if memory is None or memory.constants != self.memory.constants or memory.writes != self.writes:
            self.memory = None  # it remembers something that is not kept
            return
        tensors = {f"model.{name}": value for name, value in _weights(self.model)}
        remembered, plain = memory.kept()
        tensors |= {f"loss.{name}": value for name, value in remembered.items()}
        content = {"step": step, "losses": self.losses, "loss": plain}
        if not last:
            tensors["generator.cpu"] = torch.get_rng_state()
            if self.model.device.type == "cuda":
                tensors["generator.cuda"] = torch.cuda.get_rng_state(self.model.device)
            found = self.descent.state_dict()
            parts = {f"{i}.{name}": value for i, values in found["state"].items() for name, value in values.items()}
            tensors |= {f"optimizer.{name}": value for name, value in parts.items() if isinstance(value, Tensor)}
            plain_parts = {i: {n: v for n, v in values.items() if not isinstance(v, Tensor)} for i, values in found["state"].items()}
            content |= {
                "optimizer": {"state": plain_parts, "param_groups": found["param_groups"]},
                "schedule": self.schedule.state_dict(),
            }
        self.states.write(self.name, {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, content)


def course(name: str, student: Victim, *, descent: Any, schedule: Any, loss: Any, decides: Mapping[str, Any], processes: int) -> Course:
    """The course of a `fit` that starts from `student`; it does nothing unless somebody asked, and on several processes."""
    states = _states.get()
    if states is None or processes > 1:
        return Course(None, "", student.model, descent, schedule, loss)
    memory = Memory.of(loss)
    constants = memory and memory.constants
    held = [weights_hash(one.model) for one in memory.victims] if memory else []
    weights = weights_hash(student.model)
    key = digest({"task": named(name), "weights": weights, "loss": constants, "held": held, "length": student.max_length, **decides})
    states.turns[key] += 1
    return Course(states, f"{key}-{states.turns[key]}", student.model, descent, schedule, loss)


class Memory:
    """What a loss holds: what must not change, by its digest, and what may."""

    def __init__(self) -> None:
        self.fixed: list[str] = []
        self.changing: list[Any] = []
        self.victims: list[Victim] = []
        """Other models, a teacher for example. They too must not change."""
        self.seen: set[int] = set()

    @classmethod
    def of(cls, loss: Any) -> Memory | None:
        """None if it holds something of which that cannot be said."""
        memory = cls()
        try:
            memory._look(loss)
        except TypeError:
            return None
        return memory

    @property
    def constants(self) -> str:
        """The digest of all that must not change."""
        return digest({"fixed": self.fixed})

    @property
    def writes(self) -> list[int]:
        """How often each weight of the other models was written to."""
        return [value._version for one in self.victims for _, value in _weights(one.model)]

    def kept(self) -> tuple[dict[str, Tensor], list[Any]]:
        """The tensors and the plain rest of what may change."""
        tensors: dict[str, Tensor] = {}
        plain = []
        for i, part in enumerate(self.changing):
            state = {"state": part.getstate()} if isinstance(part, Random) else part.state_dict()
            tensors |= {f"{i}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
            plain.append({name: value for name, value in state.items() if not isinstance(value, Tensor)})
        return tensors, plain

    def load(self, tensors: Mapping[str, Tensor], plain: list[Any]) -> None:
        """Set what may change."""
        for i, (part, state) in enumerate(zip(self.changing, plain, strict=True)):
            if isinstance(part, Random):
                version, numbers, following = state["state"]
                part.setstate((version, tuple(numbers), following))
            else:
                part.load_state_dict({**state, **_below(tensors, str(i))})

    def _look(self, value: Any) -> None:
        if isinstance(value, Random) or (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
            if id(value) not in self.seen:
                self.seen.add(id(value))
                self.changing.append(value)
        elif value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device | type | types.ModuleType | Victim):
            self.fixed.append(type(value).__name__ if isinstance(value, Victim) else repr(value))
            self.victims += [value] if isinstance(value, Victim) else []
        elif isinstance(value, Tensor):
            self.fixed.append(_digest({"": value}))
        elif isinstance(value, types.FunctionType):
            value = inspect.unwrap(value)
            self._look([value.__qualname__, *(cell.cell_contents for cell in value.__closure__ or ()), value.__defaults__, value.__kwdefaults__])
        elif isinstance(value, types.MethodType):
            self._look([value.__func__, value.__self__])
        elif isinstance(value, functools.partial):
            self._look([value.func, value.args, value.keywords])
        elif isinstance(value, Mapping):
            self._look([*value.keys(), *value.values()])
        elif isinstance(value, list | tuple):
            if id(value) not in self.seen:  # a function may hold itself
                self.fixed.append(f"{len(value)} values")
                for one in value:
                    self._look(one)
        elif dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            self.fixed.append(type(value).__name__)  # a method with its settings, which decide the run
        else:
            raise TypeError(type(value))


def _is_known(descent: Any) -> bool:
    """Whether `state_dict` of an optimiser says all: true of torch's; another has to say so."""
    return type(descent).__module__.startswith("torch.optim") or getattr(descent, "is_resumable", False)


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def weights_hash(model: torch.nn.Module) -> str:
    """The hash of every weight and buffer of a model, as they are held."""
    return _digest(dict(_weights(model)))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in tensors.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
