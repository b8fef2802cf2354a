"""One writer at a time, files whole or not at all, and faults of the disk told as such."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from excise.cli import main
from excise.disk import alone_on, beside, write_whole
from excise.errors import OutputError
from excise.output import check_output, writing
from toy import save_toy, toy_data, write_csv

HOLDER = (
    "import sys, pathlib; from excise.disk import alone_on\nwith alone_on(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def held(out: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    return other


@pytest.mark.parametrize("end", ["well", "killed"])
def test_two_processes_exclude_each_other_until_one_ends(end: str, out: Path) -> None:
    with held(out) as other:
        with pytest.raises(OutputError, match="Another run is writing to"), writing(out):
            pass
        with alone_on(out.with_name("elsewhere")):
            pass
        if end == "well":
            other.communicate()
        else:
            os.kill(other.pid, signal.SIGKILL)
    assert beside(out, "lock").exists() == (end == "killed"), "the file stays after a kill, the lock does not"
    with writing(out) as folder:
        (folder / "a").touch()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("command", ["repair", "scan", "bench"])
def test_the_second_command_on_a_folder_is_refused_at_once(command: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = save_toy(tmp_path / "model"), write_csv(tmp_path / "texts.csv", toy_data(40))
    words = ["bench", "table2"] if command == "bench" else [command, str(model), "--data", str(data)]
    with held(out) as other:
        begun = time.monotonic()
        assert main([*words, "--out", str(out)]) == 2
        assert time.monotonic() - begun < 5
        assert "Another run is writing to" in capsys.readouterr().err
        other.communicate()


def test_a_lock_is_for_one_process_not_for_one_block(out: Path) -> None:
    with alone_on(out), alone_on(out), writing(out):
        pass
    assert list(out.parent.iterdir()) == [out]


def test_a_link_to_a_folder_is_that_folder(out: Path) -> None:
    """A grid or zoo may stand on another disk, and be continued by either name."""
    out.mkdir()
    (link := out.with_name("link")).symlink_to(out)
    with held(out) as other:
        with pytest.raises(OutputError, match="Another run is writing to"), alone_on(link):
            pass
        other.communicate()


def test_folders_made_for_a_lock_go_with_it(tmp_path: Path) -> None:
    with alone_on(tmp_path / "deep" / "deeper" / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_written_to_all_the_same(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr("excise.disk._lock", fail)
    with writing(out):
        pass
    assert list(out.parent.iterdir()) == [out]


RESULT = '{"version": 1, "kind": "repair", "environment": {}, "rows": []}'


@pytest.mark.parametrize("moment", ["while writing", "between the renamings", "after the renamings"])
def test_what_a_kill_leaves_is_the_old_result_or_the_new(moment: str, out: Path) -> None:
    new, old = beside(out, "part") / "new", beside(out, "part") / "old"
    for folder, content in ((out, "old"), (new, "new")):
        folder.mkdir(parents=True)
        (folder / "excise-result.json").write_text(RESULT.replace("{}", f'{{"is": "{content}"}}'))
    if moment != "while writing":
        out.rename(old)
    if moment == "after the renamings":
        new.rename(out)
    check_output(out, overwrite=True)
    assert ('"old"' in (out / "excise-result.json").read_text()) == (moment == "while writing")
    with writing(out, overwrite=True) as folder:
        (folder / "a").touch()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_file_is_as_it_was_if_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "cells" / "a.json", "1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"a\.json could not be written.*No space left.*Free some space"):
        write_whole(tmp_path / "cells" / "a.json", "2")
    assert [path.read_text() for path in (tmp_path / "cells").iterdir()] == ["1"]
