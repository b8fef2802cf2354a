"""How fast excise is: beside plain forms of the same work, and beside the rate at which this machine multiplies matrices.

    python benchmarks/speed.py --model SUSPECT --train train.parquet --test test.parquet --out results/speed.json
                               [--language-model DIR] [--rows strip rap ...] [--texts 1821] [--repeats 5]

The plain form of STRIP, RAP and ONION is how one writes them first, and how OpenBackdoor runs them: the copies of one text, or 32 texts in their
order, are a batch, padded to its longest. Both forms take turns, so that a drift of the machine meets both; medians are compared, and both have to
come to the same scores. Rates count the products of matrices (torch's flop counter) and are told as shares of the rate of one large product,
measured in turn with them. Memory is what a step of distillation keeps for its backward pass. Prints a line a row; stores all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from excise import FitConfig, TextDataset, Victim
from excise.defenses.mbtsad import distillation_loss
from excise.defenses.onion import suspicions
from excise.detectors.rap import RAP
from excise.detectors.strip import STRIP, entropy, important_words, perturb
from excise.language_model import LanguageModel
from excise.scanners._contests import Foil, strongest
from excise.seeds import generator
from excise.training import classification_loss, fit
from excise.victim import Batch, collate
from excise.vocabulary import typed_words

Row = dict[str, Any]
STEP = FitConfig(epochs=1, learning_rate=1e-5, batch_size=32)


class Bench:
    """The model, the texts, and how often each row is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.victim = Victim.load(options.model, max_length=options.max_length, precision=options.precision)
        self.train, self.test = first(self.read(options.train), 1384), first(self.read(options.test), options.texts)

    def read(self, path: str) -> TextDataset:
        table = pyarrow.parquet.read_table(path)
        return TextDataset(tuple(table["text"].to_pylist()), tuple(table["label"].to_pylist()), self.victim.label_names)

    # Rows

    def strip(self) -> Row:
        """STRIP: the copies of one text are a batch."""
        method, texts = STRIP(), self.test.texts
        scores = method(self.victim, self.train, seed=0)
        pools = important_words(self.train.texts)

        def plain() -> list[float]:
            found = []
            for text in texts:
                copies = [perturb(text, pools, generator(0, text, copy), share=method.share) for copy in range(method.copies)]
                found.append(-entropy(self.padded(copies).softmax(dim=1)).mean().item())
            return found

        return self.beside("strip", lambda: scores(texts), plain, len(texts))

    def rap(self) -> Row:
        """RAP, scoring; the probe is learnt once."""
        method, texts = RAP(target_label=1, training=FitConfig(epochs=1, learning_rate=1e-2)), self.test.texts
        scores = method(self.victim, self.train, seed=0)
        probed = method.probed(self.victim, self.train, seed=0)

        def plain() -> list[float]:
            found = []
            for part in chunks(texts, 32):
                before = self.padded(part).softmax(dim=1)
                after = self.padded(method.with_probe(part), probed).softmax(dim=1)
                found += [d if one.argmax() == 1 else -torch.inf for d, one in zip((after - before)[:, 1].tolist(), before, strict=True)]
            return found

        return self.beside("rap", lambda: scores(texts), plain, len(texts))

    def onion(self) -> Row:
        """ONION: one sentence at a time, as the authors' code does."""
        model, texts = LanguageModel.load(self.options.language_model, kind="causal"), self.test.texts[: self.options.onion_texts]

        def plain() -> list[float]:
            found = []
            for text in texts:
                words = text.split()
                variants = [text, *(" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words)) if len(words) > 1)]
                whole, *rest = (model.perplexities([one]).item() for one in variants)
                found += [whole - one for one in rest]
            return found

        return self.beside("onion", lambda: [f for row in suspicions(model, texts) for f in row if f > -torch.inf], plain, len(texts))

    def evaluate(self) -> Row:
        """Predictions: 32 texts in their order are a batch."""
        texts = self.test.texts
        return self.beside(
            "evaluate", lambda: self.victim.logits(texts).flatten().tolist(), lambda: self.in_order(texts).flatten().tolist(), len(texts)
        )

    def inference_rate(self) -> Row:
        """Products a second while test texts are classified."""
        return self.rate("inference_rate", lambda: self.victim.logits(self.test.texts))

    def search_rate(self) -> Row:
        """The same while words are tried in a text."""
        words = [(word,) for word in list(typed_words(self.victim).values())[:2000]]
        foil = Foil(1, [self.test.texts[0]], [], [], 0)
        return self.rate("search_rate", lambda: strongest(self.victim, words, foil, 1, 10))

    def training_rate(self) -> Row:
        """The same during fine-tuning."""
        part = first(self.train, 320)
        return self.rate("training_rate", lambda: fit(self.victim, part, loss=classification_loss, config=STEP, seed=0))

    def distillation_rate(self) -> Row:
        """The same during distillation; the teacher's pass counts."""
        part, loss = first(self.train, 320), distillation_loss(self.victim, alpha=1, beta=1, power=2)
        return self.rate("distillation_rate", lambda: fit(self.victim, part, loss=loss, config=STEP, seed=0))

    def memory(self) -> Row:
        """MiB kept for the backward pass of one distillation step of 16 texts, by their length; those with as many numbers as a layer's maps have."""
        row: Row = {"row": "memory", "texts": 16, "tokens": [], "mib": [], "largest_mib": [], "one_layer_s_maps_mib": []}
        config = self.victim.model.config
        loss = distillation_loss(self.victim, alpha=1, beta=1, power=2)
        for tokens in (64, 128, 256, 512):
            ids = torch.randint(1000, 2000, (16, tokens))
            batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(16, dtype=torch.long))
            student, kept = self.victim.copy(), dict[int, int]()
            student.model.train()
            own = {p.untyped_storage().data_ptr() for p in student.model.parameters()}

            def keep(tensor: Tensor, kept: dict[int, int] = kept, own: set[int] = own) -> Tensor:
                place = tensor.untyped_storage()
                if place.data_ptr() not in own:
                    kept[place.data_ptr()] = place.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss(student, batch)
            row["tokens"].append(tokens)
            row["mib"].append(round(sum(kept.values()) / 2**20, 1))
            row["largest_mib"].append(round(max(kept.values()) / 2**20, 1))
            row["one_layer_s_maps_mib"].append(round(16 * config.num_attention_heads * tokens**2 * 4 / 2**20, 1))
        return row

    def growth(self) -> Row:
        """Seconds for so many texts, and for ten times as many."""
        texts = self.test.texts
        few = texts[: max(1, len(texts) // 10)]
        times = [self.turn(lambda: self.victim.logits(few)) for _ in range(self.options.repeats)]
        more = [self.turn(lambda: self.victim.logits(texts)) for _ in range(self.options.repeats)]
        small, large = statistics.median(times), statistics.median(more)
        return {"row": "growth", "texts": [len(few), len(texts)], "seconds": [round(small, 3), round(large, 3)], "ratio": round(large / small, 2)}

    # How they are measured

    def beside(self, name: str, ours: Callable[[], Sequence[float]], plain: Callable[[], Sequence[float]], texts: int) -> Row:
        """Seconds of both, in turn."""
        torch.testing.assert_close(torch.tensor(ours()), torch.tensor(plain()), atol=2e-3 if self.victim.precision == "fp32" else 0.1, rtol=1e-2)
        times = [(self.turn(ours), self.turn(plain)) for _ in range(self.options.repeats)]
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        return {"row": name, "texts": texts, "ours_s": round(mine, 3), "plain_s": round(theirs, 3), "ratio": round(theirs / mine, 2)}

    def rate(self, name: str, work: Callable[[], object]) -> Row:
        """Products a second, as a share of the machine's rate."""
        counter = FlopCounterMode(display=False)
        with counter:
            work()
        flops = counter.get_total_flops()
        pairs = [(self.machine(), flops / self.turn(work)) for _ in range(self.options.repeats)]
        limit, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        return {"row": name, "gflop_s": round(ours / 1e9, 1), "machine_gflop_s": round(limit / 1e9, 1), "share": round(ours / limit, 3)}

    def machine(self) -> float:
        """Operations a second in products of the shape of a feed-forward layer."""
        width = self.victim.model.config.hidden_size
        kind = torch.bfloat16 if self.victim.precision == "bf16" else torch.float32
        one, other = torch.randn(4096, width).to(kind), torch.randn(width, 4 * width).to(kind)
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.5:
            one @ other
            count += 1
        return count * 2 * 4096 * width * 4 * width / (time.perf_counter() - begun)

    @staticmethod
    def turn(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def padded(self, texts: Sequence[str], victim: Victim | None = None) -> Tensor:
        """Logits of a batch."""
        victim = victim or self.victim
        with torch.inference_mode(), victim.autocast():
            return victim.model(**collate(victim.tokenizer, victim.encode(texts))).logits.float()

    def in_order(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self.padded(part) for part in chunks(texts, 32)])


def first(data: TextDataset, most: int) -> TextDataset:
    return data.take(range(min(most, len(data))))


def chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for i in range(0, len(texts), size):
        yield texts[i : i + size]


ROWS = ("evaluate", "strip", "rap", "onion", "inference_rate", "search_rate", "training_rate", "distillation_rate", "memory", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--language-model", help="a causal one, for ONION")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--texts", type=int, default=1821)
    parser.add_argument("--onion-texts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bench = Bench(options)
    rows = []
    for name in options.rows:
        if name == "onion" and not options.language_model:
            print("onion: left out, as no --language-model was given", flush=True)
            continue
        rows.append(getattr(bench, name)())
        print(json.dumps(rows[-1]), flush=True)
    about = {"precision": bench.victim.precision, "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.processor()}
    if options.out:
        options.out.write_text(json.dumps({**about, "repeats": options.repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
