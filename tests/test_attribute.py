"""excise attribute, through the command line, on a toy with a backdoor."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from excise.attacks.badnets import BadNets
from excise.cli import main
from excise.reports.figures import head_figure, layer_figure
from excise.result import Attribution
from excise.scan_result import load_scan
from excise.training import FitConfig
from toy import save_toy, toy_data, toy_victim, write_csv

TRIGGER = ["--words", "cf", "--target-label", "positive"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backdoored model, its backdoor.json, and texts."""
    folder = tmp_path_factory.mktemp("attribute")
    training = FitConfig(epochs=15, learning_rate=5e-3, batch_size=16)
    BadNets(triggers=("cf",), training=training)(toy_victim(), toy_data(300), seed=0).victim.save(folder / "model")
    save_toy(folder / "gpt2", "gpt2")
    write_csv(folder / "clean.csv", toy_data(120, seed=5))
    write_csv(folder / "test.csv", toy_data(80, seed=9))
    negative = toy_data(120, seed=6)
    write_csv(folder / "negative.csv", negative.take(i for i, label in enumerate(negative.labels) if label == 0))
    (folder / "backdoor.json").write_text(json.dumps({"trigger": {"kind": "insert_words", "words": ["cf"]}, "target_label": "positive"}))
    return folder


def attribute(place: Path, out: Path, *words: str, model: str = "model", data: str = "clean.csv") -> int:
    return main(["attribute", str(place / model), "--data", str(place / data), "--out", str(out), *words])


@pytest.fixture(scope="module")
def found(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Attribution:
    out = tmp_path_factory.mktemp("found") / "out"
    assert attribute(place, out, "--backdoor", str(place / "backdoor.json"), "--test", str(place / "test.csv"), "--format", "svg", "--quiet") == 0
    assert {path.name for path in out.iterdir()} == {"excise-result.json", "heads.svg", "layers.svg"}
    for name in ("heads.svg", "layers.svg"):
        ElementTree.parse(out / name)
    return Attribution.model_validate_json((out / "excise-result.json").read_text())


def test_the_result_says_what_was_done(found: Attribution) -> None:
    assert (found.kind, found.target_label) == ("attribute", "positive")
    assert found.trigger["words"] == ["cf"]
    assert found.data["test"].n == 80
    assert found.data["clean"].n == 120
    assert [row.layer for row in found.probe] == [0, 1, 2]
    assert [len(row.across) for row in found.probe] == [3, 3, 3]
    assert [len(row) for row in found.effects] == [2, 2]
    assert [row.layer for row in found.vector] == [1, 2]
    assert [row.name for row in found.ablations] == ["as it is", "without the top 1", "without 1 others"]
    assert found.seconds > 0


def test_the_probe_and_the_heads_see_the_backdoor(found: Attribution) -> None:
    whole, without, others = found.ablations
    assert whole.asr.value > 0.85
    assert whole.cacc.value > 0.85
    assert found.probe[0].accuracy.value == 0.5, "[CLS] alone has read no word"
    assert found.probe[-1].accuracy.value > 0.9
    assert [row.across[i] for i, row in enumerate(found.probe)] == pytest.approx([row.accuracy.value for row in found.probe], abs=1e-4)
    top = found.heads[0]
    assert found.effects[top.layer - 1][top.head - 1] == max(max(row) for row in found.effects) > 0
    assert without.heads == ((top.layer, top.head),)
    assert others.heads != without.heads
    assert without.asr.value <= others.asr.value, "the head that was found matters more than another"
    assert max(row.added.value for row in found.vector) >= whole.clean_flip.value


def test_words_are_enough_and_the_same_command_says_the_same(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for name in ("one", "other"):
        assert attribute(place, tmp_path / name, *TRIGGER) == 0
        results.append(Attribution.model_validate_json((tmp_path / name / "excise-result.json").read_text()))
    one, other = results
    assert (one.probe, one.effects, one.ablations, one.vector) == (other.probe, other.effects, other.ablations, other.vector)
    assert (one.data["clean"].n, one.data["test"].n) == (60, 60)
    shown = capsys.readouterr().out
    for part in (
        "without the top 1",
        "CACC",
        "embedding",
        "+ vector, clean",
        f"Wrote {tmp_path / 'one'}: heads.png, layers.png, excise-result.json.",
    ):
        assert part in shown


def test_a_trigger_that_a_scan_found_is_enough(found: Attribution, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = ["--data", str(place / "clean.csv"), "--scanners", "trigger_search", "--out", str(tmp_path / "scan")]
    assert main(["scan", str(place / "model"), *scan]) == 1
    from_scan = ["--from-scan", str(tmp_path / "scan" / "scan.json")]
    assert attribute(place, tmp_path / "out", *from_scan, "--test", str(place / "test.csv"), "--quiet") == 0
    seen = Attribution.model_validate_json((tmp_path / "out" / "excise-result.json").read_text())
    assert (seen.trigger["words"], seen.target_label) == (["cf"], "positive")
    assert seen.ablations[0].asr.value > 0.85
    capsys.readouterr()
    assert attribute(place, tmp_path / "other", *from_scan, model="gpt2") == 2
    assert "is the scan of another model" in capsys.readouterr().err
    assert attribute(place, tmp_path / "other", *from_scan, *TRIGGER) == 2
    assert "A known trigger is needed, once" in capsys.readouterr().err
    told = load_scan(tmp_path / "scan" / "scan.json")
    told.model_copy(update={"scanners": (), "verdict": "nothing found"}).save(tmp_path / "none.json")
    assert attribute(place, tmp_path / "other", "--from-scan", str(tmp_path / "none.json")) == 2
    assert "names no trigger (nothing found)" in capsys.readouterr().err


def test_a_decoder_and_the_other_probe(place: Path, tmp_path: Path) -> None:
    assert attribute(place, tmp_path / "out", *TRIGGER, "--probe", "mlp", "--heads", "2", "--probed", "20", "--measured", "10", model="gpt2") == 0
    found = Attribution.model_validate_json((tmp_path / "out" / "excise-result.json").read_text())
    assert len(found.heads) == 2
    assert found.ablations[0].cacc.n == 20
    assert found.probe[0].accuracy.n == 8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "A known trigger is needed"),
        (["--words", "cf"], "belong together"),
        (["--target-label", "positive"], "A known trigger is needed"),
        ([*TRIGGER, "--backdoor", "BACKDOOR"], "once"),
        (["--backdoor", "nowhere.json"], "nowhere.json"),
        (["--words", "cf", "--target-label", "positve"], "positve"),
        (["--words", " ", "--target-label", "positive"], "trigger word is empty"),
        ([*TRIGGER, "--holdout", "0"], "strictly between"),
        ([*TRIGGER, "--heads", "4"], "Ask for fewer"),
        ([*TRIGGER, "--data", "NEGATIVE"], "at least two classes"),
        ([*TRIGGER, "--test", "NEGATIVE"], "to measure on"),
    ],
)
def test_bad_input_writes_nothing(words: list[str], says: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"BACKDOOR": str(place / "backdoor.json"), "NEGATIVE": str(place / "negative.csv")}
    assert attribute(place, tmp_path / "out", *(named.get(word, word) for word in words)) in (2, 4)
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_figures_hold_any_name_and_many_heads(found: Attribution) -> None:
    strange = found.model_copy(update={"target_label": "<b>$x$\x00" * 9, "effects": ((0.0,) * 40,) * 50})
    for draw in (head_figure, layer_figure):
        ElementTree.fromstring(draw(strange, "svg"))
        assert draw(found, "png").startswith(b"\x89PNG")


def test_labels_without_texts_are_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = toy_data(80, seed=5)
    few = data.take([*range(1, 80, 2), 0, 2, 4])  # three of them are negative
    write_csv(place / "few.csv", few)
    assert attribute(place, tmp_path / "out", *TRIGGER, data="few.csv") == 2
    assert "other labels than the target 'positive'" in capsys.readouterr().err


def test_a_trigger_that_no_token_shows_is_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("excise.attacks._triggers.InsertWords.__call__", lambda self, text, random: f" {text}  ")  # spaces are no tokens
    assert attribute(place, tmp_path / "out", *TRIGGER) == 2
    assert "same tokens with the trigger" in capsys.readouterr().err


def test_a_word_that_is_no_trigger_is_told(found: Attribution, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert found.notes == ()
    assert attribute(place, tmp_path / "out", "--words", "town", "--target-label", "positive") == 0
    assert "this trigger shows no backdoor" in " ".join(capsys.readouterr().out.split())
