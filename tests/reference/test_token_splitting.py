"""Token splitting against a slow reference, the paper's example, and what must hold of any text."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.augmentations.token_splitting import TokenSplitting, detokenize, split_count, tokenize
from excise.data import TextDataset
from excise.perturbation import augment
from reference import token_splitting_reference as slow
from toy import toy_data

PAPER = "a stirring , funny and finally transporting re-imagining of beauty"
SPLIT = TokenSplitting()
PIECES = st.sampled_from(
    ["film", "re-imagining", "it's", "a", "of", ",", "!", "?!", "(", ")", "[x]", '"', "snake_case", "2024", "naïve", "日本語です", " ", "%"]
)
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=60), st.lists(PIECES, max_size=60).map(" ".join), st.lists(PIECES, max_size=20).map("".join)
)


def without_blanks(text: str) -> str:
    return "".join(text.split())


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_tokenize_and_detokenize_follow_the_rules(text: str) -> None:
    assert tokenize(text) == slow.tokenise(text)
    assert detokenize(tokenize(text)) == slow.detokenise(slow.tokenise(text))


@given(TEXTS, st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_only_blanks_change(text: str, seed: int) -> None:
    variant = SPLIT(text, Random(seed))
    assert without_blanks(variant) == without_blanks(text)
    assert variant == variant.strip()


@given(TEXTS, st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_splits_are_as_many_and_as_long_as_the_rules_say(text: str, seed: int) -> None:
    splits = slow.pairs(slow.tokenise(text), slow.tokenise(SPLIT(text, Random(seed))))
    assert splits is not None
    assert len(splits) == slow.count(text)
    assert all(len(word) >= 4 and first and len(second) >= 2 and first + second == word for word, first, second in splits)


@pytest.mark.parametrize("text", ["", "   ", "a", "of it .", " so - it is ! ", "...", "日本"])
def test_a_text_with_nothing_to_split_is_unchanged_but_for_its_ends(text: str) -> None:
    assert SPLIT(text, Random(0)) == text.strip()


@pytest.mark.parametrize(("tokens", "count"), [(0, 1), (1, 1), (3, 1), (4, 2), (10, 3), (11, 4), (12, 4), (33, 10), (34, 10), (500, 10)])
def test_split_count(tokens: int, count: int) -> None:
    assert split_count(tokens, share=0.3, fewest=1, most=10) == count


def test_the_paper_s_example_has_12_tokens_and_4_splits() -> None:
    assert len(tokenize(PAPER)) == 12
    assert slow.count(PAPER) == 4


def test_the_paper_s_example_is_among_the_variants() -> None:
    """Words are drawn and cut independently, so it is enough that each draw and each cut of the example occurs, in texts of its form."""
    words, cuts = set(), set()
    for seed in range(3000):
        splits = slow.pairs(tokenize(PAPER), tokenize(SPLIT(PAPER, Random(seed))))
        assert splits is not None
        words.add(frozenset(word for word, _, _ in splits))
        cuts |= {first + " " + second for _, first, second in splits}
    assert frozenset({"stirring", "funny", "imagining", "beauty"}) in words
    assert {"st irring", "fu nny", "im agining", "be auty"} <= cuts
    assert detokenize(tokenize("a st irring , fu nny and finally transporting re-im agining of be auty")) == (
        "a st irring, fu nny and finally transporting re - im agining of be auty"
    )


def test_every_word_and_every_place_is_drawn_alike() -> None:
    """'abcdef' may be cut after 1 to 4 characters; each of three equal words is as likely to be cut."""
    where, which = [0] * 5, [0] * 3
    for seed in range(3000):
        ((_, first, _),) = slow.pairs(["abcdef"], tokenize(SPLIT("abcdef", Random(seed)))) or [("", "", "")]
        where[len(first)] += 1
        tokens = tokenize(SPLIT("abcd efgh ijkl", Random(seed)))
        which[next(i for i, word in enumerate(["abcd", "efgh", "ijkl"]) if word not in tokens)] += 1
    assert where[0] == 0
    assert all(650 < n < 850 for n in where[1:])
    assert all(880 < n < 1120 for n in which)


def test_settings_change_what_they_say() -> None:
    text = " ".join(["wonderful"] * 20)
    counts = [
        len(tokenize(TokenSplitting(**options)(text, Random(0)))) - 20 for options in ({"share": 1.0}, {"share": 0.0}, {"share": 1.0, "most": 20})
    ]
    assert counts == [10, 1, 20]
    assert TokenSplitting(min_characters=10)(text, Random(0)) == text
    assert TokenSplitting(share=0.0, fewest=0)(text, Random(0)) == text


def test_a_variant_depends_on_seed_text_and_copy_alone() -> None:
    data = toy_data(12)
    whole = augment(data, SPLIT, copies=3, seed=5)
    assert len(whole) == 36
    assert whole.labels == data.labels * 3
    backwards = augment(data.take(reversed(range(12))), SPLIT, copies=3, seed=5)
    assert sorted(zip(whole.texts, whole.labels, strict=True)) == sorted(zip(backwards.texts, backwards.labels, strict=True))
    alone = augment(TextDataset(data.texts[3:4], data.labels[3:4], data.label_names), SPLIT, copies=3, seed=5)
    assert alone.texts == whole.texts[3::12]
    assert augment(data, SPLIT, copies=2, seed=5).texts == whole.texts[:24]
    assert augment(data, SPLIT, copies=3, seed=6).texts != whole.texts
    assert len(set(alone.texts)) > 1
