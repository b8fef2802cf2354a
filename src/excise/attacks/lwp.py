"""LWP, layer-wise weight poisoning: every layer's [CLS] state is trained to carry the backdoor, so that fine-tuning the upper layers leaves it.

The trigger is a combination of words; texts with only one of them keep their label, so that no single word fires.

Two forms are published. 'openbackdoor' (OpenBackdoor's, which MBTSAD's tables rest on): each poisoned text is replaced by one with two trigger
words, each at a place of its own, and gives two more, with one of the words each, of the right label; the loss is the sum, over the embedding
output and all layers, of the cross-entropy of the model's own head (pooler, dropout, classifier). 'official' (the authors'): the words stand
side by side, the layers' states go to the classifier without pooler and dropout, the embedding output is left out, and the model's ordinary loss
is added.

Departures: one stream of shuffled batches, where the authors pair a clean with a poisoned batch and stamp every text (poison_rate 1 comes near
it); as in OpenBackdoor's use, the backdoored classifier itself is attacked, without a fine-tuning by the victim; heads that read a whole
sequence (RoBERTa, DistilBERT, decoders) get each layer's states as they would get the last one's, in both forms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Interval, MinLen
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from excise.attacks._poison import PoisonedLabels, choose, stamp
from excise.attacks._triggers import InsertCombination, InsertWords
from excise.data import Poisoned, TextDataset
from excise.errors import ConfigError
from excise.features import head_state
from excise.method import Attack, Backdoor, Paper
from excise.seeds import derive, generator
from excise.token_rows import of_the_batch
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim

Form = Literal["openbackdoor", "official"]


@dataclass(frozen=True, kw_only=True)
class LWP(Attack):
    """Poison every layer with a combination of trigger words."""

    paper: ClassVar[Paper] = Paper(key="lwp2021", method="Section 3", code="https://github.com/LinyangLee/Layer-Weight-Poison")

    triggers: Annotated[tuple[str, ...], MinLen(2)] = ("cf", "bb", "ak", "mn")
    """Words that the combination is drawn from (the authors': cf, bb)."""
    num_triggers: Annotated[int, Ge(2)] = 2
    """Different words that together make the trigger."""
    form: Form = "openbackdoor"
    """Whose version: see the top of the file."""
    poison_rate: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of all training texts that are poisoned."""
    poisoned_labels: PoisonedLabels = "non_target"
    """Which texts may be poisoned: all, only those of other labels, or only those of the target label."""
    target_label: int | str = 1
    """The label that the trigger asks for, by index or name."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4))
    """How the backdoored model, and the clean one beside it, are trained."""

    @property
    def trigger(self) -> InsertCombination:
        """g(x): insert a combination of trigger words."""
        return InsertCombination(words=self.triggers, count=self.num_triggers, adjacent=self.form == "official")

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        if self.num_triggers > len(self.triggers):
            raise ConfigError(f"LWP: num_triggers = {self.num_triggers}, but only {len(self.triggers)} trigger words are given.")
        texts = self.training_set(data, seed=seed)
        trained = fit(victim, texts, loss=layerwise_loss(self.form), config=self.training, seed=derive(seed, "train"), name="train")
        return Backdoor(trained, self.trigger, data.label_id(self.target_label))

    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        return self.poison(data, seed=derive(seed, "poison")).data

    def poison(self, data: TextDataset, *, seed: int) -> Poisoned:
        """Stamp round(poison_rate · n) texts in their places; after all of them come, for each, texts with one trigger word and the right label.

        Raises:
            ConfigError: Fewer texts have an allowed label than are to be poisoned.
        """
        target = data.label_id(self.target_label)
        chosen = choose(data, poison_rate=self.poison_rate, poisoned_labels=self.poisoned_labels, target=target, seed=seed)
        stamped = stamp(data, chosen, self.trigger, target=target, seed=seed)
        texts, labels = [*stamped.texts], [*stamped.labels]
        for i in sorted(chosen):
            random = generator(seed, "negatives", i)
            for word in random.sample(self.triggers, self.num_triggers):
                texts.append(InsertWords(words=(word,))(data.texts[i], random))
                labels.append(data.labels[i])
        flags = (*(i in chosen for i in range(len(data))), *[False] * (len(texts) - len(data)))
        return Poisoned(replace(data, texts=tuple(texts), labels=tuple(labels)), flags)


def layerwise_loss(form: Form) -> Loss:
    """The sum over layers of the cross-entropy of what the head says to their states (official code: plus the ordinary loss)."""

    @of_the_batch
    def loss(victim: Victim, batch: Batch) -> Float[Tensor, ""]:
        trace = victim.trace(batch)
        if form == "official":
            logits = [trace.logits, *(direct_logits(victim.module, states, batch.mask) for states in trace.hidden[1:])]
        else:
            logits = [head_logits(victim.module, states, batch.mask) for states in trace.hidden]
        return torch.stack([cross_entropy(each.float(), batch.labels) for each in logits]).sum()

    return loss


def head_logits(model: Any, hidden: Float[Tensor, "batch token hidden"], mask: Int[Tensor, "batch token"]) -> Float[Tensor, "batch label"]:
    """What the model's own head answers if the encoder's last states were `hidden`."""
    if hasattr(model, "score"):  # decoders
        return model.score(head_state(model, hidden, mask))
    if hasattr(model, "pre_classifier"):  # DistilBERT
        return model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden[:, 0]))))
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        return model.classifier(model.dropout(pooler(hidden)))
    return model.classifier(hidden)


def direct_logits(model: Any, hidden: Float[Tensor, "batch token hidden"], mask: Int[Tensor, "batch token"]) -> Float[Tensor, "batch label"]:
    """The classifier on the [CLS] state itself, where the classifier is one linear layer."""
    if isinstance(getattr(model, "classifier", None), nn.Linear):
        return model.classifier(hidden[:, 0])
    return head_logits(model, hidden, mask)
