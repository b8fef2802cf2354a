"""Opening a checkpoint folder from anyone: what is in it is checked before transformers touches it, and nothing in it is run."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_module_registration_hook, register_module_parameter_registration_hook
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from excise.errors import CheckpointError, NetworkError, first_line
from excise.front_door import Checkpoint, check_memory, inspect
from excise.seeds import derive

__all__ = ["TRIAL", "longest_input", "open_checkpoint", "open_language_model", "resolve_checkpoint", "surviving_panics"]

Kind = Literal["classifier", "causal", "masked"]
CLASSES: dict[Kind, Any] = {"classifier": AutoModelForSequenceClassification, "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}
NEW_HEAD, MORE_PARTS = 10_000_000, 4_000
"""Numbers that a model may have beyond twice what its file holds, for a new head; and parts beyond eight for each of its weights."""
TRIAL = ("", "a", "A few words, and 12 % more.")
"""Texts that every tokenizer and every model has to be able to read."""
NOUNS: dict[Kind, str] = {"classifier": "sequence classifier", "causal": "causal language model", "masked": "masked language model"}
HUB_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def open_checkpoint(source: str | Path, *, label_names: Sequence[str] | None, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier in a folder, a hub repository or the embedded default, and its tokenizer, as `Victim.load` describes it.

    Raises:
        CheckpointError: The folder is no checkpoint, the front door refuses it, or its weights are incomplete or do not fit its tokenizer.
        NetworkError: A hub id was given and the hub cannot be reached.
    """
    found = inspect(resolve_checkpoint(source), str(source))
    config = _config(found, ("classifier",))
    if label_names is not None and not _is_classifier(config):
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
    elif label_names is not None:
        label_names = None  # the checkpoint has a head of its own
    names = config.id2label or {}
    plain = [str(name) for name in names.values() if isinstance(name, str | int | float)]
    if sorted(names) != list(range(len(names))) or len(set(plain)) != len(names):
        raise CheckpointError(f"{source}: id2label in config.json is {str(names)[:80]}; one name of its own for each of 0, 1, ... is expected.")
    if config.num_labels < 2:
        raise CheckpointError(f"{source} has {config.num_labels} label; a classifier with at least two was expected.")
    model = _load_model(found, config, "classifier", new_head=label_names is not None, seed=seed)
    return model, _load_tokenizer(found, model)


def open_language_model(
    source: str | Path, *, new_head: Literal["causal", "masked"] | None = None, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal or masked language model and its tokenizer, checked as a classifier is.

    Args:
        source: A folder, a Hugging Face id, or `default`.
        new_head: Makes a model of this kind from the encoder in the checkpoint; its head is new. Otherwise the checkpoint must be one.
        seed: Draws the weights of a new head.

    Raises:
        CheckpointError: The folder is no such checkpoint, or is refused.
        NetworkError: A hub id was given and the hub cannot be reached.
    """
    found = inspect(resolve_checkpoint(source), str(source))
    config = _config(found, ("classifier", "causal", "masked"))
    kind = new_head or language_model_kind(config)
    if kind is None:
        raise CheckpointError(f"{source} is no language model. Give the folder of one, or make one with excise train-lm.")
    if new_head == "causal":
        config.is_decoder = True
    model = _load_model(found, config, kind, new_head=new_head is not None, seed=seed)
    return model, _load_tokenizer(found, model)


def language_model_kind(config: Any) -> Literal["causal", "masked"] | None:
    """What kind of language model a checkpoint says it is, if any."""
    for name in config.architectures or ():
        if name.endswith("ForMaskedLM"):
            return "masked"
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
    return None


def resolve_checkpoint(source: str | Path) -> Path:
    """The local folder of a checkpoint: as given, embedded, or fetched from the hub (never pickles, never code)."""
    name = str(source)
    if name == "default":
        from excise import assets

        return assets.minilm()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file; a checkpoint folder or a Hugging Face model id was expected.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name) or name.startswith((".", "/", "~")):
        raise CheckpointError(f"There is no folder {name}. Give a checkpoint folder or a Hugging Face model id.")
    return _fetch(name)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise CheckpointError(f"There is no folder and no Hugging Face model {name!r} that you may read (private or gated: set HF_TOKEN).") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise NetworkError(
            f"There is no folder {name!r}, and the Hugging Face hub could not be reached for a model of that name. "
            "Give a folder, or connect (and unset HF_HUB_OFFLINE)."
        ) from error


def _config(found: Checkpoint, kinds: Sequence[Kind]) -> Any:
    """The configuration, of a type that transformers has a model of these kinds for: others are not even constructed."""
    given = found.config.get("model_type")
    known = {name for kind in kinds for name in CLASSES[kind]._model_mapping._model_mapping}
    if not isinstance(given, str) or given not in CONFIG_MAPPING or given not in known:
        raise CheckpointError(f"{found.source}: config.json describes no model that transformers knows ({str(given)[:40]!r} as its model_type).")
    made = CONFIG_MAPPING[given]
    if clash := sorted(key for key in found.config if callable(getattr(made, key, None))):
        raise CheckpointError(f"{found.source}: {clash[0]} in config.json is the name of a method of {made.__name__}. Remove the key.")
    try:
        return made.from_dict(dict(found.config))
    except Exception as error:  # transformers raises many kinds for a broken config
        raise CheckpointError(f"{found.source}: config.json describes no model that transformers knows ({first_line(error)}).") from error


def _is_classifier(config: Any) -> bool:
    return any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())


def _load_model(found: Checkpoint, config: Any, kind: Kind, *, new_head: bool, seed: int) -> PreTrainedModel:
    source = found.source
    try:
        made = CLASSES[kind]._model_mapping[type(config)]
        _check_shapes(found, made, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            model, info = made.from_pretrained(None, config=config, state_dict=_read_weights(found), dtype=torch.float32, output_loading_info=True)
    except CheckpointError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds
        raise CheckpointError(f"{source} could not be opened as a {NOUNS[kind]}: {first_line(error)}. Check that the folder is complete.") from error
    missing = sorted(info["missing_keys"])
    if new_head:
        body = f"{model.base_model_prefix}."
        missing = [key for key in missing if key.startswith(body) and "pooler" not in key]
    if missing:
        finished = kind != "classifier" or _is_classifier(config)
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights that a {type(model).__name__} needs, for example {missing[0]}. "
            + ("Restore the file." if finished else "It is no finished classifier: fine-tune it first, or use excise attack.")
        )
    return model


def _check_shapes(found: Checkpoint, made: Any, config: Any) -> None:
    """The model that config.json describes, made of shapes alone: it must fit the memory, and the weights must fit it."""
    with torch.device("meta"), _few_parts(found):
        skeleton = made._from_config(copy.deepcopy(config), dtype=torch.float32)
    held = sum(math.prod(tensor.shape) for tensor in found.tensors.values())
    described = sum(parameter.numel() for parameter in skeleton.parameters())
    if described > 2 * held + NEW_HEAD:
        raise CheckpointError(
            f"{found.source}: config.json describes a model of {described} numbers, but the weights hold {held}. Restore the two files."
        )
    check_memory(sum(t.numel() * t.element_size() for t in (*skeleton.parameters(), *skeleton.buffers())), found.source)
    for name, parameter in skeleton.named_parameters():
        given = found.tensors.get(name)
        if given is not None and given.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{found.source}: the weight {name} has the shape {list(given.shape)}, but config.json describes {list(parameter.shape)}. "
                "Restore the two files."
            )


@contextmanager
def _few_parts(found: Checkpoint) -> Iterator[None]:
    """A configuration can describe more layers than any time is enough to make; of what is in the file, a model is made of about as many parts.

    Raises:
        CheckpointError: Far more were made.
    """
    most, made = MORE_PARTS + 8 * len(found.tensors), itertools.count(1)

    def check(*_: object) -> None:
        if next(made) > most:
            raise CheckpointError(
                f"{found.source}: config.json describes a model of more than {most} parts, but there are {len(found.tensors)} weights. "
                "Restore the two files."
            )

    handles = (register_module_parameter_registration_hook(check), register_module_module_registration_hook(check))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _read_weights(found: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights in memory of their own, floating-point ones with 32 bits: a file that changes later changes nothing."""
    state: dict[str, torch.Tensor] = {}
    for file in found.weights:
        for name, weight in load_file(file).items():
            state[name] = weight.to(torch.float32 if weight.is_floating_point() else weight.dtype, copy=True)
            if not _is_finite(state[name]):
                raise CheckpointError(f"{found.source}: the weight {name} has values that are NaN or infinite. Restore the file.")
    return state


def _is_finite(weight: torch.Tensor) -> bool:
    """Found without a second tensor of the weight's size, as `isfinite` would make it."""
    return not weight.is_floating_point() or not weight.numel() or all(map(math.isfinite, torch.aminmax(weight)))


def _load_tokenizer(found: Checkpoint, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.json, in a folder of our own that holds this file and what was kept of its settings, and nothing else."""
    source = found.source
    try:
        with tempfile.TemporaryDirectory(prefix="excise-") as place, surviving_panics(source, "cannot be opened"):
            (Path(place) / "tokenizer.json").write_bytes(found.tokenizer)
            (Path(place) / "tokenizer_config.json").write_text(json.dumps(found.tokenizer_config), encoding="utf-8")
            tokenizer = AutoTokenizer.from_pretrained(place, config=model.config, trust_remote_code=False, local_files_only=True)
            encoded = tokenizer(list(TRIAL))["input_ids"]
    except CheckpointError:
        raise
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise CheckpointError(f"{source}: its tokenizer cannot be opened ({first_line(error)}). Add the tokenizer's files.") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{source}: its tokenizer is a {type(tokenizer).__name__}, which tokenizer.json does not describe. Save a fast one.")
    tokenizer.name_or_path = source
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr]
    top = max((*tokenizer.get_vocab().values(), *itertools.chain(*encoded)), default=-1)  # what is put around texts may be in no vocabulary
    if top < 0 or top >= rows:
        raise CheckpointError(
            f"{source}: the tokenizer has ids up to {top}, but the model's embedding has {rows} rows. "
            "Use the tokenizer that the model was trained with."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(f"{source}: the tokenizer has neither a padding nor an end-of-text token. Set pad_token in tokenizer_config.json.")
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token that is not padding
    return tokenizer


@contextmanager
def surviving_panics(source: str, what: str = "stopped") -> Iterator[None]:
    """The tokenizers library stops with an exception of its own, which `except Exception` does not catch, where a pattern takes too long.

    Where it cannot cut a word, and has no token for unknown ones, it raises a plain `Exception`.

    Raises:
        CheckpointError: It did.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{source}: its tokenizer {what} ({first_line(error)}). Restore tokenizer.json.") from error


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model can read."""
    described = (getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions"))
    positions = next((number for number in described if isinstance(number, int) and number > 0), 512)  # XLNet says -1: as many as you like
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            positions -= padding + 1  # RoBERTa counts positions from behind the padding index
            break
    return min(int(positions), int(tokenizer.model_max_length))
