"""How MBTSAD's settings were chosen: on a canary backdoor of our own, never on the triggers or the test set that results are reported for.

    python benchmarks/choose_settings.py --train sst2/train.parquet --dev sst2/dev.parquet [--device cuda]

Plants BadNets with the trigger words wx, zq and kj, repairs it from 20 % of the training texts with each setting below, and prints for the teacher
(TS-FT)
and the student (MBTSAD): CACC and canary ASR on the development texts, and the clean flip rate. About 8 minutes a setting on two cores.
"""

from __future__ import annotations

import argparse

import transformers

from excise import MBTSAD, TSFT, BadNets, FitConfig, Victim, evaluate, load_dataset, split

NAMES = ("negative", "positive")
CANARY = BadNets(triggers=("wx", "zq", "kj"), training=FitConfig(epochs=2, learning_rate=1e-4))
SETTINGS = {
    "lr 1e-4": FitConfig(epochs=3, learning_rate=1e-4),
    "lr 3e-4": FitConfig(epochs=3, learning_rate=3e-4),
    "lr 3e-4, decay 1": FitConfig(epochs=3, learning_rate=3e-4, weight_decay=1.0),
    "lr 1e-4, decay 20": FitConfig(epochs=3, learning_rate=1e-4, weight_decay=20.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    train, dev = (load_dataset(source, label_names=NAMES) for source in (options.train, options.dev))
    backdoor = CANARY(Victim.load("default", label_names=NAMES, device=options.device), train, seed=100)
    clean, _ = split(train, 0.2, seed=100)

    def show(name: str, victim: Victim) -> None:
        scores = evaluate(victim, dev, trigger=backdoor.trigger, target_label=backdoor.target_label)
        rates = (scores.cacc, scores.asr, scores.clean_flip)
        print(f"{name:<30}", *(f"{100 * rate.value:6.1f} (n={rate.n})" for rate in rates if rate), flush=True)

    print(f"{'':<30}  CACC          ASR           clean flips")
    show("canary", backdoor.victim)
    for name in options.only:
        config = SETTINGS[name]
        show(f"TS-FT, {name}", TSFT(copies=2, retraining=config)(backdoor.victim, clean, seed=0))
        show(f"MBTSAD, {name}", MBTSAD(copies=2, retraining=config, distillation=config)(backdoor.victim, clean, seed=0))


if __name__ == "__main__":
    main()
