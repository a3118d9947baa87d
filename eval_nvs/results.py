"""Results as one JSON value, and as a Markdown table beside the paper's rows."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import numpy as np

from eval_nvs import paper
from eval_nvs.benches import Bench
from eval_nvs.environment import environment
from eval_nvs.protocol import PROTOCOLS, Protocol, Split, digest

FORMAT = 1
AVERAGING = "over the images of a scene, then over scenes"
TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips_vgg": "LPIPS (VGG)", "lpips_alex": "LPIPS (Alex)"}
_DIGITS = {"psnr": 2}


@dataclass(frozen=True)
class SceneScores:
    """One scene: its split, the reader's notes, a row of scores for each target in the split's order, and how its
    pictures were made."""

    split: Split
    notes: tuple[str, ...]
    rows: tuple[dict[str, float], ...]
    seconds: dict[str, float]
    device: str
    environment: dict
    method: dict

    @property
    def mean(self) -> dict[str, float]:
        return _mean(self.rows)


def make(
    bench: Bench,
    asked: Sequence[str],
    subset: bool,
    protocol: Protocol,
    scenes: Sequence[SceneScores],
    failed: dict[str, str],
    metrics: dict[str, dict],
    left_out: dict[str, str],
    allow_missing: bool,
) -> dict:
    """The whole result as JSON holds it.

    `asked` are the scenes of the run in order, `subset` that the user chose them. `mean` is None, and `mean_refused`
    says why, where a scene failed or a scene of the benchmark is missing, unless `allow_missing`.
    """
    place = {scene: i for i, scene in enumerate(asked)}
    scenes = sorted(scenes, key=lambda s: place[s.split.scene])
    missing = [] if subset else list(bench.missing)
    lacking = [f"{len(failed)} failed ({', '.join(failed)})"] * bool(failed)
    lacking += [f"{len(missing)} missing ({', '.join(missing)})"] * bool(missing)
    refused = "; ".join(lacking) if lacking and not allow_missing else "no scene was scored" if not scenes else None
    return {
        "format": FORMAT,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "bench": {"name": bench.name, "licence": bench.licence, "notes": list(bench.notes)},
        "protocol": json_protocol(protocol),
        "method": scenes[0].method if scenes else None,
        "metrics": metrics,
        "left_out": left_out,
        "averaging": AVERAGING,
        "split": digest(s.split for s in scenes),
        "published": len(bench.scenes) + len(bench.missing),
        "subset": subset,
        "missing": missing,
        "failed": failed,
        "mean_refused": refused,
        "mean": None if refused else _mean([s.mean for s in scenes]),
        "mean_over_images": None if refused else _mean([row for s in scenes for row in s.rows]),
        "scenes": [
            {
                "scene": s.split.scene,
                "digest": s.split.digest,
                "inputs": list(s.split.inputs),
                "targets": len(s.rows),
                "notes": list(s.notes),
                **s.mean,
                "seconds": s.seconds,
                "device": s.device,
            }
            for s in scenes
        ],
        "images": [
            {"scene": s.split.scene, "target": target, **row}
            for s in scenes
            for target, row in zip(s.split.targets, s.rows, strict=True)
        ],
        "predicted_with": _distinct([s.environment for s in scenes]),
        "scored_with": environment() | {"machine": platform.machine()},
    }


def table(result: dict) -> str:
    """Markdown: the mean beside the paper's rows, then a row for each scene. Without times: equal runs, equal text."""
    names = [name for name in TITLES if name in result["metrics"]]
    lines = [f"# {result['bench']['name']}, protocol {result['protocol']['name']}", "", f"{headline(result)}.", ""]
    lines += _header(["method", *(TITLES[name] for name in names), "scenes"])
    for method, values in quoted_rows(result).items():
        cells = [format_value(name, values[name]) if name in values else "" for name in names]
        lines.append(_row([f"{method} [quoted: {paper.SOURCE}]", *cells, ""]))
    if result["mean"] is not None:
        cells = [format_value(name, result["mean"][name]) for name in names]
        lines.append(_row([f"**{label(result['method'])}**", *(f"**{c}**" for c in cells), scenes_counted(result)]))
        cells = [format_value(name, result["mean_over_images"][name]) for name in names]
        lines.append(_row(["the same, mean over images", *cells, f"{len(result['images'])} images"]))
    else:
        lines.append(_row([label(result["method"]), *("no mean" for _ in names), scenes_counted(result)]))
    lines.append("")
    lines += [line for note in notes(result) for line in (note, "")]
    lines += _header(["scene", *(TITLES[name] for name in names), "targets"])
    for scene in result["scenes"]:
        lines.append(_row([scene["scene"], *(format_value(n, scene[n]) for n in names), scene["targets"]]))
    return "\n".join(lines) + "\n"


def headline(result: dict) -> str:
    protocol = result["protocol"]
    height, width = protocol["size"]
    views = f"{protocol['inputs']} inputs" if not protocol["indices"] else f"views of {protocol['indices']}"
    return f"{views}, {height}x{width}, cameras {protocol['cameras']}, split {result['split']}"


def scenes_counted(result: dict) -> str:
    """How many scenes the mean is over, of how many."""
    scored, published = len(result["scenes"]), result["published"]
    return str(scored) if scored == published else f"{scored} of {published}"


def label(method: dict | None) -> str:
    """A method in few words."""
    if method is None:
        return "nothing"
    name = {"nearest": "nearest input, copied", "gsplat": f"gsplat, {method.get('seconds')} s a scene"}
    return name.get(method["method"]) or f"{method['method'].replace('ours', 'raysplat')} {method['weights']}"


def format_value(name: str, value: float) -> str:
    return f"{value:.{_DIGITS.get(name, 3)}f}"


def json_protocol(protocol: Protocol) -> dict:
    """The protocol as JSON gives it back: lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(protocol).items()}


def quoted_rows(result: dict) -> dict[str, dict[str, float]]:
    """The paper's figures for this benchmark by method; none under another protocol than the paper's."""
    protocol = result["protocol"]
    if protocol != json_protocol(PROTOCOLS["paper"]):
        return {}
    names = ("psnr", "ssim", f"lpips_{protocol['lpips']}")
    rows = paper.ROWS.get(result["bench"]["name"], {})
    return {method: dict(zip(names, figures, strict=True)) for method, figures in rows.items()}


def notes(result: dict) -> list[str]:
    """What a reader must know beside the figures, a line each."""
    headline_lpips = f"lpips_{result['protocol']['lpips']}"
    lines = [f"Mean {result['averaging']}."]
    if headline_lpips in result["metrics"]:
        lines[0] += f" The protocol's LPIPS is {TITLES[headline_lpips]}."
    if quoted_rows(result):
        lines.append(paper.CAVEAT)
    if result["mean_refused"]:
        lines.append(f"No mean: {result['mean_refused']}. --allow-missing gives that of the others.")
    lines += [f"Missing: {', '.join(result['missing'])}."] * bool(result["missing"])
    lines += [f"Failed: {scene}: {why}" for scene, why in result["failed"].items()]
    lines += [f"{TITLES[name]} left out: {why}." for name, why in result["left_out"].items()]
    return lines + [f"{note}." for note in result["bench"]["notes"]]


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _distinct(values: Sequence[dict]) -> list[dict]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _header(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
