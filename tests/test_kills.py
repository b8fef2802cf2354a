"""The short form of tests/faults/kill.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.kill import campaign


@pytest.mark.parametrize("name", ["repair virtual_tokens", "bench"])
def test_a_kill_at_any_moment_costs_no_bit(name: str, tmp_path: Path) -> None:
    assert campaign(tmp_path, kills=1, seed=1, names=[name])["ends compared"]
