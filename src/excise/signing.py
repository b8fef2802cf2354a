"""Who vouches for a folder: a signature over every file in it, by the OpenSSF's model-signing.

The hashes in a result say that nothing changed by accident; whoever changes a file can change them, too. A signature takes the private key. It stands
beside the files as `model.sig`, in the format of model-signing, so its own tools can check it as well. Keys only: an identity would take a network.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from excise.disk import alone_on, write_whole
from excise.errors import ConfigError, DataError, ExciseError, OutputError, first_line
from excise.output import SIGNATURE
from excise.plain_files import Size, read_json
from excise.provenance import verify

__all__ = ["check_signature", "sign"]

MOST = Size(2**20, 16 * 2**20)
"""The largest signature that is read: thousands of files."""


def sign(folder: Path, private_key: Path, *, password: Callable[[], str]) -> int:
    """Sign a folder that is as excise wrote it.

    Args:
        folder: What `excise repair` or another command wrote.
        private_key: An elliptic key in PEM.
        password: Asked for if the key is encrypted.

    Returns:
        How many files are signed.

    Raises:
        DataError: The folder is not what excise wrote; nothing is signed then.
        ConfigError: The key cannot be used, or model-signing is not installed.
        OutputError: There is a signature already, or it cannot be written.
    """
    _, count = verify(folder)
    place = folder / SIGNATURE
    if place.exists():
        raise OutputError(f"{folder} is signed already. Remove {place} first to sign it anew.")
    library = _library()
    config = library.signing.Config().set_hashing_config(library.hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    try:
        try:
            config.use_elliptic_key_signer(private_key=private_key)
        except TypeError:  # it is encrypted
            config.use_elliptic_key_signer(private_key=private_key, password=password().encode())
    except Exception as error:
        raise _unusable(private_key, "private", error) from error
    with alone_on(folder), tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / SIGNATURE
        config.sign(folder, fresh)
        write_whole(place, fresh.read_text(encoding="utf-8"))
    return count + 1  # and the result, which holds the hashes of the others


def check_signature(folder: Path, public_key: Path) -> None:
    """Check that every file of a folder is as the owner of a key signed it.

    Raises:
        DataError: Nobody signed it, another key did, or something was changed, added or left out.
        ConfigError: The key cannot be used, or model-signing is not installed.
    """
    if not (folder / SIGNATURE).exists():
        raise DataError(f"{folder} is not signed: it has no {SIGNATURE}. Do not rely on it, or leave out --public-key.")
    _, bundle = read_json(folder, SIGNATURE, MOST, str(folder))
    config = _library().verifying.Config()
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise _unusable(public_key, "public", error) from error
    try:
        config.verify(folder, folder / SIGNATURE)
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        signed = {one["name"] for one in payload["predicate"]["resources"]}
    except Exception as error:  # a damaged or malicious one fails in many ways
        raise DataError(f"The signature of {folder} does not hold for {public_key}: {first_line(error)}. Do not rely on it.") from error
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if left := sorted(there - signed - {SIGNATURE}):
        raise DataError(f"The signature of {folder} leaves out {left[0]}. Do not rely on it.")


def _library() -> Any:
    try:
        import model_signing  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(f"Signatures need model-signing, which cannot be used ({error}). Install it with: pip install 'excise[signing]'") from error
    return model_signing


def _unusable(path: Path, kind: str, error: Exception) -> ExciseError:
    return ConfigError(
        f"{path} cannot be used as a {kind} key: {first_line(error)}. A {kind} key in PEM on the curve P-256, P-384 or P-521 was expected; "
        "docs/reliability.md shows how to make one."
    )
