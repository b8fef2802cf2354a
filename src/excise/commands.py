"""What each command does, given its options. Parsing, drawing and exit codes are in `cli.py`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.errors import ConfigError, DataError, ExciseError, nearest
from excise.options import AttackOptions, BenchOptions, Common, DemoOptions, EvaluateOptions, RepairOptions, RunOptions, Texts

if TYPE_CHECKING:
    from excise.console import Console
    from excise.data import TextDataset
    from excise.method import Attack, Backdoor, Defense
    from excise.pipeline import Corpus
    from excise.recipe import Recipe
    from excise.result import Result
    from excise.victim import Victim


NO_FLOOR = "No clean twin is at hand, so the ASR floor is not known; clean flips are its nearest stand-in."
NO_TRIGGER = "No trigger is known, so the ASR cannot be measured: the repair may have removed a backdoor, part of one, or there was none."
NOT_HELD_OUT = "Nothing was held out (--holdout 0), so CACC is measured on the texts that the repair used and says little."
DEAR = 5
"""A repair that costs more points of CACC than this gets a hint."""


def repair(options: RepairOptions, defense: Defense, console: Console) -> None:
    from excise.data import check_clean, split
    from excise.evaluation import triggered
    from excise.output import check_output
    from excise.pipeline import Story, check_needs
    from excise.result import data_record
    from excise.seeds import derive

    if defense.guards:
        raise ConfigError(f"{options.method} guards a model's input and leaves its weights, so there is no repaired checkpoint. Use it in a recipe.")
    check_needs(defense)
    seed = options.common.seed
    story = Story(seed)
    check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.test, options.backdoor))
    victim = _load_victim(options.model, options.texts, options.common)
    check_output(options.out, overwrite=options.overwrite, needed=_size(victim))
    trigger, target, twin = _known_backdoor(options.backdoor, victim)
    data = options.texts.load(options.data, victim.label_names)
    if options.fraction != 1:
        data, _ = split(data, options.fraction, seed=derive(seed, "fraction"))
    check_clean(data)
    clean, test = _hold_out(options, data, victim.label_names, seed)
    if trigger is not None and target is not None:
        triggered(test or clean, trigger, target, seed=seed)  # it must be possible to measure, before any work

    if twin:
        story.victims["clean"] = _load_floor(twin, victim, options.texts, options.common)
    story.victims["suspect"] = victim
    notes = [NOT_HELD_OUT] * (test is None) + [NO_TRIGGER] * (trigger is None) + [NO_FLOOR] * (trigger is not None and not twin)
    records = {"clean": data_record(options.data, clean)}
    if test is not None:
        records["test" if options.test else "holdout"] = data_record(options.test or options.data, test)

    def work() -> Result:
        story.make(options.method, lambda: defense(victim, clean, seed=derive(seed, "defense")), method=defense)
        return story.tell(
            "repair",
            test or clean,
            trigger=trigger,
            target_label=target,
            settings=_plain(options),
            model=options.model,
            data=records,
            notes=notes,
        )

    if options.dry_run:
        console.plan(work, clean, options.out)
        return
    console.say(f"Repairing {victim.source} with {options.method}: {len(clean)} clean texts, {victim.precision} on {victim.device}.")
    result = work()
    fixed = story.victims[options.method]
    _write(options.out, options.overwrite, result, save=fixed.save, card=True)
    console.scores(result)
    _hint(result, console)
    console.say(f"Wrote {options.out} (a Hugging Face folder), with report.html.")


def _hint(result: Result, console: Console) -> None:
    """What to do when a repair was dear."""
    cost = 100 * (result.rows[-2].cacc.value - result.rows[-1].cacc.value)
    if cost > DEAR:
        console.say(
            f"The repair cost {cost:.1f} points of accuracy. Give more texts, or lower the learning rates of {result.rows[-1].name} "
            "(models wider than 384 need lower ones than the defaults): see excise repair --help."
        )


def attack(options: AttackOptions, attack: Attack, console: Console) -> None:
    from excise.data import check_clean
    from excise.evaluation import clean_twin
    from excise.output import check_output
    from excise.pipeline import Story, save_backdoor
    from excise.result import data_record

    seed = options.common.seed
    story = Story(seed)
    check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.test))
    data = options.texts.load(options.data)
    victim = _load_victim(options.model, options.texts, options.common, label_names=data.label_names, seed=seed)
    if victim.label_names != data.label_names:
        data = options.texts.load(options.data, victim.label_names)  # the checkpoint has a head: its labels count
    check_clean(data, what="training texts")
    check_output(options.out, overwrite=options.overwrite, needed=_size(victim) * (1 if options.no_clean_twin else 2))
    train, test = _hold_out(options, data, victim.label_names, seed)
    if test is None:
        raise ConfigError("An attack has to be measured: give --test, or a --holdout above 0.")

    notes = ["This checkpoint has a backdoor, planted to test defenses. Do not pass it on as an ordinary model."]

    def work() -> tuple[Backdoor, Victim | None, Result]:
        backdoor = story.make("backdoored", lambda: attack(victim, train, seed=seed), method=attack)
        twin = None if options.no_clean_twin else story.make("clean", lambda: clean_twin(attack, victim, train, seed=seed))
        result = story.tell(
            "attack",
            test,
            trigger=backdoor.trigger,
            target_label=backdoor.target_label,
            settings=_plain(options),
            model=options.model,
            data={"train": data_record(options.data, train), "test": data_record(options.test or options.data, test)},
            notes=notes if twin else [*notes, NO_FLOOR],
        )
        return backdoor, twin, result

    if options.dry_run:
        console.plan(work, train, options.out)
        return
    console.say(f"Planting a {options.attack} backdoor: {len(train)} training texts, {victim.precision} on {victim.device}.")
    backdoor, twin, result = work()
    _write(options.out, options.overwrite, result, save=lambda folder: save_backdoor(folder, backdoor, attack, seed, twin=twin))
    console.scores(result)
    console.examples(result.examples, "backdoored")
    console.say(f"Wrote {options.out}; backdoor.json in it says how the trigger works.")


def evaluate(options: EvaluateOptions, console: Console) -> None:
    from excise.data import check_clean
    from excise.output import check_output
    from excise.pipeline import Story
    from excise.result import data_record

    story = Story(options.common.seed)
    if options.out:
        check_output(options.out, overwrite=options.overwrite, inputs=(options.model, options.data, options.backdoor, options.floor_model))
    if options.floor_model and not options.backdoor:
        raise ConfigError("--floor-model was given without --backdoor: a floor needs a trigger to measure. Give both.")
    victim = _load_victim(options.model, options.texts, options.common)
    trigger, target, twin = _known_backdoor(options.backdoor, victim)
    test = options.texts.load(options.data, victim.label_names)
    check_clean(test, what="test texts")
    floor = options.floor_model or twin
    if floor and trigger is not None:
        story.victims["clean"] = _load_floor(floor, victim, options.texts, options.common)
    story.victims["model"] = victim

    def work() -> Result:
        return story.tell(
            "evaluate",
            test,
            trigger=trigger,
            target_label=target,
            settings=_plain(options),
            model=options.model,
            data={"test": data_record(options.data, test)},
            notes=[NO_FLOOR] if trigger is not None and not floor else [],
        )

    if options.dry_run:
        console.plan(work, test, options.out)
        return
    result = work()
    if options.out:
        _write(options.out, options.overwrite, result)
    console.scores(result)


def run(options: RunOptions, console: Console) -> None:
    from excise.output import check_output
    from excise.recipe import load_recipe

    path = Path(options.recipe)
    if not path.suffix and not path.exists():
        shipped = shipped_recipes()
        if options.recipe not in shipped:
            raise ConfigError(f"There is no recipe {options.recipe!r}; excise comes with {', '.join(shipped)}.{nearest(options.recipe, shipped)}")
        path = shipped[options.recipe]
    recipe = load_recipe(path, **({} if options.seed is None else {"seed": options.seed}))
    sources = (recipe.train.source, recipe.test.source if recipe.test else None)
    check_output(options.out, overwrite=options.overwrite, inputs=(path, recipe.model, *sources))
    _run_recipe(recipe, options, console, keep_models=not options.no_models)


def demo(options: DemoOptions, console: Console) -> None:
    from excise.output import check_output
    from excise.recipe import load_recipe

    overrides: dict[str, Any] = {} if options.seed is None else {"seed": options.seed}
    recipe = load_recipe(shipped_recipes()["demo-quick" if options.quick else "demo"], **overrides)
    check_output(options.out, overwrite=options.overwrite, needed=300_000_000)
    if not options.dry_run:
        console.say("excise demo: backdoor a small classifier of movie reviews, then repair it without knowing the trigger.")
        if options.quick:
            console.say("--quick uses so few texts that it shows the steps, not what a repair can do.")
    _run_recipe(recipe, options, console, keep_models=True)


def bench(options: BenchOptions, console: Console) -> None:
    from excise.bench import load_grid, places, run_grid
    from excise.reports.grid import csv_table, latex_table, markdown_table, table_rows, terminal_table

    shipped = shipped_recipes("grids")
    path = Path(options.grid)
    if not path.suffix and not path.exists():
        if options.grid not in shipped:
            raise ConfigError(f"There is no grid {options.grid!r}; excise comes with {', '.join(shipped)}.{nearest(options.grid, shipped)}")
        path = shipped[options.grid]
    grid = load_grid(path)
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"{options.out} is a file; a folder for the results was expected.")
    if options.dry_run:
        console.say(f"{len(places(grid))} cells, with {len(grid.data) * len(grid.attacks) * len(grid.seeds)} backdoored models. Nothing was written.")
        return
    cells = run_grid(grid, options.out, precision=options.precision, device=options.device, keep_models=not options.no_models)
    rows = table_rows(cells, grid.paper or {})
    console.show(terminal_table(rows))
    for name, text in (("md", markdown_table(rows)), ("csv", csv_table(rows)), ("tex", latex_table(rows))):
        (options.out / f"{grid.name}.{name}").write_text(text, encoding="utf-8")
    for cell in cells:
        if cell.error:
            console.say(f"{cell.data}, {cell.attack}, {cell.defense}, seed {cell.seed} failed: {cell.error}")
    if any(cell.error for cell in cells):
        raise ExciseError(f"{sum(bool(cell.error) for cell in cells)} of {len(cells)} cells failed; run it again to retry them.")


def shipped_recipes(folder: str = ".") -> dict[str, Path]:
    """The recipes in the package, or the grids, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes" / folder).glob("*.yaml"))}


def _run_recipe(recipe: Recipe, options: RunOptions | DemoOptions, console: Console, *, keep_models: bool) -> None:
    from excise.output import writing
    from excise.pipeline import load_corpus, make_examples, run

    if options.dry_run:
        console.plan(lambda: run(recipe, precision=options.precision), load_corpus(recipe).clean, options.out)
        return

    def show(backdoor: Backdoor, corpus: Corpus) -> None:
        examples = make_examples({"backdoored": backdoor.victim}, corpus.test, backdoor.trigger, backdoor.target_label, seed=recipe.seed)
        label = corpus.test.label_names[backdoor.target_label]
        console.say(f"\nThe backdoored model is trained. A trigger word turns reviews into '{label}':")
        console.examples(examples, "backdoored")
        console.say(f"Repairing it with {len(corpus.clean)} clean texts; none of them is in the test set of {len(corpus.test)} texts.")

    with writing(options.out, overwrite=options.overwrite) as folder:
        result = run(recipe, folder if keep_models else None, precision=options.precision, on_attack=show)
        _write_reports(folder, result, "result.json")
        for row in result.rows:
            if keep_models and row.name not in ("clean", "backdoored") and (folder / row.name).is_dir():
                _describe(folder / row.name, result, row.name)
    console.scores(result)
    console.say(f"Wrote {options.out}: {'the checkpoints, ' if keep_models else ''}result.json and report.html.")


def _load_victim(source: str, texts: Texts, common: Common, **options: Any) -> Victim:
    from excise.victim import Victim

    return Victim.load(source, max_length=texts.max_length, precision=common.precision, device=common.device, **options)


def _load_floor(source: str, victim: Victim, texts: Texts, common: Common) -> Victim:
    """The model whose ASR is the floor."""
    floor = _load_victim(source, texts, common)
    if floor.label_names != victim.label_names:
        raise ConfigError(f"The floor model has the labels {floor.label_names}, the model has {victim.label_names}. Give one with the same labels.")
    return floor


def _known_backdoor(path: Path | None, victim: Victim) -> tuple[Any, int | None, str | None]:
    """(trigger, target label, folder of the clean twin), each None if not known."""
    from excise.backdoor_file import BackdoorFile
    from excise.data import TextDataset

    if path is None:
        return None, None, None
    file = BackdoorFile.load(path)
    twin = path.parent / file.clean_twin if file.clean_twin else None
    try:
        target = TextDataset((), (), victim.label_names).label_id(file.target_label)
    except DataError as error:
        raise ConfigError(f"{path}: target_label: {error}") from error
    return file.trigger, target, str(twin) if twin and twin.is_dir() else None


def _hold_out(
    options: RepairOptions | AttackOptions, data: TextDataset, label_names: tuple[str, ...], seed: int
) -> tuple[TextDataset, TextDataset | None]:
    """(texts to work with, texts to measure on), without a text in common."""
    from excise.data import check_clean, split
    from excise.seeds import derive

    if not 0 <= options.holdout < 1:
        raise ConfigError(f"--holdout {options.holdout} was given; it must be at least 0 and less than 1.")
    if options.test:
        test = options.texts.load(options.test, label_names, test=True)
        seen = set(test.texts)
        data = data.take(i for i, text in enumerate(data.texts) if text not in seen)
        if not len(data):
            raise DataError(f"Every text of {options.data} is also in {options.test}. Give test texts of their own.")
    elif options.holdout:
        test, data = split(data, options.holdout, seed=derive(seed, "holdout"))
    else:
        return data, None
    if not len(test):
        raise DataError("Too few texts to hold some out. Give more, --test, or --holdout 0.")
    check_clean(data, what="texts that are not held out or in the test set")
    return data, test


def _write(out: Path, overwrite: bool, result: Result, *, save: Callable[[Path], None] | None = None, card: bool = False) -> None:
    """The folder of a command: the checkpoint if there is one, the result, the report."""
    from excise.output import writing

    with writing(out, overwrite=overwrite) as folder:
        if save:
            save(folder)
        if card:
            _describe(folder, result, result.rows[-1].name)
        _write_reports(folder, result, "excise-result.json")


def _describe(folder: Path, result: Result, name: str) -> None:
    """What a repaired checkpoint says of itself: its model card and the result."""
    from excise.reports.model_card import model_card

    (folder / "README.md").write_text(model_card(result, name), encoding="utf-8")
    result.save(folder / "excise-result.json")


def _write_reports(folder: Path, result: Result, name: str) -> None:
    from excise.reports.html import html_report

    result.save(folder / name)
    (folder / "report.html").write_text(html_report(result), encoding="utf-8")


def _size(victim: Victim) -> int:
    return round(1.1 * sum(p.numel() * p.element_size() for p in victim.model.parameters()))


def _plain(options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))
