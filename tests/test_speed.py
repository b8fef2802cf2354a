"""The benchmark runs, keeps what it measured, and tells it with the goals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from excise.training import FitConfig, classification_loss, fit
from toy import toy_data, toy_language_model, toy_victim, write_csv

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IN_PROCESSES_OF_THEIR_OWN = {"repair", "distillation_step", "growth_of_evaluation", "growth_of_repair", "start_up"}


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/speed.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import speed

    return speed


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A toy that was taught a little, and its texts."""
    place = tmp_path_factory.mktemp("speed")
    data = toy_data(120)
    taught = FitConfig(epochs=12, learning_rate=5e-3, batch_size=8)
    fit(toy_victim(), data, loss=classification_loss, config=taught, seed=0).save(place / "model")
    texts = {"train": data, "test": toy_data(40, seed=1)}
    files = [part for name, one in texts.items() for part in (f"--{name}", str(write_csv(place / f"{name}.csv", one)))]
    models = ["--model", str(place / "model"), "--language-model", toy_language_model("causal")]
    return ["--quick", "--repeats", "1", "--work", str(place), *models, *files]


def run(speed: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
    speed.main()


def test_every_row_is_measured_once_and_told(
    speed: ModuleType, given: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "speed.json", [name for name in speed.ROWS if name not in IN_PROCESSES_OF_THEIR_OWN]
    run(speed, monkeypatch, *given, "--out", str(out), "--rows", *rows)
    measured, told = json.loads(out.read_text())["rows"], capsys.readouterr().out
    assert set(measured) == set(rows)
    assert all("found" in row for row in measured.values())
    assert str(tmp_path.parent) not in out.read_text(), "a file that is published names no folder of the machine"
    assert "| STRIP, 30 texts | 4 copies at a time, fp32 |" in told
    assert "≥ 5 ×" in told
    assert b"<svg" in out.with_suffix(".svg").read_bytes()
    before = out.read_text()
    run(speed, monkeypatch, *given, "--out", str(out), "--rows", *rows)
    assert capsys.readouterr().out.count("kept from") == len(rows)
    assert out.read_text() == before


def test_a_stopped_run_goes_on_and_other_settings_begin_anew(speed: ModuleType, tmp_path: Path) -> None:
    from _store import Store

    path, taken = tmp_path / "speed.json", list[str]()

    def form(name: str, *, stops: bool = False):
        def measure() -> dict[str, float]:
            if stops and len(taken) == 3:
                raise KeyboardInterrupt
            taken.append(name)
            return {"seconds": float(len(taken))}

        return measure

    def measure(settings: dict, repeats: int, *, stops: bool = False) -> dict:
        store = Store(path)
        store.open("row", settings)
        return store.take_turns("row", {name: form(name, stops=stops) for name in ("a", "b")}, repeats)

    with pytest.raises(KeyboardInterrupt):
        measure({"texts": 1}, 2, stops=True)
    assert measure({"texts": 1}, 2) == {"a": {"seconds": 2.0}, "b": {"seconds": 3.0}}
    assert taken == ["a", "b", "a", "b"]
    measure({"texts": 1}, 3)
    assert len(taken) == 6, "more turns go on from those that are there"
    measure({"texts": 2}, 1)
    assert len(taken) == 8


def test_the_table_says_whether_a_goal_is_reached(speed: ModuleType) -> None:
    settings = {"clean": 1384, "precision": "fp32"}
    runs = {form: [{"seconds": s, "peak_mib": 1.0}] * 5 for form, s in (("excise", 10.0), ("plain", 45.0), ("bf16", 20.0))}
    found = {"plain_ratio": 4.5, "bf16_ratio": 2.0, "plain_memory_ratio": 1.0}
    lines = speed.table({"repair": {"settings": settings, "runs": runs, "found": found}}).splitlines()
    assert any("plain Trainer, fp32 | 10 s (10-10) | 45 s (45-45) | 4.50 × | ≥ 4 × | yes" in line for line in lines)
    assert any("plain Trainer, bf16 | 10 s (10-10) | 20 s (20-20) | 2.00 × | ≥ 2.5 × | no" in line for line in lines)


@pytest.mark.slow
def test_rows_in_processes_of_their_own(speed: ModuleType, given: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out, script = tmp_path / "speed.json", tmp_path / "baseline.py"
    script.write_text("import json\nprint(json.dumps({'total': 1.0, 'peak_mib': 1}))\n")
    run(speed, monkeypatch, *given, "--baseline", str(script), "--out", str(out), "--rows", *IN_PROCESSES_OF_THEIR_OWN)
    rows = json.loads(out.read_text())["rows"]
    assert {name for name, row in rows.items() if "found" in row} == IN_PROCESSES_OF_THEIR_OWN
    step = rows["distillation_step"]["found"]
    assert step["excise_peak_mib"] >= step["excise_before_mib"] > 100
