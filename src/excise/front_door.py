"""The front door: a checkpoint folder from anyone is read here as plain data, and refused here, before a library that loads models sees it.

Nothing here imports torch or transformers, opens anything but regular files of the folder, starts a process or connects anywhere.
Of every file the size is known before it is read, and of every weight the type and shape before it is loaded. What comes out is a
`Checkpoint`; `checkpoint.py` hands its values, never the folder, to transformers, so that what was inspected is what is used.

The tables say what is refused; docs/security.md lists each threat with its test.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from excise import tokenizer_file
from excise.errors import CheckpointError
from excise.memory import free_memory
from excise.plain_files import BYTES, Size, Tensor, read_header, read_json, refuse

__all__ = ["Checkpoint", "check_memory", "files_of", "free_memory", "inspect", "read_config"]

CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL = "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"


SMALL = Size(4 * 2**20, 32 * 2**20)
SIZES = {TOKENIZER: Size(36 * 2**20, 200 * 2**20, "latin-1"), INDEX: Size(16 * 2**20, 64 * 2**20)}
"""Files that may be larger than `SMALL`. The largest vocabularies in use, of 262 000 tokens with their merges, take 33 MB."""
SHARDS, TENSORS, DEPTH, CHARACTERS = 1_000, 100_000, 24, 20_000

_ELSEWHERE = "names a file or model elsewhere, which excise does not open. Remove the key."
_PACKAGE = "asks for a package that rewrites the model, which excise does not load. Save the weights unpacked. Remove the key."
_KERNEL = "asks for code from the hub, which excise never runs. Remove the key."
REFUSED = {
    "auto_map": "asks for code of its own, which excise never runs. Use a model that transformers knows.",
    "custom_code": _KERNEL,
    "custom_pipelines": _KERNEL,
    "custom_generate": _KERNEL,
    "trust_remote_code": _KERNEL,
    "use_kernels": _KERNEL,
    "kernel_config": _KERNEL,
    "attn_implementation": _KERNEL,
    "_attn_implementation": _KERNEL,
    "_attn_implementation_internal": _KERNEL,
    "experts_implementation": _KERNEL,
    "_experts_implementation": _KERNEL,
    "_experts_implementation_internal": _KERNEL,
    "quantization_config": _PACKAGE,
    "compression_config": _PACKAGE,
    "fusion_config": _PACKAGE,
    "sparsity_config": _PACKAGE,
    "configuration_files": _ELSEWHERE,
    "transformers_weights": _ELSEWHERE,
    "base_model_name_or_path": _ELSEWHERE,
    "gguf_file": _ELSEWHERE,
    "backbone": _ELSEWHERE,
    "use_timm_backbone": _ELSEWHERE,
    "fast_tokenizer_files": _ELSEWHERE,
    "init_inputs": "passes arguments to a constructor, which excise does not do. Remove the key.",
}
"""Keys of JSON files, at any depth, with which transformers opens or runs something else. Empty values and `HARMLESS` ones are dropped."""
_FETCHES = "fetches something when its model is made. Use another model."
FETCHING = ("timm", "yoso", "mra")
"""Beginnings of types whose models, wherever they stand in another, get a configuration or kernels from the hub."""
HARMLESS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm", "batched_mm")
NAMES = ("id2label", "label2id", "task_specific_params")
"""Objects whose keys are the user's words."""
DROPPED = ("name_or_path", "transformers_version", "dtype", "torch_dtype", "return_dict", "chunk_size_feed_forward")
"""Keys of config.json that are left out, like all that begin with an underscore: they say where it came from or how to call it, or are private."""


class Range(NamedTuple):
    """What a number of config.json may be, and what of the weights must reach it before anything is allocated."""

    least: int
    most: int
    weights: str = ""


_VOCABULARY, _WIDTH, _LAYERS = Range(1, 4_000_000, "rows"), Range(1, 65_536, "width"), Range(1, 1_000, "count")
_INNER, _HEADS, _POSITIONS = Range(1, 1_000_000, "width"), Range(1, 1_024), Range(1, 16_777_216)
NUMBERS: dict[str, Range] = {
    **dict.fromkeys(("vocab_size",), _VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), _LAYERS),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim", "d_ff", "ffn_dim", "encoder_ffn_dim"), _INNER),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), _POSITIONS),
    "type_vocab_size": Range(0, 1_024),
    "num_labels": Range(1, 100_000),
    "head_dim": Range(1, 8_192),
}
COUNTS, MOST_COUNTED = re.compile(r"(layer|block|group|expert|network|stage|repeat|replace)s?$"), 10_000
"""Other keys of config.json that say how many parts something has, and the most."""

PER_LAYER = {"attention_window": 16_384, "block_repeats": 100}
"""Numbers, one or one a layer, that no weight shows: every text is filled up to the first, and layers are run the second times."""


@dataclass(frozen=True)
class Checkpoint:
    """What was found in a folder; nothing in it can name a file, a package or code."""

    source: str
    """What the user called it."""
    config: Mapping[str, Any]
    tokenizer: bytes
    """tokenizer.json."""
    tokenizer_config: Mapping[str, Any]
    weights: tuple[Path, ...]
    """The safetensors files, by their real names."""
    tensors: Mapping[str, Tensor]
    dropped: tuple[str, ...]
    """Keys that were left out, as `file: key`."""


def inspect(folder: Path, source: str, *, free: int | None = None) -> Checkpoint:
    """Look at a checkpoint folder without loading it.

    Args:
        folder: The folder.
        source: What the user called it, for messages.
        free: Bytes of memory that the weights may take; by default what the machine has left.

    Raises:
        CheckpointError: The folder is no checkpoint, or something in it is not what an ordinary checkpoint holds; the message says what.
    """
    config, dropped = read_config(folder, source)
    weights = _weight_files(folder, source)
    tensors: dict[str, Tensor] = {}
    for name, listed in weights.items():
        found = read_header(folder, name, source)
        if listed is not None and set(found) != listed:
            refuse(source, f"{INDEX} does not list the weights that are in {name}. Restore it.")
        tensors |= found
        if len(tensors) > TENSORS:
            refuse(source, f"it has more than {TENSORS} weights, which no text classifier has. Use another checkpoint.")
    _check_sizes(config, tensors, source)
    check_memory(sum(_needed(tensor) for tensor in tensors.values()), source, free=free)
    if not os.path.lexists(folder / TOKENIZER):
        refuse(
            source,
            f"it has no {TOKENIZER}, the only form of a tokenizer that excise opens. Add it: save the tokenizer with a current "
            "version of transformers, in a place where the checkpoint can do no harm.",
        )
    content, parsed = _read(folder, TOKENIZER, source)
    try:
        tokenizer_file.check(parsed)
        settings = {
            **tokenizer_file.special_tokens(_optional(folder, SPECIAL, source)),
            **tokenizer_file.settings(tokenizer_config := _optional(folder, TOKENIZER_CONFIG, source)),
        }
    except ValueError as error:
        refuse(source, str(error))
    dropped += tuple(f"{TOKENIZER_CONFIG}: {key}" for key in tokenizer_config if key not in settings)
    files = tuple(Path(os.path.realpath(folder / name)) for name in weights)
    return Checkpoint(source, config, content, settings, files, tensors, dropped)


def _needed(tensor: Tensor) -> int:
    """Bytes of memory that a weight takes while it is loaded: those of 32 bits and, for numbers that are no fractions, their own as well."""
    return math.prod(tensor.shape) * (4 if tensor.dtype in ("F64", "F32", "F16", "BF16") else 4 + BYTES[tensor.dtype])


def files_of(folder: Path) -> tuple[str, ...]:
    """The names of the files of a checkpoint that excise reads, of which some may be missing; weights only if it can tell which they are."""
    try:
        weights: Iterable[str] = _weight_files(folder, str(folder))
    except CheckpointError:
        weights = ()
    return (CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL, INDEX, *weights)


def read_config(folder: Path, source: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """config.json without what is dropped, and the keys of that.

    Raises:
        CheckpointError: There is none, or it is refused.
    """
    if not os.path.lexists(folder / CONFIG):
        raise CheckpointError(f"{source} is no checkpoint: it has no {CONFIG}. Give a folder written by save_pretrained.")
    if os.path.lexists(folder / ADAPTER):
        raise CheckpointError(f"{source} is an adapter ({ADAPTER}), not a whole model. Merge it into its base model first.")
    config = _read(folder, CONFIG, source)[1]
    _check_values(config, CONFIG, source)
    _check_numbers(config, source)
    kinds = config.get("architectures") or []
    if not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        refuse(source, f"architectures in {CONFIG} is {str(kinds)[:40]}; a list of names was expected. Restore it.")
    dropped: list[str] = []
    return _without_dropped(config, dropped), tuple(f"{CONFIG}: {key}" for key in dropped)


def check_memory(needed: int, source: str, *, free: int | None = None) -> None:
    """Refuse a model whose weights, in 32 bits, are larger than the memory that is left.

    Raises:
        CheckpointError: They are.
    """
    free = free_memory() if free is None else free
    if needed > free:
        refuse(source, f"its weights need {needed / 2**30:.1f} GB of memory, but {free / 2**30:.1f} GB are free. Use a larger machine.")


def _weight_files(folder: Path, source: str) -> dict[str, set[str] | None]:
    """The files that hold the weights and, with an index, which weights each must hold."""
    if os.path.lexists(folder / WEIGHTS):
        return {WEIGHTS: None}
    if not os.path.lexists(folder / INDEX):
        names = sorted(entry.name for entry in islice(os.scandir(folder), 10_000))
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"))]
        if pickles:
            raise CheckpointError(
                f"{source} has only pickle weights ({pickles[0]}), which can run code when opened, so excise refuses them. "
                "Convert it to safetensors in a sandbox, or ask for a safetensors version."
            )
        raise CheckpointError(f"{source} is no checkpoint: it has no {WEIGHTS}. Give a folder written by save_pretrained.")
    places = _read(folder, INDEX, source)[1].get("weight_map")
    if not isinstance(places, dict) or not places:
        refuse(source, f"{INDEX} is no index of weights. Restore it.")
    files: dict[str, set[str] | None] = {}
    for key, file in places.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file or "\\" in file or "\0" in file:
            refuse(source, f"{INDEX} names {str(file)[:60]!r}; plain names of safetensors files are expected. Restore it.")
        files.setdefault(file, set()).add(key)  # type: ignore[union-attr]
    if len(files) > SHARDS:
        refuse(source, f"{INDEX} names {len(files)} files, of at most {SHARDS}. Save the model in fewer.")
    return files


def _check_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> None:
    """A number in config.json that no weight reaches would be allocated for nothing; the exact shapes are compared before weights load."""
    shapes = [tensor.shape for tensor in tensors.values() if tensor.shape]
    reached = {"rows": max((s[0] for s in shapes), default=0), "width": max(map(max, shapes), default=0), "count": len(tensors)}
    for key, value, limit in _numbers(config):
        if limit.weights and value > reached[limit.weights]:
            refuse(source, f"{key} in {CONFIG} is {value}, but the weights allow at most {reached[limit.weights]}. Restore the two files.")


def _check_numbers(config: Mapping[str, Any], source: str) -> None:
    for key, value in _entries(config):
        if key not in NUMBERS and COUNTS.search(key) and type(value) is int and value > MOST_COUNTED:
            refuse(source, f"{key} in {CONFIG} is {str(value)[:40]}; at most {MOST_COUNTED} was expected. Restore it.")
        if key in PER_LAYER and any(type(one) is int and one > PER_LAYER[key] for one in (value if isinstance(value, list) else [value])):
            refuse(source, f"{key} in {CONFIG} is {str(value)[:40]}; at most {PER_LAYER[key]} was expected. Restore it.")
        if key == "attention_types":
            _check_pattern(value, source)
    for key, value, limit in _numbers(config):
        if type(value) is not int or not limit.least <= value <= limit.most:
            given = repr(value) if len(repr(value)) < 40 else repr(value)[:40] + "..."
            refuse(source, f"{key} in {CONFIG} is {given}; a whole number from {limit.least} to {limit.most} was expected. Restore it.")


def _check_pattern(value: Any, source: str) -> None:
    """GPT-Neo's [[kinds of layers, how often], ...], which it writes out."""
    for part in value if isinstance(value, list) else ():
        if not (isinstance(part, list) and len(part) == 2 and isinstance(part[0], list) and type(part[1]) is int):
            refuse(source, f"attention_types in {CONFIG} holds {str(part)[:40]}; kinds of layers and how often were expected. Restore it.")
        if len(part[0]) * part[1] > MOST_COUNTED:
            refuse(source, f"attention_types in {CONFIG} stands for more than {MOST_COUNTED} layers. Restore it.")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Range]]:
    return ((key, value, NUMBERS[key]) for key, value in _entries(config) if key in NUMBERS and value is not None)


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What stands under each key, at any depth, that is no object itself."""
    for key, value in config.items():
        if isinstance(value, dict) and key not in NAMES:
            yield from _entries(value)
        else:
            yield key, value


def _check_values(value: Any, name: str, source: str, depth: int = 0) -> None:
    """No refused key, and nothing of absurd size, at any depth."""
    if depth > DEPTH:
        refuse(source, f"{name} is nested more than {DEPTH} deep. Restore it.")
    match value:
        case dict():
            for key, inner in value.items():
                if key in REFUSED and inner and inner not in HARMLESS:
                    refuse(source, f"{key} in {name} {REFUSED[key]}")
                if key == "model_type" and isinstance(inner, str) and inner.startswith(FETCHING):
                    refuse(source, f"the model_type {inner[:40]!r} in {name} {_FETCHES}")
                if not (key in NAMES and isinstance(inner, dict)):
                    _check_values(inner, name, source, depth + 1)
                else:
                    _check_values([*inner, *inner.values()], name, source, depth + 1)
        case list():
            for inner in value:
                _check_values(inner, name, source, depth + 1)
        case str():
            if len(value) > CHARACTERS or any("\ud800" <= c <= "\udfff" for c in value):
                refuse(source, f"{name} holds a text of {len(value)} characters or with half a character ({value[:20]!r}...). Restore it.")
        case int() | float():
            if not abs(value) <= 1e31:  # 10**30 stands for no limit
                refuse(source, f"{name} holds the number {str(value)[:30]}. Restore it.")


def _without_dropped(config: Mapping[str, Any], dropped: list[str]) -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        if key.startswith("_") or key in DROPPED or key in REFUSED:
            dropped.append(key)
        else:
            kept[key] = _without_dropped(value, dropped) if isinstance(value, dict) and key not in NAMES else value
    return kept


def _optional(folder: Path, name: str, source: str) -> dict[str, Any]:
    if not os.path.lexists(folder / name):
        return {}
    found = _read(folder, name, source)[1]
    _check_values({key: value for key, value in found.items() if key != "chat_template"}, name, source)
    return found


def _read(folder: Path, name: str, source: str) -> tuple[bytes, dict[str, Any]]:
    return read_json(folder, name, SIZES.get(name, SMALL), source)
