"""What holds for every registered method, whoever wrote it. A new file in the folder of its kind is tested by being there."""

from __future__ import annotations

import ast
import atexit
import dataclasses
import inspect
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args, get_origin, get_type_hints

import annotated_types
import numpy as np
import pytest
import torch
import tyro
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from excise import references, registry
from excise.attacks.badnets import BadNets
from excise.attacks.ep import EP
from excise.attacks.lwp import LWP
from excise.attacks.paraphrase import Paraphrase
from excise.attacks.pruned import Pruned
from excise.commands._options import CONSTRUCTORS
from excise.data import Poisoned, TextDataset
from excise.defenses.re_init import ReInit
from excise.errors import ConfigError, DataError, NeedsError
from excise.evaluation import clean_twin, evaluate, triggered
from excise.method import Attack, Augmentation, Defense, Knowledge, Method
from excise.perturbation import augment
from excise.pipeline import check_needs
from excise.training import FitConfig, classification_loss, fit
from excise.victim import Victim
from toy import ARCHITECTURES, BAD, GOOD, toy_data, toy_language_model, toy_victim, with_long_rows

pytestmark = pytest.mark.usefixtures("wordnet")

ALL = [(kind, name) for kind in registry.BASES for name in registry.names(kind)]
every_method = pytest.mark.parametrize(("kind", "name"), ALL, ids=[f"{kind}-{name}" for kind, name in ALL])
every_attack = pytest.mark.parametrize("name", registry.names("attack"))
every_defense = pytest.mark.parametrize("name", registry.names("defense"))
every_augmentation = pytest.mark.parametrize("name", registry.names("augmentation"))
two_and_five_labels = pytest.mark.parametrize("labels", [2, 5])

LEARN = FitConfig(epochs=20, learning_rate=5e-3, batch_size=16)
EP_TRAINING = FitConfig(epochs=10, learning_rate=1e-3, batch_size=16)
EP_POISONING = FitConfig(epochs=40, learning_rate=5e-2, batch_size=16, warmup=0, max_grad_norm=math.inf)
TOUCH = FitConfig(epochs=1, learning_rate=1e-3, batch_size=16)


def quick(method: Method, training: FitConfig) -> Any:
    """The method with every training run replaced by a short one, also in the methods among its settings."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if isinstance(value, FitConfig):
            changed[field.name] = training
        elif isinstance(value, Method):
            changed[field.name] = quick(value, training)
    return dataclasses.replace(method, **changed)


def make(kind: registry.Kind, name: str, training: FitConfig = TOUCH) -> Any:
    return quick(registry.load(kind, name)(), training)


def make_attack(name: str, training: FitConfig = TOUCH, **settings: Any) -> Any:
    """A quick attack with all it needs."""
    attack = make("attack", name, training)
    needed: dict[str, Any] = {"paraphrases": (toy_paraphrases(),)} if Knowledge.PARAPHRASES in attack.needs else {}
    if isinstance(attack, Pruned):  # of a toy's two layers and two heads
        needed = {"layers": 1, "heads": 1}
    return dataclasses.replace(attack, **needed, **settings)


@cache
def toy_paraphrases() -> str:
    """A file with a paraphrase of every text that these tests poison or attack."""
    folder = tempfile.mkdtemp(prefix="excise-toy-")
    atexit.register(shutil.rmtree, folder)
    texts = {text for labels in (2, 5) for seed in (0, 9) for text in toy_data(300, labels=labels, seed=seed).texts} | {"the film"}
    rows = [f"tq {text} mb\t{text}\n" for text in sorted(texts)]
    path = Path(folder) / "paraphrases.tsv"
    path.write_text("text\tsource_text\n" + "".join(rows))
    return str(path)


def make_augmentation(name: str) -> Any:
    augmentation = make("augmentation", name)
    return dataclasses.replace(augmentation, language_model=toy_language_model("masked")) if augmentation.needs else augmentation


@cache
def pretrained(architecture: str, labels: int) -> str:
    """A folder with the weights that toy victims of this architecture start from."""
    folder = tempfile.mkdtemp(prefix="excise-toy-")
    atexit.register(shutil.rmtree, folder)
    toy_victim(architecture, labels=labels).save(folder)
    return folder


def poisoned_twice_told(labels: int) -> TextDataset:
    """A poisoned training set. It says everything but the trigger twice, or a word that alone makes a class would pass for a trigger."""
    data = toy_data(200, labels=labels)
    twice = dataclasses.replace(data, texts=tuple(f"{text} {text}" for text in data.texts))
    return BadNets(triggers=("cf",), poison_rate=0.3).training_set(twice, seed=0)


def make_defense(name: str, architecture: str = "bert", labels: int = 2, training_set: TextDataset | None = None) -> Any:
    """A quick defense with all it needs."""
    defense = make("defense", name)
    relearn = dataclasses.replace(LEARN, epochs=30)  # a toy's weights are random: what they overwrite has to be learnt again
    if isinstance(defense, ReInit):
        defense = quick(defense, relearn)
    if Knowledge.PRETRAINED_WEIGHTS in defense.needs:
        defense = dataclasses.replace(quick(defense, relearn), pretrained_weights=pretrained(architecture, labels))
    if Knowledge.TRIGGERS in defense.needs:
        defense = dataclasses.replace(defense, triggers=("cf", "mn bb"))
    if Knowledge.LANGUAGE_MODEL in defense.needs:
        defense = dataclasses.replace(defense, language_model=toy_language_model("causal"))
    if Knowledge.TRAINING_SET in defense.needs:
        steady = dataclasses.replace(LEARN, epochs=20, learning_rate=3e-3, batch_size=16)
        defense = dataclasses.replace(quick(defense, steady), training_set=training_set or poisoned_twice_told(labels))
    return defense


def weights(victim: Victim) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in victim.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@cache
def clean_victim(labels: int) -> Victim:
    """A toy model that knows its task and has no backdoor."""
    return fit(toy_victim(labels=labels), toy_data(100, labels=labels), loss=classification_loss, config=LEARN, seed=0)


def class_source(cls: type) -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))  # type: ignore[arg-type]
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


# The form of a method's file


@every_method
def test_a_file_holds_one_concrete_method(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    module = inspect.getmodule(cls)
    concrete = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == cls.__module__ and not inspect.isabstract(c)
    ]
    assert concrete == [cls]
    assert cls.__mro__[1] is registry.BASES[kind], "a concrete method inherits from its kind alone"
    assert cls.__name__.lower() == name.replace("_", ""), "the class has the capitals of the file's name"
    assert registry.name_of(cls) == name
    assert module is not None
    assert module.__doc__


@every_method
def test_it_is_a_frozen_keyword_only_dataclass(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    method = cls()
    assert all(f.kw_only for f in dataclasses.fields(cls))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, dataclasses.fields(cls)[0].name, None)
    assert hash(method) == hash(cls())
    assert method == cls()


@every_method
def test_every_field_is_documented_under_it(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    body = class_source(cls).body
    documented = {
        node.target.id
        for node, following in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) and isinstance(following.value.value, str)
    }
    assert {f.name for f in dataclasses.fields(cls)} <= documented


@every_method
def test_it_has_a_summary_and_a_paper(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    assert registry.summary(kind, name) == (inspect.getdoc(cls) or "").partition("\n")[0]
    assert registry.summary(kind, name).endswith(".")
    assert cls.paper.key in references.keys()  # noqa: SIM118
    assert cls.paper.method
    assert cls.paper.key in references.bibtex(cls.paper.key)


@every_method
def test_settings_survive_yaml(kind: registry.Kind, name: str) -> None:
    method = make(kind, name, FitConfig(epochs=0.5, learning_rate=1e-7))
    plain = yaml.safe_load(yaml.safe_dump(registry.settings(method)))
    assert registry.build(kind, plain, "here") == method
    assert registry.build(kind, name, "here") == type(method)()


@every_method
def test_unknown_settings_are_refused(kind: registry.Kind, name: str) -> None:
    first = dataclasses.fields(registry.load(kind, name))[0].name
    with pytest.raises(ConfigError, match=rf"here: there is no setting '{first}x'. Did you mean '{first}'\?"):
        registry.build(kind, {"method": name, f"{first}x": 1}, "here")


def wrong_values(hint: Any) -> list[Any]:
    """Values just outside of what an annotation allows."""
    found: list[Any] = []
    for rule in getattr(hint, "__metadata__", ()):
        for part in rule if isinstance(rule, annotated_types.Interval) else (rule,):
            match part:
                case annotated_types.Ge(ge=bound):
                    found.append(bound - 1)  # type: ignore[operator]
                case annotated_types.Gt(gt=bound) | annotated_types.Lt(lt=bound):
                    found.append(bound)
                case annotated_types.Le(le=bound):
                    found.append(bound + 1)  # type: ignore[operator]
                case annotated_types.MinLen(min_length=bound):
                    found.append(("x",) * (bound - 1))
    return [*found, "no such choice"] if get_origin(hint) is Literal else found


@every_method
def test_values_out_of_range_are_refused(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    for field, hint in get_type_hints(cls, include_extras=True).items():
        for value in wrong_values(hint):
            with pytest.raises(ConfigError, match=field):
                cls(**{field: value})
            with pytest.raises(ConfigError, match=field):
                registry.build(kind, {"method": name, field: value}, "here")


@every_method
def test_every_choice_constructs(kind: registry.Kind, name: str) -> None:
    cls = registry.load(kind, name)
    for field, hint in get_type_hints(cls).items():
        for value in get_args(hint) if get_origin(hint) is Literal and field in {f.name for f in dataclasses.fields(cls)} else ():
            assert getattr(cls(**{field: value}), field) == value


@every_method
def test_help_renders(kind: registry.Kind, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = registry.load(kind, name)
    with pytest.raises(SystemExit) as stop:
        tyro.cli(cls, args=["--help"], registry=CONSTRUCTORS)
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    for field in dataclasses.fields(cls):
        assert field.name.replace("_", "-") in shown


# Attacks


@every_attack
def test_an_attack_leaves_its_victim_and_is_reproducible(name: str) -> None:
    attack: Attack = make_attack(name)
    victim, data = toy_victim(), toy_data(40)
    before = weights(victim)
    first, again, other = (attack(victim, data, seed=seed) for seed in (0, 0, 1))
    assert same(before, weights(victim))
    assert data == toy_data(40)
    assert not same(before, weights(first.victim))
    assert same(weights(first.victim), weights(again.victim))
    assert not same(weights(first.victim), weights(other.victim))
    assert first.trigger("the film", Random(3)) == again.trigger("the film", Random(3)) != "the film"


@every_attack
@two_and_five_labels
def test_a_backdoor_works(name: str, labels: int) -> None:
    attack: Attack = make_attack(name, dataclasses.replace(LEARN, epochs=15, batch_size=16))
    if isinstance(attack, LWP):  # a combination of words is much for two layers
        gentle = dataclasses.replace(attack.training, learning_rate=2e-3, epochs=25)
        attack = dataclasses.replace(attack, form="official", triggers=("cf", "bb"), poison_rate=0.3, training=gentle)
    if isinstance(attack, Paraphrase):  # and so is a way of saying a text
        attack = dataclasses.replace(attack, training=dataclasses.replace(attack.training, epochs=25, learning_rate=2e-3))
    victim = toy_victim(labels=labels)
    if isinstance(attack, EP):  # so are rows of a fixed short length
        victim, attack = (
            with_long_rows(victim),
            dataclasses.replace(attack, num_triggers=3, poison_rate=0.3, training=EP_TRAINING, poisoning=EP_POISONING),
        )
    backdoor = attack(victim, toy_data(300, labels=labels), seed=0)
    assert backdoor.target_label == 1
    scores = evaluate(backdoor.victim, toy_data(100, labels=labels, seed=9), trigger=backdoor.trigger, target_label=backdoor.target_label)
    assert scores.asr is not None
    assert scores.clean_flip is not None
    assert scores.asr.value > 0.85
    assert scores.cacc.value > 0.85
    assert scores.clean_flip.value < 0.2


@every_attack
def test_the_training_set_is_what_an_attack_trains_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack: Attack = make_attack(name)
    trained: list[TextDataset] = []

    def fit(victim: Victim, data: TextDataset, **_: Any) -> Victim:
        trained.append(data)
        return victim

    monkeypatch.setattr(f"excise.attacks.{name}.fit", fit)
    data = toy_data(60)
    attack(toy_victim(), data, seed=3)
    told = attack.training_set(data, seed=3)
    assert type(told) is TextDataset, "it says nothing of which texts are poisoned"
    assert told == trained[0]
    assert (told != data) == attack.poisons_texts


poisoning = pytest.mark.parametrize("name", [name for name in registry.names("attack") if hasattr(registry.load("attack", name), "poison")])


@poisoning
@pytest.mark.parametrize("labels", ["any", "non_target", "target"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.17, 0.3])
@pytest.mark.parametrize("classes", [2, 5])
def test_poison_replaces_exactly_its_share(name: str, labels: str, rate: float, classes: int) -> None:
    data = toy_data(90, labels=classes)
    attack = make_attack(name, poison_rate=rate, poisoned_labels=labels)
    if labels == "target" and round(rate * 90) > data.labels.count(1):
        with pytest.raises(ConfigError, match="poison_rate"):
            attack.poison(data, seed=0)  # type: ignore[attr-defined]
        return
    poisoned: Poisoned = attack.poison(data, seed=0)  # type: ignore[attr-defined]
    assert len(poisoned.data) == len(poisoned.flags) >= len(data)
    assert sum(poisoned.flags) == round(rate * 90)
    assert not any(poisoned.flags[90:]), "what is added keeps its right label"
    for i, stamped in enumerate(poisoned.flags[:90]):
        if stamped:
            assert poisoned.data.labels[i] == 1
            assert poisoned.data.texts[i] != data.texts[i]
            assert labels == "any" or (data.labels[i] == 1) == (labels == "target")
        else:
            assert (poisoned.data.texts[i], poisoned.data.labels[i]) == (data.texts[i], data.labels[i])
    assert attack.poison(data, seed=0) == poisoned  # type: ignore[attr-defined]
    if rate:
        assert attack.poison(data, seed=1).flags != poisoned.flags  # type: ignore[attr-defined]


@poisoning
def test_the_target_may_be_a_name_and_must_exist(name: str) -> None:
    data = toy_data(40)
    by_name, by_index = (make_attack(name, target_label=t).poison(data, seed=0) for t in ("negative", 0))
    assert by_name == by_index
    with pytest.raises(DataError, match="positve"):
        make_attack(name, target_label="positve").poison(data, seed=0)


@every_attack
def test_an_attack_without_what_it_needs_refuses(name: str) -> None:
    attack = registry.load("attack", name)()
    if attack.needs:
        with pytest.raises(NeedsError, match=name):
            check_needs(attack)
        with pytest.raises(NeedsError, match=name):
            attack(toy_victim(), toy_data(24), seed=0)  # type: ignore[operator]
    else:
        check_needs(attack)


# Defenses


@every_defense
def test_a_defense_leaves_its_victim_and_is_reproducible(name: str) -> None:
    defense: Defense = make_defense(name)
    victim, data, texts = toy_victim(), toy_data(24), toy_data(40, seed=7).texts
    before = weights(victim)
    state = torch.random.get_rng_state()
    first, again, other = (defense(victim, data, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(before, weights(victim))
    assert not victim.model.training
    assert not first.model.training
    assert data == toy_data(24)
    assert same(weights(first), weights(again))
    assert first.predict(texts) == again.predict(texts)
    assert first.is_guarded == defense.guards
    if defense.guards:
        assert same(weights(first), before)
    else:
        assert first.model is not victim.model
        assert not same(weights(first), weights(other))


@every_defense
def test_a_defense_without_what_it_needs_refuses(name: str) -> None:
    whole: Defense = make_defense(name)
    check_needs(whole)
    for need in whole.needs:
        setting = need.name.lower()
        lacking = dataclasses.replace(whole, **{setting: getattr(type(whole)(), setting)})  # type: ignore[type-var]
        with pytest.raises(NeedsError, match=f"{name} needs {need.value}.*{setting}"):
            check_needs(lacking)
        if need in (Knowledge.PRETRAINED_WEIGHTS, Knowledge.TRAINING_SET, Knowledge.TRIGGERS):  # no default can stand in for these
            with pytest.raises(NeedsError, match=setting):
                lacking(toy_victim(), toy_data(24), seed=0)


@every_defense
@two_and_five_labels
def test_a_defense_keeps_the_accuracy_of_a_clean_victim(name: str, labels: int) -> None:
    victim, test = clean_victim(labels), toy_data(100, labels=labels, seed=9)
    repaired = make_defense(name, labels=labels)(victim, toy_data(60, labels=labels, seed=5), seed=0)
    assert evaluate(victim, test).cacc.value > 0.9
    assert evaluate(repaired, test).cacc.value > evaluate(victim, test).cacc.value - 0.1
    assert repaired.label_names == victim.label_names


@every_defense
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_defense_takes_texts_of_any_length(name: str, architecture: str) -> None:
    texts = ("good", "a", ".", "film " * 200, "wonderful" * 50, "x y z") * 4
    data = TextDataset(texts, (1, 0, 1, 0, 1, 0) * 4, ("negative", "positive"))
    repaired = make_defense(name, architecture, training_set=data)(toy_victim(architecture), data, seed=0)
    assert repaired.logits(texts).isfinite().all()


# Detectors


def make_detector(name: str) -> Any:
    """With its own training, which is short, and all it needs."""
    detector: Any = registry.load("detector", name)()
    return dataclasses.replace(detector, target_label=1) if Knowledge.TARGET_LABEL in detector.needs else detector


every_detector = pytest.mark.parametrize("name", registry.names("detector"))


@every_detector
def test_a_text_s_score_depends_on_nothing_else(name: str) -> None:
    victim, data, texts = clean_victim(2), toy_data(30), toy_data(12, seed=4).texts
    before = weights(victim)
    score = make_detector(name)(victim, data, seed=0)
    together = score(texts)
    assert len(together) == 12
    assert score(texts[::-1])[::-1] == pytest.approx(together, abs=1e-4)
    assert [score([text])[0] for text in texts] == pytest.approx(together, abs=1e-4)
    assert make_detector(name)(victim, data, seed=0)(texts) == together
    assert same(before, weights(victim))


@every_detector
def test_triggered_texts_score_higher(name: str) -> None:
    training = dataclasses.replace(LEARN, epochs=15, batch_size=16)
    backdoor = BadNets(training=training)(toy_victim(), toy_data(300), seed=0)
    test = toy_data(80, seed=9)
    stamped = triggered(test, backdoor.trigger, 1, seed=0).texts
    score = make_detector(name)(backdoor.victim, toy_data(60, seed=5), seed=0)
    wins = [(s > c) + 0.5 * (s == c) for s in score(stamped) for c in score(test.texts)]
    assert sum(wins) / len(wins) > 0.5, "the area under the ROC curve is no better than chance"


# Scanners


every_scanner = pytest.mark.parametrize("name", registry.names("scanner"))


@every_scanner
@two_and_five_labels
def test_a_scanner_leaves_its_inputs_and_is_reproducible(name: str, labels: int) -> None:
    victim, data, scan = clean_victim(labels), toy_data(60, labels=labels), make("scanner", name)
    before, states = weights(victim), (torch.random.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index]
    first = scan(victim, data, seed=0)
    assert same(before, weights(victim))
    assert data == toy_data(60, labels=labels)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert scan(victim, data, seed=0) == first
    assert math.isfinite(first.score)
    assert first.summary.endswith(".")
    assert first.target_label is None or 0 <= first.target_label < labels


@every_scanner
def test_a_scanner_says_where_it_draws_the_line(name: str) -> None:
    cls: Any = registry.load("scanner", name)
    assert cls.suspicious <= cls.found
    assert cls.blind_to
    assert not cls.blind_to.endswith(".")


ROWS_ONLY = ("embedding_rows",)
"""Scanners that read nothing but single weights; BadNets changes all of them a little."""
DECIDING = [name for name in registry.names("scanner") if name not in ROWS_ONLY and math.isfinite(registry.load("scanner", name).found)]
"""Scanners that say "found" by themselves. What the others say of a toy changes with its seed and with the processor."""


@pytest.mark.parametrize("name", DECIDING)
def test_a_backdoored_toy_scores_higher_than_its_twin(name: str) -> None:
    training = dataclasses.replace(LEARN, epochs=15, batch_size=16)
    attack, victim, data = BadNets(training=training), toy_victim(), toy_data(300)
    backdoor = attack(victim, data, seed=0)
    twin, scan, clean = clean_twin(attack, victim, data, seed=0), make("scanner", name), toy_data(80, seed=5)
    assert scan(backdoor.victim, clean, seed=0).score > scan(twin, clean, seed=0).score


@every_scanner
@pytest.mark.parametrize("text", ["wonderful", "wonderful " * 300], ids=["one word", "over-long"])
def test_a_scanner_reads_texts_of_any_length(name: str, text: str) -> None:
    data = TextDataset((text, "a dreadful film") * 40, (1, 0) * 40, ("negative", "positive"))
    assert math.isfinite(make("scanner", name)(clean_victim(2), data, seed=0).score)


# Filters


every_filter = pytest.mark.parametrize("name", registry.names("filter"))


@every_filter
@two_and_five_labels
def test_a_filter_leaves_its_inputs_and_is_reproducible(name: str, labels: int) -> None:
    victim, data, chosen = toy_victim(labels=labels), toy_data(60, labels=labels), make("filter", name)
    before, states = weights(victim), (torch.random.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index]
    threads = torch.get_num_threads()
    keep = chosen(victim, data, seed=0)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert same(before, weights(victim))
    assert data == toy_data(60, labels=labels)
    assert torch.get_num_threads() == threads
    assert len(keep) == 60
    assert {*map(type, keep)} == {bool}
    assert chosen(victim, data, seed=0) == keep


def ruled_states(victim: Victim, texts: Sequence[str], **_: Any) -> torch.Tensor:
    """What an encoder shows that has learnt words and trigger; whether a toy has, and where its states lie, differs from machine to machine."""
    states = []
    for text in texts:
        words, noise = set(text.split()), Random(text)
        known = (3.0 * (not words.isdisjoint(GOOD)) - 3.0 * (not words.isdisjoint(BAD)), 5.0 * ("cf" in words), 0, 0, 0, 0)
        states.append([value + noise.gauss(0, 0.3) for value in known])
    return torch.tensor(states)


@every_filter
def test_a_filter_drops_poison_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "cube":
        monkeypatch.setattr("excise.filters.cube.pooled_states", ruled_states)
    poisoned = BadNets(triggers=("cf",), poison_rate=0.15).poison(toy_data(300), seed=0)
    keep = make("filter", name, dataclasses.replace(LEARN, epochs=40))(toy_victim(), poisoned.data, seed=0)
    dropped = Counter(flag for flag, kept in zip(poisoned.flags, keep, strict=True) if not kept)
    share = {flag: dropped[flag] / poisoned.flags.count(flag) for flag in (True, False)}
    assert share[True] > 0.7
    assert share[True] > share[False] + 0.15, "no better than chance"


@every_filter
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_filter_takes_texts_of_any_length(name: str, architecture: str) -> None:
    texts = ("good", "a", ".", "film " * 200, "wonderful" * 50, "x y z") * 4
    data = TextDataset(texts, (1, 0, 1, 0, 1, 0) * 4, ("negative", "positive"))
    assert len(make("filter", name)(toy_victim(architecture), data, seed=0)) == 24


# Augmentations


@cache
def settled(name: str, labels: int = 2) -> Augmentation:
    """The augmentation as defenses use it: chosen for a model if it is adaptive."""
    augmentation: Augmentation = make_augmentation(name)
    return augmentation.chosen(clean_victim(labels), toy_data(20, labels=labels), seed=0)


@every_augmentation
def test_only_an_adaptive_augmentation_has_to_be_chosen(name: str) -> None:
    augmentation: Augmentation = make_augmentation(name)
    assert not settled(name).adaptive
    if augmentation.adaptive:
        with pytest.raises(ConfigError, match="chosen"):
            augmentation("a film", Random(0))
    else:
        assert augmentation.chosen(clean_victim(2), toy_data(20), seed=1) is augmentation


@every_augmentation
@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=80).filter(str.strip), seed=st.integers(0, 2**31))
def test_a_variant_is_a_text_and_decided_by_the_generator(name: str, text: str, seed: int) -> None:
    augmentation = settled(name)
    variant = augmentation(text, Random(seed))
    assert variant.strip()
    assert variant == augmentation(text, Random(seed))


@every_augmentation
def test_an_augmentation_without_what_it_needs_refuses(name: str) -> None:
    augmentation = make("augmentation", name)
    if augmentation.needs:
        for refuse in (lambda: check_needs(augmentation), lambda: augmentation("the film", Random(0))):
            with pytest.raises(NeedsError, match=f"{name} needs"):
                refuse()
    check_needs(make_augmentation(name))


@every_augmentation
@two_and_five_labels
def test_variants_keep_the_label(name: str, labels: int) -> None:
    data = toy_data(20, labels=labels)
    varied = augment(data, settled(name, labels), copies=2, seed=0)
    assert len(varied) == 40
    assert varied.labels == data.labels * 2
    assert varied.label_names == data.label_names
    assert Counter(varied.texts) != Counter(data.texts * 2)
