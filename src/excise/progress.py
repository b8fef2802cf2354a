"""Progress without drawing: long steps report, whoever asked is told, and may ask the step to stop.

The library never prints. A caller wraps its work in `observe(callback)`; every training loop and every evaluation inside then calls
`report`. The command line draws bars from it, the result file takes its training curves from it, and `--dry-run` stops each loop
after a few steps and extrapolates.

What a person should read beside the result, and no number of it shows, is a `note`; whoever writes the result collects them with `noting`.
What a repair unlearns by name it tells with `name_triggers`, for whoever measures it before and after (`naming`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["Observer", "Progress", "name_triggers", "named", "naming", "note", "noting", "observe", "report", "stage"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """One step of one task."""

    task: str
    """What is being done, as shown to a person: 'repair: retrain'."""
    done: int
    """Steps done so far; 0 announces the task."""
    total: int
    """Steps in all."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth a curve, such as the training loss."""


Observer = Callable[[Progress], bool | None]
"""Receives each `Progress`; returning True asks the running loop to stop early."""

_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_stages: ContextVar[tuple[str, ...]] = ContextVar("stages", default=())
_notes: ContextVar[tuple[list[str], ...]] = ContextVar("notes", default=())
_named: ContextVar[tuple[list[str], ...]] = ContextVar("named", default=())
Added = TypeVar("Added")


@contextmanager
def _added(variable: ContextVar[tuple[Added, ...]], value: Added) -> Iterator[None]:
    """Have one more value in a variable inside the block."""
    token = variable.set((*variable.get(), value))
    try:
        yield
    finally:
        variable.reset(token)


def observe(observer: Observer) -> AbstractContextManager[None]:
    """Tell `observer` of every step taken inside the block."""
    return _added(_observers, observer)


def stage(name: str) -> AbstractContextManager[None]:
    """Prefix the tasks inside the block with `name`."""
    return _added(_stages, name)


def named(task: str) -> str:
    """The task's name with the stages that it is in."""
    return ": ".join((*_stages.get(), task))


def report(task: str, done: int, total: int, **values: float) -> bool:
    """Tell every observer; True if one of them asks to stop."""
    progress = Progress(named(task), done, total, values)
    stops = [observer(progress) for observer in _observers.get()]  # every observer is told, whatever the first one answers
    return any(stops)


def noting(notes: list[str]) -> AbstractContextManager[None]:
    """Collect in `notes` every note made inside the block."""
    return _added(_notes, notes)


def naming(triggers: list[str]) -> AbstractContextManager[None]:
    """Collect in `triggers` what is unlearned by name inside the block."""
    return _added(_named, triggers)


def name_triggers(triggers: Iterable[str]) -> None:
    """Keep the words and phrases that are unlearned for whoever collects them."""
    for known in _named.get():
        known += [trigger for trigger in dict.fromkeys(triggers) if trigger not in known]


def note(text: str) -> None:
    """Log a sentence, and keep it for whoever collects notes."""
    logger.info(text)
    for notes in _notes.get():
        notes.append(": ".join((*_stages.get(), text)))
