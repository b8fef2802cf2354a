"""The model under attack or suspicion, with its tokenizer: opened safely, asked for predictions, saved as an ordinary folder."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from excise.attention import Statistic, recorded_attention
from excise.errors import CheckpointError, ConfigError, NetworkError, OutputError
from excise.progress import report
from excise.seeds import derive

__all__ = ["Batch", "Encoding", "Precision", "Trace", "Victim", "collate", "resolve_checkpoint", "resolve_precision"]

logger = logging.getLogger(__name__)

Precision = Literal["auto", "bf16", "fp32"]
Encoding = Mapping[str, list[int]]
"""One tokenised text: `input_ids`, `attention_mask` and what else the model takes."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
HUB_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")


class Batch(NamedTuple):
    """Tokenised texts padded to one length, and their labels."""

    inputs: dict[str, Int[Tensor, "batch token"]]
    labels: Int[Tensor, " batch"]

    @property
    def mask(self) -> Int[Tensor, "batch token"]:
        """1 for real tokens, 0 for padding."""
        return self.inputs["attention_mask"]


class Trace(NamedTuple):
    """What one forward pass shows."""

    logits: Float[Tensor, "batch label"]
    hidden: tuple[Float[Tensor, "batch token hidden"], ...]
    """The embedding output, then each layer's output: one more than there are layers. Empty if not asked for."""
    attention: tuple[Tensor, ...]
    """What the statistic kept of each layer's attention probabilities. Empty if not asked for."""


@dataclass(frozen=True)
class Victim:
    """A sequence classifier and its tokenizer. Methods never change the victim they are given; they return another."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest input in tokens; longer texts are cut."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of matrix products; weights are always fp32."""
    source: str = ""
    """What the user called it."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        label_names: Sequence[str] | None = None,
        max_length: int | None = None,
        precision: Precision = "auto",
        device: str | None = None,
        seed: int = 0,
    ) -> Victim:
        """Open a checkpoint without running anything that comes with it.

        Args:
            source: A folder, a Hugging Face id `org/name[@revision]`, or `default` for the embedded MiniLM.
            label_names: If given, a checkpoint without a classification head gets a new one for these labels. Otherwise every weight must be there.
            max_length: Longest input in tokens; by default what the model allows, at most 512.
            precision: `auto` takes bf16 where the hardware computes it, else fp32.
            device: Where the model goes; by default a GPU if there is one.
            seed: Draws the weights of a new head.

        Raises:
            CheckpointError: The folder is no checkpoint, wants to run code, has no safetensors weights, or its weights are incomplete, not finite,
                or do not fit its tokenizer.
            NetworkError: A hub id was given and the hub cannot be reached.
            ConfigError: `max_length` is less than 8.
        """
        if max_length is not None and max_length < 8:
            raise ConfigError(f"A max_length of {max_length} tokens was given; it must be at least 8.")
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
        tokenizer = _load_tokenizer(folder, model, str(source))
        try:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            model.to(where)  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"The device {device!r} cannot be used: {_first_line(error)}. Give cpu, or leave it out.") from error
        return cls(
            model.eval(),
            tokenizer,
            min(max_length or 512, _longest_input(model, tokenizer)),
            resolve_precision(precision, where),
            str(source),
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def label_names(self) -> tuple[str, ...]:
        """Label names by index."""
        names: Any = self.model.config.id2label
        return tuple(str(names[i]) for i in range(len(names)))

    def copy(self) -> Victim:
        """A victim with weights of its own."""
        return Victim(copy.deepcopy(self.model), self.tokenizer, self.max_length, self.precision, self.source)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenise texts, cut to `max_length`, without padding."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, padding=False)
        accepted = inspect.signature(self.model.forward).parameters
        columns = {name: values for name, values in encoded.items() if name in accepted}
        columns.setdefault("attention_mask", [[1] * len(ids) for ids in encoded["input_ids"]])
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def autocast(self) -> torch.autocast:
        """The context in which this victim computes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def logits(self, texts: Sequence[str], *, tokens_per_batch: int = 8192, name: str = "predict") -> Float[Tensor, "text label"]:
        """The logits of each text, in order, on the CPU. They do not depend on a text's neighbours beyond rounding."""
        encodings = self.encode(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i]["input_ids"]))
        found = torch.full((len(texts), len(self.label_names)), torch.nan)
        done = 0
        report(name, 0, len(texts))
        with torch.inference_mode(), self.autocast():
            for rows in _token_batches(order, encodings, tokens_per_batch):
                inputs = collate(self.tokenizer, [encodings[i] for i in rows])
                found[rows] = self.model(**{k: v.to(self.device) for k, v in inputs.items()}).logits.float().cpu()
                done += len(rows)
                if report(name, done, len(texts)):
                    return found
        if not found.isfinite().all():
            raise CheckpointError(f"{self.source or 'The model'} gives logits that are NaN or infinite: broken weights, or diverged training.")
        return found

    def predict(self, texts: Sequence[str], *, name: str = "predict") -> list[int]:
        """The most likely label of each text."""
        return self.logits(texts, name=name).argmax(dim=1).tolist() if texts else []

    def trace(self, batch: Batch, *, hidden: bool = True, attention: Statistic | None = None) -> Trace:
        """One forward pass that keeps hidden states and a statistic of each layer's attention probabilities, taken before dropout.

        Raises:
            AttentionError: The model's attention cannot be read.
        """
        if attention is None:
            output = self.model(**batch.inputs, output_hidden_states=hidden)
            kept: list[Tensor] = []
        else:
            module = getattr(self.model, "module", self.model)  # several processes wrap the model
            with recorded_attention(module, attention) as kept:
                output = self.model(**batch.inputs, output_hidden_states=hidden)
        return Trace(output.logits, tuple(output.hidden_states or ()) if hidden else (), tuple(kept))

    def check_attention(self) -> None:
        """Make sure that attention maps can be read.

        Raises:
            AttentionError: They cannot.
        """
        inputs = {name: values.to(self.device) for name, values in collate(self.tokenizer, self.encode(["a"])).items()}
        with torch.inference_mode():
            self.trace(Batch(inputs, torch.zeros(1, dtype=torch.long)), hidden=False, attention=lambda probabilities: probabilities)

    def save(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder: config, safetensors, tokenizer.

        Raises:
            OutputError: `folder` is a file.
        """
        folder = Path(folder)
        if folder.is_file():
            raise OutputError(f"{folder} is a file; a folder to save in was expected.")
        self.model.save_pretrained(folder)
        tokenizer = copy.deepcopy(self.tokenizer)
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_truncation()  # how we cut and pad is not part of the checkpoint
            backend.no_padding()
        tokenizer.save_pretrained(folder)


def collate(tokenizer: PreTrainedTokenizerBase, encodings: Sequence[Encoding]) -> dict[str, Int[Tensor, "batch token"]]:
    """Pad on the right to the longest."""
    longest = max(len(e["input_ids"]) for e in encodings)
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {name: torch.tensor([[*e[name], *[fill.get(name, 0)] * (longest - len(e[name]))] for e in encodings]) for name in encodings[0]}


def resolve_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """What `auto` means on `device`: bf16 on a GPU that has it or a CPU with AVX512-BF16 or AMX, otherwise fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    checks = [getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return "bf16" if device.type == "cpu" and any(check() for check in checks) else "fp32"


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
        raise CheckpointError(f"{source}: config.json describes no model that transformers knows ({_first_line(error)}).") from error


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


def _load_model(folder: Path, config: Any, source: str, *, new_head: bool, seed: int) -> PreTrainedModel:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        raise CheckpointError(
            f"{source} could not be opened as a sequence classifier: {_first_line(error)}. Check that the folder is complete."
        ) from error
    missing = sorted(info["missing_keys"])
    if new_head:
        body = f"{model.base_model_prefix}."
        missing = [key for key in missing if key.startswith(body) and "pooler" not in key]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights that a {type(model).__name__} needs, for example {missing[0]}. "
            + ("Restore the file." if _is_classifier(config) else "It is no finished classifier: fine-tune it first, or use excise attack.")
        )
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise CheckpointError(f"{source}: the weight {key} has values that are NaN or infinite. Restore the file.")
    return model


def _load_tokenizer(folder: Path, model: PreTrainedModel, source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise CheckpointError(f"{source}: its tokenizer cannot be opened ({_first_line(error)}). Add the tokenizer's files.") from error
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


def _longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None) or 512
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            positions -= padding + 1  # RoBERTa counts positions from behind the padding index
            break
    return min(int(positions), int(tokenizer.model_max_length))


def _token_batches(order: Sequence[int], encodings: Sequence[Encoding], budget: int) -> Iterator[list[int]]:
    """Cut texts sorted by length into batches of at most `budget` tokens, padding included, and 256 texts."""
    rows: list[int] = []
    for i in order:
        if rows and (len(rows) == 256 or (len(rows) + 1) * len(encodings[i]["input_ids"]) > budget):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
