"""Opening a checkpoint folder from anyone: what is in it is checked before transformers touches it, and nothing in it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from excise.errors import CheckpointError, NetworkError
from excise.seeds import derive

__all__ = ["first_line", "longest_input", "open_checkpoint", "open_language_model", "resolve_checkpoint"]

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
Kind = Literal["classifier", "causal", "masked"]
CLASSES: dict[Kind, Any] = {"classifier": AutoModelForSequenceClassification, "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}
NOUNS: dict[Kind, str] = {"classifier": "sequence classifier", "causal": "causal language model", "masked": "masked language model"}
HUB_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")


def open_checkpoint(source: str | Path, *, label_names: Sequence[str] | None, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier in a folder, a hub repository or the embedded default, and its tokenizer, as `Victim.load` describes it.

    Raises:
        CheckpointError: The folder is no checkpoint, wants to run code, has no safetensors weights, or its weights are incomplete, not finite,
            or do not fit its tokenizer.
        NetworkError: A hub id was given and the hub cannot be reached.
    """
    folder = resolve_checkpoint(source)
    config = _read_config(folder, str(source))
    if label_names is not None and not _is_classifier(config):
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
    elif label_names is not None:
        label_names = None  # the checkpoint has a head of its own
    names = config.id2label or {}
    if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names):
        raise CheckpointError(f"{source}: id2label in config.json is {str(names)[:80]}; one name of its own for each of 0, 1, ... is expected.")
    if config.num_labels < 2:
        raise CheckpointError(f"{source} has {config.num_labels} label; a classifier with at least two was expected.")
    model = _load_model(folder, config, str(source), new_head=label_names is not None, seed=seed)
    return model, _load_tokenizer(folder, model, str(source))


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
    folder = resolve_checkpoint(source)
    config = _read_config(folder, str(source))
    kind = new_head or language_model_kind(config)
    if kind is None:
        raise CheckpointError(f"{source} is no language model. Give the folder of one, or make one with excise train-lm.")
    if new_head == "causal":
        config.is_decoder = True
    model = _load_model(folder, config, str(source), kind=kind, new_head=new_head is not None, seed=seed)
    return model, _load_tokenizer(folder, model, str(source))


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


def _read_config(folder: Path, source: str) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source} is no checkpoint: it has no config.json. Give a folder written by save_pretrained.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: config.json cannot be read ({error}). Restore it.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{source}: config.json holds no JSON object. Restore it.")
    if raw.get("auto_map"):
        raise CheckpointError(
            f"{source} asks for code of its own (auto_map in config.json), which excise never runs. Use a model that transformers knows."
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{source} has only pickle weights ({pickles[0]}), which can run code when opened, so excise refuses them. "
                "Convert it to safetensors in a sandbox, or ask for a safetensors version."
            )
        raise CheckpointError(f"{source} is no checkpoint: it has no *.safetensors file. Give a folder written by save_pretrained.")
    _check_weight_files(folder, source)
    for key in ("quantization_config", "_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
        if raw.get(key) not in (None, "eager", "sdpa"):
            raise CheckpointError(f"{source}: {key} in config.json asks for {str(raw[key])[:60]!r}, which excise does not load. Remove the key.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a broken config
        raise CheckpointError(f"{source}: config.json describes no model that transformers knows ({first_line(error)}).") from error


def _check_weight_files(folder: Path, source: str) -> None:
    """Nothing but safetensors of this folder may be read as weights."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{source} is an adapter, not a whole model. Merge it into its base model first.")
    for index in folder.glob("*.index.json"):
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{source}: {index.name} is no index of weights. Restore it.") from error
        for file in files:
            if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
                raise CheckpointError(f"{source}: {index.name} names {str(file)[:60]!r}; plain names of safetensors files are expected. Restore it.")


def _is_classifier(config: Any) -> bool:
    return any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())


def _load_model(folder: Path, config: Any, source: str, *, new_head: bool, seed: int, kind: Kind = "classifier") -> PreTrainedModel:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            model, info = CLASSES[kind].from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
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
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise CheckpointError(f"{source}: the weight {key} has values that are NaN or infinite. Restore the file.")
    return model


def _load_tokenizer(folder: Path, model: PreTrainedModel, source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise CheckpointError(f"{source}: its tokenizer cannot be opened ({first_line(error)}). Add the tokenizer's files.") from error
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr]
    top = max(tokenizer.get_vocab().values(), default=-1)
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


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model can read."""
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None) or 512
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            positions -= padding + 1  # RoBERTa counts positions from behind the padding index
            break
    return min(int(positions), int(tokenizer.model_max_length))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
