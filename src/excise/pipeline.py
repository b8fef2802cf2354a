"""The whole story: attack a model, repair it, measure before and after."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from excise import registry
from excise.attacks._triggers import InsertCombination, InsertWords, Paraphrased
from excise.augmentations.maximiser import Maximiser
from excise.backdoor_file import BackdoorFile
from excise.checkpoint import resolve_checkpoint
from excise.data import TextDataset, check_clean, load_dataset, split
from excise.errors import DataError, NeedsError
from excise.evaluation import clean_twin, evaluate, triggered, turned, unseen_triggers
from excise.inspection import pictures
from excise.language_model import trained_texts
from excise.method import Attack, Backdoor, Defense, Knowledge, Method, Trigger
from excise.perturbation import checked
from excise.progress import naming, noting, observe, stage
from excise.provenance import hash_inputs
from excise.recipe import DataSource, Recipe
from excise.result import Curves, Data, Environment, Example, Measured, Result, Row, Study, TrialRow, UnlearnedRow, command_line, data_record, row
from excise.seeds import derive, generator
from excise.victim import REJECTED, Precision, Victim

__all__ = ["Corpus", "Story", "load_corpus", "make_examples", "method_notes", "run", "save_backdoor"]

UNLEARNED, UNLEARNED_TEXTS = 12, 200
"""So many of the triggers that were unlearned are tried before and after, in at most so many test texts."""
CLEAN_TWIN = "clean-twin"
"""Folder, inside that of a backdoored checkpoint, of the model trained alike without the backdoor."""
Kind = Literal["run", "repair", "attack", "evaluate"]
Made = TypeVar("Made", Victim, Backdoor)


@dataclass(frozen=True)
class Corpus:
    """The three disjoint roles of data: the attacker's training texts, the defender's clean share of them, and the test texts."""

    train: TextDataset
    clean: TextDataset
    test: TextDataset

    def record(self, recipe: Recipe) -> dict[str, Data]:
        """For the result."""
        test = (recipe.test or recipe.train).source
        return {
            "train": data_record(recipe.train.source, self.train),
            "clean": data_record(recipe.train.source, self.clean),
            "test": data_record(test, self.test),
        }


class Story:
    """What one command makes and measures: models by name, how each was made and how long it took, and in the end a `Result`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.victims: dict[str, Victim] = {}
        self.methods: dict[str, Method] = {}
        self.seconds: dict[str, float] = {}
        self.curves = Curves()
        self.notes: list[str] = []
        self.triggers: list[str] = []
        self.trials: tuple[TrialRow, ...] = ()
        self.inputs: dict[str, str] = {}
        self.started = time.monotonic()

    def make(self, name: str, work: Callable[[], Made], *, method: Method | None = None) -> Made:
        """Do the work that makes a model, timed and with its losses kept."""
        begun = time.monotonic()
        with stage(name), observe(self.curves), noting(self.notes), naming(self.triggers):
            made = work()
        self.seconds[name] = time.monotonic() - begun
        self.victims[name] = made.victim if isinstance(made, Backdoor) else made
        if method is not None:
            self.methods[name] = method
        return made

    def tell(
        self,
        kind: Kind,
        test: TextDataset,
        *,
        trigger: Trigger | None,
        target_label: int | None,
        settings: dict[str, Any],
        model: str,
        data: dict[str, Data],
        notes: Sequence[str] = (),
    ) -> Result:
        """Evaluate every model, in the order they came, and put it all in a result."""
        rows: list[Row] = []
        some = next(iter(self.victims.values()))
        models = {name: self.victims[name] for name in sorted(self.victims, key=lambda name: name != "clean")}  # the floor comes first
        for name, victim in models.items():
            with stage(name):
                scores = evaluate(victim, test, trigger=trigger, target_label=target_label, seed=self.seed)
            method = registry.settings(self.methods[name]) if name in self.methods else None
            rows.append(row(name, scores, method=method, seconds=self.seconds.get(name)))
        examples: tuple[Example, ...] = ()
        if trigger is not None and target_label is not None:
            examples = make_examples(models, test, trigger, target_label, seed=self.seed)
            if unseen := unseen_triggers(some, test, trigger, target_label, seed=self.seed):
                cut = f"Cut to {some.max_length} tokens, {unseen} triggered texts show nothing of the trigger; they lower every ASR."
                notes = [*notes, cut]
        notes = [*notes, *dict.fromkeys(note for method in self.methods.values() for note in method_notes(method))]
        projections, attention = self._pictures(kind, test, trigger, target_label)
        return Result(
            kind=kind,
            command=command_line(),
            environment=Environment.of(str(some.device), some.precision),
            seed=self.seed,
            settings=settings,
            model=model,
            target_label=None if target_label is None else test.label_names[target_label],
            data=data,
            rows=tuple(rows),
            examples=examples,
            curves=self.curves.frozen(),
            unlearned=self._unlearned(test) if kind == "repair" else (),
            trials=self.trials,
            inputs=self.inputs,
            seconds=time.monotonic() - self.started,
            notes=(*notes, *self.notes),
            projections=projections,
            attention=attention,
        )

    def study(self, kind: Literal["perturb", "plot"], victim: Victim, augmentations: Sequence[str], **found: Any) -> Study:
        """What a command found that looks at a model and does not score it; `found` are the fields of a `Study`."""
        used = [spec for spec in augmentations if registry.spell(checked(spec)) not in found["left_out"]]
        return Study(
            kind=kind,
            command=command_line(),
            environment=Environment.of(str(victim.device), victim.precision),
            seed=self.seed,
            seconds=time.monotonic() - self.started,
            notes=tuple(note for spec in used for note in method_notes(checked(spec))),
            **found,
        )

    def _unlearned(self, test: TextDataset) -> tuple[UnlearnedRow, ...]:
        """What the triggers that were unlearned did in the suspect, and do in the repaired model."""
        if not self.triggers:
            return ()
        some = test.take(generator(self.seed, "unlearned").sample(range(len(test)), min(UNLEARNED_TEXTS, len(test))))
        suspect, repaired = self.victims["suspect"], list(self.victims.values())[-1]
        found: list[UnlearnedRow] = []
        with stage("what was unlearned"):
            usual, left = (turned(victim, some, "", seed=self.seed) for victim in (suspect, repaired))
            for phrase in self.triggers[:UNLEARNED]:
                before, after = (turned(victim, some, phrase, seed=self.seed) for victim in (suspect, repaired))
                rises = {i: rate.value - usual[i].value for i, rate in enumerate(before) if rate.n}  # all texts may have one label
                label = max(rises, key=rises.__getitem__)
                rates = {"before": before[label], "after": after[label], "without": left[label]}
                measured = {name: Measured.of(rate) for name, rate in rates.items()}
                found.append(UnlearnedRow(words=phrase, target_label=test.label_names[label], **measured))
        return tuple(found)

    def _pictures(self, kind: Kind, test: TextDataset, trigger: Trigger | None, target_label: int | None) -> Any:
        """Of the model before and after its last repair; guards change no model."""
        before = next((name for name in ("suspect", "backdoored") if name in self.victims), None)
        repaired = [name for name, victim in self.victims.items() if name not in (before, "clean") and not victim.is_guarded]
        if kind not in ("run", "repair") or before is None:
            return (), ()
        shown = {name: self.victims[name] for name in (before, *repaired[-1:])}
        with stage("pictures"):
            return pictures(shown, test, trigger=trigger, target_label=target_label, seed=self.seed)


def run(
    recipe: Recipe, folder: Path | None = None, *, precision: Precision = "auto", on_attack: Callable[[Backdoor, Corpus], None] | None = None
) -> Result:
    """Attack, defend and evaluate as the recipe says.

    Args:
        recipe: What to do.
        folder: If given, every model is saved in it, with backdoor.json and the clean twin inside the backdoored one's folder.
        precision: Arithmetic; `auto` is bf16 where the hardware has it.
        on_attack: Called when the backdoored model is there, before any repair.
    """
    story, seed = Story(recipe.seed), derive(recipe.seed, "attack")
    for defense in recipe.defenses:
        check_needs(defense, attack=recipe.attack)
    check_needs(recipe.attack)
    corpus = load_corpus(recipe)
    base = Victim.load(recipe.model, label_names=corpus.train.label_names, max_length=recipe.max_length, precision=precision, seed=recipe.seed)
    story.inputs = hash_inputs(recipe.settings(), checkpoint=(recipe.model, resolve_checkpoint(recipe.model)))
    if base.label_names != corpus.train.label_names:
        corpus = load_corpus(replace(recipe, label_names=base.label_names))  # the checkpoint has a head: its labels count
    backdoor = story.make("backdoored", lambda: recipe.attack(base, corpus.train, seed=seed), method=recipe.attack)
    twin = story.make("clean", lambda: clean_twin(recipe.attack, base, corpus.train, seed=seed))
    if on_attack:
        on_attack(backdoor, corpus)
    for defense in recipe.defenses:
        name = _free_name(registry.name_of(defense), story.victims)
        told = with_training_set(defense, recipe.attack, corpus.train, seed=seed)
        repaired = story.make(name, lambda: told(backdoor.victim, corpus.clean, seed=derive(recipe.seed, "defense")), method=defense)  # noqa: B023
        if folder and not repaired.is_guarded:
            repaired.save(folder / name)
    if folder:
        save_backdoor(folder / "backdoored", backdoor, recipe.attack, recipe.seed, twin=twin)
    return story.tell(
        "run",
        corpus.test,
        trigger=backdoor.trigger,
        target_label=backdoor.target_label,
        settings=recipe.settings(),
        model=recipe.model,
        data=corpus.record(recipe),
    )


def check_needs(method: Method, *, attack: Attack | None = None, outer: Method | None = None) -> None:
    """Refuse a method that needs more than a suspect model and clean texts, unless it was given; a setting of the need's name holds it.

    Args:
        method: What is going to run, and with it the methods among its settings.
        attack: Makes the suspect, and so has its training set.
        outer: The method that it is a setting of; what that has a setting for, it hands on.

    Raises:
        NeedsError: Something is missing, or no training text of the attack is poisoned.
        ConfigError: A module is not installed.
    """
    method.check_modules()
    for need in sorted(method.needs, key=lambda need: need.name):
        setting = need.name.lower()
        if getattr(method, setting, None) not in (None, "", ()) or hasattr(outer, setting):
            continue
        if need is not Knowledge.TRAINING_SET or attack is None:
            raise NeedsError(f"{registry.name_of(method)} needs {need.value}. Give it as the setting {setting}.")
        if not attack.poisons_texts:
            own = registry.name_of(attack)
            raise NeedsError(f"{registry.name_of(method)} needs poisoned training texts, but {own} changes weights after training on clean ones.")
    for inner in _settings_that_are_methods(method):
        check_needs(inner, attack=attack, outer=method)


def with_training_set(defense: Defense, attack: Attack, data: TextDataset, *, seed: int) -> Defense:
    """The defense; if it needs the suspect's training set and its settings name none, with what the attack, called alike, trained on.

    Raises:
        NeedsError: No training text of the attack is poisoned.
    """
    check_needs(defense, attack=attack)
    if Knowledge.TRAINING_SET not in defense.needs or getattr(defense, "training_set", None):
        return defense
    return replace(defense, training_set=attack.training_set(data, seed=seed))  # type: ignore[type-var]


def method_notes(method: Method) -> list[str]:
    """What a reader of a result should know of how a method came to it."""
    source = getattr(method, "language_model", None)
    texts = trained_texts(source) if source else None
    name = registry.name_of(method)
    notes = [] if texts is None else [f"{name} used a small language model, made by excise train-lm from {texts} texts; a large one may do better."]
    return notes + [note for inner in _settings_that_are_methods(method) for note in method_notes(inner)]


def _settings_that_are_methods(method: Method) -> list[Method]:
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    inner = [value for field in fields if isinstance(value := getattr(method, field.name), Method)]
    return inner + ([checked(spec) for spec in method.candidates] if isinstance(method, Maximiser) else [])


def load_corpus(recipe: Recipe) -> Corpus:
    """The recipe's texts, cut so that no text is in training and test at once.

    Raises:
        DataError: Too few texts are left, or they are of one class.
    """
    whole = _load(recipe.train, recipe.label_names)
    if recipe.test is None:
        if recipe.test_size is None:
            raise DataError("The recipe names no test data and no test_size. Give one of them.")
        if recipe.test_size >= len(whole):
            raise DataError(f"A test_size of {recipe.test_size} was given, but there are only {len(whole)} texts. Lower it.")
        test, train = split(whole, recipe.test_size / len(whole), seed=derive(recipe.seed, "test"))
    else:
        train, test = whole, _load(recipe.test, whole.label_names)
        test = _sample(test, recipe.test_size, derive(recipe.seed, "test"))
        seen = set(test.texts)
        train = train.take(i for i, text in enumerate(train.texts) if text not in seen)
    train = _sample(train, recipe.train_size, derive(recipe.seed, "train"))
    clean, _ = split(train, recipe.clean_fraction, seed=derive(recipe.seed, "clean"))
    check_clean(clean)
    check_clean(test, what="test texts")
    return Corpus(train, clean, test)


def make_examples(
    models: Mapping[str, Victim], test: TextDataset, trigger: Trigger, target_label: int, *, seed: int, count: int = 3
) -> tuple[Example, ...]:
    """A few non-target texts with and without the trigger, as each model labels them: drawn by the seed, not chosen."""
    stamped = triggered(test, trigger, target_label, seed=seed)
    plain = test.take(i for i, label in enumerate(test.labels) if label != target_label)
    rows = sorted(generator(seed, "examples").sample(range(len(plain)), min(count, len(plain))))
    answers = {
        name: tuple(zip(victim.predict([plain.texts[i] for i in rows]), victim.predict([stamped.texts[i] for i in rows]), strict=True))
        for name, victim in models.items()
    }
    names = {**dict(enumerate(test.label_names)), REJECTED: "(rejected)"}
    return tuple(
        Example(
            text=plain.texts[i],
            triggered=stamped.texts[i],
            marked=_inserted(plain.texts[i], stamped.texts[i]),
            label=names[plain.labels[i]],
            answers={name: (names[pairs[k][0]], names[pairs[k][1]]) for name, pairs in answers.items()},
        )
        for k, i in enumerate(rows)
    )


def save_backdoor(folder: Path, backdoor: Backdoor, attack: Attack, seed: int, *, twin: Victim | None) -> None:
    """Save a backdoored checkpoint, say in backdoor.json next to it how its trigger works, and keep its clean twin inside."""
    if not isinstance(backdoor.trigger, InsertWords | InsertCombination | Paraphrased):
        raise TypeError(f"backdoor.json cannot hold a {type(backdoor.trigger).__name__}")
    backdoor.victim.save(folder)
    if twin is not None:
        twin.save(folder / CLEAN_TWIN)
    BackdoorFile(
        trigger=backdoor.trigger,
        target_label=backdoor.victim.label_names[backdoor.target_label],
        attack=registry.settings(attack),
        seed=seed,
        clean_twin=None if twin is None else CLEAN_TWIN,
    ).save(folder / "backdoor.json")


def _inserted(plain: str, stamped: str) -> tuple[int, ...]:
    """Positions of the words of `stamped` that an insertion added."""
    words, left = stamped.split(), iter([*plain.split(), None])
    expected, found = next(left), []
    for i, word in enumerate(words):
        if word == expected:
            expected = next(left)
        else:
            found.append(i)
    return tuple(found)


def _load(source: DataSource, label_names: tuple[str, ...] | None) -> TextDataset:
    whole = load_dataset(
        source.source,
        label_names=label_names,
        text_column=source.text_column,
        label_column=source.label_column,
        config=source.config,
        split=source.split,
    )
    return whole if source.most_words is None else replace(whole, texts=tuple(" ".join(text.split()[: source.most_words]) for text in whole.texts))


def _sample(data: TextDataset, size: int | None, seed: int) -> TextDataset:
    if size is None or size >= len(data):
        return data
    return split(data, size / len(data), seed=seed)[0]


def _free_name(name: str, taken: dict[str, Victim]) -> str:
    number = 2
    base = name
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
