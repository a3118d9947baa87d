"""The report: one page that opens from disk, its pictures beside it; no network, no library.

report.html refers to the stored renders and to report-files/<scene>/: photos of the targets shown, error maps and small
inputs. Photos are JPEG there, for the eye; scores are of the lossless renders and the photos themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from eval_nvs import predictions
from eval_nvs.predictions import scene_folder
from eval_nvs.protocol import Split, load
from eval_nvs.report_page import CARD, PAGE, SCENE
from eval_nvs.results import TITLES, format_value, headline, label, notes, quoted_rows, scenes_counted
from geometry.images import to_uint8
from geometry.scene import Scene
from splat.atomic import whole_file, whole_folder
from splat.outputs import file_names

FILES = "report-files"
SHOWN = 2  # of a scene, this many of the worst targets and as many of the best
EXTREMES = 4  # of the whole run, likewise
ERROR_RANGE = 0.25  # mean absolute error over the channels at which the map is brightest
_STRIP_HEIGHT = 96
# Black over purple and orange to pale yellow, at equal steps.
_RAMP = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)


def write_report(result: dict, open_scene: Callable[[str], tuple[Scene, Split]], out: Path, name: str) -> None:
    """Write `name` and its pictures into `out` for the `result` of `eval_nvs.results.make`, the worst first."""
    rows: dict[str, list[dict]] = {}
    for row in result["images"]:
        rows.setdefault(row["scene"], []).append(row)
    ranked = sorted(result["images"], key=lambda row: row["psnr"])
    extremes = min(EXTREMES, (len(ranked) + 1) // 2)  # of few images half are the worst
    worst = ranked[:extremes]
    best = [row for row in ranked[::-1][:extremes] if row not in worst]
    cards: dict[tuple[str, str], str] = {}
    sections = []
    with whole_folder(out / FILES, _entries(out / FILES)) as files:
        worst_first = sorted(result["scenes"], key=lambda scene: scene["psnr"])
        for scene in tqdm(worst_first, "report", unit="scene"):
            own = sorted(rows[scene["scene"]], key=lambda row: row["psnr"])
            typical = [r for i, r in enumerate(own) if i < SHOWN or i >= len(own) - SHOWN]
            shown = typical + [r for r in (*worst, *best) if r["scene"] == scene["scene"] and r not in typical]
            drawn, inputs = _draw(open_scene, scene["scene"], [r["target"] for r in shown], out, files)
            cards |= {(scene["scene"], r["target"]): _card(result, r, *drawn[r["target"]]) for r in shown}
            of_scene = [cards[scene["scene"], r["target"]] for r in typical]
            sections.append(_section(result, scene, own, of_scene, inputs))
        page = PAGE.substitute(
            title=escape(f"{result['bench']['name']}, {result['protocol']['name']}, {label(result['method'])}"),
            facts=escape(headline(result)),
            summary=_summary(result),
            notes="".join(f"<p class=note>{escape(note)}</p>" for note in notes(result)),
            worst="\n".join(cards[r["scene"], r["target"]] for r in worst),
            best="\n".join(cards[r["scene"], r["target"]] for r in best),
            contents=_contents_table(result, worst_first),
            scenes="\n".join(sections),
            range=ERROR_RANGE,
            made=escape(result["made"]),
        )
    with whole_file(out / name) as temporary:
        temporary.write_text(page, encoding="utf-8")


def error_map(render: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """uint8 colours [H, W, 3] of the mean absolute error of uint8 pictures: black 0, pale yellow ERROR_RANGE."""
    error = np.abs(render.astype(float) - photo).mean(-1) / 255
    place = np.clip(error / ERROR_RANGE, 0, 1) * (len(_RAMP) - 1)
    return np.stack([np.interp(place, range(len(_RAMP)), _RAMP[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def _draw(
    open_scene: Callable, scene: str, targets: list[str], out: Path, files: Path
) -> tuple[dict[str, tuple[str, str, str]], list[str]]:
    """Write the pictures of one scene: addresses (photo, render, error) by target, and those of the inputs."""
    opened, split = open_scene(scene)
    folder = scene_folder(out, scene)
    stored = predictions.read(folder)
    size = tuple(stored.settings["protocol"]["size"])
    photos = to_uint8(load(opened, targets, size)[0])
    renders = to_uint8(predictions.images(folder, stored, tuple(targets)))
    inputs = to_uint8(load(opened, split.inputs, (_STRIP_HEIGHT, round(_STRIP_HEIGHT * size[1] / size[0])))[0])
    (files / folder.name).mkdir()
    drawn = {}
    for target, file, photo, render in zip(targets, file_names(targets), photos, renders, strict=True):
        Image.fromarray(photo).save(files / folder.name / f"{file}-photo.jpg", quality=92)
        Image.fromarray(error_map(render, photo)).save(files / folder.name / f"{file}-error.png")
        place = f"{FILES}/{folder.name}/{file}"
        drawn[target] = (f"{place}-photo.jpg", f"{folder.name}/{stored.files[target]}", f"{place}-error.png")
    strip = []
    for file, picture in zip(file_names(split.inputs), inputs, strict=True):
        strip.append(f"{FILES}/{folder.name}/{file}-input.jpg")
        Image.fromarray(picture).save(files / folder.name / f"{file}-input.jpg", quality=88)
    return drawn, strip


def _card(result: dict, row: dict, photo: str, render: str, error: str) -> str:
    height, width = result["protocol"]["size"]
    scores = " · ".join(f"{title} {format_value(name, row[name])}" for name, title in TITLES.items() if name in row)
    return CARD.substitute(
        scene=escape(row["scene"][:24]),
        target=escape(row["target"]),
        scores=escape(scores),
        ratio=f"{width} / {height}",
        photo=quote(photo),
        render=quote(render),
        error=quote(error),
    )


def _section(result: dict, scene: dict, rows: list[dict], cards: list[str], inputs: list[str]) -> str:
    names = [name for name in TITLES if name in result["metrics"]]
    seconds = scene["seconds"]
    return SCENE.substitute(
        scene=escape(scene["scene"]),
        anchor=quote(scene["scene"], safe=""),
        targets=len(rows),
        scores=_cells(scene, names),
        times=f"reconstructed in {seconds['reconstruct']:.2f} s, {len(rows)} targets in {seconds['render']:.2f} s",
        notes="".join(f"<p class=note>{escape(note)}</p>" for note in scene["notes"]),
        inputs="".join(
            f'<img loading=lazy src="{quote(path)}" alt="input" title="{escape(name)}">'
            for path, name in zip(inputs, scene["inputs"], strict=True)
        ),
        count=len(inputs),
        cards="\n".join(cards),
        head="".join(f"<th>{escape(TITLES[name])}</th>" for name in names),
        rows="".join(
            f"<tr><td>{escape(row['target'])}</td>"
            + "".join(f"<td>{format_value(name, row[name])}</td>" for name in names)
            + "</tr>"
            for row in rows
        ),
    )


def _cells(values: dict, names: list[str]) -> str:
    return "".join(f"<span><b>{format_value(n, values[n])}</b> {escape(TITLES[n])}</span>" for n in names)


def _summary(result: dict) -> str:
    """The table of means: this run's beside the paper's, where it is the paper's protocol."""
    names = [name for name in TITLES if name in result["metrics"]]
    lines = []
    for method, values in quoted_rows(result).items():
        cells = "".join(f"<td>{format_value(n, values[n]) if n in values else ''}</td>" for n in names)
        lines.append(f"<tr class=quoted><td>{escape(method)} <i>quoted</i></td>{cells}<td></td></tr>")
    if result["mean"] is not None:
        cells = "".join(f"<td>{format_value(n, result['mean'][n])}</td>" for n in names)
        lines.append(f"<tr><td>{escape(label(result['method']))}</td>{cells}<td>{scenes_counted(result)}</td></tr>")
    head = "".join(f"<th>{escape(TITLES[n])}</th>" for n in names)
    return f"<table class=summary><tr><th>method</th>{head}<th>scenes</th></tr>{''.join(lines)}</table>"


def _contents_table(result: dict, scenes: list[dict]) -> str:
    """The scenes and their means, linked to their sections."""
    names = [name for name in TITLES if name in result["metrics"]]
    head = "".join(f"<th>{escape(TITLES[n])}</th>" for n in names)
    rows = "".join(
        f'<tr><td><a href="#{quote(quote(s["scene"], safe=""))}">{escape(s["scene"])}</a></td>'
        + "".join(f"<td>{format_value(n, s[n])}</td>" for n in names)
        + f"<td>{s['targets']}</td></tr>"
        for s in scenes
    )
    return f"<table><tr><th>scene</th>{head}<th>targets</th></tr>{rows}</table>"


def _entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
