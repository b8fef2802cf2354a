"""excise finds backdoors in transformer language models and cuts them out.

Example:
    from excise import Victim, VirtualTokens, load_dataset

    suspect = Victim.load("path/to/model")
    clean = load_dataset("clean.csv", label_names=suspect.label_names)
    fixed = VirtualTokens()(suspect, clean, seed=0)
    fixed.save("fixed")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.attacks.badnets import BadNets as BadNets
    from excise.augmentations.token_splitting import TokenSplitting as TokenSplitting
    from excise.data import TextDataset as TextDataset
    from excise.data import load_dataset as load_dataset
    from excise.data import split as split
    from excise.defenses.mbtsad import MBTSAD as MBTSAD
    from excise.defenses.ts_ft import TSFT as TSFT
    from excise.defenses.virtual_tokens import VirtualTokens as VirtualTokens
    from excise.errors import ExciseError as ExciseError
    from excise.evaluation import Scores as Scores
    from excise.evaluation import evaluate as evaluate
    from excise.method import Backdoor as Backdoor
    from excise.pipeline import run as run
    from excise.recipe import Recipe as Recipe
    from excise.recipe import load_recipe as load_recipe
    from excise.training import FitConfig as FitConfig
    from excise.training import fit as fit
    from excise.victim import Victim as Victim

_HOME = {
    "Backdoor": "method",
    "BadNets": "attacks.badnets",
    "ExciseError": "errors",
    "FitConfig": "training",
    "MBTSAD": "defenses.mbtsad",
    "Recipe": "recipe",
    "Scores": "evaluation",
    "TSFT": "defenses.ts_ft",
    "TextDataset": "data",
    "TokenSplitting": "augmentations.token_splitting",
    "Victim": "victim",
    "VirtualTokens": "defenses.virtual_tokens",
    "evaluate": "evaluation",
    "fit": "training",
    "load_dataset": "data",
    "load_recipe": "recipe",
    "run": "pipeline",
    "split": "data",
}
__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import excise` is instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'excise' has no attribute {name!r}")
    return getattr(import_module(f"excise.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
