"""Repair one backdoored model of a grid with the default repair and score it on the test set.

    python benchmarks/default_repair.py recipe.yaml results/models/<hash>/model results/models/<hash of the twin>/model

The recipe is the one that the model was made by, with one defense; the defender's texts and seeds are those of excise bench.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from excise import Victim, evaluate, load_recipe
from excise.pipeline import load_corpus
from excise.seeds import derive


def main() -> None:
    """One line of JSON a model: value and 95 % interval of every score, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("recipe", "backdoored", "twin"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    corpus, attack = load_corpus(recipe), recipe.attack
    backdoored = Victim.load(options.backdoored)
    begun = time.monotonic()
    repaired = recipe.defenses[0](backdoored, corpus.clean, seed=derive(recipe.seed, "defense"))
    seconds = round(time.monotonic() - begun)
    for name, victim in (("floor", Victim.load(options.twin)), ("backdoored", backdoored), ("repaired", repaired)):
        target = corpus.test.label_id(attack.target_label)
        scores = evaluate(victim, corpus.test, trigger=attack.trigger, target_label=target, seed=recipe.seed)
        shown = {key: [round(100 * x, 1) for x in (rate.value, *rate.interval)] for key, rate in vars(scores).items()}
        print(json.dumps({"model": name, "clean texts": len(corpus.clean), "seconds of the repair": seconds, **shown}))


if __name__ == "__main__":
    main()
