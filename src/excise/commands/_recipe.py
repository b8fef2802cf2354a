"""What running a recipe prints and writes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from excise import processes
from excise.commands._shared import describe, write_reports
from excise.commands._stopping import resumable

if TYPE_CHECKING:
    from excise.commands import demo
    from excise.commands import run as run_command
    from excise.console import Console
    from excise.method import Backdoor
    from excise.pipeline import Corpus
    from excise.recipe import Recipe


def run_recipe(recipe: Recipe, options: run_command.Options | demo.Options, console: Console, *, keep_models: bool) -> None:
    from excise.output import writing
    from excise.pipeline import load_corpus, make_examples, run

    if options.dry_run:
        console.plan(lambda: run(recipe, precision=options.precision), load_corpus(recipe).clean, options.out)
        return
    if processes.index():
        run(recipe, precision=options.precision)  # takes part in the training; the first process writes
        return

    def show(backdoor: Backdoor, corpus: Corpus) -> None:
        examples = make_examples({"backdoored": backdoor.victim}, corpus.test, backdoor.trigger, backdoor.target_label, seed=recipe.seed)
        label = corpus.test.label_names[backdoor.target_label]
        console.say(f"\nThe backdoored model is trained. A trigger word turns reviews into '{label}':")
        console.examples(examples, "backdoored")
        console.say(f"Repairing it with {len(corpus.clean)} clean texts; none of them is in the test set of {len(corpus.test)} texts.")

    stopping = resumable(options, recipe.settings(), console) if hasattr(options, "stopping") else contextlib.nullcontext()
    with stopping, writing(options.out, overwrite=options.overwrite) as folder:
        result = run(recipe, folder if keep_models else None, precision=options.precision, on_attack=show)
        for row in result.rows:
            if keep_models and row.name not in ("clean", "backdoored") and (folder / row.name).is_dir():
                describe(folder / row.name, result, row.name)
        write_reports(folder, result, "result.json")
    console.scores(result)
    console.say(f"Wrote {options.out}: {'the checkpoints, ' if keep_models else ''}result.json and report.html.")
