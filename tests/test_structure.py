"""Rules of the source tree that no other tool checks."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import excise
from excise import registry

ROOT = Path(__file__).parents[1]
SOURCE = Path(excise.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])

FILE_LINES, FUNCTION_LINES = 400, 60
PRINTS = {"cli.py"}
METHODS = {f"{kind}s" for kind in registry.BASES}


def test_imports_go_one_way() -> None:
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if tool is None:
        pytest.skip("needs import-linter")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@every_file
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            code = node.body[ast.get_docstring(node) is not None :]
            lines = (node.end_lineno or 0) - code[0].lineno + 1 if code else 0
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines below its docstring"


@every_file
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert path.name in PRINTS or not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)


@every_file
def test_global_generators_are_left_alone(path: Path) -> None:
    """All randomness comes from a seed; only the model's own dropout and initialisation draw from torch, inside fork_rng."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(value=ast.Name(id="random"), attr=name) if path.parent.name in METHODS:
                assert name in ("randint", "choice", "choices", "sample", "shuffle", "random", "gauss", "uniform"), f"random.{name}"
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="np"), attr="random"), attr=name):
                assert name in ("default_rng", "Generator"), f"np.random.{name}"
            case ast.ImportFrom(module="random", names=names):
                assert {alias.name for alias in names} == {"Random"}
            case ast.Import(names=names):
                assert path.name == "seeds.py" or "random" not in {alias.name for alias in names}


UNSAFE = {"from_pretrained", "from_config", "load_checkpoint", "unsafe_load", "full_load"}
ONLY_THERE = {"checkpoint.py": {"from_pretrained", "from_config"}}
CHOSEN_LOADER = "plain_yaml.py"
"""Gives yaml.load a loader that makes plain data only; tests/test_recipe.py holds it to that."""


@every_file
def test_only_the_front_door_opens_models_and_nothing_unpickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(attr=name) if name in UNSAFE - ONLY_THERE.get(path.name, set()):
                pytest.fail(f"{name} in line {node.lineno}: models are opened by excise.checkpoint")
            case ast.Attribute(value=ast.Name(id="torch" | "yaml" | "joblib" | "marshal" | "shelve"), attr="load") if path.name != CHOSEN_LOADER:
                pytest.fail(f"line {node.lineno} may unpickle or make objects")
            case ast.Import(names=names):
                assert not {alias.name for alias in names} & {"pickle", "dill", "joblib", "marshal", "shelve"}
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                pytest.fail(f"line {node.lineno} runs text as code")


@every_file
def test_modules_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text))
