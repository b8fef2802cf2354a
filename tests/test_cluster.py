# ruff: noqa: F811 (fixtures of test_bench)
"""A grid on Ray gives the cells of one process, whatever happens to a worker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from excise import cluster
from excise.bench import run_grid
from excise.cell import Cell
from excise.cli import main
from excise.cluster import Cluster
from excise.errors import ClusterError, ConfigError
from excise.grid import Grid, load_grid
from excise.kept import is_whole, keep_folder
from test_bench import content, grid, written  # noqa: F401  (fixtures)

needs_ray = pytest.mark.skipif(not __import__("importlib").util.find_spec("ray"), reason="ray is not installed (excise[cluster])")
TASK = Cluster(cpus_per_task=1)


@pytest.fixture(autouse=True, scope="module")
def _own_token() -> Iterator[None]:
    """Without a token, Ray would write one into the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        yield


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray of two cores for all tests: `Cluster` takes the one that is running."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))  # for watched_worker
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """How often workers made models and measured cells."""
    from watched_worker import Worker

    monkeypatch.setattr(cluster, "Worker", Worker)
    (tmp_path / "notes").mkdir()
    return lambda: {path.name: path.stat().st_size for path in (tmp_path / "notes").iterdir()}


def plain(cells: list[Cell]) -> list[dict[str, Any]]:
    return [cell.model_dump(exclude={"seconds", "digest"}) for cell in cells]


@pytest.mark.slow
@needs_ray
def test_the_command_on_ray_gives_the_cells_of_one_process(
    content: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(content | {"seeds": [0]}, tmp_path)
    cells = run_grid(load_grid(path), tmp_path / "one")
    out = tmp_path / "many"
    assert main(["bench", str(path), "--out", str(out), "--cluster", "local"]) == 0
    assert "Refuse" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"cells", "models", "toy.md", "toy.csv", "toy.tex"}
    assert {p.name for p in (out / "cells").iterdir()} == {f"{cell.key}.json" for cell in cells}
    models = {p.name for p in (tmp_path / "one" / "models").iterdir()}
    assert {p.name for p in (out / "models").iterdir()} == models, "the same names, and nothing half written"
    assert all(is_whole(out / "models" / name) for name in models)
    assert plain(run_grid(load_grid(path), out)) == plain(cells)
    import ray

    assert not ray.is_initialized()


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("ray")
def test_neither_a_killed_worker_nor_an_interrupt_costs_a_cell(
    content: dict[str, Any],
    tmp_path: Path,
    notes: Callable[[], dict[str, int]],
) -> None:
    small = load_grid(written(content | {"seeds": [0]}, tmp_path))
    out = tmp_path / "out"

    def stop(cell: Cell) -> None:
        raise KeyboardInterrupt

    (tmp_path / "notes" / "die at cell").touch()
    with pytest.raises(KeyboardInterrupt):
        run_grid(small, out, spread=TASK, on_cell=stop)
    assert not (tmp_path / "notes" / "die at cell").exists(), "a worker was killed, and another one took its place"
    (kept,) = (out / "cells").iterdir()
    assert not list((out / "models").glob(".driver-*"))
    time.sleep(0.5)  # killed workers leave nothing running
    written_at, before = kept.stat().st_mtime_ns, notes()["cell"]
    seen: list[Cell] = []
    cells = run_grid(small, out, spread=TASK, on_cell=seen.append)
    assert plain(cells) == plain(run_grid(small, tmp_path / "one")), "in the order of the grid, with the same numbers"
    assert {cell.key for cell in seen} == {cell.key for cell in cells}
    assert kept.stat().st_mtime_ns == written_at
    counts = notes()
    assert counts["cell"] - before == 2
    assert (counts["attack"], counts["twin"]) == (1, 1), "the models that the dead worker had kept were used"
    assert run_grid(small, out, spread=TASK) == cells
    assert notes() == counts, "a rerun computes nothing"


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("ray")
def test_failures_are_rows_and_the_others_go_on(grid: Grid, tmp_path: Path, notes: Callable[[], dict[str, int]]) -> None:
    """One worker dies at the attack and is not replaced; the other one's first cell raises."""
    for name in ("die at attack", "fail at cell"):
        (tmp_path / "notes" / name).touch()
    cells = run_grid(grid, tmp_path / "out", spread=Cluster(retries=0))
    lost = [cell for cell in cells if cell.error and cell.error.startswith("The worker was lost (--retries 0) or could not begin: ")]
    assert [cell.defense for cell in lost] == ["none", "Fine", "Refuse"]
    assert [cell.error for cell in cells if cell.seed != lost[0].seed] == ["RuntimeError: out of memory", None, None]
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("ray")
def test_workers_elsewhere_keep_no_models(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not see the driver's mark; another version of a library is an error, not another key."""
    how = cluster.How(grid, tmp_path / "models", "fp32", None)
    assert cluster.Worker(how, None, tmp_path / "mark").group.how.models is None  # type: ignore[arg-type]
    (tmp_path / "mark").touch()
    assert cluster.Worker(how, None, tmp_path / "mark").group.how.models == tmp_path / "models"  # type: ignore[arg-type]
    (work, _), *_ = cluster_groups(grid, tmp_path)
    task, *_ = work.tasks
    monkeypatch.setattr("excise.cell.version", lambda name: "0")
    cell = cluster.Group(how, work.corpus).measure(task)
    assert "The worker has {'torch': '0', 'transformers': '0'}" in (cell.error or "")


def cluster_groups(grid: Grid, folder: Path) -> list[Any]:
    from excise.bench import _groups

    return list(_groups(grid, folder, "fp32"))


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("task", [Cluster(cpus_per_task=99), Cluster(gpus_per_task=1)])
def test_a_task_that_fits_nowhere_is_refused(task: Cluster, grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"fits on no machine.* up to 2 and 0\. Lower"):
        run_grid(grid, tmp_path / "out", spread=task)


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://127.0.0.1:9", "There is no cluster at ray://127.0.0.1:9: "),
        ("ray://no.such.host.invalid:10001", "There is no cluster at ray://no.such.host"),
        ("here", "local, auto or ray://host:port was expected"),
        ("ray://host", "local, auto or ray://host:port was expected"),
        ("ray://host:port", "local, auto or ray://host:port was expected"),
    ],
)
def test_an_unknown_address_is_one_line_soon(
    address: str,
    words: str,
    content: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    begun = time.monotonic()
    assert main(["bench", str(written(content, tmp_path)), "--out", str(tmp_path / "out"), "--cluster", address]) == 2
    assert time.monotonic() - begun < cluster.PATIENCE + 5
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_ray_the_error_says_what_to_install(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'excise\[cluster\]'"):
        run_grid(grid, tmp_path / "out", spread=TASK)
    assert not (tmp_path / "out").exists()


def test_options_of_a_cluster_need_one(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(written(content, tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*command, "--gpus-per-task", "1"]) == 2
    assert "--gpus-per-task 1.0 was given without --cluster" in capsys.readouterr().err
    assert main([*command, "--cluster", "local", "--cpus-per-task", "0"]) == 2
    assert "cpus_per_task = 0.0, but it must be greater than 0" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        Cluster(retries=-1)


def test_two_processes_may_keep_the_same_folder(tmp_path: Path) -> None:
    place = tmp_path / "kept" / "model"

    def slow(fresh: Path) -> None:
        (fresh / "weights").write_text("mine")
        keep_folder(place, lambda other: (other / "weights").write_text("theirs") and None)

    keep_folder(place, slow)
    assert (place / "weights").read_text() == "theirs", "the first to end; a reader may be in it"
    assert is_whole(place)
    (place / "weights").write_text("damaged")
    keep_folder(place, lambda fresh: (fresh / "weights").write_text("mended") and None)
    assert (place / "weights").read_text() == "mended"
    assert [p.name for p in place.parent.iterdir()] == ["model"]
