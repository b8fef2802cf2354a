"""Language models: how surprising a text is (causal), and what else could stand in a place (masked)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from excise.checkpoint import language_model_kind, longest_input, open_language_model, resolve_checkpoint, surviving_panics
from excise.data import TextDataset
from excise.errors import CheckpointError, ConfigError
from excise.front_door import read_config
from excise.progress import report
from excise.training import FitConfig, fit
from excise.victim import Batch, Encoding, Precision, Victim, collate, default_device, resolve_precision, token_batches

__all__ = ["LanguageModel", "causal_loss", "masked_loss", "train_language_model", "trained_texts"]

Kind = Literal["causal", "masked"]
TOKENS = 1024
"""Tokens a batch: the logits of each are as wide as the vocabulary."""
WORTH = 128
"""Tokens from which on a batch is not filled up at the price of much padding: each costs more than in a classifier."""
SHARE, MASK, RANDOM = 0.15, 0.8, 0.1
"""Of the tokens 15 % are to be guessed; of these 80 % are masked and 10 % replaced by any other (BERT, Section 3.1)."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal or masked language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    max_length: int
    """Longest input in tokens; longer texts are cut."""
    source: str = ""
    precision: Literal["bf16", "fp32"] = "fp32"
    """The arithmetic in which it computes; losses are taken in fp32 from its logits."""

    @classmethod
    def load(cls, source: str | Path, *, kind: Kind, device: str = "cpu", precision: Precision = "fp32") -> LanguageModel:
        """Open a language model of this kind, once: later calls with the same source and device get the same weights.

        Raises:
            CheckpointError: It is none, or of another kind, or is refused.
            NetworkError: A hub id was given and the hub cannot be reached.
        """
        found = _opened(str(source), device)
        if found.kind != kind:
            raise CheckpointError(f"{source} is a {found.kind} language model; a {kind} one is needed. excise train-lm --kind {kind} makes one.")
        arithmetic = resolve_precision(precision, torch.device(device))
        return found if found.precision == arithmetic else replace(found, precision=arithmetic)

    def autocast(self) -> torch.autocast:
        """The context in which this model computes."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def encode(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """Token ids of each text, cut to `max_length`; a model that has a token for the beginning of a text gets it."""
        bos = self.tokenizer.bos_token_id
        with surviving_panics(self.source):
            rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_length - 1, padding=False)["input_ids"]
        rows = [[bos, *ids] if bos is not None and ids[:1] != [bos] else ids for ids in rows]
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]

    def perplexities(self, texts: Sequence[str], *, name: str = "perplexity") -> Float[Tensor, " text"]:
        """exp of the mean negative log-likelihood of each text's tokens but the first; a text without a second token has 1.

        Texts do not depend on each other, beyond rounding.
        """
        encodings = self.encode(texts)
        found, done = torch.ones(len(texts)), 0
        report(name, 0, len(texts))
        with torch.inference_mode(), self.autocast():
            for rows in token_batches(by_length(encodings), encodings, TOKENS, worth=WORTH):
                inputs = {k: v.to(self.model.device) for k, v in collate(self.tokenizer, [encodings[i] for i in rows]).items()}
                found[rows] = nll(self.model(**inputs).logits, inputs["input_ids"], inputs["attention_mask"]).exp().cpu()
                done += len(rows)
                if report(name, done, len(texts)):
                    break
        return found

    def variant_perplexities(
        self, texts: Sequence[str], variants: Sequence[Sequence[str]], *, name: str = "perplexity"
    ) -> tuple[list[float], list[list[float]]]:
        """`perplexities` of each text, and of its variants: how a variant begins as its text does is not computed again.

        Args:
            texts: The texts.
            variants: Of each text; those without a second token have 1.
            name: How this is called in progress reports. Stopped early, it leaves ones.
        """
        encodings = self.encode(texts)
        flat = [encoding["input_ids"] for encoding in self.encode([variant for mine in variants for variant in mine])]
        starts = [0, *accumulate(map(len, variants))]
        whole, found, done = torch.ones(len(texts)), torch.ones(len(flat)), 0
        report(name, 0, len(texts))
        with torch.inference_mode(), self.autocast():
            for rows in token_batches(by_length(encodings), encodings, TOKENS, worth=WORTH):
                begun = _Begun.of(self, [encodings[i] for i in rows])
                whole[rows] = begun.perplexities()
                asked = [(v, place) for place, row in enumerate(rows) for v in range(starts[row], starts[row + 1]) if len(flat[v]) > 1]
                rest = [{"input_ids": flat[v][begun.common(place, flat[v]) :]} for v, place in asked]
                for part in token_batches(by_length(rest), rest, TOKENS, worth=WORTH):
                    mine, places = zip(*(asked[j] for j in part), strict=True)
                    found[list(mine)] = begun.continued(places, [flat[v] for v in mine])
                done += len(rows)
                if report(name, done, len(texts)):
                    break
        return whole.tolist(), [found[start:end].tolist() for start, end in pairwise(starts)]

    def fillers(self, text: str) -> Float[Tensor, " vocabulary"] | None:
        """The logits of every token in the place of the first mask token in `text`; None if the mask was cut off."""
        (encoding,) = self.encode([text])
        place = [i for i, token in enumerate(encoding["input_ids"]) if token == self.tokenizer.mask_token_id][:1]
        if not place:
            return None
        with torch.inference_mode(), self.autocast():
            inputs = {k: v.to(self.model.device) for k, v in collate(self.tokenizer, [encoding]).items()}
            return self.model(**inputs).logits[0, place[0]].float().cpu()

    @cached_property
    def words(self) -> dict[int, str]:
        """The tokens that are whole words, neither pieces of words nor marks nor special."""
        vocabulary = {token: piece for piece, token in self.tokenizer.get_vocab().items() if token not in self.tokenizer.all_special_ids}
        marked = [piece for piece in vocabulary.values() if piece.startswith(("Ġ", "▁"))]  # byte and sentence pieces mark where a word begins
        begin = ("Ġ", "▁") if len(marked) > len(vocabulary) / 4 else ("",)
        words = {token: piece.lstrip("Ġ▁") for token, piece in vocabulary.items() if piece.startswith(begin)}
        return {token: word for token, word in words.items() if word.isalnum()}

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class _Begun(NamedTuple):
    """Texts that a causal model has read, and what it keeps of them: other texts that begin alike can go on from there."""

    model: LanguageModel
    ids: list[list[int]]
    losses: Float[Tensor, "text token"]
    """Of each text, the sum of the losses of its first tokens: 0 tokens, 1 token, ..."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values, (text, head, token, channel) each; none if the model keeps something else."""

    @classmethod
    def of(cls, model: LanguageModel, encodings: Sequence[Encoding]) -> _Begun:
        """The texts, read as one batch."""
        inputs = {k: v.to(model.model.device) for k, v in collate(model.tokenizer, encodings).items()}
        output = model.model(**inputs, use_cache=True)
        losses = token_losses(output.logits, inputs["input_ids"]).cumsum(dim=1)
        cache = output.get("past_key_values")
        plain = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        kept: Any = cache.layers if plain else ()
        layers = tuple((layer.keys, layer.values) for layer in kept)
        return cls(model, [list(e["input_ids"]) for e in encodings], pad(losses, (1, 0)), layers)

    def perplexities(self) -> Float[Tensor, " text"]:
        """Of the texts themselves."""
        last = torch.tensor([max(0, len(ids) - 1) for ids in self.ids], device=self.losses.device)
        return (self.losses.gather(1, last[:, None])[:, 0] / last.clamp(min=1)).exp().cpu()

    def common(self, text: int, ids: Sequence[int]) -> int:
        """From which token on a variant has to be read: the last that it shares with its text, as that one foretells the next."""
        if not self.layers:
            return 0
        alike = (i for i, (one, other) in enumerate(zip(self.ids[text], ids, strict=False)) if one != other)
        return max(0, next(alike, min(len(self.ids[text]), len(ids))) - 1)

    def continued(self, texts: Sequence[int], variants: Sequence[Sequence[int]]) -> Float[Tensor, " variant"]:
        """The perplexities of variants of these texts."""
        device = self.losses.device
        begin = min(self.common(text, ids) for text, ids in zip(texts, variants, strict=True))
        rest: list[Encoding] = [{"input_ids": list(ids[begin:]), "attention_mask": [1] * (len(ids) - begin)} for ids in variants]
        batch = collate(self.model.tokenizer, rest)
        ids, mask = (batch[name].to(device) for name in ("input_ids", "attention_mask"))
        rows = torch.tensor(texts, device=device)
        past = None
        if begin:
            past = DynamicCache()
            for i, (keys, values) in enumerate(self.layers):
                past.update(keys[:, :, :begin][rows], values[:, :, :begin][rows], i)
        read = pad(mask, (begin, 0), value=1)
        logits = self.model.model(input_ids=ids, attention_mask=read, past_key_values=past, use_cache=past is not None).logits
        total = (token_losses(logits, ids) * mask[:, 1:]).sum(dim=1) + self.losses[rows, begin]
        return (total / torch.tensor([len(ids) - 1 for ids in variants], device=device)).exp().cpu()


def train_language_model(
    source: str,
    texts: Sequence[str],
    *,
    kind: Kind,
    training: FitConfig,
    seed: int,
    max_length: int = 128,
    device: str | None = None,
    precision: Precision = "fp32",
) -> LanguageModel:
    """Make a small language model from an encoder and some texts; the encoder's body is kept, its head is new.

    `precision` is that of the training; what is returned computes in fp32.

    Raises:
        CheckpointError: The source is no encoder that can become one.
        ConfigError: The tokenizer has no mask token and a masked model is asked for.
    """
    model, tokenizer = open_language_model(source, new_head=kind, seed=seed)
    if kind == "masked" and tokenizer.mask_token_id is None:
        raise ConfigError(f"The tokenizer of {source} has no mask token, so it cannot become a masked language model. Give another base.")
    where = default_device(device)
    model.to(where)  # type: ignore[arg-type]
    length, arithmetic = min(max_length, longest_input(model, tokenizer)), resolve_precision(precision, where)
    learner = Victim(model.eval(), tokenizer, length, arithmetic, source)  # a model that `fit` can train
    data = TextDataset(tuple(texts), (0,) * len(texts), ("text",))
    trained = fit(learner, data, loss=causal_loss if kind == "causal" else masked_loss, config=training, seed=seed, name=f"train {kind} model")
    trained.model.config.excise_trained_texts = len(texts)
    return LanguageModel(trained.model, trained.tokenizer, kind, trained.max_length, source)


def nll(
    logits: Float[Tensor, "batch token vocabulary"], ids: Int[Tensor, "batch token"], mask: Int[Tensor, "batch token"]
) -> Float[Tensor, " batch"]:
    """−1/(T−1) Σ_{t=2..T} log p(x_t | x_1 ... x_{t−1}) over the T real tokens of each text."""
    losses = token_losses(logits, ids)
    real = mask[:, 1:].to(losses.dtype)
    return (losses * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def token_losses(logits: Float[Tensor, "batch token vocabulary"], ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch following"]:
    """−log p(x_t | x_1 ... x_{t−1}), t = 2..T; text by text, as the logits of all of them are far larger than a processor's cache."""
    return torch.stack([cross_entropy(one[:-1].float(), text[1:], reduction="none") for one, text in zip(logits, ids, strict=True)])


def causal_loss(victim: Victim, batch: Batch) -> Float[Tensor, ""]:
    """The mean, over all tokens of the batch, of the negative log-likelihood of each given those before it."""
    logits = victim.model(input_ids=batch.inputs["input_ids"], attention_mask=batch.mask).logits
    targets = batch.inputs["input_ids"].masked_fill(batch.mask == 0, -100)
    return batch.token_weight * cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten())


def masked_loss(victim: Victim, batch: Batch) -> Float[Tensor, ""]:
    """The cross-entropy at the tokens that are to be guessed."""
    ids = batch.inputs["input_ids"]
    special = torch.tensor(victim.tokenizer.all_special_ids, device=ids.device)
    draw = torch.rand(2, *ids.shape, device=ids.device)
    asked = (draw[0] < SHARE) & ~torch.isin(ids, special) & (batch.mask == 1)
    asked[0, 1] |= ~asked.any()  # a batch with nothing to guess has no loss
    shown = ids.masked_fill(asked & (draw[1] < MASK), victim.tokenizer.mask_token_id)  # type: ignore[arg-type]
    other = asked & (draw[1] >= MASK) & (draw[1] < MASK + RANDOM)
    shown = torch.where(other, torch.randint_like(ids, len(victim.tokenizer)), shown)
    logits = victim.model(input_ids=shown, attention_mask=batch.mask).logits
    return batch.token_weight * cross_entropy(logits[asked].float(), ids[asked])


def by_length(encodings: Sequence[Encoding]) -> list[int]:
    """Their order by length."""
    return sorted(range(len(encodings)), key=lambda i: len(encodings[i]["input_ids"]))


def trained_texts(source: str | Path) -> int | None:
    """On how many texts `excise train-lm` made this language model; None if it comes from elsewhere."""
    found = read_config(resolve_checkpoint(source), str(source))[0].get("excise_trained_texts")
    return found if isinstance(found, int) else None


@lru_cache(maxsize=4)
def _opened(source: str, device: str) -> LanguageModel:
    model, tokenizer = open_language_model(source)
    kind: Any = language_model_kind(model.config)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return LanguageModel(model.eval(), tokenizer, kind, min(512, longest_input(model, tokenizer)), source)
