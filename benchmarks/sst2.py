"""BadNets, TS-FT and MBTSAD for several seeds: the numbers of docs/reproduction.md.

    python benchmarks/sst2.py --train sst2/train.parquet --test sst2/test.parquet --out results --seeds 0 1 2 [--attack-seed 0]

For each seed: BadNets on non-target texts (10 %, 3 epochs at 1e-4) and a clean twin, trained alike without the trigger, whose ASR is the floor; then
both steps of MBTSAD with default settings from a stratified 20 % of the clean training texts. The teacher after step 1 is TS-FT. With --attack-seed
the backdoored model is made once and the seeds are the defender's alone: which texts, which splits, which order. Prints a line a model and saves each
in --out; what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import transformers

from excise import MBTSAD, BadNets, FitConfig, TextDataset, Victim, evaluate, load_dataset, split
from excise.evaluation import clean_twin
from excise.metrics import Rate
from excise.seeds import derive

NAMES = ("negative", "positive")
ATTACK = BadNets(training=FitConfig(epochs=3, learning_rate=1e-4))
DEFENSE = MBTSAD()


class Seed:
    """One seed's models, each made and measured once."""

    def __init__(self, seed: int, attack_seed: int, train: TextDataset, test: TextDataset, out: Path, device: str | None) -> None:
        self.seed, self.attack_seed, self.test, self.out = seed, attack_seed, test, out
        seen = set(test.texts)
        self.train = train.take(i for i, text in enumerate(train.texts) if text not in seen)
        self.clean, _ = split(self.train, 0.2, seed=derive(seed, "clean"))
        self.base = Victim.load("default", label_names=NAMES, device=device, seed=attack_seed)

    def model(self, name: str, make: Callable[[], Victim], *, seed: int) -> Victim:
        """A model by name and seed: from --out, or made now and saved there."""
        folder = self.out / f"{name}-{seed}"
        if (folder / "scores.json").exists():
            return Victim.load(folder, device=str(self.base.device))
        begun = time.monotonic()
        victim = make()
        seconds = round(time.monotonic() - begun)
        victim.save(folder)
        scores = evaluate(victim, self.test, trigger=ATTACK.trigger, target_label=1, seed=seed)
        record = {"model": name, "seed": seed, "seconds": seconds, **{k: v for k, v in vars(scores).items() if v}}
        (folder / "scores.json").write_text(json.dumps(record))
        rates = "  ".join(f"{key} {shown(rate)}" for key, rate in vars(scores).items())
        print(f"seed {seed}  {name:<11} {rates}  {seconds} s", flush=True)
        return victim

    def run(self) -> None:
        made = self.attack_seed
        self.model("clean", lambda: clean_twin(ATTACK, self.base, self.train, seed=made), seed=made)
        bad = self.model("backdoored", lambda: ATTACK(self.base, self.train, seed=made).victim, seed=made)
        augmented = DEFENSE.augment(bad, self.clean, seed=self.seed)
        teacher = self.model("ts_ft", lambda: DEFENSE.retrain(bad, augmented, seed=self.seed), seed=self.seed)
        self.model("mbtsad", lambda: DEFENSE.distil(bad, teacher, augmented, seed=self.seed), seed=self.seed)


def shown(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.1f} ({100 * low:.1f}-{100 * high:.1f}, n={rate.n})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attack-seed", type=int)
    parser.add_argument("--device")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    train, test = (load_dataset(source, label_names=NAMES) for source in (options.train, options.test))
    for seed in options.seeds:
        attack_seed = seed if options.attack_seed is None else options.attack_seed
        Seed(seed, attack_seed, train, test, options.out, options.device).run()


if __name__ == "__main__":
    main()
