"""A signature says who vouches for a folder, by the OpenSSF's model-signing; without that package, excise says what to install."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from excise.cli import main
from excise.errors import CheckpointError, DataError
from excise.kept import file_hash
from excise.signing import check_signature
from excise.victim import Victim
from fuzz.parsers import Target, damaged
from toy import save_toy, toy_data, write_csv


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repaired model."""
    place = tmp_path_factory.mktemp("written")
    model, data = save_toy(place / "model"), write_csv(place / "texts.csv", toy_data(60))
    words = ["repair", str(model), "--data", str(data), "--method", "cft", "--training.epochs", "1", "--out", str(place / "fixed"), "--quiet"]
    assert main(words) == 0
    return place / "fixed"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of two people; one of them also encrypted."""
    pytest.importorskip("model_signing", reason="needs excise[signing]")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    place = tmp_path_factory.mktemp("keys")
    made: dict[str, Any] = {"ours": ec.generate_private_key(ec.SECP256R1()), "theirs": ec.generate_private_key(ec.SECP384R1())}
    made["other kind"] = rsa.generate_private_key(65537, 2048)
    for name, key in made.items():
        for ending, locked in {"pem": form.NoEncryption(), "locked": form.BestAvailableEncryption("schloß".encode())}.items():
            (place / f"{name}.{ending}").write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (place / f"{name}.pub").write_bytes(public)
    return place


@pytest.fixture
def signed(written: Path, keys: Path, tmp_path: Path) -> Path:
    """A folder that we signed."""
    out = Path(shutil.copytree(written, tmp_path / "fixed"))
    assert main(["sign", str(out), "--private-key", str(keys / "ours.pem"), "--quiet"]) == 0
    return out


def checked(out: Path, key: Path) -> int:
    return main(["verify", str(out), "--public-key", str(key)])


def test_what_was_signed_is_known_by_its_key(signed: Path, written: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(signed, keys / "ours.pub") == 0
    assert "signed with the key of" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(signed)]) == 0
    assert "--public-key checks by whom" in " ".join(capsys.readouterr().out.split())
    payload = json.loads(base64.b64decode(json.loads((signed / "model.sig").read_text())["dsseEnvelope"]["payload"]))
    covered = {one["name"]: one["digest"] for one in payload["predicate"]["resources"]}
    assert covered == {path.name: file_hash(path) for path in written.iterdir()}
    assert {"excise-result.json", "model.safetensors"} <= covered.keys()
    Victim.load(signed)


def forged(out: Path) -> None:
    """Another weight, with its hash in the result."""
    path, result = out / "model.safetensors", out / "excise-result.json"
    before = file_hash(path)
    flip(path)
    result.write_text(result.read_text().replace(before, file_hash(path)))


def added(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def bundle(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of the signature itself."""

    def write(out: Path) -> None:
        found = json.loads((out / "model.sig").read_text())
        change(found)
        (out / "model.sig").write_text(json.dumps(found))

    return write


def shorter(found: dict[str, Any]) -> None:
    """The list of what was signed, without the weights."""
    payload = json.loads(base64.b64decode(found["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"] = [one for one in payload["predicate"]["resources"] if one["name"] != "model.safetensors"]
    found["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda out: flip(out / "model.safetensors"), "model.safetensors was changed"),
    "a flipped bit, and its hash": (forged, "Signature mismatch"),
    "another result": (lambda out: added(out / "excise-result.json", " "), "excise-result.json"),
    "a new file": (lambda out: (out / "more.json").touch(), "more.json was added"),
    "a new file that git would hide": (lambda out: (out / ".gitattributes").touch(), ".gitattributes was added"),
    "no signature": (lambda out: (out / "model.sig").unlink(), "is not signed"),
    "an empty signature": (lambda out: (out / "model.sig").write_text(""), "cannot be read"),
    "a signature that is none": (lambda out: (out / "model.sig").write_text("{}"), "does not hold"),
    "a deep signature": (lambda out: (out / "model.sig").write_text("[" * 10**5), "cannot be read"),
    "a huge signature": (lambda out: (out / "model.sig").write_text(" " * 2**21), "bytes long"),
    "a linked signature": (
        lambda out: (out / "model.sig").rename(out.parent / "s") and (out / "model.sig").symlink_to(out.parent / "s"),
        "leads out of the folder",
    ),
    "a signature without a key": (bundle(lambda found: found["verificationMaterial"].clear()), "does not hold"),
    "a signature without a hint of its key, over less": (
        bundle(lambda found: (found["verificationMaterial"]["publicKey"].clear(), shorter(found))),
        "does not hold",
    ),
    "a signature over less": (bundle(shorter), "does not hold"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_was_changed_is_refused(what: str, signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = CHANGES[what]
    change(signed)
    assert checked(signed, keys / "ours.pub") == 2
    assert message in capsys.readouterr().err


def test_a_damaged_signature_is_an_error(signed: Path, keys: Path) -> None:
    """What tests/fuzz does to other files."""
    good = (signed / "model.sig").read_bytes()
    target, random = Target("model.sig", [good], lambda _: None, "json"), Random(0)
    payload = json.loads(good)["dsseEnvelope"]["payload"]
    for _ in range(200):
        (signed / "model.sig").write_bytes(content := damaged(target, random))
        with contextlib.suppress(DataError, CheckpointError):
            check_signature(signed, keys / "ours.pub")
            assert json.loads(content)["dsseEnvelope"]["payload"] == payload, "what was damaged beside it vouches for nothing"


def test_what_the_signer_left_out_is_refused(written: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its hash stands in a result that nobody signed."""
    from model_signing import hashing, signing

    out = Path(shutil.copytree(written, tmp_path / "fixed"))
    some = hashing.Config().set_ignored_paths(paths=["model.sig", "excise-result.json"])
    signing.Config().use_elliptic_key_signer(private_key=keys / "ours.pem").set_hashing_config(some).sign(out, out / "model.sig")
    assert checked(out, keys / "ours.pub") == 2
    assert "leaves out excise-result.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "message"), [("theirs.pub", "does not hold"), ("ours.pem", "public key"), ("other kind.pub", "public key"), ("none", "public key")]
)
def test_another_key_is_refused(key: str, message: str, signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(signed, keys / key) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["ours.pub", "other kind.pem", "none"])
def test_only_keys_that_can_be_checked_sign(key: str, written: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(written, tmp_path / "fixed"))
    assert main(["sign", str(out), "--private-key", str(keys / key)]) == 2
    assert "cannot be used as a private key" in capsys.readouterr().err
    assert not (out / "model.sig").exists()


def test_an_encrypted_key_takes_its_password(
    written: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(written, tmp_path / "fixed"))
    monkeypatch.setattr("getpass.getpass", lambda prompt: "wrong")
    assert main(["sign", str(out), "--private-key", str(keys / "ours.locked")]) == 2
    assert "cannot be used as a private key" in capsys.readouterr().err
    monkeypatch.setattr("getpass.getpass", lambda prompt: "schloß")
    assert main(["sign", str(out), "--private-key", str(keys / "ours.locked")]) == 0
    assert checked(out, keys / "ours.pub") == 0


def test_nothing_is_signed_that_was_changed_or_is_signed(signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sign", str(signed), "--private-key", str(keys / "theirs.pem")]
    assert main(words) == 2
    assert "is signed already" in capsys.readouterr().err
    (signed / "model.sig").unlink()
    flip(signed / "model.safetensors")
    assert main(words) == 2
    assert "model.safetensors was changed" in capsys.readouterr().err
    assert not (signed / "model.sig").exists()


def test_model_signing_s_own_tool_agrees(signed: Path, written: Path, keys: Path, tmp_path: Path) -> None:
    def tool(action: str, out: Path, *words: str) -> int:
        command = [sys.executable, "-m", "model_signing", action, "key", str(out), "--signature", str(out / "model.sig"), *words]
        return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode

    assert tool("verify", signed, "--public_key", str(keys / "ours.pub")) == 0
    assert tool("verify", signed, "--public_key", str(keys / "theirs.pub")) != 0
    out = Path(shutil.copytree(written, tmp_path / "another"))
    assert tool("sign", out, "--private_key", str(keys / "theirs.pem")) == 0
    assert checked(out, keys / "theirs.pub") == 0


def test_a_signature_is_no_foreign_file(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither to verify, which need not have model-signing, nor where a result is replaced."""
    out = Path(shutil.copytree(written, tmp_path / "fixed"))
    assert main(["verify", str(out)]) == 0
    assert "Nobody signed this" in capsys.readouterr().out
    (out / "model.sig").write_text("{}")
    assert main(["verify", str(out)]) == 0
    model, data = save_toy(tmp_path / "model"), write_csv(tmp_path / "texts.csv", toy_data(60))
    assert main(["evaluate", str(model), "--data", str(data), "--out", str(out), "--overwrite", "--quiet"]) == 0
    assert not (out / "model.sig").exists()


def test_without_model_signing_it_says_what_to_install(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    out = Path(shutil.copytree(written, tmp_path / "fixed"))
    assert main(["verify", str(out), "--public-key", "key.pub"]) == 2
    assert "is not signed" in capsys.readouterr().err
    (out / "model.sig").write_text("{}")
    for words in (["verify", str(out), "--public-key", "key.pub"], ["sign", str(written), "--private-key", "key.pem"]):
        assert main(words) == 2
        assert "excise[signing]" in capsys.readouterr().err
