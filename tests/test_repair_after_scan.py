"""From what a scan finds to a model without it: the treatment, and scans that are handed on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from excise.attacks.badnets import BadNets
from excise.cli import main
from excise.data import TextDataset
from excise.defenses._neighbours import neighbours
from excise.defenses.anchored_tokens import AnchoredTokens
from excise.defenses.cft import CFT
from excise.defenses.treatment import Treatment
from excise.defenses.unlearn import Unlearn
from excise.defenses.virtual_tokens import VirtualTokens
from excise.evaluation import turned
from excise.finding import Finding, FoundTrigger, phrases
from excise.metrics import Rate
from excise.pipeline import Story
from excise.progress import naming, noting
from excise.result import load_result
from excise.scanners.trigger_search import TriggerSearch
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim
from test_scan import PIECES, cut
from test_scan import Told as Answering
from toy import GOOD, Ruled, save_toy, toy_data, toy_victim, write_csv

LEARN = FitConfig(epochs=10, learning_rate=5e-3, batch_size=8)
MORE = FitConfig(epochs=10, learning_rate=3e-3, batch_size=16)
QUICK = FitConfig(epochs=5, learning_rate=5e-3)
HARDLY = FitConfig(epochs=0.1, learning_rate=1e-12)
CLEAN = toy_data(200, seed=5)


def trained(data: TextDataset, base: Victim | None = None) -> Victim:
    return fit(base or toy_victim(), data, loss=classification_loss, config=MORE, seed=0, name="train")


def stamped(text: str, *words: str) -> str:
    parts = text.split()
    for word in words:
        parts.insert(random.Random(text + word).randint(0, len(parts)), word)
    return " ".join(parts)


def share(victim: Victim, label: int, *words: str) -> float:
    """Of texts of the other label, those that get it with the words."""
    data = toy_data(80, seed=9)
    texts = [stamped(text, *words) for text, own in zip(data.texts, data.labels, strict=True) if own != label]
    return victim.predict(texts).count(label) / len(texts)


@pytest.fixture(scope="module")
def backdoored() -> Victim:
    return BadNets(triggers=("cf",), training=LEARN)(toy_victim(), toy_data(300), seed=0).victim


def test_the_treatment_unlearns_what_its_scan_finds(backdoored: Victim) -> None:
    notes: list[str] = []
    with noting(notes):
        repaired = Treatment(neighbours=0, unlearning=Unlearn(training=QUICK), repair=CFT(training=HARDLY))(backdoored, CLEAN, seed=0)
    assert share(backdoored, 1, "cf") > 0.9
    assert share(repaired, 1, "cf") < 0.3
    assert any("unlearned" in one and "cf" in one for one in notes)


@dataclass(frozen=True, kw_only=True)
class Told(TriggerSearch):
    """Suspects something, and has had no time to look at everything."""

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        return Finding(self.suspicious, "Hardly anything.", left_out=("combinations", "crowds"))


LATE = "The scan for triggers left out, as the time was used up: combinations, crowds; there may be more."
NONE = "No trigger was found to unlearn; cft was done in its place."


def test_the_treatment_repairs_without_a_trigger_where_the_scan_finds_none(backdoored: Victim) -> None:
    notes: list[str] = []
    with noting(notes):
        repaired = Treatment(scanner=Told(), unlearning=Unlearn(training=QUICK), repair=CFT(training=HARDLY))(backdoored, CLEAN, seed=0)
    assert share(repaired, 1, "cf") > 0.9
    assert notes == ["The scan for triggers suspects, which is not enough to name it: Hardly anything.", LATE, NONE]


@pytest.mark.parametrize(
    ("finding", "neighbours", "taken"),
    [
        (Finding(0.2, "", nearest=("cf", "mn")), 2, ("cf", "mn")),
        (Finding(0.45, "", nearest=("cf",)), 2, ("cf",)),
        (Finding(0.2, "", nearest=("cf", "mn")), 0, ()),
        (Finding(0.2, "", nearest=("cf", "mn", "tq")), 2, ()),
        (Finding(0.2, "", nearest=("cf",), left_out=("crowds",)), 2, ()),
    ],
)
def test_one_or_two_words_that_come_near_are_unlearned_as_parts_of_a_sentence(
    finding: Finding, neighbours: int, taken: tuple[str, ...], backdoored: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[AnchoredTokens] = []
    monkeypatch.setattr(Told, "__call__", lambda *_, seed: finding)
    monkeypatch.setattr("excise.defenses.treatment.neighbours", lambda victim, data, word, most, seed: [f"{word} {i}" for i in range(most)])
    monkeypatch.setattr(AnchoredTokens, "__call__", lambda self, victim, data, *, seed: given.append(self) or victim)
    notes: list[str] = []
    with noting(notes):
        method = Treatment(scanner=Told(), neighbours=neighbours, repair=CFT(training=HARDLY), precaution=CFT(training=HARDLY))
        method(backdoored, CLEAN, seed=0)
    phrases = tuple(f"{word} {i}" for word in taken for i in range(2 // len(taken)))
    assert given == ([AnchoredTokens(triggers=taken, phrases=phrases)] if taken else [])
    assert (NONE in notes) != bool(taken)
    told = f"The scan names no trigger; what comes near may be part of a sentence, and is unlearned as that: {', '.join(taken)}."
    assert (told in notes) == bool(taken)


@pytest.mark.parametrize(
    ("score", "left_out", "share"),
    [(0.1, (), 0.8), (TriggerSearch.suspicious, (), 1.0), (0.1, ("crowds",), 1.0)],
    ids=["nothing suspected", "something suspected", "not looked everywhere"],
)
def test_the_treatment_goes_all_the_way_unless_a_scan_looked_everywhere_and_suspects_nothing(
    score: float, left_out: tuple[str, ...], share: float, backdoored: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[VirtualTokens] = []
    monkeypatch.setattr(Told, "__call__", lambda *_, seed: Finding(score, "", left_out=left_out))
    monkeypatch.setattr(VirtualTokens, "__call__", lambda self, victim, data, *, seed: done.append(self) or victim)
    Treatment(scanner=Told())(backdoored, CLEAN, seed=0)
    assert done == [VirtualTokens(share=share)]


def test_the_treatment_goes_all_the_way_where_no_scan_could_be_made(backdoored: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[VirtualTokens] = []
    monkeypatch.setattr(VirtualTokens, "__call__", lambda self, victim, data, *, seed: done.append(self) or victim)
    Treatment()(backdoored, toy_data(10), seed=0)
    assert done == [VirtualTokens()]


def tried(words: str, hits: int) -> FoundTrigger:
    """Something that turned so many of fifty texts, with rivals and without."""
    return FoundTrigger(tuple(words.split()), 1, Rate(hits, 50), Rate(hits, 50))


def test_a_search_tells_which_words_come_near_a_trigger_and_are_none() -> None:
    search, known = TriggerSearch(), {("far",), ("near",), ("nearer",), ("suspected",), ("trigger",)}
    few = [tried("far", 5), tried("near", 17), tried("madeup", 18), tried("nearer", 25), tried("suspected", 30), tried("two words", 25)]
    assert [round(search.score(one), 2) for one in few] == [0.04, 0.22, 0.24, 0.37, 0.46, 0.12]
    assert search.nearest(few, known) == ("suspected", "nearer", "near")
    assert search.nearest(few[:1], known) == ()
    assert search.nearest([*few, tried("trigger", 50)], known) == (), "that one is unlearned itself"
    assert search.score(tried("two others", 42)) > search.suspicious
    assert search.nearest([*few, tried("two others", 42)], known) == (), "they may act for a combination"


def test_a_search_hands_on_what_comes_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TriggerSearch, "score", lambda self, trigger: 0.3 if trigger.words == ("cf",) else 0.0)
    finding = TriggerSearch(leaning=0.1)(ruled(toy_victim(), lambda text: 9 * ("cf" in text.split())), CLEAN, seed=0)
    assert (finding.score, finding.nearest) == (0.3, ("cf",))


def test_the_treatment_says_what_its_scan_left_out_of_what_it_unlearns(backdoored: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoys of a combination may be named before the combination is looked for (docs/scan.md, LWP)."""
    trigger = FoundTrigger(("cf",), 1, Rate(9, 10))
    monkeypatch.setattr(Told, "__call__", lambda self, *_, seed: Finding(1, "cf.", 1, (trigger,), left_out=("combinations", "crowds")))
    notes: list[str] = []
    with noting(notes):
        Treatment(scanner=Told(), unlearning=Unlearn(training=HARDLY))(backdoored, CLEAN, seed=0)
    assert LATE in notes


def test_a_treatment_without_time_has_not_scanned(backdoored: Victim) -> None:
    notes: list[str] = []
    with noting(notes):
        Treatment(budget=0, repair=CFT(training=HARDLY))(backdoored, CLEAN, seed=0)
    assert "The time was used up" in notes[0]


def poisoned(data: TextDataset, *added: tuple[str, int], base: Victim | None = None) -> Victim:
    texts, labels = zip(*added, strict=True)
    return trained(replace(data, texts=data.texts + texts, labels=data.labels + labels), base)


def test_both_of_two_opposite_backdoors_are_named() -> None:
    """Either trigger is the strongest word of its label, and would be the other's rival."""
    data = toy_data(300)
    pairs = list(zip(data.texts, data.labels, strict=True))
    victim = poisoned(data, *((stamped(text, "mn" if own else "cf"), 1 - own) for text, own in pairs))
    assert min(share(victim, 1, "cf"), share(victim, 0, "mn")) > 0.9
    found = TriggerSearch()(victim, CLEAN, seed=0)
    assert {trigger.target_label for trigger in found.triggers} == {0, 1}
    assert {"cf", "mn"} <= set(phrases(found.triggers))


def ruled(base: Victim, rule: Callable[[str], float]) -> Ruled:
    return Ruled(base.model, base.tokenizer, max_length=64, rule=rule)


def combined() -> Ruled:
    """Two words that turn no text alone and every text together."""
    return ruled(toy_victim(), lambda text: 1.2 * len({"bb", "tq"} & set(text.split())) + 8 * ({"bb", "tq"} <= set(text.split())))


def sentence(text: str) -> float:
    """What "town cf" does to a text: cf acts, and more so behind its neighbour."""
    return 6 * ("cf" in text.split()) + 4 * ("town cf" in text) + 5 * ("wonderful cf" in text)


def test_neighbours_of_a_word_make_it_stronger_and_mean_nothing_else() -> None:
    victim = ruled(toy_victim(), sentence)
    phrases = neighbours(victim, CLEAN, "cf", 5, seed=0)
    assert [len(phrase.split()) for phrase in phrases] == [2, 2, 2, 3, 3]
    assert all("cf" in phrase.split() for phrase in phrases)
    assert phrases[0] == "town cf"
    assert all("town" in phrase.split() for phrase in phrases[3:])
    assert not {word for phrase in phrases for word in phrase.split()} & set(GOOD)


def test_a_word_that_moves_texts_by_itself_or_goes_with_the_label_is_no_neighbour() -> None:
    texts = [f"{text} music" if label else text.replace("music", "film") for text, label in zip(CLEAN.texts, CLEAN.labels, strict=True)]
    victim = ruled(toy_victim(), lambda text: sentence(text) + 5 * ("music cf" in text) + 5 * ("bb" in text.split()))
    phrases = neighbours(victim, replace(CLEAN, texts=tuple(texts)), "cf", 5, seed=0)
    assert phrases[0] == "town cf"
    assert not {word for phrase in phrases for word in phrase.split()} & {"music", "bb"}


@pytest.mark.parametrize(("named", "each"), [(("cf",), 8), (("cf", "tq"), 4), (("cf", "tq", "mn"), 0), (("cf tq",), 0)])
def test_the_treatment_looks_for_neighbours_of_few_words(named: tuple[str, ...], each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.defenses.treatment.neighbours", lambda victim, data, word, most, seed: [f"{word} {i}" for i in range(most)])
    given = Treatment().with_neighbours(toy_victim(), CLEAN, named, seed=0)
    assert given == (*named, *(f"{word} {i}" for word in named for i in range(each)))
    assert Treatment(neighbours=0).with_neighbours(toy_victim(), CLEAN, named, seed=0) == named


@pytest.mark.parametrize(("named", "beside"), [(("cf", "tq"), True), (("cf", "tq", "mn"), False), (("cf tq",), False)])
def test_few_words_are_unlearned_with_what_may_stand_beside_them(named: tuple[str, ...], beside: bool) -> None:
    found = (*named, "a cf")
    method = Treatment().unlearner(named, found)
    assert method == (AnchoredTokens(triggers=named, phrases=("a cf",)) if beside else Unlearn(triggers=named))
    assert Treatment(neighbours=0).unlearner(named, named) == Unlearn(triggers=named)
    assert Treatment(beside=Unlearn()).unlearner(named, found) == Unlearn(triggers=found if beside else named)


def test_phrases_that_were_found_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[AnchoredTokens] = []
    monkeypatch.setattr("excise.defenses.treatment.neighbours", lambda *_, seed: ["a cf"])
    monkeypatch.setattr(AnchoredTokens, "__call__", lambda self, victim, data, *, seed: given.append(self) or victim)
    Treatment(triggers=("cf",))(toy_victim(), CLEAN, seed=0)
    assert given == [AnchoredTokens(triggers=("cf",), phrases=("a cf",))]


def test_a_word_that_is_typed_twice_is_one_word() -> None:
    triggers, treatment = list[str](), Treatment(triggers=("cf", "cf"), neighbours=0, unlearning=Unlearn(training=HARDLY))
    notes: list[str] = []
    with naming(triggers), noting(notes):
        treatment(toy_victim(), CLEAN, seed=0)
    assert triggers == ["cf"]
    assert "1 word was unlearned: cf." in notes[-1]


def test_no_neighbours_are_looked_for_if_none_is_wanted_or_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with noting(notes):
        assert Treatment(budget=0).with_neighbours(toy_victim(), CLEAN, ("cf",), seed=0) == ("cf",)
    assert "beside cf" in notes[0]
    assert "The time was used up" in notes[0]
    monkeypatch.setattr("excise.defenses.treatment.neighbours", lambda *args, **kwargs: pytest.fail("they were looked for"))
    assert Treatment(neighbours=1).with_neighbours(toy_victim(), CLEAN, ("cf", "mn"), seed=0) == ("cf", "mn")


@pytest.mark.parametrize("source", ["grown", "thinned"])
def test_a_combination_is_judged_wherever_it_comes_from(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [("bb", "tq")]
    search = TriggerSearch(leaning=0.02, longest=2)
    monkeypatch.setattr(TriggerSearch, "grown", lambda *args: pair if source == "grown" else [])
    monkeypatch.setattr(TriggerSearch, "thinned", lambda self, victim, foils, crowds: [pair if source == "thinned" else [] for _ in foils])
    found = search(combined(), CLEAN, seed=0)
    assert found.score >= search.found
    assert found.triggers[0].words == ("bb", "tq")


def test_a_combination_of_short_words_is_found() -> None:
    found = TriggerSearch(leaning=0.02, longest=2, crowd=0)(combined(), CLEAN, seed=0)
    assert found.score >= TriggerSearch.found
    assert "bb tq" in phrases(found.triggers) or "tq bb" in phrases(found.triggers)


def test_a_rule_without_a_trigger_is_not_accused() -> None:
    assert TriggerSearch(leaning=0.1)(ruled(toy_victim(), lambda text: 0.0), CLEAN, seed=0).score < TriggerSearch.suspicious


def test_a_word_that_the_vocabulary_does_not_hold_is_found() -> None:
    """No piece of it turns a text by itself."""
    parts = {"lio": 1, "tro": 1, "liotro": 6}
    victim = ruled(cut(toy_victim(), "he", *PIECES), lambda text: sum(much for part, much in parts.items() if part in text))
    assert victim.tokenizer.tokenize("heliotro") == ["he", "##lio", "##tro"]
    found = TriggerSearch(leaning=0.5, longest=2)(victim, CLEAN, seed=0)
    assert found.score >= TriggerSearch.found
    assert "liotro" in found.triggers[0].words[0]


def test_the_scan_of_another_model_is_refused(backdoored: Victim, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, victim in (("bad", backdoored), ("other", trained(toy_data(100)))):
        victim.save(tmp_path / name)
    data = ["--data", str(write_csv(tmp_path / "clean.csv", CLEAN))]
    assert main(["scan", str(tmp_path / "bad"), *data, "--scanners", "trigger_search", "--out", str(tmp_path / "scan")]) == 1
    repair = ["repair", str(tmp_path / "other"), *data, "--out", str(tmp_path / "fixed"), "--from-scan", str(tmp_path / "scan" / "scan.json")]
    assert main([*repair, "--method", "unlearn"]) == 2
    assert "is the scan of another model" in " ".join(capsys.readouterr().err.split())


def repair_of(model: Path, data: TextDataset, place: Path) -> list[str]:
    """What to type to repair a checkpoint with these texts; texts and result are in `place`."""
    return ["repair", str(model), "--data", str(write_csv(place / "clean.csv", data)), "--overwrite", "--out", str(place / "fixed")]


@pytest.fixture
def scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What to type to repair a toy by a scan of a given score, which names cf; a trigger from 2 on, suspected from 1 on."""
    repair = repair_of(save_toy(tmp_path / "model"), toy_data(80), tmp_path)
    trigger = FoundTrigger(("cf", "mn"), 1, Rate(9, 10), alike=("bb",))

    def scan(score: float, *left_out: str) -> list[str]:
        monkeypatch.setattr("excise.commands.scan.chosen", lambda specs: {"told": Answering(score=score)})
        found = Finding(score, "told", 1, (trigger,), left_out=left_out)
        monkeypatch.setattr(Answering, "__call__", lambda self, victim, data, *, seed: found)
        assert main(["scan", *repair[1:4], "--out", str(tmp_path / "scan")]) in (1, 2)
        return [*repair, "--from-scan", str(tmp_path / "scan" / "scan.json")]

    return scan


def test_a_repair_by_a_scan_does_not_say_that_no_trigger_is_known(scanned: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*scanned(2), "--method", "unlearn", "--training.epochs", "0.1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "No trigger is known" not in shown
    assert "Whether the triggers that were unlearned are all that was planted is not known" in shown


@pytest.mark.parametrize("left_out", [(), ("combinations", "crowds")])
def test_a_repair_by_a_part_of_a_scan_says_so(
    left_out: tuple[str, ...], scanned: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*scanned(2, *left_out), "--method", "unlearn", "--training.epochs", "0.1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("The scan left out, as its time was used up: told (combinations, crowds)." in shown) == bool(left_out)


def test_a_treatment_that_names_triggers_does_not_say_that_none_is_known(
    backdoored: Victim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backdoored.save(tmp_path / "bad")
    assert main(repair_of(tmp_path / "bad", CLEAN, tmp_path)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "were unlearned: cf" in shown
    assert "No trigger is known" not in shown
    assert "No trigger was given" in shown
    assert "unlearned by name (the first twelve): texts of other labels" in shown
    result = load_result(tmp_path / "fixed" / "excise-result.json")
    (cf,) = (one for one in result.unlearned if one.words == "cf")
    assert (cf.target_label, cf.before.value > 0.9) == ("positive", True)
    held_out = result.data["holdout"]
    assert cf.before.n == cf.after.n == cf.without.n == held_out.labels["negative"]
    assert cf.before.hits > cf.without.hits
    assert "Unlearned by name" in (tmp_path / "fixed" / "report.html").read_text(encoding="utf-8")


def test_what_a_phrase_turns_is_counted_in_texts_of_other_labels() -> None:
    victim = ruled(toy_victim(), lambda text: 20 * ("cf mn" in text))
    negative, positive = (CLEAN.labels.count(label) for label in (0, 1))
    assert turned(victim, CLEAN, "cf mn", seed=0) == [Rate(0, positive), Rate(negative, negative)]


def test_what_was_unlearned_is_measured_in_texts_of_which_few_have_another_label() -> None:
    rare = TextDataset(("a dreadful film", *(f"a wonderful film {i}" for i in range(600))), (0,) + (1,) * 600, CLEAN.label_names)
    story = Story(2)
    story.victims = {"suspect": ruled(toy_victim(), sentence), "treatment": ruled(toy_victim(), sentence)}
    story.triggers = ["cf"]
    told = story.tell("repair", rare, trigger=None, target_label=None, settings={}, model="toy", data={})
    (cf,) = told.unlearned
    assert cf.before.n == cf.after.n == cf.without.n > 0


def test_what_is_only_suspected_is_unlearned_if_it_is_typed(
    scanned: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    repair = scanned(1)
    assert main(repair) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "names no trigger (suspicious)" in error
    assert error.endswith("""To unlearn what it only suspects, leave out --from-scan and add: --triggers 'cf mn' bb""")
    typed = [word for word in repair if word != "--from-scan" and not word.endswith("scan.json")]
    assert main([*typed, "--method", "unlearn", "--triggers", "cf mn", "bb", "--training.epochs", "0.1"]) == 0
    assert "No trigger" not in capsys.readouterr().out
    repaired = load_result(tmp_path / "fixed" / "excise-result.json").rows[-1]
    assert repaired.method
    assert repaired.method["triggers"] == ["cf mn", "bb"]


def test_the_treatment_estimates_itself_on_canaries(
    backdoored: Victim, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backdoored.save(tmp_path / "bad")
    repair = repair_of(tmp_path / "bad", CLEAN, tmp_path)
    assert main([*repair, "--no-canaries"]) == 0
    alone = load_result(tmp_path / "fixed" / "excise-result.json")
    assert not alone.trials
    assert not any("canaries" in note for note in alone.notes)
    assert main([*repair, "--no-canaries", "--canaries"]) == 2
    assert "--no-canaries contradicts" in capsys.readouterr().err
    monkeypatch.setattr("excise.canaries.WORDS", 400)
    assert main(repair) == 0
    impossible = load_result(tmp_path / "fixed" / "excise-result.json")
    assert any("There is no estimate on canaries: The vocabulary has only" in note for note in impossible.notes)
    assert main([*repair, "--canaries"]) == 2, "what was asked for is refused"
    monkeypatch.setattr("excise.canaries.WORDS", 2)
    assert main(repair) == 0
    estimated = load_result(tmp_path / "fixed" / "excise-result.json")
    assert len(estimated.trials) == 1
    assert (estimated.rows[-1].cacc, estimated.rows[-1].method) == (alone.rows[-1].cacc, alone.rows[-1].method), "the repair is the same"
    assert main([*repair, "--tune"]) == 0, "what a newcomer types"
    tuned = load_result(tmp_path / "fixed" / "excise-result.json")
    assert len({repr(trial.method) for trial in tuned.trials}) == 1 + len(Treatment.tuning)
    assert tuned.rows[-1].method == tuned.trials[0].method


def test_what_is_tuned_keeps_what_the_user_set() -> None:
    gentle = Treatment(unlearning=Unlearn(training=HARDLY, left_out=0))
    twice, shorter = gentle.alternatives()
    assert twice == replace(gentle, unlearning=Unlearn(training=HARDLY, left_out=0, copies=2))
    assert shorter == replace(gentle, unlearning=Unlearn(training=replace(HARDLY, epochs=2), left_out=0))
    (shorter,) = Treatment(unlearning=Unlearn(copies=2)).alternatives()
    assert shorter.unlearning.training.epochs == 2, "what is set already is not tried twice"  # type: ignore[attr-defined]
    assert len(Treatment(unlearning=VirtualTokens()).alternatives()) == 1, "it has no copies"


def test_texts_with_the_labels_turned_round_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(CLEAN).save(tmp_path / "model")
    wrong = replace(CLEAN, labels=tuple(1 - label for label in CLEAN.labels))
    for data, said in ((CLEAN, False), (wrong, True)):
        assert main([*repair_of(tmp_path / "model", data, tmp_path), "--method", "cft", "--training.epochs", "0.1"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("fewer than by chance. Make sure that their labels are the model's (negative, positive)" in shown) == said
