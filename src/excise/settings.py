"""Settings: frozen dataclasses that check their ranges, and are read strictly from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import annotated_types

from excise.errors import ConfigError, nearest

__all__ = ["Settings", "changed", "validate"]

T = TypeVar("T")


class Settings:
    """A frozen dataclass that checks the ranges written in its annotations (`Annotated[float, Ge(0)]`) when it is made."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "arbitrary_types_allowed": True}  # reading from outside is strict; fields may be methods

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            choices = get_args(hints[field.name]) if get_origin(hints[field.name]) is Literal else (value,)
            if value not in choices:
                raise ConfigError(f"{type(self).__name__}: {field.name} = {value!r}, but it must be one of {', '.join(map(repr, choices))}.")
            for rule in _rules(hints[field.name]):
                try:
                    allowed = value is None or _allowed(value, rule)
                except TypeError:
                    allowed = False  # a string where a number belongs
                if not allowed:
                    raise ConfigError(f"{type(self).__name__}: {field.name} = {value!r}, but it must be {_in_words(rule)}.")


def _rules(hint: Any) -> Iterator[object]:
    yield from getattr(hint, "__metadata__", ())
    for part in getattr(hint, "__args__", ()):  # Annotated[int, Ge(1)] | None
        yield from getattr(part, "__metadata__", ())


def _allowed(value: object, rule: object) -> bool:
    match rule:
        case annotated_types.Ge(ge=bound):
            return value >= bound  # type: ignore[operator]
        case annotated_types.Gt(gt=bound):
            return value > bound  # type: ignore[operator]
        case annotated_types.Le(le=bound):
            return value <= bound  # type: ignore[operator]
        case annotated_types.Lt(lt=bound):
            return value < bound  # type: ignore[operator]
        case annotated_types.Interval():
            return all(_allowed(value, part) for part in rule)
        case annotated_types.MinLen(min_length=bound):
            return len(value) >= bound  # type: ignore[arg-type]
    return True


def _in_words(rule: object) -> str:
    match rule:
        case annotated_types.Ge(ge=bound):
            return f"at least {bound}"
        case annotated_types.Gt(gt=bound):
            return f"greater than {bound}"
        case annotated_types.Le(le=bound):
            return f"at most {bound}"
        case annotated_types.Lt(lt=bound):
            return f"less than {bound}"
        case annotated_types.Interval():
            return " and ".join(_in_words(part) for part in rule)
        case annotated_types.MinLen(min_length=bound):
            return f"of length {bound} or more"
    return str(rule)


def changed(settings: T, changes: Mapping[str, Any]) -> T:
    """A copy with other values; a mapping changes the settings that stand in its place.

    Raises:
        TypeError: There is no such setting.
    """
    values = {name: changed(getattr(settings, name, None), value) if isinstance(value, Mapping) else value for name, value in changes.items()}
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def validate(cls: type[T], fields: Mapping[str, Any], where: str) -> T:
    """An instance of a settings dataclass from plain data, strictly.

    Raises:
        ConfigError: A field is unknown, missing or of the wrong type; the message names the place and the nearest known field.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(fields, Mapping):
        raise ConfigError(f"{where}: settings by name were expected (given: {fields!r}).")
    try:
        return TypeAdapter(cls).validate_python(dict(fields))
    except ValidationError as error:
        unknown = ("unexpected_keyword_argument", "extra_forbidden")
        first = min(error.errors(), key=lambda e: e["type"] not in unknown)  # a misspelt setting leaves the right one missing
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] in unknown:
            raise ConfigError(f"{where}: there is no setting {path!r}.{nearest(str(first['loc'][-1]), _fields(cls, first['loc'][:-1]))}") from error
        raise ConfigError(f"{where}: {path}: {first['msg']} (given: {first['input']!r}).") from error


def _fields(cls: Any, path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        hint = get_type_hints(cls).get(str(part))
        if not dataclasses.is_dataclass(hint):
            return []
        cls = hint
    return [f.name for f in dataclasses.fields(cls)]
