"""Cutting into transformers of any architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from excise.errors import ConfigError
from excise.layers import lowest_layers
from excise.victim import Victim
from toy import ARCHITECTURES, toy_victim


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lowest_layers_stay_as_they_are(architecture: str, tmp_path: Path) -> None:
    victim = toy_victim(architecture)
    shallow = lowest_layers(victim, 1)
    assert shallow.model.config.num_hidden_layers == 1
    states = shallow.model.state_dict()
    assert all((value == victim.model.state_dict()[name]).all() for name, value in states.items())
    assert len(states) < len(victim.model.state_dict())
    texts = ["the film", "a town"]
    shallow.save(tmp_path)
    opened = replace(Victim.load(tmp_path, precision="fp32", device="cpu"), tokenizer=shallow.tokenizer)
    assert opened.logits(texts).equal(shallow.logits(texts))
    assert lowest_layers(victim, None) is victim
    with pytest.raises(ConfigError, match="has 2"):
        lowest_layers(victim, 3)
