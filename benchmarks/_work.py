"""What all rows of the benchmark share: the model and the texts, the plain way to run batches, and how seconds and rates are measured."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from _store import Figures, Store
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from excise import BadNets, FitConfig, TextDataset, Victim, load_dataset
from excise.language_model import LanguageModel, train_language_model
from excise.victim import collate

HERE = Path(__file__).parent
NAMES = ("negative", "positive")
FILES = {"train", "test", "long", "language_model", "baseline"}
"""Options that name a file or a folder; what is kept of them is a hash, and not where they are."""


@dataclass(frozen=True)
class Sizes:
    """How much work each row does."""

    texts: int = 1821
    """Test texts that are classified and scored."""
    clean: int = 1384
    """Training texts that the defender has: for repairs, and for what the detectors learn."""
    onion: int = 100
    """Test texts that ONION scores."""
    words: int = 2000
    """Words that are tried in a text."""
    steps: int = 320
    """Texts of the trainings whose rate is measured."""
    vocabulary: int = 250_000
    """Rows of a large word embedding, as models of many languages have."""
    tokens: tuple[int, ...] = (64, 128, 256, 512)
    """Lengths of texts."""
    copies: tuple[int, ...] = (2, 5, 10, 20)
    """Of STRIP."""
    scanned: tuple[int, ...] = (240, 480, 960)
    """Clean texts of scans."""
    search: tuple[tuple[str, Any], ...] = ()
    """Settings of the trigger search that are not the defaults."""


QUICK = Sizes(
    texts=30,
    clean=60,
    onion=4,
    words=40,
    steps=32,
    vocabulary=31_000,
    tokens=(16, 32),
    copies=(2, 3),
    scanned=(40, 60),
    search=(("leaning", 0.01), ("texts", (1, 2)), ("survivors", (8,)), ("partners", 2), ("longest", 2), ("jury", 8)),
)
"""Enough to see that everything runs."""


class Work:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, store: Store) -> None:
        self.options, self.store, self.repeats = options, store, int(options.repeats)
        self.sizes = QUICK if options.quick else Sizes()

    # What is worked on

    @cached_property
    def model(self) -> Path:
        """The suspect's folder; if none was given, a backdoored one that is made once."""
        if self.options.model:
            return Path(self.options.model)
        place = self.options.work / "model"
        if not place.exists():
            data = load_dataset(self.options.train, label_names=NAMES)
            base = Victim.load("default", label_names=NAMES)
            BadNets(training=FitConfig(epochs=1, learning_rate=1e-4))(base, data, seed=0).victim.save(place)
        return place

    @cached_property
    def victim(self) -> Victim:
        """The suspect, in the arithmetic that was asked for."""
        return Victim.load(self.model, max_length=self.options.max_length, precision=self.options.precision)

    @cached_property
    def exact(self) -> Victim:
        """The suspect in fp32."""
        return replace(self.victim, precision="fp32")

    @cached_property
    def train(self) -> TextDataset:
        """All training texts."""
        return load_dataset(self.options.train, label_names=self.victim.label_names)

    @cached_property
    def clean(self) -> TextDataset:
        """The training texts that a defender has."""
        return first(self.train, self.sizes.clean)

    @cached_property
    def test(self) -> TextDataset:
        """Test texts."""
        return first(load_dataset(self.options.test, label_names=self.victim.label_names), self.sizes.texts)

    @cached_property
    def language_model(self) -> LanguageModel:
        """A causal one; if none was given, a hardly trained one that is made once: how fast it is does not depend on that."""
        place = self.options.language_model or self.options.work / "language_model"
        if not Path(place).exists():
            train_language_model("default", self.train.texts[:256], kind="causal", training=FitConfig(epochs=1), seed=0).save(place)
        return LanguageModel.load(place, kind="causal")

    def settings(self, uses: Sequence[str]) -> dict[str, Any]:
        """What decides a row: model, arithmetic and machine; and the texts, sizes and options that it uses."""
        config = self.victim.model.config
        common = {
            "model": f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}",
            "weights": digest(self.model),
            "precision": self.victim.precision,
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        sizes, given = asdict(self.sizes), vars(self.options)
        return common | {name: sizes[name] if name in sizes else digest(given[name]) if name in FILES else given[name] for name in uses}

    # How it is measured

    def seconds(self, works: Mapping[Any, Callable[[], object]], name: str, *, repeats: int | None = None) -> dict[Any, float]:
        """The median seconds of each form of the work."""
        forms = {str(form): timed(work) for form, work in works.items()}
        medians = self.store.take_turns(name, forms, repeats or self.repeats)
        return {form: medians[str(form)]["seconds"] for form in works}

    def rate(self, name: str, work: Callable[[], object]) -> dict[str, Any]:
        """Products of matrices a second, as a share of the machine's rate, which is measured in turn with it."""
        counter = FlopCounterMode(display=False)
        with counter:
            work()
        operations = counter.get_total_flops()
        run = timed(work)
        forms = {"excise": lambda: {"gflop_s": operations / run()["seconds"] / 1e9}, "machine": lambda: {"gflop_s": self.machine() / 1e9}}
        medians = self.store.take_turns(name, forms, self.repeats)
        mine, limit = medians["excise"]["gflop_s"], medians["machine"]["gflop_s"]
        return {"gflop_s": round(mine, 1), "machine_gflop_s": round(limit, 1), "share": round(mine / limit, 3)}

    def machine(self) -> float:
        """Operations a second in products of the shape of a feed-forward layer, in the same arithmetic."""
        width = self.victim.model.config.hidden_size
        kind = torch.bfloat16 if self.victim.precision == "bf16" else torch.float32
        one, other = torch.randn(4096, width).to(kind), torch.randn(width, 4 * width).to(kind)
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.5:
            one @ other
            count += 1
        return count * 2 * 4096 * width * 4 * width / (time.perf_counter() - begun)

    def runs(self, *arguments: str) -> None:
        """A Python of its own."""
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    def in_a_process_of_its_own(self, *arguments: object) -> Figures:
        """What one of the scripts beside this one prints as its last line."""
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])


def padded(victim: Victim, texts: Sequence[str]) -> Tensor:
    """Logits of a batch, padded to its longest."""
    with torch.inference_mode(), victim.autocast():
        return victim.model(**collate(victim.tokenizer, victim.encode(texts))).logits.float()


def in_order(victim: Victim, texts: Sequence[str], size: int) -> Tensor:
    """Logits of texts, so many at a time in their order: how one writes it first."""
    return torch.cat([padded(victim, part) for part in chunks(texts, size)])


def timed(work: Callable[[], object]) -> Callable[[], Figures]:
    """The work, as a measurement of its seconds."""

    def measure() -> Figures:
        begun = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - begun}

    return measure


def first(data: TextDataset, most: int) -> TextDataset:
    """The first texts of a data set."""
    return data.take(range(min(most, len(data))))


def chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """So many texts at a time."""
    for i in range(0, len(texts), size):
        yield texts[i : i + size]


def digest(path: str | Path | None) -> str | None:
    """The beginning of a file's SHA-256, of a model's weights if it is a folder; of what is neither, its name."""
    place = Path(path or "") / "model.safetensors"
    file = place if path and place.is_file() else Path(path or "")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else path and str(path)


def processor() -> str:
    """What the operating system calls the processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
