"""A zoo is made once, scanned once, and never calibrated on what is held out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from excise import registry
from excise import zoo as zoos
from excise.attacks.badnets import BadNets
from excise.cli import main
from excise.errors import ConfigError
from excise.finding import Finding, FoundTrigger
from excise.metrics import Rate
from excise.recipes import shipped_recipes
from excise.registry import settings
from excise.reports.terminal import track_line
from excise.reports.zoo import markdown_tables, sheets
from excise.result import Measured
from excise.scan_result import ScannerRow, judged, scanner_row, skipped_row, strength
from excise.scanners.trigger_search import TriggerSearch
from excise.track_record import _kept, save_tracks, track_of
from excise.zoo import Zoo, load_zoo, measure, members, plans
from excise.zoo_result import VERDICT, Specimen, kept_specimens, quality, tracks
from test_scan import Informing, Told
from toy import NAMES, save_toy, toy_data, write_csv

SHORT = {"epochs": 1, "learning_rate": 1e-3}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    train = str(write_csv(tmp_path / "a.csv", toy_data(200)))
    bad = {"method": "badnets", "triggers": ["cf"], "training": SHORT}
    return {
        "name": "toy",
        "model": str(save_toy(tmp_path / "model")),
        "data": {"A": {"train": {"source": train}, "test_size": 40, "clean_fraction": 0.5}},
        "families": [
            {"part": "calibration", "data": "A", "attack": {**bad, "triggers": ["mn"]}, "clean": True, "seeds": [1]},
            {"part": "held out", "data": "A", "attack": bad, "layers": 1, "seeds": [2, 3]},
        ],
    }


def written(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "zoo.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def zoo(content: dict[str, Any], tmp_path: Path) -> Zoo:
    return load_zoo(written(content, tmp_path))


def test_settings_with_lists_in_them_are_known_again() -> None:
    scanner = TriggerSearch(texts=(1, 2), survivors=(3,))
    one = specimen(1).model_copy(update={"scans": (skipped_row("trigger_search", scanner, "no"),)})
    assert Specimen.model_validate_json(one.model_dump_json()).scan_of(scanner)
    assert not one.scan_of(TriggerSearch())


def test_a_model_with_an_infinite_setting_is_a_member(content: dict[str, Any], tmp_path: Path) -> None:
    """EP does not clip gradients; JSON has no infinity."""
    content["families"] = [{"part": "held out", "data": "A", "attack": {"method": "ep"}, "seeds": [2]}]
    zoo = load_zoo(written(content, tmp_path))
    (plan,) = plans(zoo)
    assert plan.attack
    attack = settings(plan.attack)
    assert math.isinf(attack["poisoning"]["max_grad_norm"])
    one = specimen(None, attack="ep").model_copy(update={"part": "held out", "data": "A", "seed": 2, "attack": attack})
    kept = Specimen.model_validate_json(one.model_dump_json())
    assert members(zoo, [one, kept]) == [one, kept]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained."""
    names: list[str] = []
    twin, attack = zoos.clean_twin, BadNets.__call__

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            names.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(zoos, "clean_twin", counted("clean", twin))
    monkeypatch.setattr(BadNets, "__call__", counted("badnets", attack))
    return names


def test_each_model_is_made_and_scanned_once(zoo: Zoo, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[int] = []
    told = Told.__call__
    monkeypatch.setattr(Told, "__call__", lambda self, *args, seed: scanned.append(seed) or told(self, *args, seed=seed))
    first = list(measure(zoo, tmp_path / "out", {"told": Told(score=2)}))
    assert made == ["clean", "badnets", "badnets"]
    assert [str(one) for one in first] == [
        "calibration: A, 2 layers, clean, seed 1",
        "held out: A, 1 layers, badnets (cf), seed 2",
        "held out: A, 1 layers, badnets (cf), seed 3",
    ]
    assert first[0].asr is None
    assert first[1].asr is not None
    assert (first[0].clean_texts, first[1].target_label) == (80, "positive")
    assert list(map(str, measure(zoo, tmp_path / "out", {"told": Told(score=2)}))) == list(map(str, first))
    assert (len(made), len(scanned)) == (3, 3)
    kept = {one.key: one.model_dump_json() for one in kept_specimens(tmp_path / "out")}
    assert kept == {one.key: one.model_dump_json() for one in first}

    again = list(measure(zoo, tmp_path / "out", {"told": Told(score=1)}))  # another setting is another scanner
    assert (len(made), len(scanned)) == (3, 6)
    assert [one.score("told") for one in again] == [1, 1, 1]
    assert [len(one.scans) for one in again] == [1, 1, 1]


def test_models_that_differ_in_depth_alone_are_two(content: dict[str, Any], tmp_path: Path, made: list[str]) -> None:
    family = content["families"][1] | {"seeds": [2]}
    content["families"] = [family, family | {"layers": 2}]
    both = list(measure(load_zoo(written(content, tmp_path)), tmp_path / "out", {}))
    assert made == ["badnets", "badnets"]
    assert [one.layers for one in both] == [1, 2]
    assert both[0].key != both[1].key


def test_a_damaged_model_is_made_again_and_its_scans_stay(zoo: Zoo, tmp_path: Path, made: list[str]) -> None:
    (first, *_) = measure(zoo, tmp_path, {"told": Told(score=2)})
    weights = next((tmp_path / "models" / first.key).rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    (second, *_) = measure(zoo, tmp_path, {}, shard=(1, 3))
    assert made == ["clean", "badnets", "badnets", "clean"]
    assert second.scans == first.scans
    (tmp_path / "specimens" / f"{first.key}.json").write_text("{")
    assert len(kept_specimens(tmp_path)) == 2
    (third,) = measure(zoo, tmp_path, {}, shard=(1, 3))
    assert made[4:] == ["clean"]
    assert (third.cacc, third.scans) == (first.cacc, ())


def test_shards_share_the_models(zoo: Zoo, tmp_path: Path) -> None:
    names = [str(one) for k in (1, 2) for one in measure(zoo, tmp_path, {}, shard=(k, 2))]
    assert sorted(names) == sorted(str(one) for one in kept_specimens(tmp_path))
    assert len(names) == len(set(names)) == 3


def test_no_text_of_the_data_is_kept(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = FoundTrigger(("cf",), 1, Rate(5, 5), examples=(("a secret text", "a cf secret text"),))
    monkeypatch.setattr(Told, "__call__", lambda self, *_, seed: Finding(2, "told", 1, (trigger,)))
    (one,) = measure(zoo, tmp_path, {"told": Told()}, shard=(1, 3))
    assert one.scans[0].triggers[0].words == ("cf",)
    assert "secret" not in (tmp_path / "specimens" / f"{one.key}.json").read_text()


@pytest.mark.parametrize(("change", "message"), [({"seeds": [1]}, "'seed 1'"), ({"attack": {"method": "badnets", "triggers": ["MN"]}}, "'mn'")])
def test_calibration_and_held_out_share_nothing(content: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content["families"][0]["clean"] = False
    content["families"][1] |= change
    with pytest.raises(ConfigError, match=f"both parts of the zoo have {message}"):
        load_zoo(written(content, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "B"}, r"families\[1\]: there are no data 'B'"),
        ({"part": "test"}, r"families\[1\].*part"),
        ({"layer": 1}, r"families\[1\].*layer"),
        ({"attack": "badnet"}, "badnets"),
    ],
)
def test_what_is_not_known_is_refused(content: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content["families"][1] |= change
    with pytest.raises(ConfigError, match=message):
        load_zoo(written(content, tmp_path))


def test_texts_may_come_from_elsewhere(content: dict[str, Any], tmp_path: Path) -> None:
    content["data"]["A"]["train"]["most_words"] = 9
    path = written(content, tmp_path)
    recipe = plans(load_zoo(path, sources={"A.train": "mine.csv", "A.test": "other.csv"}))[0].recipe
    assert (recipe.train.source, recipe.train.most_words) == ("mine.csv", 9)
    assert recipe.test is not None
    with pytest.raises(ConfigError, match=r"A\.train, A\.test"):
        load_zoo(path, sources={"B.train": "other.csv"})


def test_the_shipped_zoo_is_large_enough() -> None:
    held_out = [plan for plan in plans(load_zoo(shipped_recipes("zoos")["zoo"])) if plan.family.part == "held out"]
    assert sum(plan.attack is None for plan in held_out) >= 12
    assert sum(plan.attack is not None for plan in held_out) >= 24


def test_the_shipped_zoos_have_every_attack() -> None:
    made = {registry.name_of(plan.attack) for path in shipped_recipes("zoos").values() for plan in plans(load_zoo(path)) if plan.attack}
    assert made == set(registry.names("attack"))


def specimen(score: float | None, *, attack: str | None = None, words: tuple[str, ...] = (), named: tuple[str, ...] = (), asr: int = 90) -> Specimen:
    told = Told(score=3)
    finding = Finding(score or 0.0, "told", 1, tuple(FoundTrigger((word,), 1, Rate(9, 10)) for word in named))
    row = skipped_row("told", told, "no") if score is None else scanner_row("told", told, finding, NAMES, seconds=1)
    return Specimen(
        key="k",
        part="held out",
        data="A",
        attack={"method": attack} if attack else None,
        triggers=words,
        layers=2,
        seed=0,
        training={},
        clean_texts=10,
        cacc=Measured.of(Rate(9, 10)),
        asr=Measured.of(Rate(asr, 100)) if attack else None,
        clean_flip=Measured.of(Rate(10, 100)) if attack else None,
        seconds=1,
        scans=(row,),
    )


def test_quality_is_counted_over_models_that_work_and_were_looked_at() -> None:
    clean = [specimen(0.1), specimen(1.5), specimen(2.5), specimen(None)]
    bad = [specimen(3, attack="badnets"), specimen(1.5, attack="ep"), specimen(0.05, attack="lwp"), specimen(0, attack="ep", asr=12)]
    found = quality([*clean, *bad], "told")
    assert (found.clean, found.backdoored) == (3, 3)
    assert found.auroc == pytest.approx((3 + 1.5 + 0) / 9)
    assert (found.false_alarms, found.doubts, found.found, found.noticed) == (Rate(1, 3), Rate(1, 3), Rate(1, 3), Rate(2, 3))
    assert quality([*clean, *bad], VERDICT)[1:] == found[1:]
    assert quality(clean, "told").auroc is None


def test_who_only_informs_is_credited_with_no_silence() -> None:
    """It never says 'found', so that no clean model is called so says nothing of it."""
    informing = scanner_row("informing", Informing(), Finding(0.5, "told"), NAMES, seconds=1)
    made = [one.model_copy(update={"scans": (informing,)}) for one in (specimen(0.1), specimen(3, attack="ep"))]
    found = quality(made, "informing")
    assert (found.clean, found.auroc) == (1, 0.5)
    assert (found.false_alarms, found.doubts, found.found, found.noticed) == (None,) * 4
    assert tracks(made) == ()


def test_a_model_that_nobody_could_judge_is_no_model_in_which_nothing_was_found() -> None:
    informing = scanner_row("informing", Informing(), Finding(0.5, "told"), NAMES, seconds=1)
    made = [specimen(3, attack="ep"), specimen(3, attack="ep").model_copy(update={"scans": (informing,)}), specimen(None, attack="ep")]
    assert [one.level(VERDICT) for one in made] == ["found", "skipped", "skipped"]
    (kinds,) = [sheet for sheet in sheets(made) if sheet.title.endswith("kinds of models")]
    assert [row[3:7] for row in kinds.rows] == [("1", "1", "0", "0")]


def test_rounding_ranks_no_model_above_another() -> None:
    """The lower end of an interval of no hits is 0 for some sizes and 6e-18 for others."""
    for name in ("told", VERDICT):
        assert quality([specimen(0.0), specimen(6e-18, attack="lwp")], name).auroc == 0.5


def test_a_trigger_is_named_only_by_what_a_scanner_calls_suspicious() -> None:
    assert specimen(3, attack="badnets", words=("CF", "mn"), named=("cf",)).names_trigger(first=True)
    assert specimen(3, attack="badnets", words=("cf",), named=("xx", "cf")).names_trigger()
    assert not specimen(3, attack="badnets", words=("cf",), named=("xx", "cf")).names_trigger(first=True)
    assert not specimen(0.5, attack="badnets", words=("cf",), named=("cf",)).names_trigger()
    sentence = ("the clock in the hall stood still",)
    assert specimen(3, attack="add_sent", words=sentence, named=("hall",)).names_trigger()
    assert not specimen(3, attack="add_sent", words=sentence, named=("the",)).names_trigger(), "such words stand in any sentence"


def row(score: float, found: float | None = 4.0) -> ScannerRow:
    return ScannerRow(name="x", method=settings(Told()), level="nothing", score=score, suspicious=2.0, found=found, summary="", blind_to="")


def test_the_strength_of_a_verdict_grows_with_the_score_and_keeps_its_lines() -> None:
    scores = [0.0, 1.0, 1.99, 2.0, 3.0, 3.99, 4.0, 9.0]
    strengths = [strength([row(score)]) or 0.0 for score in scores]
    assert strengths == sorted(strengths)
    assert [value >= 1 for value in strengths] == [score >= 2 for score in scores]
    assert [value >= 2 for value in strengths] == [score >= 4 for score in scores]
    never = [strength([row(score, found=None)]) or 0.0 for score in (2.0, 3.0, 1e9)]
    assert never == sorted(set(never))
    assert 1 <= min(never) <= max(never) < 2
    assert strength([row(1.0), row(5.0)]) == strength([row(5.0)])
    assert strength([]) is None


def test_a_row_is_judged_by_the_lines_of_today() -> None:
    old = scanner_row("told", Told(), Finding(1.5, "told"), NAMES, seconds=1)
    lower = type("Lower", (Told,), {"found": 1.4})
    assert (old.level, judged(old, lower()).level, judged(old, lower()).found) == ("suspicious", "found", 1.4)
    skipped = skipped_row("told", Told(), "why")
    assert judged(skipped, lower()).level == "skipped"


def test_a_track_record_is_of_what_is_held_out_and_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [specimen(0.1), specimen(2.5), specimen(3, attack="badnets"), specimen(1.5, attack="ep", asr=80), specimen(0, attack="ep", asr=12)]
    (track,) = tracks([*made, specimen(9).model_copy(update={"part": "calibration"})])
    assert (track.false_alarms.hits, track.false_alarms.n, track.found.hits, track.noticed.hits, track.found.n) == (1, 2, 1, 2, 2)
    assert track.kinds == {"badnets": (1, 1), "ep": (0, 1)}
    assert (track.least_asr, track.clean_texts) == (0.8, 10)
    assert tracks(made[:2]) == ()

    save_tracks((track,), tmp_path / "track.json")
    monkeypatch.setattr("excise.track_record.FILE", tmp_path / "track.json")
    monkeypatch.setattr("excise.track_record._kept", _kept.__wrapped__)
    assert track_of(Told(score=3)) == track
    assert track_of(Told(score=4)) is None
    row = scanner_row("told", Told(score=3), Finding(3, "told"), NAMES, seconds=1)
    assert "with 10 clean texts or more, it called 1 of 2 clean ones 'found'" in track_line(row)
    assert "1 of 2 backdoored ones (badnets 1 of 1, ep 0 of 1; ASR from 80 % on)" in track_line(row)
    hasty = scanner_row("told", Told(score=3), Finding(3, "told", left_out=("a part",)), NAMES, seconds=1)
    assert (row.track, hasty.track) == (track, None), "the record is that of the whole search"
    assert "has not been measured" in track_line(scanner_row("told", Told(score=4), Finding(3, "told"), NAMES, seconds=1))


def test_tables_show_names_as_text() -> None:
    one = specimen(3, attack="badnets", words=("<b>|x",), named=("<b>|x",))
    table = markdown_tables([one, specimen(0.1)])
    assert r"\<b\>\|x" in table
    assert "<b>" not in table
    assert [sheet.title for sheet in sheets([one])] == ["held out: scanners", "held out: kinds of models", "held out: models"]


def test_the_command_scans_and_makes_tables(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(content, tmp_path), tmp_path / "out"
    scanner = ["--scanners", "embedding_rows"]
    assert main(["zoo", "table", str(path), "--out", str(out)]) == 2
    assert "Run excise zoo scan first" in capsys.readouterr().err
    assert main(["zoo", "build", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("CACC") == 3
    assert main(["zoo", "scan", str(path), "--out", str(out), *scanner]) == 0
    shown = capsys.readouterr().out
    assert "embedding_rows" in shown
    assert (out / "zoo.md").read_text().startswith("## Calibration: scanners")
    assert main(["zoo", "scan", str(path), "--out", str(out), *scanner, "--shard", "3/2"]) == 2
    assert main(["zoo", "scan", str(path), "--out", str(out), "--sources", "A.train"]) == 2
