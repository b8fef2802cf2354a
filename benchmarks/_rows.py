"""The rows of the table: each measures one kind of work beside a plain form of it, or beside what the machine can do.

The plain forms of STRIP, RAP and ONION are sized as in OpenBackdoor: perturbed copies four at a time in the order in which they are made, texts 32 at
a time, the variants of one text 32 at a time; each batch is padded to its longest, in fp32. Before anything is timed, both forms have to come to the
same scores, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _work import HERE, Work, chunks, first, in_order, padded
from torch import Tensor

from excise import FitConfig, Victim
from excise.defenses.mbtsad import distillation_loss
from excise.defenses.onion import suspicions
from excise.detectors.rap import RAP
from excise.detectors.strip import STRIP, entropy, important_words, perturb
from excise.language_model import LanguageModel, nll
from excise.scanners._contests import Foil, strongest
from excise.seeds import generator
from excise.training import LengthBuckets, Loss, classification_loss, fit, padded_width
from excise.victim import TOKENS, Batch, collate, token_batches
from excise.vocabulary import typed_words

Found = dict[str, Any]
Scores = Callable[[Sequence[str]], Sequence[float]]
STEP = FitConfig(epochs=1, learning_rate=1e-5, batch_size=32)
CHECKED = 64
"""Texts on which both forms have to come to the same scores."""


class LeftOut(Exception):
    """Something that a row needs was not given."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    uses: tuple[str, ...]
    """Sizes and options that decide it, besides model, arithmetic and machine."""
    measure: Callable[[Work], Found]


ROWS: dict[str, Row] = {}


def row(*uses: str) -> Callable[[Callable[[Work], Found]], Callable[[Work], Found]]:
    """A row, under the function's name."""

    def add(measure: Callable[[Work], Found]) -> Callable[[Work], Found]:
        ROWS[measure.__name__] = Row(uses, measure)
        return measure

    return add


# Repair


@row("train", "clean", "repair_texts", "repair_max_length", "baseline")
def repair(work: Work) -> Found:
    """The whole MBTSAD repair, 3 copies and 3 + 3 epochs, beside the script given as --baseline in fp32 and with --bf16.

    Each run is a process of its own. Seconds are those of splitting, retraining and distilling; loading and saving are left out on both sides. Peak
    memory is the most that the process ever held resident.
    """
    if not work.options.baseline:
        raise LeftOut("no --baseline was given")
    data = work.options.work / "clean.parquet"
    data.parent.mkdir(parents=True, exist_ok=True)
    part = first(work.clean, work.options.repair_texts or len(work.clean))
    pq.write_table(pa.table({"text": part.texts, "label": part.labels}), data)
    given = ("--baseline", work.options.baseline, "--model", work.model, "--data", data)
    given += ("--max-length", work.options.repair_max_length, "--precision", work.options.precision)
    forms = {
        form: lambda form=form: work.in_a_process_of_its_own(HERE / "repair_speed.py", "--turn", form, *given) for form in ("excise", "plain", "bf16")
    }
    medians = work.store.take_turns("repair", forms, work.repeats)
    found: Found = {f"{form}_{key}": round(value, 2) for form, figures in medians.items() for key, value in figures.items()}
    for form in ("plain", "bf16"):
        found[f"{form}_ratio"] = round(medians[form]["seconds"] / medians["excise"]["seconds"], 2)
        found[f"{form}_memory_ratio"] = round(medians["excise"]["peak_mib"] / medians[form]["peak_mib"], 3)
    return found


@row("long", "tokens")
def distillation_step(work: Work) -> Found:
    """One step of distillation, 16 texts of the longest length, beside the same loss from whole attention maps of every layer in fp32.

    The plain form asks teacher and student for `output_attentions` (eager attention) and keeps all maps and hidden states of both, as one writes it
    first. A step is the teacher's pass, the student's, the backward pass, clipping and AdamW. Each run is a process of its own that takes one
    step to warm up and then times two. Peak memory is the most that the process ever held resident (VmHWM), with Python, torch and the model.
    """
    given = ("--model", work.model, "--data", work.options.long or work.options.train, "--tokens", max(work.sizes.tokens), "--texts", 16)
    given += ("--precision", work.options.precision)
    forms = {form: lambda form=form: work.in_a_process_of_its_own(HERE / "_alone.py", "step", "--form", form, *given) for form in ("excise", "plain")}
    medians = work.store.take_turns("distillation_step", forms, work.repeats)
    mine, theirs = medians["excise"], medians["plain"]
    found: Found = {f"{form}_{key}": round(value, 3) for form, figures in medians.items() for key, value in figures.items()}
    memory = {"memory_share": round(mine["peak_mib"] / theirs["peak_mib"], 3)}
    added = (mine["peak_mib"] - mine["before_mib"]) / (theirs["peak_mib"] - theirs["before_mib"])
    return found | {"ratio": round(theirs["seconds"] / mine["seconds"], 2)} | memory | {"added_memory_share": round(added, 3)}


@row("train", "steps", "vocabulary")
def large_vocabulary(work: Work) -> Found:
    """Fine-tuning with a word embedding of many languages, beside training every row of it."""
    part, wide = first(work.train, work.sizes.steps), work.victim.copy()
    wide.model.resize_token_embeddings(work.sizes.vocabulary, mean_resizing=False)

    def tuned(loss: Loss) -> Callable[[], object]:
        return lambda: fit(wide, part, loss=loss, config=STEP, seed=0)

    every = partial(classification_loss)  # not marked as one that reads nothing but the batch
    found = work.seconds({"excise": tuned(classification_loss), "every_row": tuned(every)}, "large_vocabulary")
    return {name: round(value, 3) for name, value in found.items()} | {"ratio": round(found["every_row"] / found["excise"], 2)}


# Rates


@row("train", "steps")
def training_rate(work: Work) -> Found:
    """Products of matrices a second during fine-tuning, as a share of the machine's rate."""
    part = first(work.train, work.sizes.steps)
    return work.rate("training_rate", lambda: fit(work.victim, part, loss=classification_loss, config=STEP, seed=0))


@row("train", "steps")
def distillation_rate(work: Work) -> Found:
    """The same during distillation; the teacher's pass counts."""
    part, loss = first(work.train, work.sizes.steps), distillation_loss(work.victim, alpha=1, beta=1, power=2)
    return work.rate("distillation_rate", lambda: fit(work.victim, part, loss=loss, config=STEP, seed=0))


@row("test", "texts")
def evaluation_rate(work: Work) -> Found:
    """The same while test texts are classified."""
    return work.rate("evaluation_rate", lambda: work.victim.logits(work.test.texts))


@row("train", "test", "clean", "texts")
def strip_rate(work: Work) -> Found:
    """The same while STRIP scores test texts."""
    part, scores = first(work.test, max(8, work.sizes.texts // 5)), STRIP()(work.victim, work.clean, seed=0)
    return work.rate("strip_rate", lambda: scores(part.texts))


@row("test", "words")
def search_rate(work: Work) -> Found:
    """The same while the trigger search tries words in a text."""
    words = [(word,) for word in list(typed_words(work.victim).values())[: work.sizes.words]]
    foil = Foil(1, [work.test.texts[0]], [], [], 0)
    return work.rate("search_rate", lambda: strongest(work.victim, words, foil, 1, 10))


# Inference


@row("test", "texts")
def evaluate(work: Work) -> Found:
    """Classifying test texts, beside 32 at a time in their order."""
    return beside(
        work, "evaluate", lambda victim: lambda texts: flat(victim.logits(texts)), lambda victim: lambda texts: flat(in_order(victim, texts, 32))
    )


@row("train", "test", "clean", "texts")
def strip(work: Work) -> Found:
    """Scoring test texts with STRIP, beside four perturbed copies at a time."""
    method, pools = STRIP(), important_words(work.clean.texts)

    def plain(victim: Victim) -> Scores:
        def scores(texts: Sequence[str]) -> Sequence[float]:
            copies = [perturb(text, pools, generator(0, text, copy), share=method.share) for text in texts for copy in range(method.copies)]
            return flat(-entropy(in_order(victim, copies, 4).softmax(dim=1)).view(len(texts), -1).mean(dim=1))

        return scores

    return beside(work, "strip", lambda victim: method(victim, work.clean, seed=0), plain)


@row("train", "test", "clean", "texts")
def rap(work: Work) -> Found:
    """Scoring test texts with RAP, beside 32 at a time; the probe is learnt before, for one epoch."""
    method = RAP(target_label=1, training=FitConfig(epochs=1, learning_rate=1e-2))
    probe = method.probed(work.exact, work.clean, seed=0)

    def plain(victim: Victim) -> Scores:
        probed = replace(probe, precision=victim.precision)

        def scores(texts: Sequence[str]) -> Sequence[float]:
            found = list[float]()
            for part in chunks(texts, 32):
                before = padded(victim, part).softmax(dim=1)
                after = padded(probed, method.with_probe(part)).softmax(dim=1)
                found += [d if one.argmax() == 1 else -torch.inf for d, one in zip((after - before)[:, 1].tolist(), before, strict=True)]
            return found

        return scores

    return beside(work, "rap", lambda victim: method(victim, work.clean, seed=0), plain)


@row("test", "onion", "language_model")
def onion(work: Work) -> Found:
    """The suspicions of ONION, beside the variants of one text at a time."""

    def plain(model: LanguageModel, texts: Sequence[str]) -> list[float]:
        found = list[float]()
        for text in texts:
            words = text.split()
            if len(words) > 1:
                read = [" ".join(words), *(" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words)))]
                whole, *rest = (ppl for part in chunks(read, 32) for ppl in perplexities(model, part))
                found += [whole - ppl for ppl in rest]
        return found

    def perplexities(model: LanguageModel, part: Sequence[str]) -> list[float]:
        inputs = collate(model.tokenizer, model.encode(part))
        with torch.inference_mode(), model.autocast():
            return nll(model.model(**inputs).logits, inputs["input_ids"], inputs["attention_mask"]).exp().tolist()

    def ours(model: LanguageModel, texts: Sequence[str]) -> list[float]:
        return [f for found in suspicions(model, texts) for f in found if f > -torch.inf]

    def reader(victim: Victim) -> LanguageModel:
        return replace(work.language_model, precision=victim.precision)

    texts = work.test.texts[: work.sizes.onion]
    return beside(work, "onion", lambda victim: partial(ours, reader(victim)), lambda victim: partial(plain, reader(victim)), texts)


def beside(work: Work, name: str, ours: Callable[[Victim], Scores], plain: Callable[[Victim], Scores], texts: Sequence[str] = ()) -> Found:
    """Seconds of both forms, after they have come to the same scores in fp32; the plain one also in our arithmetic, where that is another."""
    texts, mine, theirs = texts or work.test.texts, ours(work.victim), plain(work.exact)
    one, other = torch.tensor(ours(work.exact)(texts[:CHECKED])), torch.tensor(theirs(texts[:CHECKED]))
    torch.testing.assert_close(one, other, atol=2e-3 * max(1.0, *other[other.isfinite()].abs().tolist()), rtol=1e-2)
    forms = {"excise": lambda: mine(texts), "plain": lambda: theirs(texts)}
    if work.victim.precision != "fp32":
        alike = plain(work.victim)
        forms["plain_same_arithmetic"] = lambda: alike(texts)
    return ratios(work.seconds(forms, name), len(texts))


def ratios(seconds: dict[str, float], texts: int) -> Found:
    """What the plain forms take, as multiples of ours."""
    others = {f"{form}_ratio": round(value / seconds["excise"], 2) for form, value in seconds.items() if form != "excise"}
    return {"texts": texts, **{f"{form}_seconds": round(value, 3) for form, value in seconds.items()}, **others}


def flat(numbers: Tensor) -> list[float]:
    """As a list."""
    return numbers.flatten().tolist()


# Memory and growth


@row("tokens")
def memory(work: Work) -> Found:
    """MiB that one distillation step of 16 texts keeps for its backward pass, by the texts' length.

    Beside it the largest tensor kept, and what one layer's attention maps would take: texts × heads × tokens² numbers. No tensor may be as large.
    """
    config, device = work.victim.model.config, work.victim.device
    loss = distillation_loss(work.victim, alpha=1, beta=1, power=2)
    found: Found = {"texts": 16, "tokens": list(work.sizes.tokens), "mib": [], "largest_mib": [], "one_layer_s_maps_mib": []}
    for tokens in work.sizes.tokens:
        ids = torch.randint(1, min(1000, config.vocab_size), (16, tokens), device=device)
        batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(16, dtype=torch.long, device=device))
        kept = kept_for_backward(work.victim, lambda student, batch=batch: loss(student, batch))
        found["mib"].append(mib(sum(kept)))
        found["largest_mib"].append(mib(max(kept)))
        found["one_layer_s_maps_mib"].append(mib(16 * config.num_attention_heads * tokens**2 * 4))
    return found


def kept_for_backward(victim: Victim, loss: Callable[[Victim], Tensor]) -> list[int]:
    """Bytes of each tensor that a loss keeps for its backward pass, other than the weights."""
    student, kept = victim.copy(), dict[int, int]()
    student.model.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in student.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in own:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), student.autocast():
        value = loss(student)
    del value
    return list(kept.values())


def mib(size: int) -> float:
    """Bytes in MiB."""
    return round(size / 2**20, 1)


@row("train", "clean")
def growth_of_evaluation(work: Work) -> Found:
    """Seconds and peak memory of classifying training texts, and ten times as many; each run is a process of its own."""
    most = min(len(work.train), 5 * work.sizes.clean)
    return grown(work, "growth_of_evaluation", "evaluate", most)


@row("train", "clean")
def growth_of_repair(work: Work) -> Found:
    """The same of MBTSAD with one copy of each text and 1 + 1 epochs."""
    return grown(work, "growth_of_repair", "repair", work.sizes.clean)


def grown(work: Work, name: str, what: str, most: int) -> Found:
    """Some texts and ten times as many, in turn."""
    given = ("--model", work.model, "--data", work.options.train, "--precision", work.options.precision, "--tokens", work.options.max_length)
    sizes = {"few": max(8, most // 10), "many": most}
    forms = {size: lambda n=n: work.in_a_process_of_its_own(HERE / "_alone.py", what, *given, "--texts", n) for size, n in sizes.items()}
    medians = work.store.take_turns(name, forms, work.repeats)
    found: Found = {f"{size}_{key}": round(value, 2) for size, figures in medians.items() for key, value in figures.items()}
    more = {key: medians["many"][key] / medians["few"][key] for key in ("seconds", "peak_mib")}
    return {"texts": list(sizes.values()), **found, "time_ratio": round(more["seconds"], 2), "memory_ratio": round(more["peak_mib"], 3)}


@row("train", "test", "texts", "clean")
def padding(work: Work) -> Found:
    """The share of padding among the tokens that the model reads: while test texts are classified, and in training with batches of 32."""
    read = [len(encoding["input_ids"]) for encoding in work.victim.encode(work.test.texts)]
    order = sorted(range(len(read)), key=read.__getitem__)
    batches = token_batches(order, [{"input_ids": [0] * length} for length in read], TOKENS.get(work.victim.device.type, 8192))
    learnt = [len(encoding["input_ids"]) for encoding in work.victim.encode(work.clean.texts)]
    buckets, wide = LengthBuckets(learnt, 32, 1, seed=0), partial(padded_width, most=work.victim.max_length)
    plain = chunks(range(len(learnt)), 32)
    return {"evaluation": wasted(batches, read), "training": wasted(buckets, learnt, wide), "training_in_order": wasted(plain, learnt)}


def wasted(batches: Any, lengths: Sequence[int], wide: Callable[[int], int] = int) -> float:
    """The share of padding; `wide` says how wide a batch is whose longest text has so many tokens."""
    computed = sum(len(rows) * wide(max(lengths[i] for i in rows)) for rows in batches)
    return round(1 - sum(lengths) / computed, 4)


@row()
def start_up(work: Work) -> Found:
    """Seconds from nothing to `excise --help`, `excise list` and `import excise`, each a process of its own; five or more times."""
    commands = {"help": ("-m", "excise", "--help"), "list": ("-m", "excise", "list"), "import": ("-c", "import excise; print(0)")}
    works = {name: lambda command=command: work.runs(*command) for name, command in commands.items()}
    return {name: round(value, 3) for name, value in work.seconds(works, "start_up", repeats=max(5, work.repeats)).items()}
