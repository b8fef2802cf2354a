"""The front door: every hostile checkpoint is refused by name, at little cost and without touching anything else; every ordinary one opens."""

from __future__ import annotations

import contextlib
import functools
import inspect as inspect_module
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from excise import checkpoint, front_door
from excise.checkpoint import language_model_kind
from excise.cli import main
from excise.errors import CheckpointError
from excise.victim import Victim
from hostile import corpus, watch
from hostile.corpus import CORPUS
from toy import ARCHITECTURES, save_toy, toy_config, toy_data, toy_tokenizer, toy_victim, write_csv

MB = 2**20


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole corpus, and a good checkpoint under the name "good", inspected in one process that watches itself."""
    place = tmp_path_factory.mktemp("hostile")
    good = save_toy(place / "good")
    folders = {"good": good}
    for i, (name, case) in enumerate(CORPUS.items()):
        folders[name] = place / f"{i}" / "checkpoint"
        shutil.copytree(good, folders[name])
        case.change(folders[name])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, watch.__file__, *map(str, folders.values())], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    return {**told, "found": {name: told["found"][str(folder)] | {"folder": str(folder)} for name, folder in folders.items()}}


def test_the_corpus_is_large(watched: dict[str, Any]) -> None:
    """And its cases differ: few share a message."""
    assert len(CORPUS) >= 100
    messages = {found["message"].replace(found["folder"], "") for name, found in watched["found"].items() if name != "good"}
    assert len(messages) > 0.9 * len(CORPUS)


@pytest.mark.parametrize("name", CORPUS)
def test_refused(name: str, watched: dict[str, Any]) -> None:
    """With a message of its own, in less than a second; no other file opened, no process started, no connection tried, nothing compiled."""
    found = watched["found"][name]
    assert found["message"] is not None, "it was let in"
    assert found["message"].startswith(found["folder"]), "which checkpoint?"
    for word in CORPUS[name].words:
        assert word in found["message"]
    assert len(found["message"].splitlines()) == 1
    assert len(found["message"]) < len(found["folder"]) + 400
    assert found["computed"] < 1
    assert found["seconds"] < 10, "it waited for something; other processes may take turns"
    assert not [path for path in found["opened"] if not path.startswith(os.path.realpath(found["folder"]) + os.sep)]
    assert not found["forbidden"]


def test_little_memory_for_the_whole_corpus(watched: dict[str, Any]) -> None:
    assert watched["peak"] < 300 * MB
    assert not watched["loaded"], "the inspection is plain Python"


def test_a_good_one_passes(watched: dict[str, Any]) -> None:
    found = watched["found"]["good"]
    assert found["message"] is None
    assert {Path(path).name for path in found["opened"]} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not found["forbidden"]


# What only transformers can tell


def opened(folder: Path) -> Victim:
    return Victim.load(folder, precision="fp32", device="cpu")


def _funnel(content: dict[str, Any]) -> None:
    del content["num_hidden_layers"]
    content |= {"model_type": "funnel", "block_sizes": [10**9]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(corpus.config(model_type="../../evil"), ["no model that transformers knows", "evil"], id="type that is a path"),
        pytest.param(corpus.config(model_type=["bert"]), ["no model that transformers knows"], id="type that is a list"),
        pytest.param(corpus.config(model_type="lightglue", keypoint_detector_config={"model_type": "x"}), ["'lightglue'"], id="type of another task"),
        pytest.param(corpus.config(model_type="timm_wrapper"), ["'timm_wrapper'"], id="type that fetches"),
        pytest.param(corpus.config(to_dict="evil"), ["to_dict", "method", "Remove the key"], id="key that replaces a method"),
        pytest.param(corpus.config(num_attention_heads=7), ["could not be opened as a sequence classifier"], id="heads that do not divide"),
        pytest.param(corpus.config(max_position_embeddings=71), ["position_embeddings", "[70, 32]", "[71, 32]"], id="one position more"),
        pytest.param(corpus.config(type_vocab_size=1), ["token_type_embeddings", "[2, 32]", "[1, 32]"], id="one type less"),
        pytest.param(corpus.config(num_hidden_layers=30), ["lacks", "weights"], id="layers that are not there"),
        pytest.param(
            corpus.config(model_type="gpt2", max_position_embeddings=2_000_000), ["describes a model of", "weights hold"], id="a model of other size"
        ),
        pytest.param(
            corpus.config(model_type="bart", d_model=32, decoder_layers=10_000), ["more than", "parts", "41 weights"], id="ten thousand layers"
        ),
        pytest.param(corpus.edited("config.json", _funnel), ["parts"], id="a billion layers in a list"),
        pytest.param(corpus.settings(tokenizer_class="BertJapaneseTokenizer"), ["tokenizer"], id="tokenizer in Python"),
        pytest.param(corpus.tokenizer(normalizer={"type": "Evil"}), ["tokenizer cannot be opened"], id="step that does not exist"),
    ],
)
def test_refused_before_weights_load(change: corpus.Change, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(save_toy(tmp_path / "model"))
    if not {"tokenizer", "tokenizer cannot be opened", "lacks"} & set(words):
        monkeypatch.setattr(checkpoint, "_read_weights", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(CheckpointError) as refusal:
        opened(tmp_path / "model")
    for word in (str(tmp_path), *words):
        assert word in str(refusal.value)


def _typed(content: dict[str, Any]) -> None:
    content["post_processor"]["single"][1]["Sequence"]["type_id"] = 77


def _named(names: list[str]) -> corpus.Change:
    return corpus.settings(model_input_names=names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            [corpus.config(id2label={"0": ["a"], "1": {"b": 1}}, label2id={})], ["id2label", "one name of its own"], id="names that are lists"
        ),
        pytest.param([corpus.around({"ids": [99_999_999]})], ["ids up to 99999999", "embedding has"], id="a token around texts that is no row"),
        pytest.param(
            [corpus.tokenizer(post_processor={"type": "BertProcessing", "sep": ["[SEP]", 99_999], "cls": ["[CLS]", 2]})],
            ["99999"],
            id="an end that is no row",
        ),
        pytest.param(
            [_named(["input_ids", "token_type_ids", "attention_mask"]), corpus.edited("tokenizer.json", _typed)],
            ["cannot read a text", "out of range"],
            id="a type that is no row",
        ),
        pytest.param([corpus.settings(model_max_length=1)], ["1 tokens at most", "at least 8"], id="one token at most"),
        pytest.param([corpus.settings(tokenizer_class="ByT5Tokenizer")], ["tokenizer"], id="a tokenizer that is not fast"),
    ],
)
def test_refused_before_any_work(change: list[corpus.Change], words: list[str], tmp_path: Path) -> None:
    """What only shows when a text is read."""
    save_toy(tmp_path / "model")
    for one in change:
        one(tmp_path / "model")
    with pytest.raises(CheckpointError) as refusal:
        opened(tmp_path / "model")
    for word in (str(tmp_path), *words):
        assert re.search(word, str(refusal.value))


@pytest.mark.parametrize("model", [{"unk_token": "[NONE]"}, {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}], ids=["words", "pieces"])
def test_a_word_that_cannot_be_cut_is_an_error(model: dict[str, Any], tmp_path: Path) -> None:
    """Without a token for unknown words, a tokenizer may read what it is tried with and stop later."""
    save_toy(tmp_path)
    if "vocab" in model:
        characters = "▁ Aafewords,nd12%m." + "[]PDUNKCLS"
        model = {**model, "vocab": [[c, -1.0] for c in dict.fromkeys(characters)]}
        corpus.tokenizer(model=model, added_tokens=[], post_processor=None, normalizer=None)(tmp_path)
        corpus.raw("tokenizer_config.json", b'{"pad_token": "a", "tokenizer_class": "PreTrainedTokenizerFast"}')(tmp_path)
    else:
        corpus.model(**model)(tmp_path)
    victim = opened(tmp_path)
    with pytest.raises(CheckpointError, match="its tokenizer stopped"):
        victim.encode(["漢字"])


def test_a_pattern_that_takes_too_long_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It passes the inspection, but the library gives up after ten million steps, with an exception that is no `Exception`."""
    corpus.tokenizer(pre_tokenizer=corpus.split_on("a*a*a*a*a*a*a*[^a]"))(save_toy(tmp_path))
    with pytest.raises(CheckpointError, match="its tokenizer stopped"):
        opened(tmp_path).encode(["a" * 300])
    assert "panicked" in capfd.readouterr().err  # what the library writes there cannot be helped


def test_a_tokenizer_that_stops_in_a_scan_is_no_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its decoder strips more letters than some words have. The exit code of an exception would say that a backdoor was found."""
    corpus.tokenizer(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 50})(save_toy(tmp_path / "model"))
    data = write_csv(tmp_path / "texts.csv", toy_data(60))
    assert main(["scan", str(tmp_path / "model"), "--data", str(data), "--scanners", "embedding_rows"]) == 3, "no scanner could look"
    assert "its tokenizer stopped" in " ".join(capfd.readouterr().out.split())


def test_memory_that_is_free() -> None:
    assert 2**20 < front_door.free_memory() < 2**50


# What ordinary checkpoints hold is let in

TEXTS = toy_data(8).texts


def plainly_loaded(folder: Path) -> torch.Tensor:
    """What transformers makes of a folder by itself."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    accepted = inspect_module.signature(model.forward).parameters
    with torch.inference_mode():
        encoded = [{k: torch.tensor([v]) for k, v in tokenizer(text).items() if k in accepted} for text in TEXTS]
        return torch.cat([model(**inputs).logits for inputs in encoded])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_let_in(architecture: str, tmp_path: Path) -> None:
    folder = save_toy(tmp_path, architecture)
    torch.testing.assert_close(opened(folder).logits(TEXTS), plainly_loaded(folder), atol=1e-5, rtol=1e-4)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 130}
OTHERS = {
    "albert": {**SIZES, "embedding_size": 16, "num_hidden_layers": 12},  # its layers share their weights
    "deberta-v2": SIZES,
    "modernbert": SIZES,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "gpt_neox": SIZES,
    "mixtral": {**SIZES, "num_key_value_heads": 1, "num_local_experts": 2},  # transformers merges the weights of its experts
    "gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 16},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_are_let_in(kind: str, tmp_path: Path) -> None:
    folder = save_toy(tmp_path)
    made = AutoConfig.for_model(kind, vocab_size=len(toy_tokenizer()) + 8, pad_token_id=0, bos_token_id=2, eos_token_id=3, **OTHERS[kind])
    AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)
    ours, theirs = opened(folder).model.state_dict(), AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def _sharded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    toy_victim().model.save_pretrained(folder, max_shard_size="20kB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def _linked_within(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")


def _half(folder: Path) -> None:
    toy_victim().model.to(torch.bfloat16).save_pretrained(folder)


HARMLESS: dict[str, corpus.Change] = {
    "sharded": _sharded,
    "a link within the folder": _linked_within,
    "half precision": _half,
    "where it came from": corpus.config(_name_or_path="/home/someone/models/bert-base-uncased", transformers_version="4.21.0"),
    "a name that transformers treats specially": corpus.config(_name_or_path="mistralai/Mistral-7B"),
    "keys nobody knows": corpus.config(my_project={"note": "über", "steps": [1, 2, 3]}, finetuning_task="sst2", gradient_checkpointing=False),
    "a usual attention": corpus.config(_attn_implementation="eager", attn_implementation="sdpa", _attn_implementation_autoset=True),
    "an attention of the library that saved it": corpus.config(_attn_implementation="flash_attention_2"),
    "empty keys": corpus.config(auto_map={}, quantization_config=None, trust_remote_code=False, torch_dtype="float16", dtype="bfloat16"),
    "labels named like keys": corpus.config(id2label={"0": "auto_map", "1": "backbone"}, label2id={"auto_map": 0, "backbone": 1}),
    "how the model is to be called": corpus.config(return_dict=False, chunk_size_feed_forward=7),
    "no limit of length": corpus.settings(model_max_length=int(1e30)),
    "an old tokenizer's paths": corpus.settings(
        name_or_path="/root/.cache/x", special_tokens_map_file="/root/.cache/y", tokenizer_file="/root/.cache/z", vocab_file="../v", never_split=None
    ),
    "a chat template": corpus.settings(chat_template="{{ x.__class__ }}" * 9_000),
    "other files": lambda folder: [(folder / name).write_bytes(b"\x80evil") for name in ("training_args.bin", "optimizer.pt", "evil.py")],
    "a chat template of its own": corpus.raw("chat_template.jinja", b"{{ evil }}"),
    "special tokens beside": corpus.raw("special_tokens_map.json", b'{"pad_token": "[PAD]", "cls_token": {"content": "[CLS]", "lstrip": false}}'),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=list(HARMLESS))
def test_harmless_things_are_let_in(change: corpus.Change, tmp_path: Path) -> None:
    folder = save_toy(tmp_path)
    before = opened(folder).logits(TEXTS)
    change(folder)
    torch.testing.assert_close(opened(folder).logits(TEXTS), before, atol=0.05 if change is _half else 0, rtol=0)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_tied_weights_are_let_in(kind: Literal["causal", "masked"], tmp_path: Path) -> None:
    folder, made = save_toy(tmp_path), AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
    made.from_config(toy_config("bert" if kind == "masked" else "gpt2")).save_pretrained(folder)
    model, _ = checkpoint.open_language_model(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[union-attr]
    assert language_model_kind(model.config) == kind


def test_the_cache_of_the_hub_is_let_in(tmp_path: Path) -> None:
    """There every file of a snapshot is a link to a blob beside it; a link to anywhere else is none."""
    snapshot, blobs = tmp_path / "models--org--name" / "snapshots" / "0a1b", tmp_path / "models--org--name" / "blobs"
    save_toy(snapshot)
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../blobs/{i}")
    opened(snapshot)
    (blobs / "0").rename(tmp_path / "models--org--name" / "0")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../0")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        opened(snapshot)


def test_what_was_dropped_is_told(tmp_path: Path) -> None:
    folder = save_toy(tmp_path)
    corpus.config(_name_or_path="x", _my_hook="y")(folder)
    corpus.settings(chat_template="{{ 7 }}", vocab_file="/etc/passwd")(folder)
    found = front_door.inspect(folder, "suspect")
    assert {"config.json: _name_or_path", "config.json: _my_hook", "tokenizer_config.json: chat_template"} <= set(found.dropped)
    assert "tokenizer_config.json: vocab_file" in found.dropped
    assert "/etc/passwd" not in str(found)


def test_weights_are_ours_once_they_are_loaded(tmp_path: Path) -> None:
    """A file that is changed or cut short later changes nothing, and does not end the process."""
    victim = opened(save_toy(tmp_path))
    before = victim.logits(TEXTS)
    os.truncate(tmp_path / "model.safetensors", 0)
    assert torch.equal(victim.logits(TEXTS), before)


# Anything at all is either let in or refused

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("ordinary") / "model")


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]))
def test_whatever_a_file_says_the_answer_is_an_answer(ordinary: Path, data: st.DataObject, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(ordinary, Path(place) / "model"))
        change = corpus.header if name == "model.safetensors" else functools.partial(corpus.edited, name)
        change(lambda content: _stirred(content, data))(folder)
        with contextlib.suppress(CheckpointError):
            front_door.inspect(folder, "suspect", free=2**40)


def _stirred(content: dict[str, Any], data: st.DataObject) -> None:
    """Puts anything in place of one value, at any depth."""
    while True:
        key = data.draw(st.sampled_from(sorted(content)))
        if not (isinstance(content[key], dict) and content[key] and data.draw(st.booleans())):
            break
        content = content[key]
    content[key] = data.draw(values)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), name=st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
def test_whatever_bytes_a_file_has_the_answer_is_an_answer(ordinary: Path, data: st.DataObject, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(ordinary, Path(place) / "model"))
        content = bytearray((folder / name).read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content), 4_000) - 1))] = data.draw(st.integers(0, 255))
        (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        with contextlib.suppress(CheckpointError):
            front_door.inspect(folder, "suspect", free=2**40)
