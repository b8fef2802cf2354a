"""How fast excise is: the whole table of docs/performance.md and the curves of what grows with what, kept as JSON.

    python benchmarks/speed.py --out results/speed.json                      everything that needs nothing else, with a model made for it
    python benchmarks/speed.py --out results/speed.json --model SUSPECT --train sst2/train.parquet --test sst2/test.parquet
                               --long imdb/train.parquet --language-model LM --baseline mbtsad_hf_trainer.py
    python benchmarks/speed.py --table results/speed.json [--plot docs/images/cost.svg]

Forms of the same work take turns, so that a drift of the machine meets all of them; medians are compared. Rates count the products of matrices
(torch's flop counter) and are told as shares of the rate of one large product, measured in turn with them. Every measurement is written as soon as
it is taken, and what the file holds from the same model, texts, settings, machine and versions is not measured again: a run that was stopped goes on.
--list says what each row measures; --quick does a little of each, to see that it runs.
"""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

import _curves  # noqa: F401 (its rows)
import transformers
from _rows import ROWS, LeftOut
from _store import Store
from _table import cost_figure, table
from _work import Work

LONG = {"scan_by_texts", "scan_by_layers", "scan_by_vocabulary", "repair"}
"""What takes longest comes last."""


def main() -> None:
    """The command line."""
    options = arguments().parse_args()
    if options.list:
        for name, row in ROWS.items():
            print(f"{name}: {inspect.getdoc(row.measure)}\n")
    elif options.table:
        tell(options.table, options.plot)
    else:
        measure(options)


def arguments() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the suspect, a folder; without it, one is made from the embedded encoder")
    parser.add_argument("--train", default="default", help="training texts; by default the embedded ones")
    parser.add_argument("--test", default="default", help="test texts")
    parser.add_argument("--long", help="texts for the step at 512 tokens; by default training texts, put together")
    parser.add_argument("--language-model", help="a causal one, for ONION; without it, one is made")
    parser.add_argument("--baseline", help="the script that the whole repair is measured beside; without it, that row is left out")
    parser.add_argument("--rows", nargs="*", choices=sorted(ROWS), help="by default all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scan-repeats", type=int, default=1, help="of the curves of scans")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--repair-max-length", type=int, default=128)
    parser.add_argument("--repair-texts", type=int, help="repair with so many of the clean texts; five turns with all of them take two hours")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--out", type=Path, help="results/speed.json by default")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where models made for the benchmark are kept")
    parser.add_argument("--quick", action="store_true", help="a little of each row")
    parser.add_argument("--list", action="store_true", help="say what each row measures")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--plot", type=Path, help="where the curves are drawn, an SVG; by default beside the file")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Every row that was asked for and is not there yet; then the table."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options.out = options.out or (options.work / "quick.json" if options.quick else Path("results/speed.json"))
    store = Store(options.out)
    work = Work(options, store)
    for name in options.rows or sorted(ROWS, key=lambda name: name in LONG):
        row = ROWS[name]
        settings = work.settings(row.uses)
        repeats = options.scan_repeats if name.startswith("scan_by") else work.repeats
        if store.is_done(name, settings, repeats):
            print(f"{name}: kept from {options.out}", flush=True)
            continue
        store.open(name, settings)
        try:
            store.close(name, row.measure(work))
        except LeftOut as why:
            del store.rows[name]
            print(f"{name}: left out, as {why}", flush=True)
            continue
        print(f"{name}: {json.dumps(store.rows[name]['found'])}", flush=True)
    tell(options.out, options.plot)


def tell(path: Path, plot: Path | None) -> None:
    """Print the table of a file and draw its curves."""
    store = Store(path)
    print("\n" + table(store.rows))
    if figure := cost_figure(store.rows):
        place = plot or path.with_suffix(".svg")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(figure)
        print(f"The curves are drawn in {place}.")


if __name__ == "__main__":
    main()
