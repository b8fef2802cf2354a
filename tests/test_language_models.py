"""Language models, and the methods that use them or WordNet, against what their papers say."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from excise.attacks.badnets import BadNets
from excise.augmentations import eda
from excise.augmentations.cwea import CWEA, replaced
from excise.augmentations.eda import EDA
from excise.cli import main
from excise.defenses.mbtsad import MBTSAD
from excise.defenses.onion import ONION, choose_bar, suspicions, without
from excise.errors import CheckpointError, NeedsError
from excise.language_model import LanguageModel, causal_loss, masked_loss, nll, trained_texts
from excise.pipeline import check_needs, method_notes
from excise.training import FitConfig
from excise.victim import Batch, Victim, collate
from excise.wordnet import WordNet
from toy import toy_config, toy_data, toy_language_model, toy_tokenizer, toy_victim, write_csv

TEXTS = ("the film is moving", "a story", "town", "the actors and the music about people in a town is wonderful .")


@pytest.fixture(scope="module")
def causal() -> LanguageModel:
    return LanguageModel.load(toy_language_model("causal"), kind="causal")


@pytest.fixture(scope="module")
def masked() -> LanguageModel:
    return LanguageModel.load(toy_language_model("masked"), kind="masked")


def perplexity(model: LanguageModel, text: str) -> float:
    """One text at a time, token by token."""
    ids = model.tokenizer(text)["input_ids"]
    total = 0.0
    for i in range(1, len(ids)):
        logits = model.model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].detach().double().numpy()
        total -= logits[ids[i]] - np.log(np.exp(logits).sum())
    return math.exp(total / (len(ids) - 1))


def test_perplexity_is_that_of_each_token_given_those_before_it(causal: LanguageModel) -> None:
    assert causal.perplexities(TEXTS).tolist() == pytest.approx([perplexity(causal, text) for text in TEXTS], rel=1e-4)


def test_a_causal_model_made_from_an_encoder_does_not_look_ahead(causal: LanguageModel) -> None:
    one, other = (causal.model(input_ids=torch.tensor([[5, 6, 7, last]])).logits[0, :3] for last in (8, 9))
    assert torch.allclose(one, other, atol=1e-6)


def test_texts_like_those_learnt_are_less_surprising(causal: LanguageModel) -> None:
    usual = causal.perplexities(toy_data(20, seed=3).texts).median()
    scrambled = ["".join(Random(i).sample(text, len(text))) for i, text in enumerate(toy_data(20, seed=3).texts)]
    assert usual < 0.5 * causal.perplexities(scrambled).median()


def test_losses_are_means_over_real_tokens(causal: LanguageModel, masked: LanguageModel) -> None:
    batch = Batch(collate(causal.tokenizer, causal.encode(TEXTS)), torch.zeros(len(TEXTS), dtype=torch.long))
    learner = Victim(causal.model, causal.tokenizer, 64)
    each = [(math.log(perplexity(causal, text)), len(causal.tokenizer(text)["input_ids"]) - 1) for text in TEXTS]
    assert causal_loss(learner, batch).item() == pytest.approx(sum(n * x for x, n in each) / sum(n for _, n in each), rel=1e-4)
    torch.manual_seed(0)
    assert masked_loss(replace(learner, model=masked.model), batch).isfinite()


def test_a_batch_in_which_no_token_is_drawn_still_has_a_loss(masked: LanguageModel) -> None:
    learner = Victim(masked.model, masked.tokenizer, 64)
    batch = Batch(collate(masked.tokenizer, masked.encode(["a"])), torch.zeros(1, dtype=torch.long))
    for seed in range(20):
        torch.manual_seed(seed)
        assert masked_loss(learner, batch).isfinite()


def test_nll_leaves_out_padding() -> None:
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 0]])
    short = nll(logits[:, :3], ids[:, :3], torch.ones(1, 3, dtype=torch.long))
    assert nll(logits, ids, torch.tensor([[1, 1, 1, 0]])).item() == pytest.approx(short.item())


def decoder(architecture: str, **settings: Any) -> LanguageModel:
    """A random causal model."""
    torch.manual_seed(0)
    config = toy_config(architecture)
    for name, value in {"is_decoder": True, "initializer_range": 0.3, **settings}.items():
        setattr(config, name, value)
    return LanguageModel(AutoModelForCausalLM.from_config(config).eval(), toy_tokenizer(), "causal", 64)


def without_each_word(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)) if len(words) > 1]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "gpt2", "qwen2"])
def test_variants_go_on_from_where_they_leave_their_text(architecture: str) -> None:
    model, read = decoder(architecture), list[int]()
    texts = (*TEXTS, *toy_data(12).texts, "the " * 80)  # the last is cut
    variants = [*map(without_each_word, texts[:-1]), ["the " * 79 + "film", "a " + "the " * 79, "film", ""]]
    whole, found = model.variant_perplexities(texts, variants)
    assert whole == pytest.approx(model.perplexities(texts).tolist(), rel=1e-4)
    for mine, plain in zip(found, variants, strict=True):
        assert mine == pytest.approx(model.perplexities(plain).tolist() if plain else [], rel=1e-4)
    many = toy_data(150).texts
    model.model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    model.variant_perplexities(many, [*map(without_each_word, many)])
    tokens = sum(len(encoding["input_ids"]) for text in many for encoding in model.encode(without_each_word(text)))
    assert sum(read) < 0.85 * tokens


def test_variants_are_read_whole_where_a_model_keeps_only_a_window() -> None:
    model = decoder("qwen2", use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention"] * 2)
    variants = [*map(without_each_word, TEXTS)]
    for mine, plain in zip(model.variant_perplexities(TEXTS, variants)[1], variants, strict=True):
        assert mine == pytest.approx(model.perplexities(plain).tolist() if plain else [], rel=1e-4)


def test_the_wrong_kind_and_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a masked language model; a causal one is needed"):
        LanguageModel.load(toy_language_model("masked"), kind="causal")
    toy_victim().save(tmp_path)
    with pytest.raises(CheckpointError, match=r"is no language model.*train-lm"):
        LanguageModel.load(str(tmp_path), kind="causal")


def test_a_model_made_here_says_so_in_every_result(tmp_path: Path) -> None:
    onion = ONION(language_model=toy_language_model("causal"))
    assert len(method_notes(onion)) == 1
    assert "made by excise train-lm from 200 texts" in method_notes(onion)[0]
    assert method_notes(MBTSAD(augmentation=CWEA(language_model=toy_language_model("masked"))))[0].startswith("cwea used")
    assert method_notes(MBTSAD()) == method_notes(ONION()) == []


# ONION


def test_the_suspicion_of_a_word_is_how_much_better_the_text_reads_without_it(causal: LanguageModel) -> None:
    found = suspicions(causal, TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        words = text.split()
        if len(words) == 1:
            assert row == [-np.inf]
            continue
        for i, f in enumerate(row):
            rest = " ".join(words[:i] + words[i + 1 :])
            assert f == pytest.approx(perplexity(causal, text) - perplexity(causal, rest), rel=1e-3, abs=1e-2)


def test_words_at_or_above_the_bar_go_and_one_word_always_stays() -> None:
    assert without("a cf  film", [0.0, 9.0, 1.0], 9.0) == "a film"
    assert without("a cf  film", [0.0, 9.0, 1.0], 9.1) == "a cf  film", "an untouched text stays as it is written"
    assert without("a cf film", [3.0, 2.0, 4.0], 1.0) == "cf"


def test_the_bar_is_the_lowest_that_clean_accuracy_allows(causal: LanguageModel) -> None:
    learn = FitConfig(epochs=10, learning_rate=5e-3, batch_size=8)
    victim = BadNets(poison_rate=0, training=learn)(toy_victim(), toy_data(100), seed=0).victim
    data = toy_data(40)
    found = suspicions(causal, data.texts)
    strict, lax = (choose_bar(victim, data, found, max_loss=loss) for loss in (0.0, 1.0))
    assert lax < strict
    assert lax == pytest.approx(np.quantile([f for row in found for f in row], 0.5))
    shorter = [without(text, row, strict) for text, row in zip(data.texts, found, strict=True)]
    right = [sum(p == y for p, y in zip(victim.predict(texts), data.labels, strict=True)) for texts in (data.texts, shorter)]
    assert right[1] >= right[0]


def test_no_text_is_classified_twice_while_the_bar_is_chosen(causal: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    data, victim, read, plain = toy_data(30), toy_victim(), list[str](), Victim.predict
    found = suspicions(causal, data.texts)
    monkeypatch.setattr(Victim, "predict", lambda self, texts, **_: read.extend(texts) or plain(self, texts))
    choose_bar(victim, data, found, max_loss=1.0)
    assert len(read) == len(set(read)) > len(data)


def test_onion_takes_out_triggers() -> None:
    backdoor = BadNets(training=FitConfig(epochs=15, learning_rate=5e-3, batch_size=16))(toy_victim(), toy_data(300), seed=0)
    guarded = ONION(language_model=toy_language_model("causal"), max_loss=0.05)(backdoor.victim, toy_data(60, seed=5), seed=0)
    assert guarded.purify is not None
    stamped = [backdoor.trigger(text, Random(i)) for i, text in enumerate(toy_data(60, seed=9).texts)]
    left = sum(bool({"cf", "mn", "bb", "tq", "mb"} & set(text.split())) for text in guarded.purify(stamped))
    assert left < 20


def test_onion_computes_as_its_victim_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = dict[str, list[float]](), LanguageModel.autocast
    data, source = toy_data(40), toy_language_model("causal")
    used = list[str]()
    monkeypatch.setattr(LanguageModel, "autocast", lambda self: used.append(self.precision) or plain(self))
    for precision in ("fp32", "bf16"):
        used.clear()
        victim = replace(toy_victim(), precision=precision)
        ONION(language_model=source)(victim, data, seed=0)
        assert set(used) == {precision}
        model = LanguageModel.load(source, kind="causal", precision=precision)
        found[precision] = [f for row in suspicions(model, data.texts) for f in row if f > -math.inf]
    assert found["bf16"] != found["fp32"]
    largest = max(map(abs, found["fp32"]))
    np.testing.assert_allclose(found["bf16"], found["fp32"], atol=0.02 * largest)


# EDA


@pytest.mark.usefixtures("wordnet")
def test_synonyms_are_the_other_words_of_all_synsets_of_the_word_and_its_base_forms(wordnet: Path) -> None:
    net = WordNet(wordnet)
    assert net.synonyms("movies") == ["film", "motion picture", "movie"]
    assert net.synonyms("went") == ["go", "move", "travel"]
    assert net.synonyms("men") == ["adult male", "man"]
    assert net.synonyms("good") == ["beneficial", "well"], "of every part of speech; a marker in brackets is no part of the word"
    assert net.synonyms("xyz") == []
    assert eda.synonyms("tedious") == ["boring", "ho hum"]


def test_texts_are_cleaned_as_the_authors_do() -> None:
    assert eda.cleaned("It’s a Well-made\tfilm, isn't it?  5/5\n") == ["its", "a", "well", "made", "film", "isnt", "it"]


def test_each_operation_does_what_it_says() -> None:
    words = ["the", "movie", "is", "the", "movie", "story"]

    def other(word: str) -> list[str]:
        return {"movie": ["film"], "story": ["tale"]}.get(word, [])

    assert eda.replaced(words, 2, Random(0), other) == ["the", "film", "is", "the", "film", "tale"]
    for seed in range(20):
        once = eda.replaced(words, 1, Random(seed), other)
        assert Counter(map(tuple, (once,))).keys() <= {("the", "film", "is", "the", "film", "story"), ("the", "movie", "is", "the", "movie", "tale")}
        more = eda.inserted(words, 2, Random(seed), other)
        assert len(more) <= len(words) + 2
        assert Counter(more) - Counter(words) <= Counter({"film": 2, "tale": 2})
        mixed = eda.swapped(words, 1, Random(seed))
        assert Counter(mixed) == Counter(words)
        assert sum(a != b for a, b in zip(mixed, words, strict=True)) in (0, 2)
        fewer = iter(words)
        assert all(word in fewer for word in eda.deleted(words, 0.5, Random(seed))), "order stays"
    assert len(eda.deleted(words, 1.0, Random(0))) == 1
    assert eda.deleted(words, 0.0, Random(0)) == words
    assert eda.swapped(["one"], 3, Random(0)) == ["one"]
    assert words == ["the", "movie", "is", "the", "movie", "story"]


@pytest.mark.usefixtures("wordnet")
def test_a_text_without_words_stays() -> None:
    assert EDA()("42 !", Random(0)) == "42 !"


# CWEA


def test_guesses_are_drawn_by_their_probability_among_whole_words(masked: LanguageModel) -> None:
    text, counts = "the dreadful film", Counter()
    for seed in range(400):
        counts[replaced(masked, text, 4, 12, Random(seed), candidates=100).split()[1]] += 1
    logits = masked.fillers("the [MASK] film")
    assert logits is not None
    best = logits.topk(100)
    allowed = {masked.words[i]: math.exp(x) for i, x in zip(best.indices.tolist(), best.values.tolist(), strict=True) if i in masked.words}
    allowed.pop("dreadful", None)
    total = sum(allowed.values())
    assert set(counts) <= set(allowed)
    for word, p in allowed.items():
        assert abs(counts[word] / 400 - p / total) < 0.1
    assert not any(piece.startswith("##") or piece in "[UNK][SEP]" for piece in counts)


def test_cwea_replaces_its_share_of_the_words() -> None:
    augmentation = CWEA(language_model=toy_language_model("masked"))
    text = "the film is a story with actors , music and scenes"  # 10 words and a mark: ceil(0.3 * 11) = 4
    for seed in range(10):
        other = augmentation(text, Random(seed)).split()
        assert sum(a != b for a, b in zip(other, text.split(), strict=True)) == 4
        assert other[7] == ","


def test_needs_of_a_setting_that_is_a_method_are_checked() -> None:
    with pytest.raises(NeedsError, match=r"cwea needs a language model.*language_model"):
        check_needs(MBTSAD(augmentation=CWEA()))


# The command


def test_train_lm_makes_what_onion_and_cwea_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_victim().save(tmp_path / "base")
    data = write_csv(tmp_path / "clean.csv", toy_data(60))
    common = ["train-lm", "--data", str(data), "--base", str(tmp_path / "base"), "--training.epochs", "1"]
    assert main([*common, "--out", str(tmp_path / "causal")]) == 0
    assert "median perplexity of 6 held-out texts" in " ".join(capsys.readouterr().out.split())
    assert main([*common, "--out", str(tmp_path / "masked"), "--kind", "masked"]) == 0
    assert trained_texts(tmp_path / "causal") == 54
    assert LanguageModel.load(tmp_path / "masked", kind="masked").words
    assert main([*common, "--out", str(tmp_path / "masked")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*common, "--out", str(tmp_path / "x"), "--holdout", "1.5"]) == 2


def test_train_lm_knows_its_own_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_victim().save(tmp_path / "base")
    data, out = write_csv(tmp_path / "clean.csv", toy_data(60)), tmp_path / "causal"
    words = ["train-lm", "--data", str(data), "--base", str(tmp_path / "base"), "--training.epochs", "1", "--out", str(out), "--overwrite"]
    for _ in range(2):
        assert main(words) == 0, capsys.readouterr().err
        assert main(["verify", str(out), "--inputs"]) == 0
    assert LanguageModel.load(out, kind="causal")
    (out / "model.safetensors").write_bytes(b"x")
    assert main(["verify", str(out)]) == 2
    (out / "thesis.docx").touch()
    assert main(words) == 2
    assert "thesis.docx" in capsys.readouterr().err


def test_train_lm_computes_in_the_precision_that_was_asked_for(tmp_path: Path) -> None:
    toy_victim().save(tmp_path / "base")
    data = write_csv(tmp_path / "clean.csv", toy_data(60))
    weights = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        words = ["--base", str(tmp_path / "base"), "--training.epochs", "1", "--precision", precision]
        assert main(["train-lm", "--data", str(data), *words, "--out", str(out)]) == 0
        assert json.loads((out / "excise-result.json").read_text())["environment"]["precision"] == precision
        weights[precision] = (out / "model.safetensors").read_bytes()
    assert weights["fp32"] != weights["bf16"]
