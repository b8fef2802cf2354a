"""Faults of the machine: limits on files and memory, signals, inputs that vanish. Each ends in a line that says so, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from excise import data_files
from excise.cli import main
from toy import save_toy, toy_data, write_csv

PANICS = '{"model": {"type": "BPE", "vocab": {"a": 1, "b": 0}, "merges": [["a", "a"]]}}'
"""A tokenizer.json that stops its library."""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A repair that takes long, unless it is made shorter."""
    model, data = save_toy(tmp_path / "model"), write_csv(tmp_path / "texts.csv", toy_data(60))
    return ["repair", str(model), "--data", str(data), "--out", str(tmp_path / "deep" / "out"), "--method", "cft", "--training.epochs", "500"]


def ended(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "excise", *command], env=environment, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def test_a_disk_that_is_full(command: list[str], tmp_path: Path) -> None:
    """A limit on the size of files is the nearest to a full disk that every machine has."""
    done = ended([*command[:-1], "1"], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert done.returncode == 2
    assert "could not be written" in done.stderr
    assert "Free some space" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.csv"]


def test_a_limit_on_memory(command: list[str], tmp_path: Path) -> None:
    done = ended(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (600 * 2**20,) * 2))
    assert done.returncode == 2
    assert done.stderr.startswith("excise: ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.csv"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_memory_that_runs_out_is_told(
    error: Exception, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("excise.defenses.cft.fit", fail)
    assert main(command) == 2
    assert "Memory ran out" in capsys.readouterr().err


def test_a_library_that_panics_is_an_error_and_no_finding(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizers library stops with an exception that is no `Exception`; uncaught, it would end with 1."""
    monkeypatch.setattr("excise.defenses.cft.fit", lambda *_, **__: Tokenizer.from_str(PANICS))
    assert main(command) == 2
    assert "PanicException" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number: signal.Signals, command: list[str], tmp_path: Path) -> None:
    not_ignored = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}  # as it is below a shell's background job
    words = [sys.executable, "-m", "excise", *command]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **not_ignored)
    assert running.stdout
    assert running.stdout.readline().startswith("Repairing"), "it has begun"
    time.sleep(0.5)
    running.send_signal(number)
    _, shown = running.communicate(timeout=60)
    assert running.returncode == 130
    assert shown.startswith("excise: interrupted; ")
    assert len(shown.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.csv"]


def test_a_signal_that_comes_within_generated_code_ends_it_alike(tmp_path: Path) -> None:
    """Dataclasses and the like are made by `exec`. Python remembers an interrupt there, and `python -m` would end by a signal, after our line."""
    words = "from excise import cli; cli.SIMPLE['list'] = lambda _: exec('raise KeyboardInterrupt'); raise SystemExit(cli.main(['list']))"
    (tmp_path / "odd.py").write_text(words)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-m", "odd"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "excise: interrupted; nothing was kept.\n")


@pytest.mark.parametrize("vanishing", ["texts.csv", "model/model.safetensors"])
def test_an_input_that_vanishes(
    vanishing: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the check that it is there and its reading."""
    place, name = ("excise.data.read_file", vanishing) if vanishing.endswith("csv") else ("excise.checkpoint.inspect", vanishing)
    module, _, function = place.rpartition(".")
    real = getattr(sys.modules.get(module) or __import__(module, fromlist=["_"]), function)

    def gone(*args: object, **options: object) -> object:
        found = real(*args, **options) if function == "inspect" else None
        (tmp_path / name).unlink()
        return found or real(*args, **options)

    monkeypatch.setattr(place, gone)
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert name.rpartition("/")[2] in shown
    assert "No such file" in shown
    assert not (tmp_path / "deep").exists()


def test_a_damaged_parquet_file_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "texts.parquet"
    path.write_bytes(b"PAR1" + b"\x00" * 40 + b"\x05\x00\x00\x00PAR1")
    with pytest.raises(data_files.DataError, match=r"texts\.parquet"):
        data_files.read_file(path)


@pytest.mark.parametrize("command", ["scan", "evaluate"])
def test_a_reader_that_goes_away_changes_no_answer(command: str, tmp_path: Path) -> None:
    """`excise scan ... | head -1` in a pipeline: the exit code is that of a scan that was made, not 1 for a backdoor or 0 for none."""
    model, data = save_toy(tmp_path / "model"), write_csv(tmp_path / "texts.csv", toy_data(60))
    words = [command, str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    words += ["--scanners", "embedding_rows"] if command == "scan" else []
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody_reads:
        done = subprocess.run([sys.executable, "-m", "excise", *words], stdout=nobody_reads, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == {"scan": 2, "evaluate": 0}[command], "embedding_rows never decides"
    assert not done.stderr
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_an_error_that_nobody_reads_is_no_finding(tmp_path: Path) -> None:
    """An exception on the way out would end with 1, which says that a backdoor was found."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody_reads:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        words = [sys.executable, "-m", "excise", "scan", str(tmp_path / "gone"), "--data", "x"]
        assert subprocess.run(words, stdout=nobody_reads, stderr=nobody_reads, env=environment, check=False).returncode == 2


def test_a_list_of_which_only_the_beginning_is_read_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody_reads:
        done = subprocess.run([sys.executable, "-m", "excise", "list"], stdout=nobody_reads, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
