"""One measurement in a process of its own, whose peak memory nothing else has raised; prints a line of JSON.

    python benchmarks/_alone.py step --form excise|plain --model DIR --data train.parquet --texts 16 --tokens 512 [--precision auto]
    python benchmarks/_alone.py evaluate|repair --model DIR --data train.parquet --texts 1384 --tokens 512

`before_mib` is what the process had held at most before the work began, `peak_mib` what it had held at most in the end: VmHWM, the high-water mark of
its own resident memory. (What getrusage calls the maximum also holds that of the process that started it.)
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from excise import MBTSAD, FitConfig, TextDataset, Victim, fit, load_dataset
from excise.defenses.mbtsad import distillation_loss
from excise.victim import collate

CONFIG = FitConfig(epochs=1, learning_rate=2e-5, warmup=0, batch_size=32)
WARM, TIMED = 1, 2
"""Steps."""


def peak_mib() -> float:
    """The most memory that this process has held resident."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def long_texts(victim: Victim, data: TextDataset, count: int, tokens: int) -> TextDataset:
    """So many texts of exactly so many tokens, once they are cut: texts of the data, put together as far as necessary."""
    texts, labels, parts, length = list[str](), list[int](), list[str](), 0
    while len(texts) < count:
        for text, label, encoding in zip(data.texts, data.labels, victim.encode(data.texts[: 40 * count]), strict=False):
            parts, length = [*parts, text], length + len(encoding["input_ids"])
            if length >= tokens + 2 * len(parts):
                texts, labels, parts, length = [*texts, " ".join(parts)], [*labels, label], [], 0
            if len(texts) == count:
                break
    return TextDataset(tuple(texts), tuple(labels), data.label_names)


def our_step(victim: Victim, data: TextDataset) -> Callable[[int], None]:
    """Steps through `fit`, as a repair takes them; the suspect is its own teacher."""
    loss = distillation_loss(victim, alpha=1, beta=1, power=2)
    config = FitConfig(epochs=1, learning_rate=2e-5, warmup=0, batch_size=len(data))

    def steps(count: int) -> None:
        more = TextDataset(data.texts * count, data.labels * count, data.label_names)
        fit(victim, more, loss=loss, config=config, seed=0)

    return steps


def plain_step(victim: Victim, data: TextDataset) -> Callable[[int], None]:
    """The same in fp32 with every map and every hidden state of both models kept."""
    teacher, student = victim.model, victim.copy().model
    for model in (teacher, student):
        model.set_attn_implementation("eager")
    student.train()
    descent = torch.optim.AdamW(student.parameters(), lr=2e-5)
    inputs, labels = collate(victim.tokenizer, victim.encode(data.texts)), torch.tensor(data.labels)

    def steps(count: int) -> None:
        for _ in range(count):
            plain_loss(teacher, student, inputs, labels).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            descent.step()
            descent.zero_grad()

    return steps


def plain_loss(teacher: torch.nn.Module, student: torch.nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Eq. (1) of MBTSAD with alpha = beta = 1 and p = 2, from whole maps: sums over heads of squares, each normalised, and hidden states."""
    with torch.no_grad():
        taught = teacher(**inputs, output_attentions=True, output_hidden_states=True)
    learnt = student(**inputs, output_attentions=True, output_hidden_states=True)
    real = inputs["attention_mask"].float()
    square = real[:, :, None] * real[:, None, :]
    total = cross_entropy(learnt.logits, labels)
    for one, other in zip(learnt.attentions, taught.attentions, strict=True):
        maps = [normalize((whole.pow(2).sum(dim=1) * square).flatten(1)) for whole in (one, other)]
        total = total + (maps[0] - maps[1]).norm(dim=1).mean()
    for one, other in zip(learnt.hidden_states, taught.hidden_states, strict=True):
        total = total + ((one - other).square() * real[:, :, None]).sum() / (real.sum() * one.shape[-1])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "evaluate", "repair"])
    parser.add_argument("--form", choices=["excise", "plain"], default="excise")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    precision = "fp32" if options.form == "plain" else options.precision
    victim = Victim.load(options.model, max_length=options.tokens, precision=precision)
    data = load_dataset(options.data, label_names=victim.label_names)
    part = data.take(range(min(options.texts, len(data))))
    if options.what == "step":
        steps = (our_step if options.form == "excise" else plain_step)(victim, long_texts(victim, data, options.texts, victim.max_length))
        before = peak_mib()
        steps(WARM)
        begun = time.perf_counter()
        steps(TIMED)
        seconds = (time.perf_counter() - begun) / TIMED
    else:
        mbtsad = MBTSAD(copies=1, retraining=CONFIG, distillation=CONFIG)
        before, begun = peak_mib(), time.perf_counter()
        if options.what == "evaluate":
            victim.logits(part.texts)
        else:
            mbtsad(victim, part, seed=0)
        seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": round(seconds, 4), "before_mib": round(before, 1), "peak_mib": round(peak_mib(), 1)}))


if __name__ == "__main__":
    main()
