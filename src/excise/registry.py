"""Methods by file name. A file in `attacks/`, `defenses/`, `detectors/`, `scanners/`, `filters/` or `augmentations/` is a method; nothing
else registers it.

Names and summaries are read from the source without importing it, so listing them is instant; a method is imported when it is asked for.
Other packages join through the entry-point groups `excise.attacks`, `excise.defenses`,
`excise.detectors`, `excise.scanners`, `excise.filters` and `excise.augmentations`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import shlex
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_type_hints

from excise.errors import ConfigError, nearest
from excise.method import Attack, Augmentation, Defense, Detector, Filter, Method, Scanner
from excise.settings import validate

__all__ = ["BASES", "Kind", "build", "load", "name_of", "names", "settings", "spell", "summary"]

Kind = Literal["attack", "defense", "detector", "scanner", "filter", "augmentation"]
BASES: Mapping[Kind, type[Method]] = {
    "attack": Attack,
    "defense": Defense,
    "detector": Detector,
    "scanner": Scanner,
    "filter": Filter,
    "augmentation": Augmentation,
}


def names(kind: Kind) -> tuple[str, ...]:
    """The names of all methods of a kind, sorted.

    Example:
        >>> "mbtsad" in names("defense")
        True
    """
    own = (path.stem for path in _folder(kind).glob("*.py") if not path.stem.startswith("_"))
    return tuple(sorted({*own, *_plugins(kind)}))


def load(kind: Kind, name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigError: There is no such method.
    """
    if name not in names(kind):
        known = names(kind)
        raise ConfigError(f"There is no {kind} {name!r}; there are {', '.join(known)}.{nearest(name, known)}")
    if name in _plugins(kind):
        found = _plugins(kind)[name].load()
    else:
        module = importlib.import_module(f"excise.{kind}s.{name}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__ and issubclass(c, BASES[kind])]
        found = next((c for c in classes if not inspect.isabstract(c)), None)
    if not (isinstance(found, type) and issubclass(found, BASES[kind]) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"The {kind} {name!r} defines no dataclass that is a {BASES[kind].__name__}. See CONTRIBUTING.md.")
    return found


def build(kind: Kind, spec: Mapping[str, Any] | str, where: str) -> Any:
    """A method from its settings: `{"method": name, field: value, ...}`, `"name field=value ..."` or its name alone.

    Raises:
        ConfigError: The method or one of its fields is unknown, or a value does not fit; the message names `where` and the field.
    """
    fields = _parsed(spec, where) if isinstance(spec, str) else dict(spec)
    name = fields.pop("method", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: the {kind} has no 'method'. Give one of {', '.join(names(kind))}.")
    cls = load(kind, name)
    for field, hint in get_type_hints(cls).items():
        if hint in BASES.values() and isinstance(fields.get(field), (str, Mapping)):  # a method in a method
            fields[field] = build(hint.kind, fields[field], f"{where}: {field}")
    return validate(cls, fields, where)


def settings(method: Method) -> dict[str, Any]:
    """The form that `build` takes back."""
    plain = {"method": name_of(method), **dataclasses.asdict(method)}  # type: ignore[call-overload]
    inner = {field: value for field in plain if isinstance(value := getattr(method, field, None), Method)}
    return plain | {field: settings(value) for field, value in inner.items()}


def spell(method: Method) -> str:
    """The form of one word for each setting that is not the default: `aeda share=0.2`."""
    plain, usual = settings(method), settings(type(method)())
    pairs = ((field, value if isinstance(value, str) else json.dumps(value)) for field, value in plain.items() if value != usual[field])
    return shlex.join([plain["method"], *(f"{field}={value}" for field, value in pairs)])


def name_of(method: Method | type[Method]) -> str:
    """A method's name: that of its file."""
    cls = method if isinstance(method, type) else type(method)
    return cls.__module__.rpartition(".")[2]


def summary(kind: Kind, name: str) -> str:
    """The first line of a method's class docstring."""
    if name in _plugins(kind):
        return (inspect.getdoc(load(kind, name)) or "").partition("\n")[0]
    tree = ast.parse((_folder(kind) / f"{name}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", None) == BASES[kind].__name__ for base in node.bases):
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def _parsed(spec: str, where: str) -> dict[str, Any]:
    """`name field=value ...` as a mapping; values are YAML."""
    import yaml

    from excise.plain_yaml import parse_yaml

    try:
        name, *pairs = shlex.split(spec)
        fields = {field: parse_yaml(value) for field, value in (pair.split("=", 1) for pair in pairs)}
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"{where}: {spec!r} was given; a method's name, or 'name field=value ...', was expected.") from None
    return {"method": name, **fields}


def _folder(kind: Kind) -> Path:
    return Path(__file__).parent / f"{kind}s"


@cache
def _plugins(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"excise.{kind}s")}
