"""Every preset has the parameters of the published checkpoint, by name, shape and number."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from geometry.presets import PRESETS
from splat.checkpoint import MODEL_NAMES, PREFIX, shared_names
from splat.model import KINDS
from tests.tiny_networks import SHARED

DIGESTS = json.loads((Path(__file__).parent / "data" / "da3_keys.json").read_text())["networks"]


def key_lines(name: str) -> list[str]:
    """Sorted lines "key (shape)" of a preset, with " = first key" behind a repeated tensor."""
    with torch.device("meta"):
        model = KINDS[type(PRESETS[name])](PRESETS[name])
    shared = shared_names(model)
    same = {key: f" = {PREFIX}{shared[key]}" if key in shared else "" for key in model.state_dict()}
    return sorted(f"{PREFIX}{key} {tuple(t.shape)}{same[key]}" for key, t in model.state_dict().items())


def official_lines(name: str) -> list[str]:
    file = next(n for n, preset in MODEL_NAMES.items() if preset == name).replace("-", "_")
    path = SHARED / "golden" / "keys" / f"{file}.txt"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the repository (RAYSPLAT_SHARED)")
    lines = []
    for line in path.read_text().splitlines():
        key, shape, *alias = line.split("\t")
        lines.append(f"{key} {shape}" + (f" = {alias[0].split()[1]}" if alias else ""))
    return sorted(lines)


@pytest.mark.parametrize("name", DIGESTS)
def test_parameters_are_the_published_ones(name):
    lines = key_lines(name)
    stored = [line for line in lines if " = " not in line]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in KINDS[type(PRESETS[name])](PRESETS[name]).parameters())
    assert {
        "entries": len(lines),
        "stored": len(stored),
        "parameters": parameters,
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    } == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_parameters_in_full(name):
    ours, theirs = set(key_lines(name)), set(official_lines(name))
    assert not ours ^ theirs, f"only ours: {sorted(ours - theirs)}; only official: {sorted(theirs - ours)}"


def test_every_published_network_has_a_preset():
    assert set(DIGESTS) == set(MODEL_NAMES.values()) == set(PRESETS) - {"nano"}
