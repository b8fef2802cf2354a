"""A grid on Ray: groups of cells in parallel, on this machine or on many.

The unit of work is a group, the cells of one (data, attack, seed), because they share a backdoored model. A group is an actor that holds the
models, and its cells are calls to it, so each model is made once and each cell comes back as soon as it is measured. If a worker is lost, Ray
starts the actor again elsewhere and repeats the calls that have not come back, and no others.

Only the driver, which is the process that runs `excise bench`, writes cells: workers may not see its disk, and one writer leaves nothing half
done. It sends the texts along, so workers need no data files, but what settings name by a path (a model folder, a corpus) has to be there.
Workers keep models only if they see the driver's folder, which a file of random name shows; otherwise a group makes its models again. Two
groups whose attacks train alike have the same clean twin, which both make if they begin at the same time; the first to end keeps it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Gt

from excise.bench import Group, How, Task, Work, failed
from excise.cell import Cell
from excise.errors import ClusterError, ConfigError
from excise.grid import Place
from excise.pipeline import Corpus
from excise.settings import Settings

__all__ = ["Cluster"]

PATIENCE = 10
"""Seconds that a cluster has to accept a connection."""


@dataclass(frozen=True, kw_only=True)
class Cluster(Settings):
    """Measures the groups of a grid on Ray; give it to `run_grid`."""

    address: str = "local"
    """'local' starts Ray on this machine, 'auto' takes the one that this machine belongs to, ray://host:port connects to another."""
    cpus_per_task: Annotated[float, Gt(0)] = 1
    """CPU cores of a group."""
    gpus_per_task: Annotated[float, Ge(0)] = 0
    """GPUs of a group: 0.5 puts two on one GPU, 0 shows it none."""
    retries: Annotated[int, Ge(0)] = 2
    """How often a group whose worker was lost is tried again."""

    def __call__(self, how: How, groups: Iterator[Work]) -> Generator[Cell]:
        """Measure every group and give its cells as they come.

        Raises:
            ClusterError: Ray is not installed, cannot be reached, or has no room for a task.
        """
        with self._connected() as ray, _marked(how.models) as mark:
            self._check_room(ray)
            actor = ray.remote(Worker).options(
                num_cpus=self.cpus_per_task, num_gpus=self.gpus_per_task, max_restarts=self.retries, max_task_retries=self.retries
            )
            waiting: dict[Any, tuple[Place, Any]] = {}
            try:
                for work in groups:
                    worker = actor.remote(how, work.corpus, mark)
                    waiting |= {worker.measure.remote(task): (task.place, worker) for task in work.tasks}
                    yield from self._arrived(ray, how, waiting, timeout=0)  # written at once: a kill now loses nothing
                while waiting:
                    yield from self._arrived(ray, how, waiting, timeout=None)
            finally:
                for _, worker in waiting.values():
                    ray.kill(worker)

    def _arrived(self, ray: Any, how: How, waiting: dict[Any, tuple[Place, Any]], timeout: float | None) -> Iterator[Cell]:
        """The cells that are there; those that were waited for are forgotten, and a worker with none left ends."""
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for call in ready:
            place, _ = waiting.pop(call)
            try:
                yield Cell.model_validate_json(ray.get(call))
            except ray.exceptions.RayError as error:
                lost = f"The worker was lost (--retries {self.retries}) or could not begin: {_last_line(error)}"
                yield failed(how.grid, place, ClusterError(lost))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """Ray, connected; one that was running before goes on running."""
        ray = _import_ray()
        if ray.is_initialized():
            yield ray
            return
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
        if self.address == "local":
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry from a Ray that is ours
            quiet |= {"include_dashboard": False}
        else:
            _check_address(self.address)
        logging.getLogger("ray").setLevel(logging.ERROR)  # its options do not reach what it says about tokens
        with _own_signals():
            try:
                with warnings.catch_warnings(action="ignore"):  # the error says the same
                    ray.init(self.address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
                hint = " If it asks for a token, set RAY_AUTH_MODE=token and see ray get-auth-token." if self.address != "local" else ""
                raise ClusterError(f"The cluster {self.address} cannot be used: {_last_line(error).rstrip('.')}.{hint}") from error
        try:
            yield ray
        finally:
            with _own_signals():
                ray.shutdown()

    def _check_room(self, ray: Any) -> None:
        """Refuse a task that fits on no machine that is there; it would wait for ever."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(m.get("CPU", 0) >= self.cpus_per_task and m.get("GPU", 0) >= self.gpus_per_task for m in machines):
            most = {name: max((m.get(name, 0) for m in machines), default=0) for name in ("CPU", "GPU")}
            raise ClusterError(
                f"A task of {self.cpus_per_task:g} CPUs and {self.gpus_per_task:g} GPUs fits on no machine of the cluster, which have up to "
                f"{most['CPU']:g} and {most['GPU']:g}. Lower --cpus-per-task or --gpus-per-task."
            )


class Worker:
    """A group on Ray."""

    def __init__(self, how: How, corpus: Corpus, mark: Path | None) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        shared_disk = mark is not None and mark.exists()
        self.group = Group(how if shared_disk else replace(how, models=None), corpus)

    def measure(self, task: Task) -> str:
        """One cell, as JSON."""
        return self.group.measure(task).model_dump_json()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """What SIGINT and SIGTERM do stays as it was; Ray would end the process with a dump of its stack."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may set them
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _marked(models: Path | None) -> Iterator[Path | None]:
    """A file in the folder of models by which a worker knows that it sees this folder and not one of its own under the same path."""
    if models is None:
        yield None
        return
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=models, prefix=".driver-") as file:
        yield Path(file.name)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ClusterError("--cluster needs Ray, which is not installed. Install it with: pip install 'excise[cluster]'") from error
    return ray


def _check_address(address: str) -> None:
    """Find out in seconds whether anything listens; Ray itself tries for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address)
    try:
        if parts.scheme != "ray" or not parts.hostname or not parts.port:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--cluster {address} was given; local, auto or ray://host:port was expected (the port is 10001 by default).") from None
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE).close()
    except OSError as error:
        raise ClusterError(f"There is no cluster at {address}: {error}. Start one (ray start --head), or give --cluster local.") from error


def _last_line(error: BaseException) -> str:
    return next(reversed([line.strip() for line in str(error).splitlines() if line.strip()]), type(error).__name__)
