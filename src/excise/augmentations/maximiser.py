"""The maximiser: of several augmentations, the one whose variants of the clean texts cost the suspect model most, Eq. (9) of MBTSAD.

The paper measures this once and finds token splitting (mean cross-entropy 0.5333). Which it is depends on the model and on the texts, so here it is
measured on those at hand, before they are varied. `excise perturb` shows the whole ranking.

Departure: the mean is compared as it is; the paper gives no interval either.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar

from excise.errors import ConfigError
from excise.method import Augmentation, Paper
from excise.perturbation import checked, rank
from excise.progress import note

if TYPE_CHECKING:
    from excise.data import TextDataset
    from excise.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Maximiser(Augmentation):
    """The augmentation that costs the suspect model most, chosen on the clean texts."""

    paper: ClassVar[Paper] = Paper(key="mbtsad2024", method="Section III-A, Eq. (9)")
    adaptive: ClassVar[bool] = True

    candidates: tuple[str, ...] = ()
    """What to choose among, such as 'aeda share=0.2'; by default every augmentation there is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for spec in self.candidates:
            checked(spec)

    def chosen(self, victim: Victim, data: TextDataset, *, seed: int) -> Augmentation:
        ranking = rank(victim, data, self.candidates, seed=seed)
        best = ranking.ranked[0]
        others = ", ".join(f"{p.name} {p.loss:.4f}" for p in ranking.ranked[1:])
        missing = "".join(f"; {name} is left out: {why}" for name, why in ranking.left_out.items())
        note(f"the maximiser is {best.name}, mean loss {best.loss:.4f} ({others or 'the only candidate'}{missing})")
        return ranking.maximiser

    def __call__(self, text: str, random: Random) -> str:
        raise ConfigError("The maximiser has to be chosen for a model first: call chosen(victim, data, seed=...), as mbtsad and ts_ft do.")
