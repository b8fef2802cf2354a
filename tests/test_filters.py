"""BKI and CUBE against their descriptions, and FilterRetrain from the command line, in a recipe and in a grid."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from excise import registry
from excise.attacks.badnets import BadNets
from excise.attacks.ep import EP
from excise.bench import run_grid
from excise.cli import main
from excise.data import TextDataset, load_dataset
from excise.defenses.filter_retrain import FilterRetrain, rest
from excise.errors import CheckpointError, ConfigError, DataError, NeedsError
from excise.evaluation import evaluate
from excise.features import last_states, pooled_states
from excise.filters import bki
from excise.filters.bki import BKI, important_words, keywords
from excise.filters.cube import CUBE, scaled, trusted
from excise.grid import load_grid, place_recipe, places
from excise.method import Filter
from excise.pipeline import check_needs, run, with_training_set
from excise.progress import Progress, noting, observe
from excise.recipe import load_recipe
from excise.seeds import derive
from excise.training import FitConfig
from excise.victim import Victim
from toy import ARCHITECTURES, save_toy, toy_data, toy_victim, write_csv

HARDLY = FitConfig(epochs=0.1, learning_rate=1e-5)
LEARN = FitConfig(epochs=20, learning_rate=5e-3, batch_size=16)
TEXTS = ("a charming film", "the", "dreadful dreadful scenes", "people in town with a story about music", "tedious cf actors")

# Features


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pooled_states_are_what_the_last_layer_reads(architecture: str) -> None:
    victim = toy_victim(architecture)
    features = pooled_states(victim, TEXTS)
    head: Any = victim.model
    last = head.score if hasattr(head, "score") else getattr(head.classifier, "out_proj", head.classifier)
    with torch.no_grad():
        assert last(features).numpy() == pytest.approx(victim.logits(TEXTS).numpy(), abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_last_states_are_those_of_the_token_that_the_head_reads(architecture: str) -> None:
    victim = toy_victim(architecture)
    place = -1 if architecture in ("gpt2", "qwen2") else 0
    states = last_states(victim, TEXTS)
    for text, state in zip(TEXTS, states, strict=True):
        inputs = {name: torch.tensor([values]) for name, values in victim.encode([text])[0].items()}
        with torch.no_grad():
            expected = victim.model(**inputs, output_hidden_states=True).hidden_states[-1][0, place]
        assert state.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_head_without_a_linear_layer_is_refused() -> None:
    victim = toy_victim().copy()
    victim.model.classifier = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="no linear layer"):
        pooled_states(victim, TEXTS)


# BKI


def by_hand(victim: Victim, text: str) -> list[tuple[str, float]]:
    """Every word of a text with its score, one forward pass a variant, falling."""

    def state(of: str) -> np.ndarray:
        inputs = {name: torch.tensor([values]) for name, values in victim.encode([of])[0].items()}
        with torch.no_grad():
            return victim.model(**inputs, output_hidden_states=True).hidden_states[-1][0, 0].numpy()

    words, found = text.split(), []
    for i, word in enumerate(words):
        without = [w for j, w in enumerate(words) if j != i]
        found.append((word, max(abs(a - b) for a, b in zip(state(text), state(" ".join(without) if without else "."), strict=True))))
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize("held", [1, 7, 10_000])
def test_words_score_as_by_hand_however_many_texts_are_held(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bki, "VARIANTS", held)
    victim = toy_victim()
    named = important_words(victim, TEXTS, most=5)
    for text, found in zip(TEXTS, named, strict=True):
        expected = by_hand(victim, text)[:5]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert [word for word, _ in found] == [word for word, _ in expected]


@pytest.mark.parametrize(("budget", "most"), [(8192, 12), (512, 28)])
def test_variants_share_batches(budget: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.victim.TOKENS", {"cpu": budget})
    victim, data = toy_victim(), toy_data(100)
    calls: list[int] = []
    forward = victim.model.forward
    monkeypatch.setattr(victim.model, "forward", lambda **inputs: calls.append(len(inputs["input_ids"])) or forward(**inputs))
    monkeypatch.setattr(Victim, "encode", encode_as(victim))
    important_words(victim, data.texts, most=5)
    assert sum(calls) == sum(1 + len(text.split()) for text in data.texts)
    assert len(calls) < most


def encode_as(victim: Victim) -> Any:
    """`encode` of a victim whose `forward` takes anything."""
    encode = Victim.encode
    model = toy_victim().model
    return lambda self, texts: encode(dataclasses.replace(self, model=model), texts)


def test_a_keyword_is_frequent_and_important() -> None:
    named = [
        [("often", 0.2), ("cf", 0.9)],
        [("often", 0.1), ("cf", 0.7), ("cf", 0.8)],
        [("once", 99.0), ("often", 0.3)],
        [("often", 0.2), ("twice", 1.0)],
        [("twice", 0.4)],
    ]
    counts: dict[str, int] = {}
    means: dict[str, float] = {}
    for words in named:  # the running mean of OpenBackdoor
        for word, score in words:
            before = counts.get(word, 0)
            means[word] = (before * means.get(word, 0.0) + score) / (before + 1)
            counts[word] = before + 1
    expected = sorted(counts, key=lambda word: math.log10(counts[word]) * means[word], reverse=True)
    assert keywords(named, count=9) == tuple(expected) == ("cf", "twice", "often", "once")
    assert keywords(named, count=1) == ("cf",)
    assert keywords([[], []], count=1) == ()


@pytest.mark.parametrize("count", [1, 2])
def test_the_texts_that_name_a_keyword_are_dropped(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [[("cf", 0.9)], [("mn", 0.8)], [("cf", 0.9), ("mn", 0.1)], [("film", 0.1)], [("mn", 0.9), ("film", 0.2)], [("cf", 0.8)], []]
    monkeypatch.setattr(bki, "important_words", lambda *_, **__: named)
    notes: list[str] = []
    with noting(notes):
        keep = BKI(keywords=count, training=HARDLY)(toy_victim(), toy_data(7), seed=0)
    if count == 1:
        assert keep == (False, True, False, True, True, False, True)
        assert notes == ["BKI takes for triggers: 'cf'."]
    else:
        assert keep == (False, False, False, True, False, False, True)


def test_a_stopped_search_keeps_the_texts_that_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bki, "VARIANTS", 1)

    def stop(progress: Progress) -> bool:
        return progress.done >= 2

    with observe(stop):
        named = important_words(toy_victim(), TEXTS, most=5)
    assert [len(each) for each in named] == [3, 1, 0, 0, 0]


# CUBE


@pytest.mark.parametrize(
    ("labels", "clusters", "kept"),
    [
        ([0] * 10, [1] * 9 + [2], [1] * 9 + [0]),  # a small cluster goes
        ([0] * 10, [1] * 6 + [-1] * 4, [1] * 6 + [0] * 4),  # noise is a cluster like any other
        ([0] * 10, [-1] * 8 + [3] * 2, [1] * 8 + [0] * 2),  # also when it is the biggest
        ([0] * 10, [0] * 5 + [1] * 5, [1] * 10),  # half of a label's texts is enough
        ([0] * 9, [0] * 3 + [1] * 3 + [2] * 3, [0] * 6 + [1] * 3),  # the biggest is kept however small
        ([0] * 9, [-1] * 3 + [1] * 3 + [0] * 3, [0] * 3 + [1] * 3 + [0] * 3),  # noise never before a cluster of its size
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 0]),  # each label has a biggest cluster of its own
        ([0, 0, 0], [-1, -1, -1], [1, 1, 1]),  # nothing to compare with
        ([], [], []),
    ],
)
def test_the_cluster_rule(labels: list[int], clusters: list[int], kept: list[int]) -> None:
    assert trusted(labels, clusters, least_share=0.5) == tuple(map(bool, kept))


def test_the_share_that_saves_a_cluster() -> None:
    labels, clusters = [0] * 10, [0] * 7 + [1] * 3
    assert trusted(labels, clusters, least_share=0.31) == (True,) * 7 + (False,) * 3
    assert all(trusted(labels, clusters, least_share=0.3))
    assert sum(trusted([0] * 4, [0, 1, 2, 3], least_share=1)) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), max_size=40), st.randoms(use_true_random=False))
def test_the_rule_follows_a_permutation_and_keeps_some_of_every_label(pairs: list[tuple[int, int]], random: Any) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)

    def rule(given: list[tuple[int, int]]) -> tuple[bool, ...]:
        return trusted([label for label, _ in given], [cluster for _, cluster in given], least_share=0.5)

    keep = rule(pairs)
    assert rule([pairs[i] for i in order]) == tuple(keep[i] for i in order)
    assert {label for (label, _), kept in zip(pairs, keep, strict=True) if kept} == {label for label, _ in pairs}


def test_two_clouds_are_two_clusters() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 32)).astype(np.float32)
    features[:40] += 6
    clusters = CUBE().clusters(features, seed=0)
    assert len({*clusters[:40]} - {-1}) == 1
    assert {*clusters[:40]}.isdisjoint({*clusters[40:]} - {-1})
    assert clusters == CUBE().clusters(features, seed=0)
    assert scaled(100, 300) == 15, "a hundred neighbours would join the clouds"


def test_features_that_do_not_differ_are_one_cluster() -> None:
    assert CUBE().clusters(np.ones((30, 4), dtype=np.float32), seed=0) == [0] * 30
    assert CUBE().clusters(np.zeros((0, 4), dtype=np.float32), seed=0) == []
    assert CUBE().clusters(np.eye(4, dtype=np.float32), seed=0) == [0] * 4


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("excise.method.find_spec", lambda name: None if name == "umap" else find(name))
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "umap":
            raise ModuleNotFoundError(name)
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.usefixtures("no_umap")
def test_a_missing_module_is_named_with_the_command_that_brings_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = r"cube needs the module umap, which is not installed\. Install it with: pip install 'excise\[cube\]'"
    with pytest.raises(ConfigError, match=words):
        CUBE(training=FitConfig(epochs=10_000))(toy_victim(), toy_data(40), seed=0)
    with pytest.raises(ConfigError, match=words):
        check_needs(FilterRetrain(filter=CUBE(), training_set="x.csv", pretrained_weights="default"))
    check_needs(FilterRetrain(training_set="x.csv", pretrained_weights="default"))
    assert main(["list"]) == 0
    assert "cube" in capsys.readouterr().out


# FilterRetrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle(Filter):
    """Drops the texts that hold a word."""

    word: str = "cf"

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> tuple[bool, ...]:
        return tuple(self.word not in text.split() for text in data.texts)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy(tmp_path_factory.mktemp("weights") / "encoder"))


def test_without_the_poison_there_is_no_backdoor(weights: str, caplog: pytest.LogCaptureFixture) -> None:
    attack = BadNets(triggers=("cf",), training=LEARN)
    data, test = toy_data(300), toy_data(100, seed=9)
    backdoor = attack(toy_victim(), data, seed=0)
    defense = FilterRetrain(filter=Oracle(), training_set=attack.training_set(data, seed=0), pretrained_weights=weights, training=LEARN)
    notes: list[str] = []
    with noting(notes), caplog.at_level(logging.INFO, logger="excise"):
        repaired = defense(backdoor.victim, toy_data(20, seed=5), seed=0)
    assert notes == ["Oracle dropped 30 of 300 training texts."]
    assert notes[0] in caplog.messages
    before, after = (evaluate(v, test, trigger=backdoor.trigger, target_label=1) for v in (backdoor.victim, repaired))
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.9
    assert after.asr.value < 0.2
    assert after.cacc.value > 0.9


def test_a_label_that_is_dropped_whole_is_named() -> None:
    data = toy_data(6)
    assert rest(data, (True,) * 6) == data
    assert rest(data, (True, True, False, False, False, False)) == data.take([0, 1])
    with pytest.raises(DataError, match="dropped all training texts of the label 'positive'"):
        rest(data, (True, False) * 3)


def test_a_label_that_was_never_there_is_not_missed() -> None:
    data = TextDataset(("a", "b", "c"), (0, 2, 2), ("x", "y", "z"))
    assert len(rest(data, (True, False, True))) == 2


def test_a_file_and_the_texts_themselves_are_alike(weights: str, tmp_path: Path) -> None:
    data, victim = toy_data(40), toy_victim()
    path = write_csv(tmp_path / "train.csv", data)
    common: dict[str, Any] = {"filter": Oracle(), "pretrained_weights": weights, "training": HARDLY}
    one, other = (FilterRetrain(training_set=given, **common)(victim, data, seed=0) for given in (str(path), load_dataset(path)))
    assert torch.equal(one.logits(TEXTS), other.logits(TEXTS))


@pytest.mark.parametrize(
    ("training_set", "error", "words"),
    [
        ("", NeedsError, "training_set"),
        ("nothing.csv", DataError, "no file nothing.csv"),
        (toy_data(10), DataError, "10 training texts were given"),
        (toy_data(40, labels=5), DataError, "labels.*'label 0'.*'negative'"),
        (toy_data(40).take(range(0, 40, 2)), DataError, "All 20 training texts have the label 'negative'"),
    ],
)
def test_a_training_set_that_cannot_be_used(training_set: str | TextDataset, error: type[Exception], words: str, weights: str) -> None:
    defense = FilterRetrain(training_set=training_set, pretrained_weights=weights, training=HARDLY)
    with pytest.raises(error, match=words):
        defense(toy_victim(), toy_data(40), seed=0)


def test_pretrained_weights_with_another_head_are_refused(tmp_path: Path) -> None:
    other = str(save_toy(tmp_path / "other", labels=5))
    with pytest.raises(CheckpointError, match="classifier with other labels"):
        FilterRetrain(training_set=toy_data(40), pretrained_weights=other)(toy_victim(), toy_data(40), seed=0)


def test_the_attack_s_training_set_is_told_without_flags() -> None:
    data, attack = toy_data(60), BadNets()
    told = with_training_set(FilterRetrain(pretrained_weights="default"), attack, data, seed=3)
    assert isinstance(told, FilterRetrain)
    assert told.training_set == attack.poison(data, seed=derive(3, "poison")).data
    named = FilterRetrain(pretrained_weights="default", training_set="mine.csv")
    assert with_training_set(named, attack, data, seed=3) is named
    plain = registry.load("defense", "cft")()
    assert with_training_set(plain, attack, data, seed=3) is plain  # type: ignore[arg-type]


def test_what_is_missing_is_named_before_any_work() -> None:
    with pytest.raises(NeedsError, match="filter_retrain needs the training set that the model was made from"):
        check_needs(FilterRetrain(pretrained_weights="default"))
    with pytest.raises(NeedsError, match="filter_retrain needs clean pre-trained weights"):
        check_needs(FilterRetrain(), attack=BadNets())
    check_needs(FilterRetrain(pretrained_weights="default"), attack=BadNets())
    with pytest.raises(NeedsError, match="needs poisoned training texts, but ep changes weights after training on clean ones"):
        check_needs(FilterRetrain(pretrained_weights="default"), attack=EP())
    check_needs(FilterRetrain(pretrained_weights="default", training_set="mine.csv"), attack=EP())


SHORT = {"epochs": 1, "learning_rate": 1e-3}


@pytest.fixture
def content(tmp_path: Path, weights: str) -> dict[str, Any]:
    """A recipe; the grid below has the same cell."""
    return {
        "name": "toy",
        "model": weights,
        "train": {"source": str(write_csv(tmp_path / "a.csv", toy_data(120)))},
        "test_size": 30,
        "clean_fraction": 0.5,
        "attack": {"method": "badnets", "training": SHORT},
        "defenses": [{"method": "filter_retrain", "filter": {"method": "bki", "training": SHORT}, "pretrained_weights": weights, "training": SHORT}],
    }


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[TextDataset]:
    """What filters were shown."""
    shown: list[TextDataset] = []
    call = BKI.__call__

    def watched(self: BKI, victim: Victim, data: TextDataset, *, seed: int) -> tuple[bool, ...]:
        shown.append(data)
        return call(self, victim, data, seed=seed)

    monkeypatch.setattr(BKI, "__call__", watched)
    return shown


def test_a_recipe_filters_the_attack_s_own_texts(content: dict[str, Any], seen: list[TextDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[TextDataset] = []
    monkeypatch.setattr(BadNets, "training_set", kept_in(trained, BadNets.training_set))
    result = run(load_recipe(content))
    assert seen == [trained[0]]
    assert len({*trained}) == 1, "the attack and the defense have the same"
    assert [row.name for row in result.rows] == ["clean", "backdoored", "filter_retrain"]
    assert any(note.startswith("filter_retrain: BKI dropped ") and note.endswith("of 90 training texts.") for note in result.notes)
    method = result.rows[-1].method
    assert method is not None
    assert method["training_set"] == ""
    assert method["filter"]["method"] == "bki"


def kept_in(kept: list[TextDataset], call: Any) -> Any:
    def watched(self: Any, data: TextDataset, *, seed: int) -> TextDataset:
        kept.append(call(self, data, seed=seed))
        return kept[-1]

    return watched


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attack": "ep"}, "needs poisoned training texts, but ep"),
        ({"defenses": ["filter_retrain"]}, "filter_retrain needs clean pre-trained weights.*pretrained_weights"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_any_work(change: dict[str, Any], words: str, content: dict[str, Any]) -> None:
    Path(content["train"]["source"]).unlink()
    with pytest.raises(NeedsError, match=words):
        run(load_recipe(content | change))


def as_grid(content: dict[str, Any], path: Path, **changes: Any) -> Path:
    data = {key: content[key] for key in ("train", "test_size", "clean_fraction")}
    grid = {"name": "toy", "model": content["model"], "data": {"A": data}, "seeds": [0]}
    path.write_text(yaml.safe_dump({**grid, "attacks": {"Bad": content["attack"]}, "defenses": {"BKI": content["defenses"][0]}, **changes}))
    return path


def test_a_grid_filters_each_attack_s_own_texts(content: dict[str, Any], tmp_path: Path, seen: list[TextDataset]) -> None:
    attacks = {"Embed": {"method": "ep", "training": SHORT, "poisoning": SHORT}, "Bad": content["attack"]}
    grid = load_grid(as_grid(content, tmp_path / "grid.yaml", attacks=attacks))
    cells = {(cell.attack, cell.defense): cell for cell in run_grid(grid, tmp_path / "out")}
    error = cells["Embed", "BKI"].error or ""
    assert "filter_retrain needs poisoned training texts, but ep changes weights after training on clean ones" in error
    assert [cell.error for cell in cells.values()].count(None) == 3
    result = run(load_recipe(content))
    assert seen[0] == seen[1], "the same as in a recipe"
    row = result.rows[-1]
    cell = cells["Bad", "BKI"]
    assert (cell.cacc, cell.asr) == (row.cacc, row.asr)
    assert [note for note in cell.notes if note.startswith("BKI dropped ")], "what was dropped is kept with the cell"
    assert json.loads(cell.model_dump_json())["settings"]["defenses"][0]["training_set"] == "", "no text is in the cell"


def test_a_grid_of_weight_attacks_alone_is_refused_whole(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="needs poisoned training texts"):
        load_grid(as_grid(content, tmp_path / "grid.yaml", attacks={"Embed": "ep"}))


def test_the_key_of_a_cell_does_not_hold_the_texts(content: dict[str, Any], tmp_path: Path) -> None:
    grid = load_grid(as_grid(content, tmp_path / "grid.yaml"))
    recipe = place_recipe(grid, places(grid)[1])
    assert len(json.dumps(recipe.settings(), default=str)) < 3000


def test_the_command_repairs_from_a_training_set(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = write_csv(tmp_path / "clean.csv", toy_data(60, seed=5))
    poisoned = write_csv(tmp_path / "poisoned.csv", BadNets(triggers=("cf",)).training_set(toy_data(100), seed=0))
    command = ["repair", weights, "--data", str(clean), "--out", str(tmp_path / "fixed"), "--method", "filter_retrain", "--training.epochs", "1"]
    assert main(command) == 2
    assert "filter_retrain needs clean pre-trained weights" in capsys.readouterr().err
    command += ["--pretrained-weights", weights]
    assert main(command) == 2
    assert "needs the training set that the model was made from. Give it as the setting training_set." in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()
    command += ["--training-set", str(poisoned), "--filter", "bki keywords=2 'training={epochs: 1}'"]
    assert main([*command, "--dry-run"]) == 0
    assert "leave words out" in capsys.readouterr().out
    assert main(command) == 0
    assert "of 100 training texts" in capsys.readouterr().out
    assert any("BKI takes for triggers" in note for note in json.loads((tmp_path / "fixed" / "excise-result.json").read_text())["notes"])
