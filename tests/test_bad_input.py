"""Whatever is wrong with what was given: one line that says so, the right exit code, and nothing written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from excise.cli import main
from excise.errors import OutputError
from excise.output import check_output
from excise.victim import Victim
from toy import save_toy, toy_data, toy_tokenizer, write_csv

Refused = Callable[..., str]

NO_STATE = ["--checkpoint-every", "86400"]
"""However slow the machine is, no training takes a tenth of that, from which on its state would be kept."""
RESULT = '{"version": 1, "kind": "repair", "environment": {}, "rows": []}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("models") / "suspect")


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be broken."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "clean.csv", toy_data(60))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "fixed"


@pytest.fixture
def refused(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command line that must fail cleanly, and returns its message."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments: object, code: int = 2) -> str:
        before = listing(out.parent)
        given = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert listing(out.parent) == before, "something was written"
        assert not listing(temporary), "temporary files are left"
        return one_line(given, printed.err, code)

    return run


def listing(folder: Path) -> dict[str, bytes]:
    """Every entry below a folder, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def one_line(given: int, stderr: str, code: int) -> str:
    assert given == code, stderr
    assert stderr.startswith("excise: "), stderr
    assert stderr.endswith("\n"), stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert "Traceback" not in stderr
    return stderr


def assert_says(message: str, *words: object) -> None:
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"


# Data

ROWS = "".join(f"{text},{toy_data().label_names[label]}\n" for text, label in zip(toy_data(40).texts, toy_data(40).labels, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", "", ["empty.csv is empty", "expected"]),
        ("header.csv", "text,label\n", ["header.csv", "header but no rows", "expected"]),
        ("notext.csv", f"words,label\n{ROWS}", ["no text column", "'words'", "--text-column"]),
        ("nolabel.csv", f"text,answer\n{ROWS}", ["no label column", "'answer'", "--label-column"]),
        ("unknown.csv", f"text,label\n{ROWS}a film,positve\n", ["'positve'", "'negative', 'positive'", "Did you mean 'positive'?"]),
        ("index.csv", f"text,label\n{ROWS}a film,2\n", ["'2'", "'negative', 'positive'", "indices 0 to 1"]),
        ("nolabels.csv", f"text,label\n{ROWS}a film,\n", ["row 41", "no label", "Remove"]),
        ("one.csv", "text,label\n" + "".join(f"film {i},positive\n" for i in range(40)), ["All 40", "'positive'", "two classes", "Add"]),
        ("few.csv", "text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(19)), ["19", "at least 20", "Label some more"]),
        ("void.csv", f"text,label\n{ROWS},positive\n", ["row 41", "empty text", "Remove"]),
        ("blank.csv", f'text,label\n{ROWS}"  \t",positive\n', ["row 41", "empty text", "Remove"]),
        ("void.jsonl", json.dumps({"text": None, "label": 1}) + "\n", ["row 1", "empty text"]),
        ("number.jsonl", json.dumps({"text": 7, "label": 1}) + "\n", ["row 1", "7", "no text"]),
        ("broken.jsonl", '{"text": "a film", "lab', ["could not be read as JSON", "Check"]),
        ("broken.parquet", "PAR1", ["could not be read as PARQUET", "Check"]),
        ("texts.xlsx", "x", ["'.xlsx'", ".csv", ".parquet", "convert"]),
        ("texts", "x", ["nothing", ".csv"]),
        ("twice.csv", "text,text,label\na film,a film,positive\n", ["twice", "Rename"]),
        ("wide.csv", f"text,label\n{ROWS}a film, and a good one,positive\n", ["line 42", "3 fields", "2", "quotation marks"]),
        ("wider.csv", "text,label\n" + ROWS.replace(" ", ", ", 1), ["line 2", "3 fields", "2", "quotation marks"]),
        ("narrow.csv", f"text,label\n{ROWS}a film\n", ["line 42", "1 fields", "2"]),
        ("quotes.csv", f'text,label\n{ROWS}"a" film,positive\n', ["line 42", "cannot be read", "twice"]),
        ("open.csv", f'text,label\n{ROWS}"a film,positive\n', ["line 42", "cannot be read", "twice"]),
    ],
)
@pytest.mark.parametrize("command", ["repair", "evaluate"])
def test_data(command: str, name: str, content: str, words: list[str], model: Path, out: Path, refused: Refused) -> None:
    path = out.parent / name
    path.write_text(content, encoding="utf-8")
    assert_says(refused(command, model, "--data", path, "--out", out), *words)


def test_data_that_is_missing(model: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", "gone.csv", "--out", out), "gone.csv", "no file", "Give a CSV")


def test_data_that_is_a_folder(model: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", out.parent, "--out", out), "folder", "CSV")


def test_data_in_utf16(model: Path, out: Path, refused: Refused) -> None:
    path = out.parent / "wide.csv"
    path.write_text("text,label\n" + ROWS, encoding="utf-16")
    assert_says(refused("repair", model, "--data", path, "--out", out), "wide.csv is UTF-16", "iconv -f utf-16")


@pytest.mark.parametrize("command", ["evaluate", "repair", "scan"])
def test_names_that_are_no_utf8(command: str, model: Path, clean: Path, out: Path, refused: Refused) -> None:
    """No result could name such a file, and after all the work it would be too late to say so."""
    odd = clean.rename(clean.with_name(os.fsdecode(b"texts\xff\x1b[2J.csv"))) if sys.platform == "linux" else os.fsdecode(b"texts\xff.csv")
    message = refused(command, model, "--data", odd, "--out", out, code=4)
    assert "texts\N{REPLACEMENT CHARACTER}" in message
    assert "is no UTF-8" in message


def test_a_folder_to_work_in_that_is_no_utf8(tmp_path: Path) -> None:
    """It stands in no argument, but libraries are given the whole path."""
    with pytest.raises(OutputError, match="is no UTF-8"):
        check_output(tmp_path / os.fsdecode(b"odd\xff") / "out", overwrite=False)


def test_output_name_that_is_too_long(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", clean, "--out", out.parent / ("é" * 121)), "242 bytes long", "at most 240")


def test_data_that_is_not_utf8(model: Path, out: Path, refused: Refused) -> None:
    path = out.parent / "latin.csv"
    path.write_bytes(f"text,label\n{ROWS}caf".encode() + b"\xe9,positive\n")
    assert_says(refused("repair", model, "--data", path, "--out", out), "latin.csv", "not UTF-8", "0xe9", "line 42", "iconv")


def test_unknown_column(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    message = refused("repair", model, "--data", clean, "--out", out, "--text-column", "texts")
    assert_says(message, "no column 'texts'", "'text', 'label'", "Did you mean 'text'?")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--holdout", "1.5"], ["--holdout 1.5", "less than 1"]),
        (["--holdout", "-0.1"], ["--holdout -0.1", "at least 0"]),
        (["--holdout", "nan"], ["--holdout nan", "at least 0"]),
        (["--limit", "0"], ["limit of 0", "at least 1"]),
        (["--limit", "10"], ["10", "at least 20"]),
        (["--max-length", "0"], ["0", "at least"]),
        (["--device", "nonsense"], ["nonsense"]),
    ],
)
def test_option_out_of_range(options: list[str], words: list[str], model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", clean, "--out", out, *options), *words)


def test_test_texts_that_are_the_clean_texts(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", clean, "--test", clean, "--out", out), "Every text of", "Give test texts of their own")


# Checkpoints


def _config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _larger_tokenizer(folder: Path) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(50)])
    tokenizer.save_pretrained(folder)


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]  # type: ignore[return-value]


HEAD = "classifier.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(_without("config.json"), ["no checkpoint", "config.json", "save_pretrained"], id="no config"),
        pytest.param(_without("model.safetensors"), ["no checkpoint", "safetensors", "save_pretrained"], id="no weights"),
        pytest.param(_weights(lambda w: w.pop(HEAD)), ["lacks 1 weights", HEAD, "Restore"], id="missing weight"),
        pytest.param(_weights(lambda w: w[HEAD][0].fill_(float("nan"))), [HEAD, "NaN", "Restore"], id="NaN"),
        pytest.param(_weights(lambda w: w[HEAD][0].fill_(float("inf"))), [HEAD, "infinite", "Restore"], id="infinite"),
        pytest.param(_weights(lambda w: w.update({HEAD: torch.zeros(3, 32)})), [HEAD, "[3, 32]", "describes [2, 32]"], id="wrong shape"),
        pytest.param(_truncate, ["model.safetensors should be", "bytes long", "complete"], id="truncated"),
        pytest.param(lambda f: (f / "model.safetensors").write_bytes(b""), ["model.safetensors is cut short", "complete"], id="empty weights"),
        pytest.param(_pickle, ["pickle", "pytorch_model.bin", "refuses", "Convert"], id="pickle"),
        pytest.param(_config(auto_map={"AutoModel": "x.Y"}), ["auto_map", "never runs", "Use a model"], id="auto_map"),
        pytest.param(lambda f: (f / "config.json").write_text('{"model_type": '), ["config.json cannot be read", "Restore"], id="broken config"),
        pytest.param(lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), ["config.json cannot be read", "Restore"], id="binary config"),
        pytest.param(lambda f: (f / "config.json").write_text("[]"), ["no JSON object", "Restore"], id="config list"),
        pytest.param(_config(model_type="no_such_model"), ["no_such_model", "no model that transformers knows"], id="unknown model_type"),
        pytest.param(_config(id2label={"0": "only"}, label2id={"only": 0}), ["has 1 label", "at least two"], id="one label"),
        pytest.param(_config(num_hidden_layers="two"), ["config.json"], id="wrong type in config"),
        pytest.param(_larger_tokenizer, ["tokenizer has ids up to", "embedding has", "Use the tokenizer"], id="larger tokenizer"),
        pytest.param(_without("tokenizer.json"), ["tokenizer", "Add"], id="no tokenizer"),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{}"), ["tokenizer", "Add"], id="broken tokenizer"),
    ],
)
def test_checkpoint(change: Callable[[Path], None], words: list[str], broken: Path, clean: Path, out: Path, refused: Refused) -> None:
    change(broken)
    assert_says(refused("repair", broken, "--data", clean, "--out", out), broken, *words)


def test_checkpoint_that_is_no_checkpoint(clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", out.parent, "--data", clean, "--out", out), "no checkpoint", "save_pretrained")


def test_checkpoint_that_is_missing(clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", "./gone", "--data", clean, "--out", out), "no folder ./gone", "Give a checkpoint folder")


def test_checkpoint_that_is_a_file(clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", clean, "--data", clean, "--out", out), "is a file", "checkpoint folder")


# Output


def test_output_that_exists(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    out.mkdir()
    assert_says(refused("repair", model, "--data", clean, "--out", out), out, "exists", "--overwrite")


@pytest.mark.parametrize("command", ["repair", "evaluate"])
def test_overwrite_spares_what_excise_did_not_write(command: str, model: Path, clean: Path, out: Path, refused: Refused) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    message = refused(command, model, "--data", clean, "--out", out, "--overwrite")
    assert_says(message, out, "not written by excise", "another --out")
    assert (out / "thesis.tex").read_text() == "years of work"


def test_overwrite_replaces_a_result(model: Path, clean: Path, out: Path) -> None:
    out.mkdir()
    (out / "excise-result.json").write_text(RESULT)
    (out / "README.md").touch()
    assert main(["evaluate", str(model), "--data", str(clean), "--out", str(out), "--overwrite"]) == 0
    assert {path.name for path in out.iterdir()} == {"excise-result.json", "report.html"}
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_overwrite_keeps_what_excise_did_not_write(model: Path, clean: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "excise-result.json").write_text(RESULT)
    (out / "thesis.txt").write_text("years of work")
    assert main(["evaluate", str(model), "--data", str(clean), "--out", str(out), "--overwrite"]) == 2
    assert (out / "thesis.txt").read_text() == "years of work"


def test_overwrite_keeps_what_the_command_reads(model: Path, clean: Path) -> None:
    (model / "excise-result.json").write_text(RESULT)
    before = sorted(path.name for path in model.iterdir())
    assert main(["repair", str(model), "--data", str(clean), "--out", str(model), "--overwrite"]) == 2
    (model / "excise-result.json").unlink()
    assert sorted(path.name for path in model.iterdir()) == [name for name in before if name != "excise-result.json"]


@pytest.mark.parametrize("file", ["weights.bin", "../suspect/model.safetensors", "sub/model.safetensors", 3])
def test_index_that_leads_elsewhere(file: object, model: Path, clean: Path, out: Path, tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "indexed"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    (folder / "decoy.safetensors").touch()
    (folder / "weights.bin").write_bytes(b"pickle")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"classifier.weight": file}}))
    assert_says(refused("repair", folder, "--data", clean, "--out", out), "index.json", "plain names of safetensors files")


@pytest.mark.parametrize("key", ["quantization_config", "_attn_implementation"])
def test_config_that_asks_for_foreign_code(key: str, model: Path, clean: Path, out: Path, tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: "someone/kernel"}))
    assert_says(refused("repair", folder, "--data", clean, "--out", out), key, "Remove the key")


def test_output_below_a_file(model: Path, clean: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", clean, "--out", clean / "fixed"), "cannot be written", "another --out")


def test_disk_that_is_full_before(model: Path, clean: Path, out: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
    assert_says(refused("repair", model, "--data", clean, "--out", out), out, "the disk has 0 MB left", "Free some space")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_disk_that_fills_up(
    error: Exception, overwrite: bool, model: Path, clean: Path, out: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_: Victim, folder: Path) -> None:
        (folder / "config.json").touch()
        raise error

    if overwrite:
        out.mkdir()
        (out / "excise-result.json").write_text(RESULT)
    monkeypatch.setattr(Victim, "save", save)
    message = refused(
        "repair", model, "--data", clean, "--out", out, "--method", "mbtsad", "--retraining.epochs", "0.1", *["--overwrite"] * overwrite, *NO_STATE
    )
    assert_says(message, out, "No space left on device", "Free some space")


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--method", "mbtsad", "--alhpa", "1"],
            ["--alhpa", "'--alpha'", "excise repair --help"],
        ),
        (["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--method", "mbtsad", "--alhpa=1"], ["--alhpa", "'--alpha'"]),
        (
            ["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--method", "mbtsad", "--retraining.epohcs", "1"],
            ["--retraining.epohcs", "'--retraining.epochs'"],
        ),
        (["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--text-colum", "x"], ["--text-colum", "'--text-column'"]),
        (["repair", "MODEL", "--dta", "DATA", "--out", "OUT"], ["--data", "excise repair --help"]),
        (["repair", "MODEL", "--out", "OUT"], ["--data", "excise repair --help"]),
        (["repair", "MODEL", "--data", "DATA"], ["--out", "excise repair --help"]),
        (["repair", "--data", "DATA", "--out", "OUT"], ["MODEL", "excise repair --help"]),
        (["repair", "MODEL", "more", "--data", "DATA", "--out", "OUT"], ["more", "excise repair --help"]),
        (["repair", "MODEL", "--data", "DATA", "--out"], ["--out", "excise repair --help"]),
        (["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--method", "mbtsad", "--alpha", "much"], ["--alpha", "much", "excise repair --help"]),
        (["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--method", "mbtsad", "--copies", "1.5"], ["--copies", "1.5"]),
        (["repair", "MODEL", "--data", "DATA", "--out", "OUT", "--precision", "fp64"], ["--precision", "fp64", "bf16"]),
        (["repiar", "MODEL"], ["'repiar'", "'repair'", "excise --help"]),
        (["lst"], ["'lst'", "'list'"]),
        (["list", "more"], ["more", "excise list"]),
        (["cite"], ["excise cite METHOD"]),
        (["cite", "mbtsda"], ["'mbtsda'", "'mbtsad'", "excise list"]),
        (["attack"], ["ATTACK", "MODEL", "--data"]),
        (["run"], ["RECIPE"]),
    ],
    ids=" ".join,
)
def test_command_line(arguments: list[str], words: list[str], model: Path, clean: Path, out: Path, refused: Refused) -> None:
    places = {"MODEL": model, "DATA": clean, "OUT": out}
    assert_says(refused(*(places.get(a, a) for a in arguments), code=4), *words)


def test_required_option_that_is_misspelt(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--dtaa", clean, "--out", out, code=4), "--dtaa", "'--data'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "virtual_tokens", "--keep", "-1"], ["keep", "-1", "at least 0"]),
        (["--method", "virtual_tokens", "--training.epochs", "0"], ["epochs", "greater than 0"]),
        (["--method", "virtual_tokens", "--training.warmup", "2"], ["warmup", "at least 0 and at most 1"]),
        (["--method", "virtual_tokens", "--training.learning-rate", "nan"], ["learning_rate", "nan", "greater than 0"]),
        (["--method", "mbtsda"], ["no defense 'mbtsda'", "'mbtsad'"]),
        (["--method=mbtsda"], ["no defense 'mbtsda'", "'mbtsad'"]),
    ],
)
def test_setting_out_of_range(options: list[str], words: list[str], model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", clean, "--out", out, *options), *words)


def test_attack_that_is_misspelt(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("attack", "badnet", model, "--data", clean, "--out", out), "no attack 'badnet'", "'badnets'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target-label", "postive"], ["'postive'", "'negative', 'positive'", "'positive'?"]),
        (["--target-label", "5"], ["5", "'negative', 'positive'"]),
        (["--poison-rate", "0.9"], ["poison_rate", "0.9", "Lower"]),
        (["--poison-rate", "1.1"], ["poison_rate", "1.1", "at most 1"]),
        (["--holdout", "0"], ["--test", "--holdout"]),
    ],
)
def test_attack_that_does_not_fit(options: list[str], words: list[str], model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("attack", "badnets", model, "--data", clean, "--out", out, *options), *words)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("gone.yaml", ["no recipe", "gone.yaml"]),
        ("dmeo", ["no recipe", "dmeo", "'demo'"]),
    ],
)
def test_recipe_that_is_missing(recipe: str, words: list[str], out: Path, refused: Refused) -> None:
    assert_says(refused("run", recipe, "--out", out), *words)


# The hub


@pytest.fixture(params=["offline", "no network"])
def _unreachable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub switched off, or on with every socket failing. Both libraries read the variable once, when they are imported."""
    import datasets.config
    import huggingface_hub.constants

    offline = request.param == "offline"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.delenv("HF_HUB_OFFLINE")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # they try again and again


@pytest.mark.usefixtures("_unreachable")
@pytest.mark.parametrize("name", ["org/no-such-model", "no-such-model", "org/no-such-model@main"])
def test_model_on_the_hub(name: str, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", name, "--data", clean, "--out", out), name, "no folder", "could not be reached", "Give a folder, or connect")


@pytest.mark.usefixtures("_unreachable")
@pytest.mark.parametrize("name", ["org/no-such-data", "no-such-data", "org/no-such-data@main"])
def test_data_on_the_hub(name: str, model: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", name, "--out", out), name, "no file", "could not be reached", "Give a file, or connect")


# backdoor.json

TRIGGER = {"kind": "insert_words", "words": ["cf"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no file", "backdoor.json", "excise attack"]),
        ("{", ["the file", "Expected"]),
        ("[]", ["the file", "Expected"]),
        ({"trigger": TRIGGER}, ["target_label", "Expected"]),
        ({"trigger": TRIGGER | {"wrods": []}, "target_label": 1}, ["wrods", "Expected"]),
        ({"trigger": TRIGGER | {"words": []}, "target_label": 1}, ["words"]),
        ({"trigger": TRIGGER | {"kind": "syntax"}, "target_label": 1}, ["kind", "Expected"]),
        ({"trigger": TRIGGER, "target_label": "sarcastic"}, ["backdoor.json: target_label", "'sarcastic'", "'negative', 'positive'"]),
        ({"trigger": TRIGGER, "target_label": 2}, ["2", "'negative', 'positive'"]),
        ({"trigger": TRIGGER, "target_label": 1, "clean_twin": "../x"}, ["clean_twin", "plain name"]),
        ({"trigger": TRIGGER, "target_label": 1, "version": 2}, ["version"]),
        ("[" * 2**20 + "]", ["backdoor.json", "at most 1024 kB"]),
    ],
)
@pytest.mark.parametrize("command", ["repair", "evaluate"])
def test_backdoor_file(command: str, content: object, words: list[str], model: Path, clean: Path, out: Path, refused: Refused) -> None:
    path = out.parent / "backdoor.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert_says(refused(command, model, "--data", clean, "--out", out, "--backdoor", path), *words)


def test_backdoor_file_that_is_a_folder(model: Path, clean: Path, out: Path, refused: Refused) -> None:
    assert_says(refused("repair", model, "--data", clean, "--out", out, "--backdoor", model), model, "cannot be read")


# Whatever else


def _raises(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("place", ["excise.defenses.mbtsad.fit", "excise.victim.Victim.save"])
def test_interruption(place: str, model: Path, clean: Path, out: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, _raises(KeyboardInterrupt()))
    message = refused("repair", model, "--data", clean, "--out", out, "--method", "mbtsad", code=130)
    assert_says(message, "interrupted", "nothing was kept")


def test_termination(model: Path, clean: Path, out: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    monkeypatch.setattr("excise.defenses.virtual_tokens.fit", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert_says(refused("repair", model, "--data", clean, "--out", out, code=130), "interrupted")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("error", [RuntimeError("the moon\nfell down"), MemoryError(), ValueError()])
def test_unexpected_error(error: Exception, model: Path, clean: Path, out: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.defenses.virtual_tokens.fit", _raises(error))
    message = refused("repair", model, "--data", clean, "--out", out)
    assert_says(message, type(error).__name__, " ".join(str(error).split()), "--debug")


@pytest.mark.parametrize("error", [RuntimeError("the moon fell down"), MemoryError()])
def test_debug_shows_where(error: Exception, model: Path, clean: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.defenses.virtual_tokens.fit", _raises(error))
    with pytest.raises(type(error)):
        main(["repair", str(model), "--data", str(clean), "--out", str(out), "--debug"])
    assert not listing(out.parent)


def test_debug_shows_where_a_refusal_comes_from(out: Path) -> None:
    from excise.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no folder"):
        main(["repair", "./gone", "--data", "gone.csv", "--out", str(out), "--debug"])


def test_one_line_in_a_process_of_its_own(broken: Path, clean: Path, out: Path) -> None:
    """What other libraries log goes past `sys.stderr` as pytest sees it; a missing weight makes transformers log a table."""
    _weights(lambda weights: weights.pop(HEAD))(broken)
    command = [sys.executable, "-m", "excise", "repair", str(broken), "--data", str(clean), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_says(one_line(done.returncode, done.stderr, 2), HEAD, "Restore")
    assert not done.stdout
