"""A worker of excise.cluster that notes what it makes, and dies or fails once where a file asks for it. Workers import it by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from excise import bench, cluster
from excise.attacks.badnets import BadNets
from excise.bench import How
from excise.pipeline import Corpus


class Worker(cluster.Worker):
    """Its notes are in the folder 'notes' beside that of the results."""

    def __init__(self, how: How, corpus: Corpus, mark: Path | None) -> None:
        super().__init__(how, corpus, mark)
        assert how.models is not None
        notes = how.models.parent.parent / "notes"
        if not hasattr(bench, "watched"):  # a process may serve several workers
            bench.watched = True  # type: ignore[attr-defined]
            bench.clean_twin = noted(notes, "twin", bench.clean_twin)
            bench._measure = noted(notes, "cell", bench._measure)
            BadNets.__call__ = noted(notes, "attack", BadNets.__call__)


def noted(notes: Path, name: str, function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if asked(notes / f"die at {name}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if asked(notes / f"fail at {name}"):
            raise RuntimeError("out of\nmemory")
        with (notes / name).open("a") as file:
            file.write("x")
        return function(*args, **kwargs)

    return call


def asked(file: Path) -> bool:
    """Whether the file is there; it is taken away."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
