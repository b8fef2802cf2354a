"""backdoor.json: how a backdoor works, so that a model can be evaluated against it. Anyone can write one by hand:

{"trigger": {"kind": "insert_words", "words": ["cf"]}, "target_label": "positive"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from excise.attacks._triggers import AnyTrigger
from excise.errors import ConfigError

__all__ = ["BackdoorFile"]

MOST_BYTES = 2**20


class BackdoorFile(BaseModel):
    """The contents of backdoor.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    trigger: AnyTrigger
    target_label: int | str
    attack: dict[str, Any] | None = None
    seed: int | None = None
    clean_twin: str | None = None
    """A folder beside the file with a model that was trained alike without the backdoor: its ASR is the floor."""

    @field_validator("clean_twin")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and (name in ("", ".", "..") or "/" in name or "\\" in name):
            raise ValueError("must be the plain name of a folder beside the file")
        return name

    @classmethod
    def load(cls, path: Path) -> BackdoorFile:
        """Read a file.

        Raises:
            ConfigError: It cannot be read or does not say how a backdoor works.
        """
        try:
            if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_BYTES):
                raise ConfigError(f"{path} cannot be read: it is no file of at most {MOST_BYTES >> 10} kB, as a backdoor.json is.")
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"There is no file {path}. Give the backdoor.json that excise attack wrote, or write one.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(
                f'{path}: {place}: {first["msg"]}. Expected {{"trigger": {{"kind": "insert_words", "words": [...]}}, "target_label": ...}}.'
            ) from error

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(self.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
