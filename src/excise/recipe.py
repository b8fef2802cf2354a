"""A recipe says what to run: model, data, attack, defenses, seed. YAML is its text form, and reading it is strict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Interval

from excise import registry
from excise.errors import ConfigError, first_line
from excise.method import Attack, Defense
from excise.plain_yaml import parse_yaml
from excise.settings import Settings, validate

__all__ = ["DataSource", "Recipe", "load_recipe", "read_yaml"]

MOST_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class DataSource(Settings):
    """Where texts come from."""

    source: str
    """A file, a Hugging Face data set id, or `default`."""
    text_column: str | None = None
    """Column with texts; guessed if not given."""
    label_column: str | None = None
    """Column with labels; guessed if not given."""
    split: str = "train"
    """Split of a hub data set."""
    config: str | None = None
    """Configuration of a hub data set."""
    most_words: Annotated[int, Ge(1)] | None = None
    """Keep so many words from the beginning of each text, for texts longer than `max_length`: a trigger is then inserted where the model reads it."""

    @staticmethod
    def elsewhere(told: Mapping[str, Any] | None, source: str) -> dict[str, Any]:
        """What a file says of texts, with another source for them."""
        return {"source": source} | {key: value for key, value in (told or {}).items() if key == "most_words"}


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """One attack, any number of defenses, one seed."""

    name: str
    """What the recipe is called."""
    train: DataSource
    """Training texts. The attacker trains on all of them, the defender gets a share."""
    test: DataSource | None = None
    """Test texts; None holds `test_size` texts out of the training texts."""
    attack: Attack
    """The attack, with its settings."""
    defenses: tuple[Defense, ...]
    """Each is applied to the same backdoored model; with none, the attack alone is measured."""
    model: str = "default"
    """The encoder to start from: a folder, a Hugging Face id, or `default`."""
    label_names: tuple[str, ...] | None = None
    """Names for labels that the data gives as numbers."""
    clean_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of the clean training texts that the defender has."""
    train_size: Annotated[int, Ge(40)] | None = None
    """Use so many training texts, drawn by the seed; None uses all."""
    test_size: Annotated[int, Ge(20)] | None = None
    """Use so many test texts, drawn by the seed; None uses all."""
    max_length: Annotated[int, Ge(8)] | None = None
    """Longest input in tokens."""
    seed: int = 0
    """Decides everything that is random."""

    def settings(self) -> dict[str, Any]:
        """As plain data; `load_recipe` takes it back."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["train"] = dataclasses.asdict(self.train)
        plain["test"] = dataclasses.asdict(self.test) if self.test else None
        plain["attack"] = registry.settings(self.attack)
        plain["defenses"] = [registry.settings(defense) for defense in self.defenses]
        return plain


@dataclass(frozen=True, kw_only=True)
class _Written(Settings):
    """A recipe as YAML holds it, before its methods are made."""

    name: str
    train: DataSource
    attack: dict[str, Any] | str
    defenses: list[dict[str, Any] | str]
    test: DataSource | None = None
    model: str = "default"
    label_names: tuple[str, ...] | None = None
    clean_fraction: float = 0.2
    train_size: int | None = None
    test_size: int | None = None
    max_length: int | None = None
    seed: int = 0


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file without tags or keys given twice; `what` it is meant to hold is for the message.

    Raises:
        ConfigError: It is missing, too large or no such YAML.
    """
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_BYTES):
            raise ConfigError(f"{path} is no file of at most {MOST_BYTES >> 10} kB, as a {what} is. Give another.")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no YAML: {first_line(error)}.") from error


def load_recipe(source: Path | Mapping[str, Any], **overrides: Any) -> Recipe:
    """Read a recipe.

    Args:
        source: A YAML file, or what one holds.
        overrides: Values that replace the recipe's, by key.

    Raises:
        ConfigError: The file is missing or no YAML, or a key, a method or a value is not known or out of range; the message says where.
    """
    if isinstance(source, Path):
        where, content = str(source), read_yaml(source, "recipe")
    else:
        where, content = "recipe", dict(source)
    if not isinstance(content, dict):
        raise ConfigError(f"{where} holds no recipe; keys such as name, train, attack and defenses were expected.")
    plain = validate(_Written, {**content, **overrides}, where)
    values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    values["attack"] = registry.build("attack", plain.attack, f"{where}: attack")
    values["defenses"] = tuple(registry.build("defense", spec, f"{where}: defenses[{i}]") for i, spec in enumerate(plain.defenses))
    return Recipe(**values)
