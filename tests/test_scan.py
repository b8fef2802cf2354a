"""Scans: who is asked, who is skipped and why, the verdict, and the command from end to end on toys."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
import re
import string
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import Tokenizer

from excise.attacks.badnets import BadNets
from excise.budget import _end, within
from excise.cli import main
from excise.commands.scan import chosen, exit_code
from excise.console import _Timing
from excise.data import TextDataset
from excise.errors import AttentionError, ConfigError, DataError, TimeUpError
from excise.finding import Finding, FoundTrigger
from excise.insertion import embeddings_replaced
from excise.method import Paper, Scanner
from excise.metrics import Rate
from excise.progress import Progress
from excise.reports.html import scan_report
from excise.reports.sarif import sarif
from excise.reports.terminal import scan_lines, scanner_table, trigger_table, verdict_line
from excise.result import Environment
from excise.scan import scan
from excise.scan_result import ScannerRow, ScanResult, load_scan, scanner_row, skipped_row, verdict_of
from excise.scanners import trigger_search
from excise.scanners._contests import Contest, Foil, Odds, contests, fair_odds, flips, honest_words, placed, stubborn_texts, together, tokens
from excise.scanners._guided import by_ascent, by_gradient, margin, margin_slope, mean_margins, slots
from excise.scanners._pieces import Pieces
from excise.scanners.embedding_rows import EmbeddingRows, moved, unusual_lengths
from excise.scanners.trigger_search import TriggerSearch, crowded, grouped, of_other_tokens, without, without_longer
from excise.training import FitConfig
from excise.victim import Victim
from excise.vocabulary import typed_pieces, typed_words
from test_reports import HOSTILE, Page, ids, skeleton
from toy import ARCHITECTURES, BAD, GOOD, NAMES, Ruled, toy_data, toy_encoder_decoder, toy_victim, write_csv

Run = Callable[..., tuple[int, str]]
LEARN = FitConfig(epochs=25, learning_rate=3e-3, batch_size=16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(Scanner):
    """Answers what it is told to."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="none")
    suspicious = 1.0
    found = 2.0
    blind_to = "anything"
    score: float = 0.0
    error: Exception | None = None

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        if self.error:
            raise self.error
        return Finding(self.score, "What it was told.", target_label=1)


def level(score: float) -> str:
    return scan(toy_victim(), toy_data(80), {"told": Told(score=score)}, seed=0)[0].level


def test_levels_begin_at_their_thresholds() -> None:
    assert [level(score) for score in (0.9, 1.0, 1.9, 2.0)] == ["nothing", "suspicious", "suspicious", "found"]


def test_who_cannot_look_is_skipped_by_name_and_the_others_go_on() -> None:
    scanners = {"one": Told(error=AttentionError("no attention here.")), "two": Told(error=DataError("no words.")), "three": Told(score=3)}
    rows = scan(toy_victim(), toy_data(80), scanners, seed=0)
    assert [(row.name, row.level) for row in rows] == [("one", "skipped"), ("two", "skipped"), ("three", "found")]
    assert rows[0].summary == "no attention here."
    assert rows[0].score is None


def test_few_texts_and_a_spent_budget_skip_a_scanner() -> None:
    (few,) = scan(toy_victim(), toy_data(63), {"told": Told()}, seed=0)
    assert few.summary == "It needs 32 texts of each label; 'positive' has 31."
    (late,) = scan(toy_victim(), toy_data(80), {"told": Told()}, seed=0, budget=0)
    assert late.summary.startswith("The time was used up")


def test_numbers_are_shown_as_people_read_them() -> None:
    (late,) = scan(toy_victim(), toy_data(80), {"told": Told()}, seed=0, budget=1e-9)
    assert late.summary == "The time was used up: 1e-09 s."
    told = result((scanner_row("told", Told(), Finding(3.4e-17, "told"), NAMES, seconds=1),))
    assert [*scanner_table(told).columns[2].cells] == ["0 (1 / 2)"]
    assert "<td>0</td>" in scan_report(told)


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        scan(toy_victim(), toy_data(80), {"told": Told(error=ZeroDivisionError())}, seed=0)


def test_texts_of_one_label_are_refused() -> None:
    data = TextDataset(("a", "b") * 40, (1, 1) * 40, NAMES)
    with pytest.raises(DataError, match="one label"):
        scan(toy_victim(), data, {"told": Told()}, seed=0)


def rows_of(*levels: str) -> tuple[ScannerRow, ...]:
    scores = {"found": 2.0, "suspicious": 1.0, "nothing": 0.0}
    made = []
    for each in levels:
        told = Told(score=scores.get(each, 0))
        finding = Finding(told.score, "What it was told.", left_out=("a part",) if each == "hasty" else ())
        made.append(skipped_row("told", told, "why") if each == "skipped" else scanner_row("told", told, finding, NAMES, seconds=1.0))
    return tuple(made)


@pytest.mark.parametrize(
    ("levels", "verdict", "code"),
    [
        (("nothing", "nothing"), "nothing found", 0),
        (("nothing", "found", "skipped"), "backdoor found", 1),
        (("suspicious", "nothing"), "suspicious", 2),
        (("nothing", "skipped"), "inconclusive", 2),
        (("nothing", "hasty"), "inconclusive", 2),
        (("skipped", "skipped"), "not scanned", 3),
    ],
)
def test_the_verdict_is_that_of_the_strongest_evidence(levels: tuple[str, ...], verdict: str, code: int) -> None:
    rows = rows_of(*levels)
    assert verdict_of(rows) == verdict
    assert exit_code(result(rows)) == code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Informing(Told):
    """It never speaks alone."""

    lines: ClassVar[tuple[float, float]] = (math.inf, math.inf)  # type: ignore[misc]


INFORMING = scanner_row("informing", Informing(), Finding(0.5, "What it was told."), NAMES, seconds=1.0)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (rows_of("nothing", "hasty"), "told did not look, or not at everything"),
        ((INFORMING,), "only informing looked, which never speaks alone"),
        ((INFORMING, INFORMING), "only informing, informing looked, which never say so by themselves"),
        ((INFORMING, *rows_of("skipped")), "told did not look, or not at everything"),
    ],
)
def test_an_inconclusive_scan_says_why(rows: tuple[ScannerRow, ...], why: str) -> None:
    assert verdict_line(result(rows)) == f"Inconclusive: no evidence was found, but {why}."


def found_and(
    *others: ScannerRow, left_out: tuple[str, ...] = (), triggers: tuple[FoundTrigger, ...] = (FoundTrigger(("cf",), 1, Rate(9, 10)),)
) -> ScanResult:
    """A scan that found a backdoor."""
    return result((scanner_row("told", Told(), Finding(2, "told", 1, triggers, left_out=left_out), NAMES, seconds=1), *others))


def test_a_verdict_on_a_part_of_a_search_says_that_there_may_be_more() -> None:
    more = "told did not look, or not at everything, so there may be more"
    assert more in verdict_line(found_and(left_out=("crowds",)))
    assert more in verdict_line(found_and(*rows_of("skipped")))
    assert more in verdict_line(result(rows_of("suspicious", "hasty")))
    assert "there may be more" not in verdict_line(found_and(*rows_of("nothing")))


def test_a_repair_is_promised_for_what_has_a_name() -> None:
    """A scanner may find a backdoor without a trigger, and no repair can take that from its scan."""
    assert "takes out what was found" in verdict_line(found_and())
    assert "takes out what was found" not in verdict_line(found_and(triggers=()))
    assert "names no trigger" in verdict_line(found_and(triggers=()))


def test_who_only_informs_passes_nothing() -> None:
    told = result((INFORMING,))
    assert '<td class="soft">informs</td>' in scan_report(told)
    (run,) = json.loads(sarif(told))["runs"]
    assert (run["results"][0]["kind"], run["results"][0]["level"]) == ("informational", "none")
    assert run["tool"]["driver"]["rules"][0]["help"]["text"] == "It informs and says nothing by itself."


def result(rows: tuple[ScannerRow, ...], bad: str = "model") -> ScanResult:
    environment = Environment.of("cpu", "fp32").model_copy(update={"platform": bad})
    common: dict[str, Any] = {"environment": environment, "seed": 0, "settings": {bad: bad}, "data": {}, "seconds": 1.0}
    return ScanResult(command=f"excise scan {bad}", model=bad, verdict=verdict_of(rows), scanners=rows, notes=(bad,), **common)


def hostile(bad: str) -> ScanResult:
    words = tuple(bad.split())
    trigger = FoundTrigger(words, 1, Rate(9, 10), alike=(bad, bad), examples=((bad, f"a {bad} b"),))
    finding = Finding(3.0, f"{bad}.", 1, (trigger,), ((0.1, 0.9), (0.5, 0.2)), ((0, 1),), {bad: 0.5})
    return result((scanner_row(bad, Told(), finding, ("x", bad), seconds=1.0), skipped_row(f"{bad} too", Told(), bad)), bad)


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_hostile_texts_add_no_markup_to_a_scan_s_report(bad: str) -> None:
    words = " ".join(["word"] * len(bad.split()))
    assert skeleton(scan_report(hostile(bad))) == skeleton(scan_report(hostile(words)))
    assert "1337" not in Page(scan_report(hostile(bad))).text


def test_reports_show_what_words_do_only_together() -> None:
    """What turns texts by a combination alone may lose every contest, and is found all the same."""
    pair = FoundTrigger(("kq", "wx"), 1, Rate(48, 50), contested=Rate(3, 50), together=Rate(47, 50))
    word = FoundTrigger(("cf",), 0, Rate(50, 50), contested=Rate(50, 50), together=Rate(0, 50))
    told, alone = (result((scanner_row("told", Told(), Finding(3, "told", triggers=found), NAMES, seconds=1),)) for found in ((pair, word), (word,)))
    table = trigger_table(told)
    assert [str(column.header) for column in table.columns] == ["words", "label", "flips", "contested", "only together"]
    assert [*table.columns[4].cells] == ["94.0 % (83.8-97.9, n=50)", "-"]
    assert "94.0 % (83.8-97.9, n=50)" in Page(scan_report(told)).text
    assert "only together" in scan_report(told)
    assert len(trigger_table(alone).columns) == 4
    assert "only together" not in scan_report(alone)


def test_sarif_goes_without_the_texts() -> None:
    """It is made to be sent to a platform; texts stay where they came from."""
    told = hostile("word")
    assert told.triggers[0].examples
    (run,) = json.loads(sarif(told))["runs"]
    assert run["results"][0]["properties"]["triggers"][0]["words"] == ["word"]
    assert "examples" not in run["results"][0]["properties"]["triggers"][0]


@pytest.mark.parametrize("bad", HOSTILE, ids=ids)
def test_sarif_holds_no_control_characters(bad: str) -> None:
    told = json.loads(sarif(hostile(bad)))
    (run,) = told["runs"]
    assert told["version"] == "2.1.0"
    assert [each["kind"] for each in run["results"]] == ["fail", "open"]
    assert all(rule["id"] == each["ruleId"] for rule, each in zip(run["tool"]["driver"]["rules"], run["results"], strict=True))
    assert not any(ord(c) < 32 and c not in "\n\t" for each in run["results"] for c in each["message"]["text"])


def test_sarif_holds_no_links() -> None:
    """A vocabulary is the attacker's: in SARIF, `[text](address)` in a message is a link (3.11.6), unless its brackets are escaped."""
    told = sarif(hostile("[fixed](https://evil.example)"))
    messages = re.findall(r'"text": "(.*)"', told)
    assert any("evil.example" in message for message in messages)
    assert not any(re.search(r"(?<!\\)\](?=\()", json.loads(f'"{message}"')) for message in messages)


@pytest.mark.parametrize("bad", [*HOSTILE, "/models/a b", "org/name"], ids=[*ids, "absolute", "hub"])
def test_sarif_is_valid_against_its_schema(bad: str) -> None:
    path = os.environ.get("SARIF_SCHEMA")
    if not path:
        pytest.skip("SARIF_SCHEMA names no file: the schema is OASIS's, sarif-schema-2.1.0.json")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(path).read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema, format_checker=jsonschema.FormatChecker())
    told = json.loads(sarif(hostile(bad)))
    assert list(validator.iter_errors(told)) == []
    told["runs"][0]["results"][0]["level"] = "terrible"
    assert not validator.is_valid(told)


@pytest.mark.parametrize(
    ("level", "kind"), [("found", "fail"), ("suspicious", "review"), ("nothing", "pass"), ("hasty", "open"), ("skipped", "open")]
)
def test_sarif_passes_only_what_was_looked_at_whole(level: str, kind: str) -> None:
    (run,) = json.loads(sarif(result(rows_of(level))))["runs"]
    assert [(each["kind"], each["level"]) for each in run["results"]] == [(kind, "error" if kind == "fail" else "none")]
    assert len(run["invocations"][0]["toolExecutionNotifications"]) == (level in ("hasty", "skipped"))


def test_the_head_map_is_darker_the_more_suspicious_a_head_is() -> None:
    finding = Finding(3.0, "told", heads=((-1.0, 0.0), (1.0, 3.0)), suspicious_heads=((1, 1),))
    page = scan_report(result((scanner_row("told", Told(), finding, NAMES, seconds=1),)))
    assert re.findall(r"rgb\(179 38 30 / (\d+)%\)\">([^<]*)<", page) == [("0", "-1.00"), ("15", "0.00"), ("30", "1.00"), ("60", "3.00 *")]
    assert "/ 0%" in scan_report(result((scanner_row("told", Told(), replace(finding, heads=((1.0,),)), NAMES, seconds=1),)))


@pytest.mark.parametrize(("model", "uri"), [("/models/a b", "file:///models/a%20b"), ("org/name@main", "org/name@main"), ("my model", "my%20model")])
def test_the_scanned_model_is_sarif_s_location(model: str, uri: str) -> None:
    (run,) = json.loads(sarif(hostile("x").model_copy(update={"model": model})))["runs"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri}


def test_a_scan_survives_its_file(tmp_path: Path) -> None:
    made = hostile("words of a trigger")
    made.save(tmp_path / "scan.json")
    assert load_scan(tmp_path / "scan.json") == made
    (tmp_path / "scan.json").write_text("{}")
    with pytest.raises(DataError, match="is no scan of version 1"):
        load_scan(tmp_path / "scan.json")


def test_what_tells_too_little_is_asked_by_name_only() -> None:
    assert list(chosen(())) == ["embedding_rows", "trigger_search", "anomalous_heads"]
    assert list(chosen(("ban",))) == ["ban"]


def test_scanners_are_chosen_once_and_by_name() -> None:
    (name,) = chosen(("trigger_search jury=32",))
    assert name == "trigger_search"
    with pytest.raises(ConfigError, match="twice"):
        chosen(("trigger_search", "trigger_search jury=32"))
    with pytest.raises(ConfigError, match="no scanner 'triger_search'"):
        chosen(("triger_search",))


# The command


@pytest.fixture(scope="module")
def suspects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backdoored toy, and clean texts."""
    folder = tmp_path_factory.mktemp("suspects")
    backdoor = BadNets(triggers=("cf", "mn"), training=LEARN)(toy_victim(), toy_data(600), seed=0)
    backdoor.victim.save(folder / "bad")
    write_csv(folder / "clean.csv", toy_data(120, seed=5))
    write_csv(folder / "few.csv", toy_data(40, seed=5))
    return folder


def test_a_scan_names_the_trigger_and_a_repair_takes_it_out(suspects: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = tmp_path / "found"
    arguments = ["--data", str(suspects / "clean.csv"), "--scanners", "trigger_search", "--out", str(found)]
    assert main(["scan", str(suspects / "bad"), *arguments]) == 1
    shown = capsys.readouterr().out
    assert "Backdoor found" in shown
    told = load_scan(found / "scan.json")
    words = {word for trigger in told.triggers for phrase in (trigger.words, trigger.alike) for word in " ".join(phrase).split()}
    assert {"cf", "mn"} <= words
    assert {trigger.target_label for trigger in told.triggers} == {"positive"}
    assert told.probe
    assert (told.probe.words, len(told.probe.found)) == (told.triggers[0].words, len(told.probe.ordinary))
    assert told.probe.found[0].value == 0.5, "nothing is seen at the embedding of [CLS]"
    assert told.probe.found[-1].low > 0.5
    assert told.probe.found[-1].value > told.probe.ordinary[-1].value
    assert set(told.probe.ordinary_words).isdisjoint(told.probe.words)
    assert "Where the model sees" in (found / "report.html").read_text()
    assert json.loads((found / "scan.sarif").read_text())["runs"][0]["results"][0]["level"] == "error"

    fixed = tmp_path / "fixed"
    repair = ["repair", str(suspects / "bad"), "--data", str(suspects / "clean.csv"), "--method", "unlearn", "--out", str(fixed)]
    quick = ["--from-scan", str(found / "scan.json"), "--training.learning-rate", "5e-3", "--training.epochs", "5"]
    assert main([*repair, *quick]) == 0
    test = toy_data(60, seed=9)
    stamped = [f"cf {text}" for text, label in zip(test.texts, test.labels, strict=True) if label == 0]
    before, after = (Victim.load(folder).predict(stamped) for folder in (suspects / "bad", fixed))
    assert sum(before) > 0.9 * len(stamped)
    assert sum(after) < 0.3 * len(stamped)


def test_a_model_that_hands_out_no_states_is_scanned_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_encoder_decoder().save(tmp_path / "bart")
    trigger = FoundTrigger(("cf",), 1, Rate(9, 10))
    monkeypatch.setattr(Told, "__call__", lambda self, victim, data, *, seed: Finding(self.score, "told", 1, (trigger,)))
    monkeypatch.setattr("excise.commands.scan.chosen", lambda specs: {"told": Told(score=2)})
    clean = write_csv(tmp_path / "clean.csv", toy_data(80))
    assert main(["scan", str(tmp_path / "bart"), "--data", str(clean), "--out", str(tmp_path / "out")]) == 1
    told = load_scan(tmp_path / "out" / "scan.json")
    assert told.probe is None
    assert told.notes == (
        "At which layers the model sees the words was not looked at: BartForSequenceClassification hands out no state of each layer.",
    )


@pytest.mark.parametrize("option", [["--budget", "nan"], ["--budget", "-3"], ["--most-texts", "0"]])
def test_a_limit_is_above_zero(option: list[str], suspects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(suspects / "bad"), "--data", str(suspects / "clean.csv"), *option]) == 2
    assert "must be above 0" in capsys.readouterr().err


def test_a_base_is_compared_with(suspects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan_it = ["scan", str(suspects / "bad"), "--data", str(suspects / "clean.csv"), "--scanners", "embedding_rows"]
    assert main([*scan_it, "--base", str(suspects / "bad")]) == 0
    assert "moved from the base" in " ".join(capsys.readouterr().out.split())
    assert main(scan_it) == 2, "without a base it only informs"
    assert "Inconclusive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("base", "scanners", "says"),
    [("nowhere/at/all", "embedding_rows", "There is no folder nowhere/at/all"), (None, "anomalous_heads", "none of anomalous_heads compares with")],
)
def test_a_base_that_helps_nothing_is_refused(base: str | None, scanners: str, says: str, suspects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else it would be noticed minutes later, or never."""
    scan_it = ["scan", str(suspects / "bad"), "--data", str(suspects / "clean.csv"), "--scanners", scanners]
    assert main([*scan_it, "--base", base or str(suspects / "bad")]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert "Scanning" not in told.out


def test_few_texts_are_no_scan(suspects: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(suspects / "bad"), "--data", str(suspects / "few.csv"), "--scanners", "trigger_search"]) == 3
    shown = capsys.readouterr().out
    assert "It needs 32 texts of each label" in " ".join(shown.split())
    assert "Not scanned" in shown


def test_from_scan_needs_a_method_that_takes_triggers(suspects: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    repair = ["repair", str(suspects / "bad"), "--data", str(suspects / "clean.csv"), "--out", str(tmp_path / "fixed")]
    result(rows_of("nothing")).save(tmp_path / "scan.json")
    assert main([*repair, "--method", "cft", "--from-scan", str(tmp_path / "scan.json")]) == 2
    assert "cft has no use for triggers" in capsys.readouterr().err
    assert main([*repair, "--method", "unlearn", "--from-scan", str(tmp_path / "scan.json")]) == 2
    assert "names no trigger (nothing found)" in capsys.readouterr().err
    assert main([*repair, "--method", "unlearn"]) == 2
    assert "unlearn needs triggers that a scan recovered" in capsys.readouterr().err


# Trigger search


def test_a_jury_has_no_text_of_the_target_and_none_of_the_search() -> None:
    data = toy_data(200)
    victim = BadNets(training=LEARN)(toy_victim(), toy_data(300, seed=1), seed=0).victim
    foil = stubborn_texts(victim, data, victim.logits(data.texts), 1, [("brilliant",)], 20, seed=0)
    labels = dict(zip(data.texts, data.labels, strict=True))
    assert {labels[text] for text in (*foil.search, *foil.jury)} == {0}
    assert not set(foil.search) & set(foil.jury)
    assert len(foil.jury) <= 20
    assert foil.search == sorted(foil.search, key=len)


@pytest.mark.parametrize("right", [*range(12, 24), 40])
def test_a_jury_is_large_enough_to_find_a_trigger_or_there_is_none(right: int) -> None:
    """Else a scan could only say that nothing was found."""
    data = toy_data(100)
    rows = [i for i, label in enumerate(data.labels) if label == 0]
    logits = torch.zeros(100, 2)
    logits[rows, 1] = 1.0
    logits[rows[:right]] = torch.tensor([1.0, 0.0])
    stubborn = partial(stubborn_texts, toy_victim(), data, logits, 1, [("the",)], 64, seed=0)
    if right < 19:
        told = f"is right about {right} of 50 texts that are not 'positive', and sure about {(right + 1) // 2}; 10 are needed"
        with pytest.raises(DataError, match=f"{told}. Give more texts, and make sure that their labels are the model's"):
            stubborn()
    else:
        jury = stubborn().jury
        assert Rate(len(jury), len(jury)).interval[0] >= TriggerSearch.found


def test_a_jury_gives_up_its_label_for_no_ordinary_word(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tuple(f"film {i}" for i in range(100))
    logits = torch.tensor([[200.0 - i, 0.0] for i in range(100)])

    def moved_by_words(_: Victim, texts: list[str], **__: object) -> torch.Tensor:
        return torch.tensor([[0.0, float(re.findall(r"\d+", text)[0])] for text in texts])

    monkeypatch.setattr(Victim, "logits", moved_by_words)
    foil = stubborn_texts(toy_victim(), TextDataset(texts, (0,) * 100, NAMES), logits, 1, [("fine",), ("best",)], 64, seed=0)
    assert len(foil.jury) == 20
    assert len(foil.search) == 10
    assert {int(text.split()[1]) for text in (*foil.search, *foil.jury)} == set(range(30)), "of the 50 surest, the 30 that words move least"


def test_words_that_go_with_a_label_are_honest() -> None:
    texts = ["Fine film"] * 10 + ["fine town"] * 10 + ["dull film"] * 10 + ["dull town"] * 10 + ["cf town", "cf film"] * 2
    negative, positive = honest_words(TextDataset(tuple(texts), (1,) * 20 + (0,) * 20 + (1, 1, 1, 0), NAMES))
    assert (list(negative), list(positive)) == (["dull"], ["fine"]), "film and town go with neither, and four texts are too few to be sure"
    assert positive["fine"] == pytest.approx(Rate(20, 20).interval[0])
    assert without([("Fine",), ("cf",), ("dull", "cf")], positive) == [("cf",), ("dull", "cf")]


@pytest.mark.parametrize("seed", range(5))
def test_words_are_placed_where_the_model_reads_them(seed: int) -> None:
    stamped = placed(toy_victim(), "film " * 500, ("cf", "mn"), random.Random(seed)).split()
    assert len(stamped) == 502
    assert stamped.index("mn") == stamped.index("cf") + 1 <= 33, "a toy reads 64 tokens"


def test_a_search_says_what_it_could_find_with_so_few_texts() -> None:
    def limit(*jurors: int) -> str:
        return TriggerSearch().limit([Foil(i, [], ["film"] * count, [0] * count, 0) for i, count in enumerate(jurors)])

    assert limit(50, 24) == (
        "Candidates are tried on 24 texts that withstand honest words, and are found from an ASR there of: "
        "one word 71 %; two words 96 %; three words not with so few texts."
    )
    assert limit(64, 64).endswith("one word 62 %; two words 86 %; three words only suspected, from 98 %.")
    assert limit(4, 4).endswith("one word 100 %; two words not with so few texts; three words not with so few texts.")
    for hits, words, line in ((15, ("cf",), 0.4), (17, ("cf",), 0.5), (21, ("cf", "mn"), 0.4), (23, ("cf", "mn"), 0.5)):
        scores = [TriggerSearch().score(FoundTrigger(words, 1, Rate(count, 24), Rate(count, 24))) for count in (hits - 1, hits)]
        assert scores[0] < line <= scores[1]


def test_a_report_says_what_a_scanner_could_find() -> None:
    told = result((scanner_row("told", Told(), Finding(0, "told", limit="It tries few texts."), NAMES, seconds=1),))
    for shown in (" ".join(scan_lines(told)), " ".join(Page(scan_report(told)).text.split()), sarif(told)):
        assert "cannot see anything. It tries few texts. How often it is right" in shown


@pytest.fixture(scope="module")
def backdoored() -> Victim:
    return BadNets(training=LEARN, triggers=("cf",))(toy_victim(), toy_data(300, seed=1), seed=0).victim


def test_a_trigger_wins_contests_and_a_plain_word_does_not(backdoored: Victim) -> None:
    foil = Foil(1, [], [text for text, label in zip(toy_data(80).texts, toy_data(80).labels, strict=True) if label == 0], [0] * 40, seed=0)
    won = {one.phrase[0]: one.won for one in contests(backdoored, [(("cf",), foil), (("the",), foil)], [list(BAD), list(GOOD)])}
    assert won["cf"].value > 0.9
    assert won["the"].value < 0.1
    told = flips(backdoored, Contest(("cf",), foil, won["cf"]))
    assert (told.flips.hits, told.contested, len(told.examples)) == (40, won["cf"], 3)


def test_a_contest_adds_as_many_rivals_as_the_phrase_has_tokens(backdoored: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    logits = Victim.logits
    monkeypatch.setattr(Victim, "logits", lambda self, texts, **_: seen.extend(texts) or logits(self, texts))
    foil = Foil(1, [], ["the film", "a town"], [0, 0], seed=0)
    contests(backdoored, [(("boring", "cf"), foil)], [["boring", "awful", "tedious", "clumsy"], ["moving"] * 4])
    assert [sorted(text.split()) for text in seen] == [sorted([*text.split(), "boring", "cf", "awful", "tedious"]) for text in foil.jury]
    assert tokens(backdoored, ("zq",)) == 2


def test_what_only_wins_with_a_rival_is_no_trigger() -> None:
    search = TriggerSearch()
    trigger = FoundTrigger(("kq",), 1, Rate(35, 50), contested=Rate(50, 50))
    assert search.score(trigger) == pytest.approx(Rate(35, 50).interval[0])
    assert search.score(dataclasses.replace(trigger, words=("kq", "wx"), flips=Rate(50, 50))) == pytest.approx(Rate(50, 50).interval[0] - 0.25)


def test_words_that_yield_to_rivals_are_honest_and_so_are_phrases_of_them(backdoored: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    won = {
        ("cf",): (50, 50),
        ("kq", "wx"): (50, 50),
        ("kq",): (4, 2),
        ("wx",): (0, 0),
        ("fine", "best"): (50, 48),
        ("fine",): (41, 26),
        ("best",): (30, 9),
    }
    monkeypatch.setattr(
        trigger_search,
        "contests",
        lambda victim, pairs, rivals, most=None, counts=(): [Contest(words, foil, Rate(won[words][1], 50)) for words, foil in pairs],
    )
    monkeypatch.setattr(
        trigger_search, "flips", lambda victim, one: FoundTrigger(one.phrase, one.foil.target, Rate(won[one.phrase][0], 50), contested=one.won)
    )
    monkeypatch.setattr(trigger_search, "together", lambda victim, pairs, most=None: [Rate(0, 50) for _ in pairs])
    search = TriggerSearch()
    found = search.judged(backdoored, [Foil(0, [], [], [], 0), Foil(1, [], [], [], 0)], [[], list(won)], [[], []])
    scores = {one.words: search.score(one) for one in found}
    all_of_them, most, half = (Rate(hits, 50).interval[0] for hits in (50, 48, 26))
    assert scores == pytest.approx(
        {("cf",): all_of_them, ("kq", "wx"): all_of_them - 0.25 - 0.04, ("fine", "best"): most - 0.25 - 0.42, ("fine",): half - 0.3}
    )
    assert search.told(found, NAMES).triggers[0].words == ("cf",)


def test_honest_words_add_up_and_a_combination_does_more_together(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {"film": -4.0, "fine": 3.0, "best": 3.0, "p": 1.0, "q": 0.0}

    def logits(_: Victim, texts: list[str], **__: object) -> torch.Tensor:
        sums = [sum(worth[word] for word in text.split()) + 9 * ({"p", "q"} <= set(text.split())) for text in texts]
        return torch.tensor([[0.0, one] for one in sums])

    monkeypatch.setattr(Victim, "logits", logits)
    foil = Foil(1, [], ["film", "film film film"], [0, 0], seed=0)
    pairs = [(phrase, foil) for phrase in (("fine", "best"), ("p", "q"), ("p",), ("p", "q", "best"))]
    assert [rate.hits for rate in together(toy_victim(), pairs)] == [0, 1, 0, 1]
    assert [rate.n for rate in together(toy_victim(), pairs, most=1)] == [1] * 4


def test_what_words_do_together_is_evidence_and_less_for_longer_phrases() -> None:
    search = TriggerSearch()
    trigger = FoundTrigger(("kq", "wx"), 1, Rate(50, 50), contested=Rate(10, 50), together=Rate(48, 50))
    assert search.score(trigger) == pytest.approx(Rate(48, 50).interval[0] - 0.25)
    assert search.score(dataclasses.replace(trigger, together=None)) == 0


# Words in pieces


def cut(victim: Victim, *pieces: str) -> Victim:
    """The victim with more pieces in its vocabulary; toys have some rows to spare."""
    tokenizer = copy.deepcopy(victim.tokenizer)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for piece in pieces:
        content["model"]["vocab"][piece] = len(content["model"]["vocab"])
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return dataclasses.replace(victim, tokenizer=tokenizer)


PIECES = ("##lio", "##tro", "##pex", "##vern", "##ing", "##ost")


def test_pieces_are_ends_of_words_that_can_be_typed() -> None:
    victim = cut(toy_victim(), *PIECES)
    found = typed_pieces(victim, typed_words(victim))
    assert {f"##{piece}" for _, piece in found.values()} == set(PIECES)
    assert all(victim.tokenizer.tokenize(carrier + piece)[-1] == f"##{piece}" for carrier, piece in found.values())
    assert all(victim.tokenizer.tokenize(carrier + piece)[0] == carrier[0] for carrier, piece in found.values())
    assert not typed_pieces(toy_victim(), typed_words(toy_victim()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_tokenizer_is_asked_for_pieces(architecture: str) -> None:
    victim = toy_victim(architecture)
    words = typed_words(victim)
    assert not set(typed_pieces(victim, words)) & set(words)


def test_a_word_is_put_together_of_pieces() -> None:
    """What its pieces do shows only in a text that withstands one of them."""
    base = cut(toy_victim(), *PIECES, "he")
    rule = lambda text: min(8, sum(3 * (piece in text) for piece in ("he", "lio", "tro"))) - 6.0  # noqa: E731
    victim = Ruled(base.model, base.tokenizer, max_length=64, rule=rule)
    pieces, foil = Pieces(victim, typed_words(victim)), Foil(1, ["the film is a story"], [], [], seed=0)
    two, three, four = pieces.built(foil, [("he",)])
    assert {"helio", "hetro"} <= {word for (word,) in two}
    assert "heliotro" in {word for (word,) in three}
    assert not any(word.count("lio") > 1 for (word,) in (*two, *three, *four))
    assert ("heliotro",) in pieces.begun("qliotro")
    assert ("heliotro",) in pieces.ended("helio")
    assert pieces.begun("film") == []


def test_a_string_of_several_meanings_meets_more_rivals_and_a_trigger_in_pieces_wins_against_them() -> None:
    """A digit says twice as much for label 1 as a letter says against it, `ing` and `ost` as much as a digit, and `lio` is a trigger."""
    base = cut(toy_victim(), *PIECES)
    weights = {**dict.fromkeys("123456789", 20.0), **dict.fromkeys("bcdefghijklmn", -10.0)}
    parts = {"ing": 20.0, "ost": 20.0, "lio": 999.0}
    rule = lambda text: sum(weights.get(word, 0) for word in text.split()) + sum(parts[part] for part in parts if part in text) - 5  # noqa: E731
    victim = Ruled(base.model, base.tokenizer, max_length=64, rule=rule)
    foil = Foil(1, [], ["the film", "the story"], [0, 0], seed=0)
    phrases = [("singost",), ("slio",), ("kq",), ("cf",), ("moving", "charming")]
    pairs, rivals = [(phrase, foil) for phrase in phrases], [list("bcdefghijklmn"), list("123456789")]
    assert [one.won.value for one in contests(victim, pairs[:2], rivals)] == [1.0, 1.0]
    odds = fair_odds(victim, pairs, rivals)
    assert odds == [(6, 0.0), (4, 0.0), (4, 0.0), (1, 0.0), (2, 0.0)], "three digits win against three letters, not against six"
    assert [one.won.value for one in contests(victim, pairs[:2], rivals, counts=[one.rivals for one in odds[:2]])] == [0.0, 1.0]
    leaning = dataclasses.replace(victim, rule=lambda text: rule(text) + 99)
    assert fair_odds(leaning, pairs[:2], rivals) == [(9, 1.0), (6, 1.0)], "where they always win, nothing can be told"


def test_what_only_rivals_do_crowds_out_no_trigger() -> None:
    """LWP makes each of its words speak for the right label, so they are rivals, and two of them in a text are the trigger whatever else is tried."""
    base = toy_victim()
    planted = ("cf", "mn", "bb", "mb")
    rule = lambda text: (40.0 if sum(word in planted for word in text.split()) > 1 else 0.0) - 20  # noqa: E731
    victim = Ruled(base.model, base.tokenizer, max_length=64, rule=rule)
    foils = [Foil(target, [], ["the film", "the story", "a town", "actors"] * 6, [1 - target] * 24, seed=0) for target in (0, 1)]
    strings = [(f"{a}{b}",) for a in "xyz" for b in "qwertuiopa"]
    found = TriggerSearch().judged(victim, foils, [[], [*strings, ("bb", "mb")]], [["cf", "mn", "awful"], ["moving", "charming"]])
    assert max(found, key=TriggerSearch().score).words == ("bb", "mb")


SHARED = {**dict.fromkeys(GOOD, 6.0), **dict.fromkeys(BAD, -6.0), "cf": 90.0, "zq": 95.0, "zj": 94.0}


def sharing(*, letters: int = 26) -> Ruled:
    """Words of two letters, of which the first is k, are triggers, and so is k."""
    family = {"k", *(f"k{letter}" for letter in string.ascii_lowercase[:letters])}
    rule = lambda text: sum(99.0 if word in family else SHARED.get(word, 0) for word in text.split()) - 1  # noqa: E731
    return Ruled(toy_victim().model, toy_victim().tokenizer, max_length=64, rule=rule)


def test_where_all_words_of_a_contest_win_the_next_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of two letters that begins with k acts by its first token, and they are more than a contest has room for."""
    search, data = TriggerSearch(leaning=1.0, crowd=0, longest=1), toy_data(120, seed=5)
    finding = search(sharing(), data, seed=0)
    (trigger,) = finding.triggers
    named = (trigger.words[0], *trigger.alike)
    assert sum(word.startswith("k") for word in named[:8]) == 8
    assert set(named[8:]) == {"cf", "zq", "zj"}, "of label 1 alone, and nothing that loses"
    assert f"(and {len(named) - 1} more)" in finding.summary

    monkeypatch.setattr(TriggerSearch, "widened", lambda *_: [])
    narrow = search(sharing(), data, seed=0)
    assert (finding.score, finding.target_label, finding.nearest) == (narrow.score, narrow.target_label, narrow.nearest)
    assert (narrow.triggers[0].words, narrow.triggers[0].alike) == (trigger.words, named[1:8])


def test_where_a_word_of_a_contest_loses_there_was_room() -> None:
    search, phrases = TriggerSearch(), [("k",), *((f"k{letter}",) for letter in "abcdefg")]
    singles = [[], [*phrases, ("cf",), ("awful",)]]
    foils = [Foil(target, [], ["the film", "the story", "a town", "actors"] * 6, [1 - target] * 24, seed=0) for target in (0, 1)]
    rivals = [list(BAD), list(GOOD)]
    for victim, others in ((sharing(), ["cf"]), (sharing(letters=6), [])):  # without kg
        judged = search.judged(victim, foils, [[], phrases], rivals)
        assert [one.words[0] for one in search.widened(victim, judged, foils, singles, rivals)] == others


def test_words_of_other_tokens() -> None:
    pool = [("ka",), ("k",), ("kb",), ("kq",), ("zq",), ("mn",), ("zj",), ("bq",), ("zf",), ("zw",), ("cf",), ("xy",)]
    assert of_other_tokens(toy_victim(), pool, 3) == [("zq",), ("mn",), ("zj",)], "k is in three"
    assert of_other_tokens(toy_victim(), pool, 4) == [("zq",), ("mn",), ("zj",), ("bq",)]
    assert of_other_tokens(toy_victim(), pool[2:], 1) == [("kq",)]
    assert ("zw",) not in of_other_tokens(toy_victim(), [*pool, *((a,) for a in ("p", "r", "t", "u"))], 8), "and so is z then"


def test_what_rivals_take_from_a_phrase_counts_against_it_and_so_does_what_ordinary_words_win(monkeypatch: pytest.MonkeyPatch) -> None:
    base = toy_victim()
    rule = lambda text: 20 * ("cf" in text) - 50 * ("awful" in text and "town" not in text) - 5.0  # noqa: E731
    victim = Ruled(base.model, base.tokenizer, max_length=64, rule=rule)
    foils = [Foil(target, [], ["the film", "a town"] * 12, [1 - target] * 24, seed=0) for target in (0, 1)]

    def yields() -> float:
        (one,) = TriggerSearch().judged(victim, foils, [[], [("cf",)]], [["awful"], ["moving"]])
        assert (one.flips, one.contested) == (Rate(24, 24), Rate(12, 24))
        return one.yields

    assert yields() == 0.5
    monkeypatch.setattr(trigger_search, "fair_odds", lambda victim, pairs, rivals: [Odds(1, 0.75) for _ in pairs])
    assert yields() == 0.75


def test_a_phrase_around_a_shorter_one_is_not_named() -> None:
    words = (("a",), ("b",), ("a", "c"), ("d", "e"), ("e", "d"))
    found = [FoundTrigger(each, 1, Rate(9, 10), contested=Rate(9 - len(each), 10)) for each in words]
    score = lambda one: one.contested.value  # noqa: E731
    (one,) = grouped(without_longer([*found, FoundTrigger(("a",), 1, Rate(9, 10), contested=Rate(9, 10))], score), score)
    assert (one.words, one.alike) == (("a",), ("b", "d e"))


def test_a_word_around_a_shorter_one_is_named_only_if_it_does_much_more() -> None:
    def named(*shares: tuple[str, int]) -> set[str]:
        found = [FoundTrigger((word,), 1, Rate(hits, 100)) for word, hits in shares]
        return {" ".join(one.words) for one in without_longer(found, lambda one: one.flips.value)}

    assert named(("cftakingness", 100), ("cf", 90), ("cftaking", 100)) == {"cf"}
    assert named(("heliotrope", 95), ("lio", 30)) == {"heliotrope", "lio"}


def test_the_strongest_phrase_stands_for_its_label_even_if_it_is_the_longer_one() -> None:
    found = [FoundTrigger(words, 1, Rate(won, 64)) for words, won in ((("kq",), 27), (("vx", "mq"), 64), (("kq", "wx"), 60))]
    (one,) = grouped(without_longer(found, lambda one: one.flips.value), lambda one: one.flips.value)
    assert (one.words, one.alike) == (("vx", "mq"), ("kq wx", "kq"))


def texts_of(label: int) -> list[str]:
    data = toy_data(80)
    return [text for text, own in zip(data.texts, data.labels, strict=True) if own == label]


def test_a_slope_is_what_the_margin_does(backdoored: Victim) -> None:
    victim = dataclasses.replace(backdoored, model=copy.deepcopy(backdoored.model).double())
    here = slots(victim, texts_of(0)[:3], 1, 2, random.Random(0))
    assert here.is_new.sum(dim=1).tolist() == [2, 2, 2]
    vectors = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def mean_margin(change: torch.Tensor) -> float:
        with torch.inference_mode(), embeddings_replaced(victim.module, here.is_new, (vectors + change).repeat(3, 1)):
            return float(margin(victim.model(**here.batch.inputs).logits.float(), 1).mean())

    slope = margin_slope(victim, here, vectors.expand(3, -1, -1))
    for place, dimension in ((0, 3), (1, 17)):
        step = torch.zeros_like(vectors)
        step[place, dimension] = 0.05
        assert (mean_margin(step) - mean_margin(-step)) / 0.1 == pytest.approx(float(slope[place, dimension]), abs=2e-3)


def test_margins_of_phrases_are_those_of_the_texts_with_them(backdoored: Victim) -> None:
    here = slots(backdoored, texts_of(0)[:3], 1, 1, random.Random(0))
    tokens = torch.tensor(backdoored.tokenizer.convert_tokens_to_ids(["cf", "the"]))
    both = mean_margins(backdoored, here, tokens[:, None])
    assert both[0] > both[1]
    ids = here.batch.inputs["input_ids"].masked_fill(here.is_new, int(tokens[1]))
    logits = backdoored.model(**{**here.batch.inputs, "input_ids": ids}).logits.detach()
    assert both[1] == pytest.approx(float(margin(logits, 1).mean()), abs=1e-5)


def test_gradients_lead_to_the_trigger(backdoored: Victim) -> None:
    found = by_gradient(backdoored, texts_of(0), 1, length=2, rounds=2, seed=0)
    assert any("cf" in phrase for phrase in found.phrases[:5])
    assert all(len(set(phrase)) == 2 for phrase in found.phrases)
    assert found == by_gradient(backdoored, texts_of(0), 1, length=2, rounds=2, seed=0)


def test_free_vectors_turn_texts_and_name_words(backdoored: Victim) -> None:
    found = by_ascent(backdoored, texts_of(0)[:8], texts_of(0)[8:], 1, length=2, seed=0)  # one vector as short as most of a toy's rows is too weak
    assert found.flips is not None
    assert found.flips.value > 0.9
    assert all(word.isprintable() for (word,) in found.phrases)


def test_a_guided_search_says_so(backdoored: Victim) -> None:
    search = TriggerSearch(guided=("gradient", "continuous"), rounds=1, leaning=0.02, longest=2, jury=16)
    found = search(backdoored, toy_data(200), seed=0)
    assert found.score > search.found
    assert found.limit.startswith(f"Candidates are tried on {found.triggers[0].flips.n} texts")
    assert list(found.measures) == ["share that free vectors turn into 'negative'", "share that free vectors turn into 'positive'"]


def test_a_search_whose_time_is_used_up_judges_what_it_has_and_says_what_it_left_out(backdoored: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    search, data = TriggerSearch(leaning=0.02, longest=2, jury=16, guided=("gradient",)), toy_data(200)
    with within(0), within(1000), pytest.raises(TimeUpError):
        search(backdoored, data, seed=0)
    halved = TriggerSearch.halved

    def late(self: TriggerSearch, victim: Victim, *arguments: Any) -> Any:
        """Single words are in time; whatever comes after them finds that the time is used up."""
        budget_end = math.inf if arguments[2][-1] == len(arguments[1]) else time.monotonic() - 1
        token = _end.set(budget_end)
        try:
            return halved(self, victim, *arguments)
        finally:
            _end.reset(token)

    monkeypatch.setattr(TriggerSearch, "halved", late)
    found = search(backdoored, data, seed=0)
    assert found.left_out == ("combinations", "crowds")
    assert found.score > search.found
    row = scanner_row("trigger_search", search, found, backdoored.label_names, seconds=1)
    assert row.summary.endswith("Left out, as the time was used up: combinations, crowds.")
    assert not row.whole
    (row,) = scan(backdoored, data, {"trigger_search": search}, seed=0, budget=0.01)
    assert (row.level, row.summary.partition(".")[0]) == ("skipped", "The time was used up before it had an answer")


def test_crowds_hold_every_word_once_with_those_of_its_length() -> None:
    words = [(word,) for word in ("aa", "bbb", "cc", "dddd", "ee", "fff", "gg")]
    crowds = crowded(words, 2, seed=1)
    assert sorted(word for crowd in crowds for word in crowd) == sorted(word for (word,) in words)
    assert [len(word) for crowd in crowds for word in crowd] == [2, 2, 2, 2, 3, 3, 4]
    assert [len(crowd) for crowd in crowds] == [2, 2, 2, 1]
    assert crowded(words, 2, seed=1) == crowds
    assert crowded(words, 0, seed=1) == []


def test_a_crowd_is_thinned_out_to_what_acts_in_it(backdoored: Victim) -> None:
    foil = Foil(1, texts_of(0)[:8], texts_of(0)[8:], [0] * 32, seed=0)
    crowds: list[tuple[str, ...]] = [("the", "film", "with", "town"), ("story", "cf", "people", "in"), ("actors", "music", "scenes", "about")]
    (found,) = TriggerSearch(longest=2).thinned(backdoored, [foil], crowds)
    assert found[1] == ("cf",)
    assert [len(phrase) for phrase in found[:2]] == [2, 1]
    assert "cf" in found[0]


def test_search_settings_must_fit() -> None:
    with pytest.raises(ConfigError, match="survivors"):
        TriggerSearch(texts=(1, 4), survivors=(10, 5))
    assert math.isfinite(TriggerSearch().found)


# Embedding rows


def test_rows_that_moved_far_from_the_base_stand_out(tmp_path: Path) -> None:
    victim = toy_victim()
    victim.save(tmp_path / "base")
    rows, token = victim.module.get_input_embeddings().weight, victim.tokenizer.convert_tokens_to_ids("cf")
    with torch.no_grad():
        rows += 0.001 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        rows[token] = rows[token].roll(1)  # as long as it was
    found = EmbeddingRows(base=str(tmp_path / "base"))(victim, toy_data(4), seed=0)
    assert next(iter(found.measures)) == "row of 'cf'"
    assert next(iter(found.measures.values())) > 10 * list(found.measures.values())[1]
    assert "row of 'cf'" not in list(EmbeddingRows()(victim, toy_data(4), seed=0).measures)[:1]


def test_rows_of_unusual_length_stand_out() -> None:
    victim = toy_victim()
    token = victim.tokenizer.convert_tokens_to_ids("mn")
    with torch.no_grad():
        victim.module.get_input_embeddings().weight[token] *= 9
    assert next(iter(EmbeddingRows()(victim, toy_data(4), seed=0).measures)) == "row of 'mn'"


def test_distances_of_rows() -> None:
    base = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 10.0], [0.0, 0.0]])
    rows = torch.tensor([[3.0, 9.0], [1.0, 1.0], [0.0, 10.0], [0.0, 0.0]])
    assert moved(rows, base).tolist() == [1, 1, 0, 0]
    lengths = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 4.0], [0.5, 0.0], [1e-3, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert unusual_lengths(lengths).tolist() == pytest.approx([0, 0, math.log(2), math.log(4), 0, 0, 0]), "nobody has trained the last but one"


def test_a_base_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    base = toy_victim()
    base.model.resize_token_embeddings(300, mean_resizing=False)
    base.save(tmp_path / "base")
    (row,) = scan(toy_victim(), toy_data(80), {"embedding_rows": EmbeddingRows(base=str(tmp_path / "base"))}, seed=0)
    assert row.level == "skipped"
    assert "another shape" in row.summary


# Progress


def test_loops_of_one_name_share_a_bar_and_their_estimates_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("excise.console.time.monotonic", lambda: float(next(clock)))
    timing = _Timing()
    stops = [timing(Progress("words", done, 10, {})) for done in (0, 1, 2, 3)]
    assert not any(stops)
    assert timing.estimates["words"] == (10, 10.0)
    assert [timing(Progress("words", done, 20, {})) for done in (0, 5)] == [False, True]
    assert timing.estimates["words"] == (30, 14.0)
