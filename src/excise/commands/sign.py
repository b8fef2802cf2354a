"""excise sign."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from excise.commands._options import Positional

if TYPE_CHECKING:
    from excise.console import Console


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sign a folder that excise wrote, so that others can check who did: see excise verify --public-key. Needs excise[signing]."""

    folder: Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]
    """What excise repair or another command wrote. The signature is put into it, as model.sig."""
    private_key: Path
    """A private key in PEM, on the curve P-256, P-384 or P-521. The password of an encrypted one is asked for."""
    quiet: bool = False
    """Print nothing."""
    debug: bool = False
    """Show the traceback of an error."""


def run(options: Options, console: Console) -> None:
    from getpass import getpass

    from excise.signing import sign

    count = sign(options.folder, options.private_key, password=lambda: getpass(f"Password of {options.private_key}: "))
    console.say(f"Signed {count} files of {options.folder}. Publish the public key where others can trust it, not in this folder.")
