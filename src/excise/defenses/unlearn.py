"""Unlearning: fine-tune on clean texts that carry the recovered triggers and keep their right labels.

Each epoch sees every clean text as it is, and once more with one of the triggers at a random place between its words. The more triggers are given,
the less the model can learn to ignore just one: a scan also hands over the words that act like those it found. To texts without a trigger the
suspect's own answers are kept as well, which says more of the task than the labels of a few hundred texts can.

    min over weights  E [ CE(f(x), y) + CE(f(x + t), y) ] / 2 + keep · E [ T² · KL_T(f_suspect(x) ‖ f(x)) ] / 2,   t one of the triggers

(for one copy of each text with a trigger; with more they weigh more). At the end the classifier's bias is evened out (_evening.py).

Our own form of what trigger inversion ends with in the literature (Neural Cleanse, Section VII-B; PICCOLO).
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
from excise.progress import name_triggers
from excise.seeds import derive
from excise.token_rows import of_the_batch
from excise.training import FitConfig, Loss, fit
from excise.victim import Batch, Victim


@dataclass(frozen=True, kw_only=True)
class Unlearn(Defense):
    """Fine-tune on clean texts that carry recovered triggers, with their right labels."""

    paper: ClassVar[Paper] = Paper(key="neuralcleanse2019", method="Section VII-B, unlearning, with words in place of patches", code=None)
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.TRIGGERS})

    triggers: tuple[str, ...] = ()
    """Words and phrases that a scan recovered; --from-scan fills them in."""
    copies: Annotated[int, Ge(1)] = 1
    """Times that each text is shown with a trigger in an epoch."""
    keep: Annotated[float, Ge(0)] = 1.0
    """Weight of the suspect's own answers to texts that have no trigger."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Softens those answers."""
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=4, learning_rate=5e-5))
    """The fine-tuning."""
    left_out: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Share of the words left out of the clean texts on which the bias is evened out at the end; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(trigger.strip() for trigger in self.triggers):
            raise ConfigError("A trigger is empty. Give words that can be seen.")

    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        if not self.triggers:
            raise NeedsError("This method needs triggers that a scan recovered. Give them as triggers.")
        name_triggers(self.triggers)
        stamped = with_triggers(victim, data, self.triggers, copies=self.copies, seed=seed)
        both = replace(data, texts=data.texts + stamped, labels=data.labels * (1 + self.copies))
        tuned = fit(victim, both, loss=self.loss(victim), config=self.training, seed=derive(seed, "unlearn"), name="unlearn")
        return evened(tuned, data, left_out=self.left_out, seed=derive(seed, "even out"))

    def loss(self, suspect: Victim) -> Loss:
        """CE of all texts + keep · KL of those that have no trigger."""
        triggers = token_forms(suspect, self.triggers)

        @of_the_batch
        def loss(student: Victim, batch: Batch) -> Float[Tensor, ""]:
            given = student.model(**batch.inputs).logits.float()
            learnt = cross_entropy(given, batch.labels)
            if not self.keep:
                return learnt
            clean = ~has_any(batch.inputs["input_ids"], triggers)
            return learnt + self.keep * kept_where(clean, suspect, batch, given, temperature=self.temperature)

        return loss
