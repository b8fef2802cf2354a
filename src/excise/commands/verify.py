"""excise verify."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from excise.commands._options import Positional

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check that every file of a folder is as excise wrote it, by the hashes in its result."""

    folder: Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]
    """What excise repair or another command wrote."""
    inputs: bool = False
    """Check the files that went in as well: the model, the texts and what else was named."""
    public_key: Path | None = None
    """Check as well that the owner of this key (PEM) signed the folder, with excise sign or model-signing. Needs excise[signing]."""
    quiet: bool = False
    """Print nothing if all is well."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from excise.output import SIGNATURE
    from excise.provenance import verify

    record, count = verify(options.folder, inputs=options.inputs)
    if options.public_key:
        from excise.signing import check_signature

        check_signature(options.folder, options.public_key)
        signed = f"All was signed with the key of {options.public_key}."
    elif (options.folder / SIGNATURE).exists():
        signed = "It is signed; --public-key checks by whom."
    else:
        signed = "Nobody signed this: see docs/reliability.md."
    command, when = _plain(record, "kind", r"[a-z-]{1,20}", " {}"), _plain(record, "created", r"[\dT:+-]{10,30}", " ({})")
    console.say(f"{count} files are what excise{command} wrote or read{when}. {signed}")


def _plain(record: dict[str, Any], key: str, form: str, shown: str) -> str:
    """What a result says, if it is of that form: anyone may have written it, and it shall not speak in our place."""
    value = record.get(key)
    return shown.format(value) if isinstance(value, str) and re.fullmatch(form, value, re.ASCII) else ""
