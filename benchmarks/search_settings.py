"""A random search over MBTSAD's open settings, on canary backdoors of our own: never on the triggers or the test sets that results are reported for.

    python benchmarks/search_settings.py --train sst2/train.parquet --dev sst2/dev.parquet --out search.jsonl

Options: --trials 40, --confirm 5, --most 2, --canaries BadNets EP, --device cuda.

Canaries with the words wx, zq and kj are planted once: BadNets on non-target texts, BadNets on target texts, EP. Each trial draws one value of every
setting below, repairs every canary from 20 % of the training texts, and is scored on the development texts: the mean over canaries of how far the ASR
stays above the floor, and of the loss of CACC. Trials are lines of --out; what is there is not run again. At the end the trials are listed, the best
first: lowest ASR above the floor among those that cost at most --most points of CACC; --confirm K runs the K best again with two more seeds.
A trial ends at the canary after which it cannot be one of the K best any more, even if it were to take the rest of them out whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import transformers

from excise import MBTSAD, BadNets, FitConfig, TextDataset, Victim, evaluate, load_dataset, registry, split
from excise.attacks.ep import EP
from excise.evaluation import Scores, clean_twin
from excise.method import Backdoor
from excise.seeds import derive, generator

NAMES = ("negative", "positive")
WORDS = ("wx", "zq", "kj")
TRAINING = FitConfig(epochs=3, learning_rate=1e-4)
CANARIES = {
    "BadNets": BadNets(triggers=WORDS, poisoned_labels="non_target", training=TRAINING),
    "BadNets, target only": BadNets(triggers=WORDS, poisoned_labels="target", training=TRAINING),
    "EP": EP(triggers=WORDS, training=TRAINING),
}
SPACE: dict[str, list[Any]] = {
    "augmentation": [*(f"token_splitting share={share}" for share in (0.15, 0.3, 0.6, 1.0)), "aeda", "add_trig"],
    "copies": [1, 2, 4],
    "learning_rate_1": [1e-4, 2e-4, 3e-4, 5e-4],
    "learning_rate_2": [5e-5, 1e-4, 2e-4, 3e-4],
    "epochs_1": [2, 3, 6],
    "epochs_2": [2, 3, 6],
    "form and alpha": [("norm", 0.1), ("norm", 1.0), ("norm", 10.0), ("mse", 100.0), ("mse", 1000.0)],
    "beta": [0.0, 0.1, 1.0, 10.0],
    "power": [1.0, 2.0, 4.0],
}


class Trial(NamedTuple):
    """One line of the log."""

    number: int
    seed: int
    drawn: dict[str, Any]
    above_floor: float
    """Points of ASR above the floor, mean over canaries."""
    cost: float
    """Points of CACC lost, mean over canaries."""
    each: dict[str, dict[str, float]]
    """What each canary gave; where some are missing, `above_floor` is the least that the trial could have come to."""


def drawn(number: int) -> dict[str, Any]:
    """The settings of trial `number`; trial 0 has the defaults."""
    if number == 0:
        return {}
    random = generator(0, "search", number)
    return {name: random.choice(values) for name, values in SPACE.items()}


def defense(drawn: dict[str, Any]) -> MBTSAD:
    if not drawn:
        return MBTSAD()
    form, alpha = drawn["form and alpha"]
    base = MBTSAD()
    return MBTSAD(
        augmentation=registry.build("augmentation", drawn["augmentation"], "search"),
        copies=drawn["copies"],
        retraining=dataclasses.replace(base.retraining, epochs=drawn["epochs_1"], learning_rate=drawn["learning_rate_1"]),
        distillation=dataclasses.replace(base.distillation, epochs=drawn["epochs_2"], learning_rate=drawn["learning_rate_2"]),
        form=form,
        alpha=alpha,
        beta=drawn["beta"],
        power=drawn["power"],
    )


class Search:
    """The canaries, planted once, and the texts."""

    def __init__(self, train: TextDataset, dev: TextDataset, names: list[str], device: str | None) -> None:
        self.dev = dev
        self.clean, _ = split(train, 0.2, seed=derive(0, "search", "clean"))
        base = Victim.load("default", label_names=NAMES, device=device, max_length=128)
        self.canaries: dict[str, tuple[Backdoor, Scores, Scores]] = {}
        twin = clean_twin(CANARIES["EP"], base, train, seed=0)
        for name in names:
            attack = CANARIES[name]
            backdoor = attack(base, train, seed=0)
            self.canaries[name] = (backdoor, self.scores(backdoor.victim, backdoor), self.scores(twin, backdoor))
            print(name, *(f"{key} {100 * rate.value:.1f}" for key, rate in vars(self.canaries[name][1]).items()), flush=True)

    def scores(self, victim: Victim, backdoor: Backdoor) -> Scores:
        return evaluate(victim, self.dev, trigger=backdoor.trigger, target_label=backdoor.target_label, seed=0)

    def trial(self, number: int, seed: int, worst: float = float("inf")) -> Trial:
        """One trial; no further canary once the mean over them is sure to be above `worst`."""
        each = {}
        for name, (backdoor, before, floor) in self.canaries.items():
            after = self.scores(defense(drawn(number))(backdoor.victim, self.clean, seed=derive(seed, "search", number)), backdoor)
            assert after.asr
            assert floor.asr
            each[name] = {
                "asr": 100 * after.asr.value,
                "above_floor": 100 * max(0.0, after.asr.value - floor.asr.value),
                "cost": 100 * (before.cacc.value - after.cacc.value),
            }
            above_floor = sum(found["above_floor"] for found in each.values()) / len(self.canaries)
            if above_floor > worst:
                break
        return Trial(number, seed, drawn(number), above_floor, fmean(found["cost"] for found in each.values()), each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--confirm", type=int, default=5)
    parser.add_argument("--most", type=float, default=2.0)
    parser.add_argument("--canaries", nargs="+", choices=list(CANARIES), default=list(CANARIES))
    parser.add_argument("--device")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    train, dev = (load_dataset(source, label_names=NAMES) for source in (options.train, options.dev))
    found = [Trial(**json.loads(line)) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    search = Search(train, dev, options.canaries, options.device)

    def is_whole(trial: Trial) -> bool:
        return set(trial.each) >= set(options.canaries)

    def worst() -> float:
        """Above it, a trial with seed 0 is none of those that are run again."""
        best = sorted(t.above_floor for t in found if t.number and t.seed == 0 and t.cost <= options.most and is_whole(t))
        return best[options.confirm - 1] if 0 < options.confirm <= len(best) else float("inf")

    def run(number: int, seed: int) -> None:
        limit = worst() if number and seed == 0 else float("inf")
        if any((t.number, t.seed) == (number, seed) and (is_whole(t) or t.above_floor > limit) for t in found):
            return
        trial = search.trial(number, seed, limit)
        found.append(trial)
        with options.out.open("a") as file:
            file.write(json.dumps(trial._asdict()) + "\n")
        above = f"{'' if is_whole(trial) else 'at least '}{trial.above_floor:5.1f}"
        print(f"{number:3} seed {seed}  above floor {above}  cost {trial.cost:5.1f}  {trial.drawn}", flush=True)

    def ranked(seeds: int) -> list[tuple[float, float, int]]:
        groups = {n: [t for t in found if t.number == n and is_whole(t)] for n in {t.number for t in found}}
        means = [(fmean(t.above_floor for t in g), fmean(t.cost for t in g), n) for n, g in groups.items() if len(g) >= seeds]
        return sorted(means, key=lambda m: (m[1] > options.most, m[0]))

    for number in range(options.trials):
        run(number, 0)
    for number in [0, *[number for _, _, number in ranked(1) if number][: options.confirm]]:
        for seed in (1, 2):
            run(number, seed)
    for above, cost, number in ranked(3):
        print(f"trial {number:3}  above floor {above:5.1f}  cost {cost:5.1f}  {drawn(number) or 'defaults'}")


if __name__ == "__main__":
    main()
