"""Victims: predictions that depend on the text alone, and checkpoints that come back as they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers.models.auto.modeling_auto import AutoModel

from excise.progress import Progress, observe
from excise.victim import Victim, collate, resolve_precision, token_batches
from toy import ARCHITECTURES, NAMES, SPECIAL, save_toy, toy_config, toy_data, toy_tokenizer, toy_victim

LONG = "film " * 300
TEXTS = [*toy_data(20).texts, "a", "x", ".", LONG, LONG + "wonderful", "ünknown ☃ characters", "[PAD] [CLS]", "a\nb\tc"]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def loaded(folder: Path, architecture: str) -> Victim:
    """A victim as transformers opens it; AutoTokenizer makes another class of a toy tokenizer for some architectures."""
    return Victim.load(save_toy(folder, architecture), precision="fp32", device="cpu")


def test_logits_do_not_depend_on_order_or_neighbours(architecture: str) -> None:
    victim = toy_victim(architecture)
    whole = victim.logits(TEXTS)
    assert whole.shape == (len(TEXTS), 2)
    assert whole.isfinite().all()
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(0))
    shuffled = victim.logits([TEXTS[i] for i in order])
    torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=1e-4)
    alone = torch.cat([victim.logits([text]) for text in TEXTS])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
    small = victim.logits(TEXTS, tokens_per_batch=1)
    torch.testing.assert_close(small, whole, atol=1e-5, rtol=1e-4)
    assert victim.predict(TEXTS) == whole.argmax(1).tolist()


def test_long_texts_are_cut(architecture: str) -> None:
    victim = toy_victim(architecture)
    assert {len(e["input_ids"]) for e in victim.encode([LONG, LONG + LONG])} == {64}
    torch.testing.assert_close(*victim.logits([LONG, LONG + " brilliant"]).unbind())


def test_tokenising_in_parts_changes_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = toy_victim(architecture)
    whole = victim.encode(TEXTS)
    monkeypatch.setattr("excise.victim.TOKENISED", 3)
    assert victim.encode(TEXTS) == whole
    assert len(whole) == len(TEXTS)


def test_nothing_in_nothing_out() -> None:
    assert toy_victim().predict([]) == []


def test_padding_is_on_the_right_whatever_the_tokenizer_prefers(architecture: str) -> None:
    victim = toy_victim(architecture)
    before = victim.logits(TEXTS)
    victim.tokenizer.padding_side = "left"
    torch.testing.assert_close(victim.logits(TEXTS), before)
    batch = collate(victim.tokenizer, victim.encode(["a", "a b c"]))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [victim.tokenizer.pad_token_id] * 2


def test_batches_keep_to_their_budget() -> None:
    encodings = [{"input_ids": [0] * n} for n in [1] * 600 + [10] * 50 + [100]]
    batches = list(token_batches(range(len(encodings)), encodings, 120))
    assert [i for rows in batches for i in rows] == list(range(len(encodings)))
    assert all(len(rows) * max(len(encodings[i]["input_ids"]) for i in rows) <= 120 for rows in batches)
    assert max(map(len, token_batches(range(600), encodings, 10**9))) == 256


@given(st.lists(st.integers(2, 120), min_size=300, max_size=500))
def test_padding_is_little(lengths: list[int]) -> None:
    """Lengths as unlike as they can be: large batches have hardly any padding, and no batch is small without a reason."""
    encodings = [{"input_ids": [0] * length} for length in sorted(lengths)]
    batches = list(token_batches(range(len(encodings)), encodings, 8192))
    assert [i for rows in batches for i in rows] == list(range(len(encodings)))
    real = [sum(len(encodings[i]["input_ids"]) for i in rows) for rows in batches]
    padded = [len(rows) * len(encodings[rows[-1]]["input_ids"]) for rows in batches]
    assert all(p <= 1.05 * r or r <= 512 + 120 for p, r in zip(padded, real, strict=True))
    assert all(r >= 512 or len(rows) == 256 or rows is batches[-1] for r, rows in zip(real, batches, strict=True))


def test_predicting_reports_its_progress() -> None:
    seen: list[Progress] = []
    with observe(seen.append):
        toy_victim().logits(TEXTS, name="look", tokens_per_batch=500)
    assert [seen[0].done, seen[-1].done] == [0, len(TEXTS)]
    assert {(p.task, p.total) for p in seen} == {("look", len(TEXTS))}


def test_save_and_load_keep_predictions_and_names(tmp_path: Path, architecture: str) -> None:
    victim = loaded(tmp_path / "a", architecture)
    before = victim.logits(TEXTS)
    victim.save(tmp_path / "b")
    again = Victim.load(tmp_path / "b", precision="fp32", device="cpu")
    assert torch.equal(again.logits(TEXTS), before)
    assert again.label_names == NAMES
    assert again.max_length == victim.max_length
    assert not list((tmp_path / "b").glob("*.bin"))


def test_a_saved_tokenizer_does_not_cut_or_pad(tmp_path: Path) -> None:
    victim = toy_victim()
    victim.encode(TEXTS)
    victim.tokenizer(TEXTS, padding=True, truncation=True, max_length=8)
    victim.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"] is None
    assert saved["padding"] is None
    assert {len(e["input_ids"]) for e in victim.encode([LONG])} == {64}


def test_saving_leaves_the_victim_usable(tmp_path: Path) -> None:
    victim = toy_victim()
    before = victim.logits(TEXTS)
    victim.save(tmp_path)
    assert torch.equal(victim.logits(TEXTS), before)


def test_the_longest_input_fits_the_positions(tmp_path: Path, architecture: str) -> None:
    folder = save_toy(tmp_path, architecture)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 10**30}))
    victim = Victim.load(folder, max_length=500, precision="fp32", device="cpu")
    assert victim.max_length == (69 if architecture == "roberta" else 70)  # RoBERTa counts from behind the padding index, 0 here
    assert victim.logits([LONG]).isfinite().all()


def test_max_length_may_be_smaller(tmp_path: Path) -> None:
    victim = Victim.load(save_toy(tmp_path), max_length=10, precision="fp32", device="cpu")
    assert [len(e["input_ids"]) for e in victim.encode([LONG, "a"])] == [10, 3]


def encoder(folder: Path, architecture: str) -> Path:
    """A checkpoint without a classification head."""
    victim = loaded(folder, architecture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(toy_config(architecture)).save_pretrained(folder)
    victim.tokenizer.save_pretrained(folder)
    return folder


def test_a_new_head_is_drawn_from_the_seed(tmp_path: Path, architecture: str) -> None:
    folder = encoder(tmp_path, architecture)
    names = ("world", "sports", "science")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, again, other = (Victim.load(folder, label_names=names, seed=seed, precision="fp32", device="cpu") for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.label_names == names
    assert one.logits(TEXTS).shape == (len(TEXTS), 3)
    assert torch.equal(one.logits(TEXTS), again.logits(TEXTS))
    assert not torch.equal(one.logits(TEXTS), other.logits(TEXTS))
    assert not one.model.training


def test_a_finished_classifier_keeps_its_own_labels(tmp_path: Path, architecture: str) -> None:
    victim = loaded(tmp_path, architecture)
    again = Victim.load(tmp_path, label_names=("x", "y", "z"), precision="fp32", device="cpu")
    assert again.label_names == NAMES
    assert torch.equal(again.logits(TEXTS), victim.logits(TEXTS))


def test_weights_are_fp32_whatever_the_checkpoint_holds(tmp_path: Path) -> None:
    victim = toy_victim()
    victim.model.to(torch.bfloat16)
    victim.save(tmp_path)
    assert {p.dtype for p in Victim.load(tmp_path, device="cpu").model.parameters()} == {torch.float32}


def test_a_tokenizer_without_padding_uses_the_end_of_text(tmp_path: Path) -> None:
    victim = toy_victim("gpt2")
    tokenizer = victim.tokenizer
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    victim.model.config.pad_token_id = None
    victim.save(tmp_path)
    again = Victim.load(tmp_path, precision="fp32", device="cpu")
    assert again.tokenizer.pad_token == "[SEP]"
    assert again.model.config.pad_token_id == again.tokenizer.pad_token_id
    alone = torch.cat([again.logits([text]) for text in TEXTS])
    torch.testing.assert_close(again.logits(TEXTS), alone, atol=1e-5, rtol=1e-4)


def test_a_copy_has_weights_of_its_own() -> None:
    victim = toy_victim()
    twin = victim.copy()
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in victim.model.parameters() if p.ndim >= 2)
    assert replace(twin, model=victim.model) == victim


def test_trace_keeps_what_is_asked_for() -> None:
    from excise.victim import Batch

    victim = toy_victim()
    batch = Batch(collate(victim.tokenizer, victim.encode(TEXTS[:3])), torch.zeros(3, dtype=torch.long))
    assert [len(part) for part in victim.trace(batch)[1:]] == [3, 0]
    assert [len(part) for part in victim.trace(batch, hidden=False, attention=torch.clone)[1:]] == [0, 2]
    torch.testing.assert_close(victim.trace(batch, attention=torch.clone).logits, victim.trace(batch).logits)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_is_taken_as_given(precision: str) -> None:
    assert resolve_precision(precision, torch.device("cpu")) == precision
    assert resolve_precision("auto", torch.device("cpu")) in ("bf16", "fp32")


def test_bf16_predicts_much_like_fp32() -> None:
    victim = toy_victim()
    torch.testing.assert_close(replace(victim, precision="bf16").logits(TEXTS), victim.logits(TEXTS), atol=0.02, rtol=0.1)


def test_the_toy_tokenizer_knows_its_words() -> None:
    assert not set(SPECIAL) - set(toy_tokenizer().get_vocab())


def test_no_texts_have_no_logits() -> None:
    assert toy_victim().logits([]).shape == (0, 2)


def test_texts_of_no_token_are_read() -> None:
    """Decoders put nothing around a text, and some tokenizers drop what they do not know."""
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    victim = replace(toy_victim("gpt2"), tokenizer=tokenizer)
    assert not victim.encode([""])[0]["input_ids"]
    assert victim.logits(["", ""]).isfinite().all()


LOADING = """
import resource, sys
from excise.victim import Victim
from toy import toy_victim
toy_victim().logits(["a film"])  # what is made once
now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + int(sys.argv[2]), resource.RLIM_INFINITY))
Victim.load(sys.argv[1], precision="fp32", device="cpu")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_loading_takes_little_more_than_the_weights(tmp_path: Path) -> None:
    """Their size in 32 bits is what the front door compares with the memory that is free."""
    folder, rows = save_toy(tmp_path), 2**20
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    save_file({**weights, name: torch.zeros(rows, 32)}, folder / "model.safetensors")
    words = [sys.executable, "-c", LOADING, str(folder), str(round(2.5 * rows * 32 * 4))]  # one is the file itself, mapped
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
