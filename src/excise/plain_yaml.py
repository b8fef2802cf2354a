"""YAML from strangers: plain values, each key once, nothing that stands for more than is written."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["parse_yaml"]

MOST_VALUES, LONGEST_NUMBER = 100_000, 100


class _Plain(yaml.SafeLoader):
    """Plain values, each key once; no tags, and no merge keys, of which a few can stand for more values than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, if it has no tag."""
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise yaml.YAMLError(f"it has the tag {str(event.tag)[:40]!r}, and tags are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if no key is given twice."""
        keys = [str(key.value) for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []:
            raise yaml.YAMLError(f"it gives {twice[0][:40]!r} twice; give it once")
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        """Nothing, if the mapping has no merge key."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it has a merge key (<<), which is not read; write out what it stands for")

    def construct_scalar(self, node: Any) -> Any:
        """The value, if it is no number of a thousand digits."""
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(node.value) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"it has a number of {len(node.value)} characters")
        return super().construct_scalar(node)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: It is no such YAML.
    """
    try:
        content = yaml.load(text, Loader=_Plain)  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, ArithmeticError) as error:  # a date that is none, a number that is too large
        raise yaml.YAMLError(str(error)) from error
    _check_size(content)
    return content


def _check_size(value: Any) -> None:
    """A few references (*name) to references can stand for more values than any memory holds, or for themselves."""
    count, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        waiting += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list | tuple | set) else ()
        if (count := count + 1) + len(waiting) > MOST_VALUES:
            raise yaml.YAMLError(f"with its references it holds more than {MOST_VALUES} values")
