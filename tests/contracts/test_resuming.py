"""Whatever trains goes on with the same bits after a stop at any step, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from contracts.test_methods import make, make_attack, make_defense, quick, same, weights
from excise import registry
from excise.bench import run_grid
from excise.grid import load_grid
from excise.kept import file_hash
from excise.language_model import train_language_model
from excise.progress import Progress, observe
from excise.resume import Memory, resuming
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Batch, Victim
from excise.zoo import load_zoo, measure
from toy import save_toy, toy_data, toy_victim, write_csv

pytestmark = pytest.mark.usefixtures("wordnet")

SHORT = FitConfig(epochs=2, learning_rate=1e-3, batch_size=8)


def trained(kind: str, name: str) -> Any:
    """What a method makes of a toy; weights, or which texts a filter keeps."""
    if kind == "attack":
        return weights(make_attack(name, SHORT)(toy_victim(), toy_data(40), seed=0).victim)
    if kind == "filter":
        return make(kind, name, SHORT)(toy_victim(), toy_data(40), seed=0)
    if kind == "defense":
        return weights(quick(make_defense(name), SHORT)(toy_victim(), toy_data(40), seed=0))
    model = train_language_model(name, toy_data(24).texts, kind=kind, training=SHORT, seed=0)  # type: ignore[arg-type]
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def stopped(work: Callable[[], Any], step: int, folder: Path) -> Any:
    """The work, stopped after so many reports of progress."""
    left = iter(range(step))

    def watch(_: Progress) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with observe(watch), resuming(folder, {}, every=0):
        return work()


def same_bits(one: Any, other: Any) -> bool:
    return same(one, other) if isinstance(one, dict) else one == other


def check(work: Callable[[], Any], folder: Path) -> None:
    """Stop three times and go on."""
    reports: list[Progress] = []
    with observe(reports.append):
        undisturbed = work()
    again: list[Progress] = []
    steps = [i for i, report in enumerate(reports) if "loss" in report.values]
    for stop in sorted(Random(len(reports)).sample(steps[1:], 3)):
        with pytest.raises(KeyboardInterrupt):
            stopped(work, stop, folder)
    with observe(again.append):
        assert same_bits(stopped(work, 10**9, folder), undisturbed)
    told = [{(p.task, p.done, p.values["loss"]) for p in run if "loss" in p.values} for run in (reports, again)]
    assert told[0] == told[1], "the curves are whole"


TRAINING: list[Any] = [(kind, name) for kind in ("attack", "defense", "filter") for name in registry.names(kind)]
TRAINING = [(kind, name) for kind, name in TRAINING if not getattr(registry.load(kind, name), "guards", False)]  # guards train nothing


@pytest.mark.parametrize(("kind", "name"), TRAINING, ids=[f"{kind}-{name}" for kind, name in TRAINING])
def test_a_method_goes_on_with_the_same_bits(kind: str, name: str, tmp_path: Path, spared: list[int]) -> None:
    check(lambda: trained(kind, name), tmp_path / "state")
    assert sum(spared), "it began anew each time: what its loss holds is not known (excise.resume)"


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_language_model_goes_on_with_the_same_bits(kind: str, tmp_path: Path, spared: list[int]) -> None:
    toy_victim().save(tmp_path / "base")
    check(lambda: trained(kind, str(tmp_path / "base")), tmp_path / "state")
    assert sum(spared)


def bench_of(place: Path, out: Path) -> Any:
    """The bits of every model and what every cell says of them."""
    grid = {
        "name": "toy",
        "model": str(place / "model"),
        "data": {"A": {"train": {"source": str(place / "texts.csv")}, "test_size": 20, "clean_fraction": 0.5}},
        "attacks": {"Bad": {"method": "badnets", "training": vars(SHORT)}},
        "defenses": {"Fine": {"method": "virtual_tokens", "training": vars(SHORT)}, "Split": {"method": "ts_ft", "retraining": vars(SHORT)}},
        "seeds": [0],
    }
    (place / "grid.yaml").write_text(yaml.safe_dump(grid))
    cells = run_grid(load_grid(place / "grid.yaml"), out, every=0)
    assert not any(cell.error for cell in cells)
    return kept(out, [cell.model_dump(exclude={"seconds", "digest"}) for cell in cells])


def zoo_of(place: Path, out: Path) -> Any:
    """The same of a zoo."""
    bad = {"method": "badnets", "training": vars(SHORT)}
    content = {
        "name": "toy",
        "model": str(place / "model"),
        "data": {"A": {"train": {"source": str(place / "texts.csv")}, "test_size": 20, "clean_fraction": 0.5}},
        "families": [
            {"part": "calibration", "data": "A", "attack": {**bad, "triggers": ["mn"]}, "clean": True, "seeds": [1]},
            {"part": "held out", "data": "A", "attack": bad, "seeds": [2]},
        ],
    }
    (place / "zoo.yaml").write_text(yaml.safe_dump(content))
    specimens = list(measure(load_zoo(place / "zoo.yaml"), out, {}, every=0))
    return kept(out, [specimen.model_dump(exclude={"seconds"}) for specimen in specimens])


def kept(out: Path, told: list[Any]) -> Any:
    assert not list(out.glob("state-*")), "states go with the work that they are of"
    return told, {path.name: file_hash(path / "model" / "model.safetensors") for path in (out / "models").iterdir()}


@pytest.mark.parametrize("make_all", [bench_of, zoo_of])
def test_a_command_of_many_trainings_goes_on_inside_one(make_all: Any, tmp_path: Path, spared: list[int]) -> None:
    save_toy(tmp_path / "model")
    write_csv(tmp_path / "texts.csv", toy_data(60))
    reports: list[Progress] = []
    with observe(reports.append):
        undisturbed = make_all(tmp_path, tmp_path / "undisturbed")
    stops = sorted(Random(1).sample([i for i, report in enumerate(reports) if "loss" in report.values], 4))
    for last, stop in zip([0, *stops], stops, strict=False):
        left = iter(range(max(stop - last, 2)))

        def watch(_: Progress, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), observe(watch):
            make_all(tmp_path, tmp_path / "out")
    assert make_all(tmp_path, tmp_path / "out") == undisturbed
    assert sum(spared), "no step was spared"


def test_a_loss_that_remembers_in_secret_begins_anew(tmp_path: Path, spared: list[int]) -> None:
    """A list that grows is no constant; an object that does not say its state is not known. Both would go on with other numbers."""

    class Secret:
        calls = 0

    def work(memory: Any) -> Any:
        def loss(victim: Victim, batch: Batch) -> torch.Tensor:
            if isinstance(memory, list):
                memory.append(1.0)
                count = len(memory)
            else:
                memory.calls += 1
                count = memory.calls
            return classification_loss(victim, batch) * count

        return weights(fit(toy_victim(), toy_data(40), loss=loss, config=SHORT, seed=0))

    for make_memory in (list, Secret):
        check(lambda: work(make_memory()), tmp_path / make_memory.__name__)  # noqa: B023
    assert not sum(spared)


def test_a_teacher_that_learns_begins_anew(tmp_path: Path, spared: list[int]) -> None:
    """A running mean of the student, of which nobody keeps the state."""

    def work() -> Any:
        teacher = toy_victim()

        def loss(victim: Victim, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                for mine, theirs in zip(teacher.model.parameters(), victim.model.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
                wanted = teacher.model(**batch.inputs).logits
            return classification_loss(victim, batch) + (victim.model(**batch.inputs).logits - wanted).square().mean()

        return weights(fit(toy_victim(), toy_data(40), loss=loss, config=SHORT, seed=0))

    check(work, tmp_path)
    assert not sum(spared)


def test_another_teacher_is_another_training(tmp_path: Path) -> None:
    """Though it starts from the same weights, with the same texts and settings."""

    def work(seed: int) -> Any:
        teacher = toy_victim(seed=seed)

        def loss(victim: Victim, batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                wanted = teacher.model(**batch.inputs).logits
            return (victim.model(**batch.inputs).logits - wanted).square().mean()

        return weights(fit(toy_victim(), toy_data(40), loss=loss, config=SHORT, seed=0))

    undisturbed = work(2)
    with pytest.raises(KeyboardInterrupt):
        stopped(lambda: work(1), 8, tmp_path)
    assert same(stopped(lambda: work(2), 10**9, tmp_path), undisturbed)


def test_equal_losses_are_known_by_what_they_hold() -> None:
    def loss(*held: Any) -> Any:
        return lambda victim, batch: held

    def constants(*held: Any) -> str:
        return Memory.of(loss(*held)).constants  # type: ignore[union-attr]

    assert constants(1.0, "norm", torch.ones(2)) == constants(1.0, "norm", torch.ones(2))
    assert len({constants(*held) for held in [(1.0,), (2.0,), ("1.0",), (torch.ones(2),), (torch.zeros(2),), ([1.0],), ({"a": 1.0},)]}) == 7
    assert Memory.of(loss({1.0})) is None
    assert Memory.of(loss(Random(0))) is not None


def test_a_damaged_state_counts_as_none(tmp_path: Path, spared: list[int]) -> None:
    def work() -> Any:
        return trained("defense", "cft")

    with pytest.raises(KeyboardInterrupt):
        stopped(work, 5, tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-9])
    check(work, tmp_path)
    assert sum(spared)


def test_a_disk_that_is_full_costs_the_state_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    undisturbed = trained("defense", "cft")
    monkeypatch.setattr("excise.resume.save_file", full)
    assert same(stopped(lambda: trained("defense", "cft"), 10**9, tmp_path / "state"), undisturbed)
    assert not list((tmp_path / "state").glob("*.safetensors"))
