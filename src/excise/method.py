"""What a method is: a frozen dataclass whose fields are its hyper-parameters and whose call is its algorithm."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from importlib.util import find_spec
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from excise.errors import ConfigError, DataError
from excise.settings import Settings, changed

if TYPE_CHECKING:
    from excise.data import TextDataset
    from excise.finding import Finding
    from excise.victim import Victim

__all__ = ["Attack", "Augmentation", "Backdoor", "Defense", "Detector", "Filter", "Knowledge", "Method", "Paper", "Scanner", "Scorer", "Trigger"]

Trigger = Callable[[str, Random], str]
"""g(x): stamps one text. All its randomness comes from the generator it is given."""


Scorer = Callable[[Sequence[str]], list[float]]
"""Texts -> how suspicious each is; higher is more."""


class Knowledge(Enum):
    """What a method must be told beyond the suspect model and some clean labelled texts."""

    PRETRAINED_WEIGHTS = "clean pre-trained weights of the same architecture"
    TRAINING_SET = "the training set that the model was made from"
    TARGET_LABEL = "the label that the attacker wants"
    LANGUAGE_MODEL = "a language model"
    TRIGGERS = "triggers that a scan recovered"
    PARAPHRASES = "paraphrases of the texts"


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    key: str
    """Its key in references.bib."""
    method: str
    """The section, algorithm or equations that define it."""
    code: str | None = None
    """The authors' public code, for citation; None where none was found."""


class Method(Settings, ABC):
    """Base of every published method. Concrete methods are leaves: nothing inherits from them."""

    kind: ClassVar[Literal["attack", "defense", "detector", "scanner", "filter", "augmentation"]]
    paper: ClassVar[Paper]
    needs: ClassVar[frozenset[Knowledge]] = frozenset()
    """What it must be told; a setting of the need's name holds it."""
    modules: ClassVar[tuple[str, ...]] = ()
    """What it imports that excise does not install by itself; the extra of the method's name brings it."""

    def check_modules(self) -> None:
        """Refuse to start without a module that is imported later.

        Raises:
            ConfigError: One is not installed.
        """
        name = type(self).__module__.rpartition(".")[2]
        for module in self.modules:
            if find_spec(module) is None:
                raise ConfigError(f"{name} needs the module {module}, which is not installed. Install it with: pip install 'excise[{name}]'.")


@dataclasses.dataclass(frozen=True)
class Backdoor:
    """All that an attack knows: the backdoored model, how to stamp a text, and the label the stamp asks for."""

    victim: Victim
    trigger: Trigger
    target_label: int


class Attack(Method):
    """(clean victim, training data) -> Backdoor."""

    kind = "attack"
    training: Any  # FitConfig, which is built on this module: how the backdoored model, and the clean one beside it, are trained
    target_label: int | str
    poisons_texts: ClassVar[bool] = True
    """Whether its training texts hold the poison. Otherwise it changes weights after training, and filtering texts cannot help."""
    twin_fields: ClassVar[tuple[str, ...]] = ("training",)
    """The settings that decide its clean twin: attacks that have them in common have the same."""

    @property
    @abstractmethod
    def trigger(self) -> Any:
        """g(x), which stamps a text; a setting, so that backdoor.json can hold it."""

    @abstractmethod
    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Backdoor:
        """Plant the backdoor in a copy of `victim`, which stays as it was."""

    @abstractmethod
    def training_set(self, data: TextDataset, *, seed: int) -> TextDataset:
        """The texts that a call with the same data and seed trains on, with the labels it gives them, and nothing that says which are poisoned."""

    def clean_twin(self, train: Callable[[Any], Victim], data: TextDataset, *, seed: int) -> Victim:
        """The model that the attack would have made of texts without poison: its ASR is the floor.

        Args:
            train: Trains the attacked model, or a copy of it, on those texts, as a FitConfig says.
            data: The texts.
            seed: The attack's.
        """
        return train(self.training)


class Defense(Method):
    """(suspect victim, the defender's clean data) -> repaired Victim."""

    kind = "defense"
    guards: ClassVar[bool] = False
    """Whether it puts a guard before the model, which no checkpoint can hold, in place of changing its weights."""
    tuning: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Other settings that are worth trying on canaries; a mapping changes settings of the method, or the like, that is the setting."""

    def alternatives(self) -> list[Defense]:
        """The method with each of the settings that are worth trying, but for those that it has already or that a method in it lacks."""
        found: list[Defense] = []
        for changes in self.tuning:
            with suppress(TypeError):
                if (other := changed(self, changes)) not in (self, *found):
                    found.append(other)
        return found

    @abstractmethod
    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Victim:
        """Repair a copy of `victim`, which stays as it was."""


class Detector(Method):
    """(victim, the defender's clean data) -> scorer: texts -> one score a text; higher is more suspicious."""

    kind = "detector"

    @abstractmethod
    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Scorer:
        """Learn what is needed. The scorer takes each text on its own: neither order nor company matters, beyond rounding."""


class Scanner(Method):
    """(suspect victim, the defender's clean data) -> Finding: how suspicious the model itself is."""

    kind = "scanner"
    suspicious: ClassVar[float]
    """From this score on, a model is suspicious: calibrated on models that were made for it (docs/scan.md); `inf` where it only informs."""
    found: ClassVar[float]
    """From this score on, a backdoor is found; `inf` where the scanner alone can never say so."""
    blind_to: ClassVar[str]
    """What it cannot see, to be read after 'It cannot see ...'."""
    fewest_texts: ClassVar[int] = 32
    """It needs so many clean texts of each label."""

    version: ClassVar[int] = 1
    """Raised when the same settings come to other scores, so that what is known of earlier ones is not taken for its own."""

    @property
    def lines(self) -> tuple[float, float]:
        """From which score on a model is suspicious, and from which on a backdoor is found, with these settings."""
        return self.suspicious, self.found

    def check_texts(self, data: TextDataset) -> None:
        """Make sure that there are enough.

        Raises:
            DataError: Of some label there are fewer than `fewest_texts`.
        """
        counts = [data.labels.count(label) for label in range(len(data.label_names))]
        if min(counts) < self.fewest_texts:
            scarce = data.label_names[counts.index(min(counts))]
            raise DataError(f"It needs {self.fewest_texts} texts of each label; {scarce!r} has {min(counts)}.")

    @abstractmethod
    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> Finding:
        """Look at `victim`, which stays as it was."""


class Filter(Method):
    """(fresh victim, a training set that may hold poison) -> for each of its texts, whether to keep it."""

    kind = "filter"

    @abstractmethod
    def __call__(self, victim: Victim, data: TextDataset, *, seed: int) -> tuple[bool, ...]:
        """Learn from the texts, with a copy of `victim`, which texts to trust."""


class Augmentation(Method):
    """(text, generator) -> another text with the same label."""

    kind = "augmentation"
    adaptive: ClassVar[bool] = False
    """Whether it has to be chosen for a model before it can be called."""

    def chosen(self, victim: Victim, data: TextDataset, *, seed: int) -> Augmentation:
        """The augmentation to use on `data` for `victim`: this one, unless it is adaptive."""
        return self

    @abstractmethod
    def __call__(self, text: str, random: Random) -> str:
        """One variant of `text`."""
