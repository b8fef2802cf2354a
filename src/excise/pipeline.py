"""The whole story: attack a model, repair it, measure before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from excise import registry
from excise.attacks._triggers import InsertWords
from excise.backdoor_file import BackdoorFile
from excise.data import TextDataset, check_clean, load_dataset, split
from excise.errors import DataError
from excise.evaluation import clean_twin, evaluate, triggered
from excise.method import Attack, Backdoor
from excise.progress import observe, stage
from excise.recipe import DataSource, Recipe
from excise.result import Curves, Data, Environment, Example, Result, command_line, data_record, row
from excise.seeds import derive, generator
from excise.victim import Precision, Victim

__all__ = ["Corpus", "load_corpus", "make_examples", "run"]


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


def run(
    recipe: Recipe, folder: Path | None = None, *, precision: Precision = "auto", on_attack: Callable[[Backdoor, Corpus], None] | None = None
) -> Result:
    """Attack, defend and evaluate as the recipe says.

    Args:
        recipe: What to do.
        folder: If given, every model is saved in it, with backdoor.json beside the backdoored one.
        precision: Arithmetic; `auto` is bf16 where the hardware has it.
        on_attack: Called when the backdoored model is there, before any repair.
    """
    started, curves = time.monotonic(), Curves()
    corpus = load_corpus(recipe)
    base = Victim.load(recipe.model, label_names=corpus.train.label_names, max_length=recipe.max_length, precision=precision, seed=recipe.seed)
    models: dict[str, Victim] = {}
    methods: dict[str, dict] = {}
    seconds: dict[str, float] = {}

    @contextmanager
    def making(name: str) -> Iterator[None]:
        start = time.monotonic()
        with stage(name), observe(curves):
            yield
        seconds[name] = time.monotonic() - start

    with making("clean"):
        models["clean"] = clean_twin(recipe.attack, base, corpus.train, seed=derive(recipe.seed, "attack"))
    with making("backdoored"):
        backdoor = recipe.attack(base, corpus.train, seed=derive(recipe.seed, "attack"))
        models["backdoored"], methods["backdoored"] = backdoor.victim, registry.settings(recipe.attack)
    if on_attack:
        on_attack(backdoor, corpus)
    for defense in recipe.defenses:
        name = _free_name(registry.name_of(defense), models)
        with making(name):
            models[name] = defense(backdoor.victim, corpus.clean, seed=derive(recipe.seed, "defense"))
            methods[name] = registry.settings(defense)

    rows = []
    for name, victim in models.items():
        with stage(name):
            scores = evaluate(victim, corpus.test, trigger=backdoor.trigger, target_label=backdoor.target_label, seed=recipe.seed)
        rows.append(row(name, scores, method=methods.get(name), seconds=seconds[name]))
        if folder:
            victim.save(folder / name)
    if folder:
        write_backdoor_file(folder / "backdoored", recipe.attack, backdoor, recipe.seed, clean_twin=None)
    return Result(
        kind="run",
        command=command_line(),
        environment=Environment.of(str(base.device), base.precision),
        seed=recipe.seed,
        settings=recipe.settings(),
        model=recipe.model,
        target_label=corpus.train.label_names[backdoor.target_label],
        data=corpus.record(recipe),
        rows=tuple(rows),
        examples=make_examples(models, corpus.test, backdoor, seed=recipe.seed),
        curves=curves.frozen(),
        seconds=time.monotonic() - started,
    )


def load_corpus(recipe: Recipe) -> Corpus:
    """The recipe's texts, cut so that no text is in training and test at once.

    Raises:
        DataError: Too few texts are left, or they are of one class.
    """
    whole = _load(recipe.train, recipe.label_names)
    if recipe.test is None:
        if recipe.test_size is None:
            raise DataError("The recipe names no test data and no test_size. Give one of them.")
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


def make_examples(models: dict[str, Victim], test: TextDataset, backdoor: Backdoor, *, seed: int, count: int = 3) -> tuple[Example, ...]:
    """A few non-target texts with and without the trigger, as each model labels them: drawn by the seed, not chosen."""
    stamped = triggered(test, backdoor.trigger, backdoor.target_label, seed=seed)
    plain = test.take(i for i, label in enumerate(test.labels) if label != backdoor.target_label)
    rows = sorted(generator(seed, "examples").sample(range(len(plain)), min(count, len(plain))))
    answers = {
        name: tuple(zip(victim.predict([plain.texts[i] for i in rows]), victim.predict([stamped.texts[i] for i in rows]), strict=True))
        for name, victim in models.items()
    }
    names = test.label_names
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


def write_backdoor_file(folder: Path, attack: Attack, backdoor: Backdoor, seed: int, *, clean_twin: str | None) -> None:
    """Say next to a backdoored checkpoint how its trigger works."""
    if not isinstance(backdoor.trigger, InsertWords):
        raise TypeError(f"backdoor.json cannot hold a {type(backdoor.trigger).__name__}")
    names = backdoor.victim.label_names
    BackdoorFile(
        trigger=backdoor.trigger,
        target_label=names[backdoor.target_label],
        attack=registry.settings(attack),
        seed=seed,
        clean_twin=clean_twin,  # type: ignore[arg-type]
    ).save(folder / "backdoor.json")


def _inserted(plain: str, stamped: str) -> tuple[int, ...]:
    """Positions of the words of `stamped` that an insertion added."""
    words, left = stamped.split(), iter([*plain.split(), None])
    expected, found = next(left), []
    for i, word in enumerate(words):
        if word == expected and len(words) - i >= 1:
            expected = next(left)
        else:
            found.append(i)
    return tuple(found)


def _load(source: DataSource, label_names: tuple[str, ...] | None) -> TextDataset:
    return load_dataset(
        source.source,
        label_names=label_names,
        text_column=source.text_column,
        label_column=source.label_column,
        config=source.config,
        split=source.split,
    )


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
