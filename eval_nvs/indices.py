"""Index files of others: which views of a scene are inputs and targets, by number.

{"<scene>": {"context": [0, 13, ...], "target": [1, 2, ...]}, ...} is the form of pixelSplat, DepthSplat, PF3plat and
ZipSplat; FLARE and WorldMirror write "input" for "context". A number is a place in the scene's images sorted by name,
from 0: in DL3DV that is the place in `frames` of transforms.json, by which DepthSplat counts, and not the number in the
file name, which has gaps. Names of images are accepted in place of numbers. A scene that is null is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval_nvs.benches import Bench
from eval_nvs.protocol import Protocol, Split, make_split
from geometry.scene import Scene

INPUT_KEYS = ("context", "input")


def read_indices(path: Path, bench: Bench, protocol: Protocol, scenes: Sequence[str] | None = None) -> dict[str, Split]:
    """Scene id to split, for the scenes of `bench` (or those of `scenes`) that the file names; each is opened.

    The digests are those of `indexed(protocol, path)`. Raises OSError or ValueError with one line that names the scene
    and what is wrong with its entry, also when the file has none of the scenes.
    """
    table, protocol = _read(path), indexed(protocol, path)
    entries = {scene: _entry(table, scene) for scene in scenes or bench.scenes}
    found = {scene: entry for scene, entry in entries.items() if entry is not None}
    if not found:
        raise ValueError(f"{path}: none of the {len(entries)} scenes asked for is in this index file")
    return {scene: _split(path, bench.open(scene), entry, protocol) for scene, entry in found.items()}


def indexed(protocol: Protocol, path: Path) -> Protocol:
    """The protocol with its views chosen by the file at `path`, unless they are already: what to save with results."""
    name = Path(path).name
    mark = f"{name} {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"
    same = protocol.indices == mark
    return protocol if same else replace(protocol, name=f"{protocol.name}, views of {name}", indices=mark)


def _read(path: Path) -> dict:
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected an object of scenes, got a {type(table).__name__}")
    return table


def _entry(table: dict, scene: str) -> dict | None:
    """The entry of a scene; hashes may be cut to 16 digits or more on either side."""
    if scene in table:
        return table[scene]
    same = [key for key in table if min(len(key), len(scene)) >= 16 and key[: len(scene)] == scene[: len(key)]]
    return table[same[0]] if len(same) == 1 else None


def _split(path: Path, scene: Scene, entry: dict, protocol: Protocol) -> Split:
    where = f"{path}: {scene.name}"
    key = next((k for k in INPUT_KEYS if isinstance(entry, dict) and k in entry), None)
    if key is None or "target" not in entry:
        raise ValueError(f"{where}: expected lists 'context' (or 'input') and 'target'")
    inputs, targets = (_names(where, k, entry[k], scene) for k in (key, "target"))
    return make_split(scene, inputs, targets, protocol)


def _names(where: str, key: str, chosen, scene: Scene) -> list[str]:
    """Image names in the file's own order."""
    if not isinstance(chosen, list) or not chosen or len(set(map(str, chosen))) < len(chosen):
        raise ValueError(f"{where}: '{key}' must be a list of images, each once")
    names = sorted(scene.names)
    for item in chosen:
        if isinstance(item, str) and item not in scene.names:
            raise ValueError(f"{where}: '{key}' has {item}, which is no image of this scene")
        if not isinstance(item, str) and (type(item) is not int or not 0 <= item < len(names)):
            raise ValueError(f"{where}: '{key}' has {item}, but the {len(names)} images are counted from 0")
    return [item if isinstance(item, str) else names[item] for item in chosen]
