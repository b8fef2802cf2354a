"""The whole MBTSAD repair beside the same work written with nlpaug and transformers.Trainer.

    python benchmarks/repair_speed.py --baseline PATH/mbtsad_hf_trainer.py --data clean.parquet --model BACKDOORED [--limit 480] [--repeats 1]

Both repair the same model from the same texts with the same number of copies, epochs, batch size and learning rate, each in a process of its own,
in turn, so that a drift of the machine meets both; with --bf16 the baseline takes a second turn in bf16. Prints one line of JSON a run and the ratios
of medians: time of splitting, retraining and distilling (loading and saving left out on both sides), and peak resident memory of the process.
`benchmarks/speed.py` asks for one run at a time (--turn) and keeps each.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def ours(options: argparse.Namespace) -> dict:
    """One repair in this process."""
    import pyarrow.parquet
    import transformers

    from excise import MBTSAD, FitConfig, TextDataset, Victim

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    table = pyarrow.parquet.read_table(options.data).slice(0, options.limit)
    victim = Victim.load(options.model, max_length=options.max_length, precision=options.precision)
    data = TextDataset(tuple(table["text"].to_pylist()), tuple(table["label"].to_pylist()), victim.label_names)
    config = FitConfig(epochs=options.epochs, learning_rate=2e-5, warmup=0, batch_size=32)
    start = time.perf_counter()
    MBTSAD(alpha=1, beta=1, copies=options.copies, retraining=config, distillation=config)(victim, data, seed=0)
    total = time.perf_counter() - start
    return {
        "texts": len(data) * options.copies,
        "total": round(total, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "precision": victim.precision,
    }


def measured(form: str, options: argparse.Namespace) -> dict:
    """One run, in a process of its own. This process is small, as the peak memory that it would pass on to a child is its own."""
    shared = ["--model", options.model, "--data", options.data, "--copies", str(options.copies), "--epochs", str(options.epochs)]
    shared += ["--max-length", str(options.max_length), *(["--limit", str(options.limit)] if options.limit else [])]
    with tempfile.TemporaryDirectory() as out:
        if form == "excise":
            command = [sys.executable, __file__, "--one", "--precision", options.precision, *shared]
        else:
            command = [sys.executable, str(options.baseline), *shared, "--out", out, *(["--bf16"] if form == "bf16" else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="the script to compare with")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="measure the baseline in bf16 as well")
    parser.add_argument("--turn", choices=["excise", "plain", "bf16"], help="only one run of this form")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ours(options)))
        return
    if options.baseline is None:
        parser.error("--baseline is needed")
    if options.turn:
        found = measured(options.turn, options)
        print(json.dumps({"seconds": found["total"], "peak_mib": found["peak_mib"]}))
        return
    forms = ("excise", "plain", *(["bf16"] if options.bf16 else []))
    runs: dict[str, list[dict]] = {form: [] for form in forms}
    for _ in range(options.repeats):
        for form in forms:
            runs[form].append(measured(form, options))
            print(f"{form:<8}", json.dumps(runs[form][-1]), flush=True)
    for form in forms[1:]:
        for key, what in (("total", "time"), ("peak_mib", "peak memory")):
            mine, theirs = (statistics.median(run[key] for run in runs[name]) for name in ("excise", form))
            print(f"{what}: excise {mine:g}, {form} {theirs:g}, {form} / excise = {theirs / mine:.2f}")


if __name__ == "__main__":
    main()
