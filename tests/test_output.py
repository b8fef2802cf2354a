"""Results are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from excise.errors import OutputError
from excise.output import RESULTS, check_output, writing

OLD = '{"version": 1, "kind": "repair", "environment": {}, "rows": []}'


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out"


def test_folder_appears_at_the_end(out: Path) -> None:
    with writing(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
        assert folder.parent.parent == out.parent, "on another disk it could not be renamed"
    assert (out / "a").read_text() == "1"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_error_inside_leaves_nothing(error: BaseException, out: Path) -> None:
    def write() -> None:
        with writing(out) as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(type(error)):
        write()
    assert not out.parent.exists(), "not even the folder that was made for it"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_disk_error_becomes_an_output_error(code: int, out: Path) -> None:
    with pytest.raises(OutputError, match="Free some space"), writing(out):
        raise OSError(code, os.strerror(code))
    assert not out.parent.exists(), "not even the folder that was made for it"


def test_other_operating_system_errors_stay_what_they_are(out: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(out):
        raise FileNotFoundError(errno.ENOENT, "gone")


@pytest.mark.parametrize("name", RESULTS)
def test_overwrite_swaps_only_at_success(name: str, out: Path) -> None:
    out.mkdir(parents=True)
    (out / name).write_text(OLD)

    def fail() -> None:
        with writing(out, overwrite=True) as folder:
            (folder / name).write_text("new")
            assert (out / name).read_text() == OLD
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (out / name).read_text() == OLD
    with writing(out, overwrite=True) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in out.iterdir()] == ["b"]
    assert list(out.parent.iterdir()) == [out]


def test_overwrite_puts_the_old_result_back_if_the_swap_fails(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir(parents=True)
    (out / RESULTS[0]).write_text(OLD)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "the disk is ill")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="the disk is ill"), writing(out, overwrite=True):
        pass
    assert (out / RESULTS[0]).read_text() == OLD
    assert list(out.parent.iterdir()) == [out]


def test_existing_folder_is_refused(out: Path) -> None:
    out.mkdir(parents=True)
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(out, overwrite=False)
    check_output(out, overwrite=True)  # it is empty


@pytest.mark.parametrize("kind", ["folder of others", "file", "link"])
def test_overwrite_refuses_what_excise_did_not_write(kind: str, out: Path) -> None:
    out.parent.mkdir()
    match kind:
        case "file":
            out.write_text("mine")
        case "link":
            (out.parent / "real").mkdir()
            (out.parent / "real" / RESULTS[0]).write_text(OLD)
            out.symlink_to("real")
        case _:
            out.mkdir()
            (out / "mine").write_text(OLD)
    with pytest.raises(OutputError, match="not written by excise"):
        check_output(out, overwrite=True)


def test_disk_that_is_too_small(out: Path) -> None:
    with pytest.raises(OutputError, match="Free some space"):
        check_output(out, overwrite=False, needed=2**62)


def test_checking_makes_no_folder(out: Path) -> None:
    check_output(out / "deep" / "deeper", overwrite=False)
    assert not out.parent.exists()


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write anywhere, so it becomes somebody else for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_read_only_parent(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and "pytest-" in str(folder):
            folder.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(OutputError, match="may write to"), writing(place / "out"):
        pass
    assert not list(place.iterdir())
