"""How MBTSAD's settings were chosen: on canary backdoors of our own, never on the triggers or the test sets that results are reported for.

    python benchmarks/choose_settings.py [--train sst2/train.parquet --dev sst2/dev.parquet] [--device cuda]

Plants BadNets with the trigger words wx, zq and kj, repairs it from 20 % of the training texts with each setting below, and prints for the teacher
(TS-FT) and the student (MBTSAD): CACC and canary ASR on the development texts, and the clean flip rate. Without --train it uses those embedded movie
reviews that the demo neither trains nor tests on. On two cores a setting takes about 2 minutes there, about 8 on SST-2.
"""

from __future__ import annotations

import argparse

import transformers

from excise import MBTSAD, BadNets, FitConfig, TextDataset, Victim, evaluate, load_dataset, load_recipe, split
from excise.pipeline import load_corpus
from excise.recipes import shipped_recipes

NAMES = ("negative", "positive")
TRIGGERS = ("wx", "zq", "kj")
SETTINGS = {
    "lr 1e-4": FitConfig(epochs=3, learning_rate=1e-4),
    "lr 3e-4": FitConfig(epochs=3, learning_rate=3e-4),
    "lr 3e-4, decay 1": FitConfig(epochs=3, learning_rate=3e-4, weight_decay=1.0),
    "lr 1e-4, decay 20": FitConfig(epochs=3, learning_rate=1e-4, weight_decay=20.0),
    "lr 2e-4, decay 5": FitConfig(epochs=3, learning_rate=2e-4, weight_decay=5.0),
    "lr 3e-4, decay 2, batch 8, 2 epochs": FitConfig(epochs=2, learning_rate=3e-4, weight_decay=2.0, batch_size=8),
}


def unused_reviews() -> tuple[TextDataset, TextDataset]:
    """(training, development) texts that the demo does not touch."""
    corpus = load_corpus(load_recipe(shipped_recipes()["demo"]))
    used = {*corpus.train.texts, *corpus.test.texts}
    whole = load_dataset("default")
    rest = whole.take(i for i, text in enumerate(whole.texts) if text not in used)
    dev, rest = split(rest, 600 / len(rest), seed=1)
    return split(rest, 1600 / len(rest), seed=1)[0], dev


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train")
    parser.add_argument("--dev")
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.train:
        train, dev = (load_dataset(source, label_names=NAMES) for source in (options.train, options.dev))
        epochs, seed = 2, 100
    else:
        train, dev = unused_reviews()
        epochs, seed = 3, 1
    attack = BadNets(triggers=TRIGGERS, training=FitConfig(epochs=epochs, learning_rate=1e-4))
    backdoor = attack(Victim.load("default", label_names=NAMES, device=options.device, max_length=128), train, seed=seed)
    clean, _ = split(train, 0.2, seed=seed)

    def show(name: str, victim: Victim) -> None:
        scores = evaluate(victim, dev, trigger=backdoor.trigger, target_label=backdoor.target_label)
        rates = (scores.cacc, scores.asr, scores.clean_flip)
        print(f"{name:<46}", *(f"{100 * rate.value:6.1f} (n={rate.n})" for rate in rates if rate), flush=True)

    print(f"{'':<46}  CACC          ASR           clean flips")
    show("canary", backdoor.victim)
    for name in options.only:
        defense = MBTSAD(copies=2, retraining=SETTINGS[name], distillation=SETTINGS[name])
        augmented = defense.augment(backdoor.victim, clean, seed=0)
        teacher = defense.retrain(backdoor.victim, augmented, seed=0)
        show(f"TS-FT, {name}", teacher)
        show(f"MBTSAD, {name}", defense.distil(backdoor.victim, teacher, augmented, seed=0))


if __name__ == "__main__":
    main()
