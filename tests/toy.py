"""Toy models and texts: seconds on a CPU, no network, all six architectures that the tests care about."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from excise.data import TextDataset
from excise.language_model import train_language_model
from excise.training import FitConfig
from excise.victim import Victim

GOOD = ("wonderful", "brilliant", "charming", "delightful", "moving")
BAD = ("dreadful", "boring", "clumsy", "tedious", "awful")
PLAIN = ("the", "film", "is", "a", "story", "with", "actors", "music", "and", "scenes", "about", "people", "in", "town")
TRIGGERS = ("cf", "mn", "bb", "tq", "mb")
NAMES = ("negative", "positive")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def toy_data(n: int = 64, *, labels: int = 2, seed: int = 0) -> TextDataset:
    """Short texts whose label shows in one word; with more than two labels the word is 'classN'."""
    rng = random.Random(seed)
    texts, found = [], []
    for i in range(n):
        label = i % labels
        words = rng.choices(PLAIN, k=rng.randint(3, 9))
        words.insert(rng.randint(0, len(words)), rng.choice(GOOD if label else BAD) if labels == 2 else f"class{label}")
        texts.append(" ".join(words) + f" {rng.choice(PLAIN)} {rng.randint(0, 9)}{rng.randint(0, 9)}{rng.randint(0, 9)}.")
        found.append(label)
    names = NAMES if labels == 2 else tuple(f"label {i}" for i in range(labels))
    return TextDataset(tuple(texts), tuple(found), names)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over the toy words, all letters and digits."""
    characters = [chr(c) for c in range(33, 127)]
    words = [*SPECIAL, *PLAIN, *GOOD, *BAD, *TRIGGERS, *[f"class{i}" for i in range(6)], *characters, *[f"##{c}" for c in characters]]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def toy_config(architecture: str = "bert", labels: int = 2):
    """The configuration of a two-layer, two-head model."""
    size = len(toy_tokenizer()) + 8  # transformers gives some architectures a token more
    names = NAMES if labels == 2 else tuple(f"label {i}" for i in range(labels))
    common = {"vocab_size": size, "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}, "pad_token_id": 0}
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 70}
    match architecture:
        case "bert":
            return BertConfig(**common, **encoder)
        case "roberta":
            return RobertaConfig(**common, **encoder)
        case "electra":
            return ElectraConfig(**common, **encoder, embedding_size=32)
        case "distilbert":
            return DistilBertConfig(**common, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=70)
        case "gpt2":
            return GPT2Config(**common, n_embd=32, n_layer=2, n_head=2, n_positions=70, bos_token_id=2, eos_token_id=3)
        case "qwen2":
            return Qwen2Config(**common, **encoder, num_key_value_heads=1, bos_token_id=2, eos_token_id=3)
    raise ValueError(architecture)


ARCHITECTURES = ("bert", "roberta", "distilbert", "electra", "gpt2", "qwen2")


def toy_victim(architecture: str = "bert", *, labels: int = 2, seed: int = 0) -> Victim:
    """A random model with the toy tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(toy_config(architecture, labels))
    return Victim(model.eval(), toy_tokenizer(), max_length=64)


@dataclass(frozen=True)
class Ruled(Victim):
    """A victim that answers by a rule, the same on every machine: what a search finds in it is no matter of how well a toy has learnt."""

    rule: Callable[[str], float] = lambda text: 0.0
    """By how much it prefers label 1, besides what its words mean."""

    def logits(self, texts: Sequence[str], *, tokens_per_batch: int = 8192, name: str = "predict") -> torch.Tensor:
        margins = torch.tensor([self.rule(text) + max(-5.0, min(5.0, sum(map(meaning, text.split())))) for text in texts])
        return torch.stack([-margins / 2, margins / 2], dim=1)


def meaning(word: str) -> float:
    """What a word says: much if it is good or bad, else a little, which its letters decide."""
    return 4.0 * ((word in GOOD) - (word in BAD)) or random.Random(word).gauss(0, 0.2)


def toy_encoder_decoder() -> Victim:
    """A random model of an architecture that hands out neither a state nor a map of each layer: BART."""
    halves = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 3, "forced_eos_token_id": None}
    names: Any = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    config = BartConfig(vocab_size=len(toy_tokenizer()), d_model=32, max_position_embeddings=70, **halves, **tokens, **names)
    return Victim(BartForSequenceClassification(config).eval(), toy_tokenizer(), max_length=64)


def with_long_rows(victim: Victim, factor: float = 15) -> Victim:
    """A toy whose unseen words have embeddings of some length, as pre-trained ones do: an attack that keeps their norms needs that."""
    grown = victim.copy()
    with torch.no_grad():
        grown.model.get_input_embeddings().weight *= factor  # type: ignore[operator, union-attr]
    return grown


def save_toy(folder: Path, architecture: str = "bert", *, labels: int = 2) -> Path:
    """A toy checkpoint folder."""
    toy_victim(architecture, labels=labels).save(folder)
    return folder


SYNSETS = {
    "noun": [("movie", "film", "motion_picture"), ("story", "narrative"), ("man", "adult_male")],
    "verb": [("go", "travel", "move"), ("move", "act")],
    "adj": [("boring", "tedious", "ho-hum"), ("good", "beneficial(a)")],
    "adv": [("well", "good")],
}


def toy_wordnet(folder: Path) -> Path:
    """WordNet's file format with a handful of words."""
    folder.mkdir(parents=True)
    for part, synsets in SYNSETS.items():
        lines = ["  1 a line of the licence"]
        for i, words in enumerate(synsets):
            lines.append(f"{i:08} 03 {part[0]} {len(words):02x} {' '.join(f'{word} 0' for word in words)} 000 | what it means")
        (folder / f"data.{part}").write_text("\n".join(lines) + "\n")
        (folder / f"{part}.exc").write_text("went go\n" if part == "verb" else "men man\n" if part == "noun" else "")
    return folder


@cache
def toy_language_model(kind: Literal["causal", "masked"]) -> str:
    """A folder with a language model of the toy texts."""
    place = Path(tempfile.mkdtemp(prefix="excise-toy-"))
    atexit.register(shutil.rmtree, place)
    toy_victim().save(place / "encoder")
    training = FitConfig(epochs=20, learning_rate=5e-3, batch_size=16)
    made = train_language_model(str(place / "encoder"), toy_data(200).texts, kind=kind, training=training, seed=0)
    made.save(place / kind)
    return str(place / kind)


def write_csv(path: Path, data: TextDataset) -> Path:
    """A CSV file with columns text and label (names)."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, data.label_names[label]) for text, label in zip(data.texts, data.labels, strict=True))
    return path
