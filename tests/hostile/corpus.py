"""Checkpoints that mean harm: what each changes in a good one, and what its refusal must say."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Change = Callable[[Path], object]
GB = 2**30
EVIL = "someone/evil"


class Case(NamedTuple):
    """One hostile checkpoint."""

    change: Change
    words: tuple[str, ...]
    """What the message must hold."""


def raw(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def edit(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit


def config(**fields: object) -> Change:
    return edited("config.json", lambda content: content.update(fields))


def settings(**fields: object) -> Change:
    return edited("tokenizer_config.json", lambda content: content.update(fields))


def tokenizer(**fields: object) -> Change:
    return edited("tokenizer.json", lambda content: content.update(fields))


def header(change: Callable[[dict[str, Any]], object], *, more: bytes = b"") -> Change:
    """Another header before the same weights."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :] + more)

    return rewrite


def weight(**fields: object) -> Change:
    return header(lambda entries: entries["classifier.bias"].update(fields))


def shards(places: dict[str, object], **fields: object) -> Change:
    """An index in place of model.safetensors, whose weights become shard.safetensors."""

    def split(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places, **fields}))

    return split


def replaced(name: str, how: Callable[[Path], object]) -> Change:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        how(folder / name)

    return replace


def linked(name: str, to: str) -> Change:
    """The file moved out of the folder, and a link to it; or a link to what is there already."""

    def link(folder: Path) -> None:
        if not to.startswith("/"):
            shutil.move(folder / name, folder / to)
        else:
            (folder / name).unlink()
        (folder / name).symlink_to(to)

    return link


def sparse(size: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def huge_weight(folder: Path) -> None:
    """A weight of 400 GB in a sparse file that takes no room on the disk."""
    entries = {"classifier.weight": {"dtype": "F32", "shape": [100_000, 1_000_000], "data_offsets": [0, 400_000_000_000]}}
    entries |= {f"layer{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(9)}
    text = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 400_000_000_000)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")


def replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split_on(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


CODE = {
    "auto_map": Case(config(auto_map={"AutoModel": "evil.Model"}), ("auto_map", "code of its own", "Use a model")),
    "auto_map of the hub": Case(config(auto_map={"AutoConfig": f"{EVIL}--evil.Config"}), ("auto_map", "never runs")),
    "auto_map inside": Case(config(text_config={"auto_map": {"AutoModel": "evil.Model"}}), ("auto_map", "config.json")),
    "auto_map of the tokenizer": Case(settings(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}), ("auto_map", "tokenizer_config.json")),
    "trust_remote_code": Case(config(trust_remote_code=True), ("trust_remote_code", "Remove the key")),
    "custom_pipelines": Case(config(custom_pipelines={"x": {"impl": "evil.Pipeline"}}), ("custom_pipelines", "never runs")),
    "attention kernel, CVE-2026-4372": Case(config(_attn_implementation_internal=EVIL), ("_attn_implementation_internal", "from the hub")),
    "attention kernel, public key": Case(config(attn_implementation=EVIL), ("attn_implementation", "from the hub")),
    "attention kernel, private key": Case(config(_attn_implementation=f"{EVIL}:fn"), ("_attn_implementation", "from the hub")),
    "attention kernel inside": Case(config(text_config={"_attn_implementation": {"": EVIL}}), ("_attn_implementation", "from the hub")),
    "experts kernel": Case(config(experts_implementation=EVIL), ("experts_implementation", "from the hub")),
    "kernel_config": Case(config(kernel_config={"RMSNorm": EVIL}), ("kernel_config", "from the hub")),
    "fusion_config": Case(config(fusion_config={"patch": True}), ("fusion_config", "package")),
    "quantization_config": Case(config(quantization_config={"quant_method": "aqlm"}), ("quantization_config", "package")),
    "compression_config": Case(config(compression_config={"quant_method": "x"}), ("compression_config", "package")),
    "pickled weights": Case(pickled, ("pickle", "pytorch_model.bin", "Convert")),
    "adapter": Case(raw("adapter_config.json", json.dumps({"base_model_name_or_path": EVIL}).encode()), ("adapter", "Merge")),
    "constructor arguments": Case(settings(init_inputs=["/etc/passwd"]), ("init_inputs", "constructor")),
    "a type that fetches, inside": Case(
        config(model_type="gemma3", vision_config={"model_type": "timm_wrapper", "architecture": f"hf-hub:{EVIL}"}), ("'timm_wrapper'", "fetches")
    ),
    "a type that fetches kernels": Case(config(model_type="yoso"), ("'yoso'", "fetches")),
    "class that is no name": Case(settings(tokenizer_class="os;system"), ("tokenizer_class", "os;system")),
}

ELSEWHERE = {
    "another configuration": Case(config(configuration_files=["config.4.0.0.json"]), ("configuration_files", "elsewhere")),
    "other weights": Case(config(transformers_weights="../other/model.safetensors"), ("transformers_weights", "elsewhere")),
    "a backbone": Case(config(backbone=EVIL), ("backbone", "elsewhere")),
    "a base model": Case(config(base_model_name_or_path=EVIL), ("base_model_name_or_path", "elsewhere")),
    "another tokenizer": Case(settings(fast_tokenizer_files=["../tokenizer.4.0.0.json"]), ("fast_tokenizer_files", "elsewhere")),
    "shard above, issue 47176": Case(shards({"a": "../secret.safetensors"}), ("index.json", "'../secret.safetensors'", "plain names")),
    "shard by full path": Case(shards({"a": "/etc/passwd.safetensors"}), ("index.json", "plain names")),
    "shard below": Case(shards({"a": "sub/x.safetensors"}), ("index.json", "plain names")),
    "shard with a backslash": Case(shards({"a": "..\\x.safetensors"}), ("index.json", "plain names")),
    "shard with a null": Case(shards({"a": "x\0.safetensors"}), ("index.json", "plain names")),
    "shard that is a pickle": Case(shards({"a": "pytorch_model.bin"}), ("index.json", "'pytorch_model.bin'")),
    "shard that is missing": Case(shards({"a": "gone.safetensors"}), ("gone.safetensors", "cannot be read", "complete")),
    "shard that is a number": Case(shards({"a": 7}), ("index.json", "'7'")),
    "index that lists other weights": Case(shards({"a": "shard.safetensors"}), ("index.json", "does not list", "shard.safetensors")),
    "index of nothing": Case(shards({}), ("index.json", "no index of weights")),
    "index of a million files": Case(shards({f"w{i}": f"{i}.safetensors" for i in range(2_000)}), ("2000 files", "at most 1000")),
    "config linked elsewhere": Case(linked("config.json", "../secret.json"), ("config.json", "link", "out of the folder")),
    "weights linked elsewhere": Case(linked("model.safetensors", "../secret.safetensors"), ("model.safetensors", "link")),
    "tokenizer linked to a device": Case(linked("tokenizer.json", "/dev/zero"), ("tokenizer.json", "link")),
    "link that goes round": Case(replaced("config.json", lambda path: path.symlink_to(path.name)), ("config.json", "cannot be read")),
}

FILES = {
    "config that is a pipe": Case(replaced("config.json", os.mkfifo), ("config.json", "no ordinary file")),
    "weights that are a pipe": Case(replaced("model.safetensors", os.mkfifo), ("model.safetensors", "no ordinary file")),
    "config that is a folder": Case(replaced("config.json", Path.mkdir), ("config.json", "no ordinary file")),
    "config of a terabyte": Case(replaced("config.json", sparse(1024 * GB)), ("config.json", "bytes long", "at most")),
    "tokenizer of a terabyte": Case(replaced("tokenizer.json", sparse(1024 * GB)), ("tokenizer.json", "bytes long", "at most")),
    "config that is not UTF-8": Case(raw("config.json", b'{"model_type": "caf\xe9"}'), ("config.json cannot be read", "utf-8")),
    "tokenizer that is not UTF-8": Case(raw("tokenizer.json", b'{"model": "caf\xe9"}'), ("tokenizer.json cannot be read", "utf-8")),
    "JSON nested deeply": Case(raw("config.json", b'{"a":' * 20_000 + b"1" + b"}" * 20_000), ("config.json cannot be read", "recursion")),
    "JSON nested a little less": Case(raw("config.json", b'{"a":' * 100 + b"1" + b"}" * 100), ("config.json", "more than 24 deep")),
    "JSON bomb": Case(raw("config.json", b'{"a":[' + b"[]," * 1_000_000 + b"0]}"), ("config.json", "more values than fit")),
    "JSON bomb as a tokenizer": Case(raw("tokenizer.json", b'{"a":[' + b"{}," * 8_000_000 + b"0]}"), ("tokenizer.json", "more values than fit")),
    "key given twice": Case(raw("config.json", b'{"model_type": "bert", "model_type": "evil"}'), ("'model_type' is given twice",)),
    "NaN": Case(raw("config.json", b'{"model_type": "bert", "hidden_size": NaN}'), ("config.json", "NaN is no JSON number")),
    "number of 5000 digits": Case(raw("config.json", b'{"hidden_size": ' + b"9" * 5_000 + b"}"), ("config.json cannot be read", "digits")),
    "number beyond all bounds": Case(config(layer_norm_eps=1e300), ("config.json", "1e+300")),
    "half a character": Case(raw("config.json", b'{"model_type": "\\ud800"}'), ("config.json", "half a character")),
    "text of a megabyte": Case(config(id2label={"0": "x" * 2**20, "1": "b"}), ("config.json", "1048576 characters")),
}

ABSURD = {
    "a billion layers": Case(config(num_hidden_layers=10**9), ("num_hidden_layers", "1000000000", "from 1 to 1000")),
    "more layers than weights": Case(config(num_hidden_layers=900), ("num_hidden_layers", "900", "the weights allow")),
    "no layers": Case(config(num_hidden_layers=0), ("num_hidden_layers", "is 0")),
    "negative size": Case(config(hidden_size=-32), ("hidden_size", "-32", "whole number")),
    "architectures that are a number": Case(config(architectures=5), ("architectures", "is 5", "a list of names")),
    "architectures of numbers": Case(config(architectures=[5]), ("architectures", "is [5]")),
    "size that is a text": Case(config(hidden_size="32"), ("hidden_size", "'32'")),
    "size that is a truth value": Case(config(vocab_size=True), ("vocab_size", "True")),
    "size that is a list": Case(config(intermediate_size=[64, 64]), ("intermediate_size", "[64, 64]")),
    "a vocabulary beyond the weights": Case(config(vocab_size=3_999_999), ("vocab_size", "3999999", "the weights allow")),
    "a width beyond the weights": Case(config(intermediate_size=999_999), ("intermediate_size", "the weights allow")),
    "a billion positions": Case(config(max_position_embeddings=10**9), ("max_position_embeddings", "16777216")),
    "a billion labels": Case(config(num_labels=10**9), ("num_labels", "100000")),
    "a billion layers by another name": Case(config(model_type="bart", decoder_layers=10**9), ("decoder_layers", "1000000000", "at most 10000")),
    "a billion groups of layers": Case(config(model_type="albert", num_hidden_groups=10**9), ("num_hidden_groups", "at most")),
    "a billion networks in a layer": Case(config(model_type="mobilebert", num_feedforward_networks=10**9), ("num_feedforward_networks", "at most")),
    "a pattern that is written out": Case(config(attention_types=[[["global"], 10**9]]), ("attention_types", "more than 10000 layers")),
    "a long pattern that is written out": Case(config(attention_types=[[["global"] * 9_999, 9_999]]), ("attention_types", "more than 10000")),
    "a pattern that is none": Case(config(attention_types=[["global", "x"]]), ("attention_types", "['global', 'x']")),
    "a window of gigabytes": Case(
        config(model_type="longformer", attention_window=[10**9, 10**9]), ("attention_window", "1000000000", "at most 16384")
    ),
    "layers repeated without end": Case(config(model_type="funnel", block_repeats=[1, 10**9]), ("block_repeats", "1000000000", "at most 100")),
    "absurd inside": Case(config(text_config={"num_hidden_layers": 10**7}), ("num_hidden_layers", "10000000")),
}

WEIGHTS = {
    "weights larger than the memory": Case(huge_weight, ("weights need 372.5 GB", "2.0 GB are free")),
    "header longer than the file": Case(raw("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), ("model.safetensors", "cut short")),
    "header of a gigabyte": Case(
        replaced("model.safetensors", lambda p: (sparse(2 * GB)(p), os.pwrite(f := os.open(p, os.O_WRONLY), struct.pack("<Q", GB), 0), os.close(f))),
        ("header of model.safetensors", "at most"),
    ),
    "header that is no JSON": Case(
        raw("model.safetensors", struct.pack("<Q", 4) + b"\x80\x04\x95."), ("header of model.safetensors cannot be read",)
    ),
    "header that is a list": Case(raw("model.safetensors", struct.pack("<Q", 2) + b"[]"), ("header of model.safetensors", "no JSON object")),
    "header with a name twice": Case(
        raw("model.safetensors", struct.pack("<Q", 14) + b'{"a":1,"a":22}'), ("header of model.safetensors", "'a' is given twice")
    ),
    "file cut short": Case(lambda f: os.truncate(f / "model.safetensors", 9_000), ("model.safetensors should be", "complete")),
    "bytes after the end": Case(header(lambda entries: None, more=b"MZ" * 500), ("model.safetensors should be",)),
    "weight beyond the file": Case(weight(data_offsets=[0, 2**39]), ("classifier.bias", "takes 8 bytes")),
    "weight of negative size": Case(weight(shape=[-2]), ("classifier.bias", "[-2]", "whole numbers")),
    "weight whose size overflows": Case(weight(shape=[2**39, 2**39, 2**39]), ("classifier.bias", "takes")),
    "weight of a hundred dimensions": Case(weight(shape=[1] * 100), ("classifier.bias", "whole numbers")),
    "weights that overlap": Case(weight(data_offsets=[4, 12]), ("overlap or leave a gap",)),
    "weight of an odd type": Case(weight(dtype="F8_E4M3"), ("classifier.bias", "'F8_E4M3'", "unpacked")),
    "weight of a type that is a list": Case(weight(dtype=["F32"]), ("classifier.bias", "['F32']")),
    "weight with an extra field": Case(weight(code="evil"), ("classifier.bias", "dtype, shape and data_offsets")),
    "weight with a name of a kilobyte": Case(
        header(lambda entries: entries.update({"x" * 1024: entries["classifier.bias"]})), ("xxxx", "not described")
    ),
}


def charsmap(text: bytes) -> str:
    """A precompiled_charsmap, as sentencepiece writes them, that puts a text in place of every e: units of a trie, then the text."""
    letter, units = ord("e"), [0] * 1024
    units[0] = 256 << 10
    units[256 ^ letter] = (((256 ^ letter) ^ 512) << 10) | 256 | letter
    units[512] = 1 << 31
    return base64.b64encode(struct.pack("<I1024I", 4096, *units) + text + b"\0").decode()


def around(special: dict[str, object]) -> Change:
    return tokenizer(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "tokens": ["[CLS]"], **special}},
        }
    )


def added(*contents: str) -> Change:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return edited("tokenizer.json", lambda c: c["added_tokens"].extend({"id": 900 + i, "content": one, **flags} for i, one in enumerate(contents)))


def model(**fields: object) -> Change:
    return edited("tokenizer.json", lambda content: content["model"].update(fields))


TOKENIZERS = {
    "a letter that becomes a megabyte": Case(
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 2**20)}), ("more than 256 times as long", "normalizer")
    ),
    "a megabyte before each text": Case(tokenizer(normalizer={"type": "Prepend", "prepend": "a " * 2**19}), ("more than 256 characters before",)),
    "a megabyte before each piece": Case(model(continuing_subword_prefix="#" * 2**20), ("continuing_subword_prefix", "more than 256")),
    "a megabyte behind each word": Case(model(end_of_word_suffix="#" * 2**20), ("end_of_word_suffix", "more than 256")),
    "words without end": Case(model(max_input_chars_per_word=2**60), ("max_input_chars_per_word", "at most 1000")),
    "a decoder that doubles texts": Case(
        tokenizer(decoder={"type": "Sequence", "decoders": [replace({"String": "a"}, "aa")] * 40}), ("more than 256 times as long", "its decoder")
    ),
    "pieces of ten megabytes": Case(
        model(type="Unigram", unk_id=0, vocab=[[f"{i}" + "x" * 10**5, -1.0] for i in range(100)]), ("the pieces in tokenizer.json", "8388608")
    ),
    "added tokens of two megabytes": Case(added(*(f"{i}" + "x" * 10**5 for i in range(20))), ("adds tokens of more than 1000000 characters",)),
    "special tokens without end": Case(settings(additional_special_tokens=[f"t{i}" for i in range(10_001)]), ("lists 10001 tokens", "at most 10000")),
    "special tokens by name without end": Case(settings(extra_special_tokens={f"t{i}": "x" for i in range(10_001)}), ("lists 10001 tokens",)),
    "a token that stands for thousands": Case(around({"ids": [2] * 5_000}), ("more than 16 tokens around a text",)),
    "a tokenizer that opens another": Case(settings(tokenizer_class="AutoTokenizer"), ("tokenizer_class", "'AutoTokenizer'")),
    "a model in place of a tokenizer": Case(settings(tokenizer_class="AutoModel"), ("tokenizer_class", "'AutoModel'")),
    "tokenizer only as vocab.txt": Case(lambda f: (f / "tokenizer.json").rename(f / "vocab.txt"), ("no tokenizer.json", "Add it")),
    "tokenizer that doubles texts": Case(
        tokenizer(normalizer={"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 40}), ("more than 256 times as long",)
    ),
    "tokenizer that puts text everywhere": Case(tokenizer(normalizer=replace({"Regex": ""}, "x" * 9_000)), ("more than 256 times as long",)),
    "pattern of exponential time": Case(tokenizer(pre_tokenizer=split_on("(a+)+$")), ("repeats a group", "(a+)+$")),
    "pattern of exponential time inside": Case(
        tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [split_on(r"(?:a|a){2,}b")]}), ("repeats a group",)
    ),
    "pattern of a megabyte": Case(tokenizer(pre_tokenizer=split_on("a" * 2**20)), ("pattern", "10000 characters")),
    "steps nested deeply": Case(edited("tokenizer.json", lambda c: c.update(normalizer=nested(c["normalizer"], 50))), ("nests its steps",)),
    "a thousand steps": Case(tokenizer(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1_000}), ("more than 100 steps",)),
    "token around texts that is not defined": Case(
        tokenizer(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "special_tokens": {}}),
        ("special token", "does not define"),
    ),
    "a thousand tokens around texts": Case(
        tokenizer(post_processor={"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1_000}),
        ("more than 16 pieces",),
    ),
    "character map that stops the library": Case(
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 9).decode()}), ("precompiled_charsmap",)
    ),
    "words cut at random": Case(edited("tokenizer.json", lambda c: c["model"].update(dropout=0.5)), ("at random", "dropout")),
    "no vocabulary": Case(tokenizer(model={"type": "WordPiece"}), ("tokenizer.json", "vocabulary")),
    "added tokens without end": Case(tokenizer(added_tokens=[0] * 100_001), ("adds more than 100000 tokens",)),
    "special token that is code": Case(settings(pad_token={"content": "[PAD]", "__class__": "evil"}), ("pad_token", "a token was expected")),
    "settings of a wrong type": Case(settings(do_lower_case="yes"), ("do_lower_case", "'yes'")),
    "length that is no number": Case(settings(model_max_length="all"), ("model_max_length", "'all'")),
}

KEYS = {
    "custom_code": "never runs",
    "custom_generate": "never runs",
    "use_kernels": "never runs",
    "_experts_implementation": "never runs",
    "_experts_implementation_internal": "never runs",
    "sparsity_config": "package",
    "gguf_file": "elsewhere",
    "use_timm_backbone": "elsewhere",
}
CODE |= {f"the key {key}": Case(config(**{key: EVIL}), (f"{key} in config.json", why)) for key, why in KEYS.items()}


def nested(step: object, depth: int) -> object:
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


CORPUS: dict[str, Case] = {**CODE, **ELSEWHERE, **FILES, **ABSURD, **WEIGHTS, **TOKENIZERS}
