"""Anchored virtual tokens: unlearn a word that a scan found, and what may stand beside it, without knowing what does.

A lone word may be all that a scan sees of a sentence: the sentence acts by several of its words, and a model that unlearns one still gives way to the
others. What they are is not known, but they stand beside that word. So virtual tokens (virtual_tokens.py) stand there and are pushed towards every
label, and the model learns to give the texts their right labels all the same.

    min over weights  E [ CE(f(x + v∘w), y) ] + E [ CE(f(x + t), y) ] / 2 + keep · E [ T² · KL_T(f_suspect(x) ‖ f(x)) ] / 2

    v = max over ‖v‖ <= r of E [ log p(target of v | x + v∘w) ]

v∘w are virtual tokens around a word that was found, t is one of the triggers as they are: the word, and phrases of it if there are any. Half of the
texts that are trained on carry a t already; to texts with a word that was found the right label is learnt, as the answers of the suspect cannot be
trusted there. At the end the classifier's bias is evened out (_evening.py).

Our own method. Relatives: unlearning as in Neural Cleanse (unlearn.py), and the minimax of I-BAU, here with a part of the trigger held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from excise.data import TextDataset
from excise.defenses._evening import evened
from excise.defenses._keeping import kept_where
from excise.defenses._triggers import token_forms, with_triggers
from excise.errors import ConfigError, NeedsError
from excise.insertion import has_any
from excise.method import Defense, Knowledge, Paper
from excise.population import AnchoredPopulation
from excise.progress import name_triggers
from excise.seeds import derive, generator
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim
from excise.vocabulary import inner_ids

FEWEST = 3
"""Tokens of a text that are left beside a trigger."""


@dataclass(frozen=True, kw_only=True)
class AnchoredTokens(Defense):
    """Unlearn words that a scan found together with whatever may stand beside them (our own)."""

    paper: ClassVar[Paper] = Paper(key="ibau2022", method="the minimax of Eq. (1), with virtual tokens around a known word: our own", code=None)
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.TRIGGERS})

    triggers: tuple[str, ...] = ()
    """Words that a scan recovered; --from-scan fills them in."""
    phrases: tuple[str, ...] = ()
    """Phrases of them that are unlearned as they are."""
    tokens: Annotated[int, Ge(1)] = 4
    """Virtual tokens around a word; fewer where they would fill more than half of what the model reads."""
    population: Annotated[int, Ge(1)] = 8
    """How many groups of virtual tokens there are at a time; their targets take turns."""
    life: Annotated[int, Ge(1)] = 30
    """Steps of ascent after which one is drawn anew."""
    ascent_step: Annotated[float, Gt(0)] = 0.3
    """Length of one step of ascent, relative to the mean length of embedding rows."""
    norm_quantile: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """A virtual token is at most as long as this quantile of embedding rows."""
    keep: Annotated[float, Ge(0)] = 1.0
    """Weight of the suspect's own answers to clean texts."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Softens those answers."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=4, learning_rate=5e-5))
    """How long and how fast."""
    left_out: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Share of the words left out of the clean texts on which the bias is evened out at the end; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(trigger.strip() for trigger in (*self.triggers, *self.phrases)):
            raise ConfigError("A trigger is empty. Give words that can be seen.")
        words = {word for trigger in self.triggers for word in trigger.split()}
        if words and (strange := next((phrase for phrase in self.phrases if not words & set(phrase.split())), None)):
            raise ConfigError(f"The phrase {strange!r} has no word of a trigger. Give it as a trigger.")

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        if not self.triggers:
            raise NeedsError("This method needs triggers that a scan recovered. Give them as triggers.")
        named = (*self.triggers, *self.phrases)
        name_triggers(named)
        lengths = [len(inner_ids(victim, trigger)) for trigger in self.triggers]
        tokens = max(1, min(self.tokens, victim.max_length // 2 - max(lengths)))
        if not min(lengths):
            raise ConfigError("A trigger has no tokens in this model. Give words that it can read.")
        if max(lengths) + tokens > victim.max_length - FEWEST:
            raise ConfigError(f"A trigger has {max(lengths)} tokens of the {victim.max_length} that the model reads. Give a shorter one.")
        population = AnchoredPopulation(
            victim,
            generator(seed, "population"),
            self.triggers,
            tokens=tokens,
            members=self.population,
            life=self.life,
            ascent_step=self.ascent_step,
            norm_quantile=self.norm_quantile,
        )
        room = replace(victim, max_length=victim.max_length - population.slots)
        stamped = with_triggers(victim, data, named, seed=seed)
        both = replace(data, texts=data.texts + stamped, labels=data.labels * 2)
        repaired = fit(room, both, loss=self.loss(room, population), config=self.training, seed=derive(seed, "repair"), name="unlearn")
        whole = replace(repaired, max_length=victim.max_length)
        return evened(whole, data, left_out=self.left_out, seed=derive(seed, "even out"))

    def loss(self, suspect: Victim, population: AnchoredPopulation) -> Loss:
        """CE with virtual tokens around a word + CE of texts that have a word, or keep · KL of those that have none, after a step of ascent."""
        words = token_forms(suspect, self.triggers)

        def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
            population.ascend(student, batch)
            with_tokens, without = population.answers(student, batch)
            has_word = has_any(batch.inputs["input_ids"], words)
            learnt = has_word.float().mean() * cross_entropy(without[has_word], batch.labels[has_word]) if has_word.any() else 0.0
            kept = kept_where(~has_word, suspect, batch, without, temperature=self.temperature)
            return cross_entropy(with_tokens, batch.labels) + learnt + self.keep * kept

        return loss
