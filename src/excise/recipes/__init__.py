"""The recipes and grids that excise comes with."""

from __future__ import annotations

from pathlib import Path

from excise.errors import ConfigError, nearest

__all__ = ["find_recipe", "shipped_recipes"]


def shipped_recipes(folder: str = ".") -> dict[str, Path]:
    """The recipes in the package, or in one of its folders, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / folder).glob("*.yaml"))}


def find_recipe(name: str, *, folder: str = ".") -> Path:
    """The file of that path, or of that name among those that excise comes with; a folder goes after both.

    Raises:
        ConfigError: There is neither.
    """
    path, shipped = Path(name), shipped_recipes(folder)
    if path.suffix or path.is_file() or (path.exists() and name not in shipped):
        return path
    if name not in shipped:
        kind = {"grids": "grid", "zoos": "zoo"}.get(folder, "recipe")
        raise ConfigError(f"There is no {kind} {name!r}; excise comes with {', '.join(shipped)}.{nearest(name, shipped)}")
    return shipped[name]
