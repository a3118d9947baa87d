"""The table and the page: what they say, that they refuse what they should, and that the page needs nothing else."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from eval_nvs import results, run
from eval_nvs.benches import Bench
from eval_nvs.protocol import PROTOCOLS, Split
from eval_nvs.report import error_map
from eval_nvs.results import SceneScores
from tests.eval_run import arguments, write_scenes

NAMES = ("a <b> & c", "plain")


def scores(scene, psnrs):
    split = Split(scene, ("i0", "i1"), tuple(f"t{i}" for i in range(len(psnrs))), "0" * 16)
    rows = tuple({"psnr": p, "ssim": 0.5, "lpips_vgg": 0.25} for p in psnrs)
    method = {"method": "ours", "weights": "giant"}
    seconds = {"load": 0.1, "reconstruct": 1.0, "render": 0.1}
    return SceneScores(split, ("read from here",), rows, seconds, "a GPU", {"torch": "2"}, method)


def made(scenes, missing=(), failed=None, protocol="paper", allow_missing=False, subset=False):
    bench = Bench("dl3dv", None, tuple(s.split.scene for s in scenes), missing, "terms", ("a note",))
    asked = (*bench.scenes, *(failed or {}))
    about = {name: {} for name in ("psnr", "ssim", "lpips_vgg")}
    return results.make(
        bench, asked, subset, PROTOCOLS[protocol], scenes, failed or {}, about, {"lpips_alex": "no file"}, allow_missing
    )


def test_the_mean_is_over_scenes_beside_the_quoted_rows():
    text = results.table(made([scores("one", [20, 22]), scores("two", [30])]))
    assert "| **raysplat giant** | **25.50** | **0.500** | **0.250** | 2 |" in text
    assert "| the same, mean over images | 24.00 | 0.500 | 0.250 | 3 images |" in text
    assert "| DA3 [quoted: Table 5, arXiv 2511.10647] | 21.33 | 0.711 | 0.241 |  |" in text
    assert "Quoted rows are the paper's own" in text and "LPIPS (Alex) left out: no file." in text
    assert text.index("| one | 21.00") < text.index("| two | 30.00")


def test_no_quoted_rows_under_another_protocol():
    text = results.table(made([scores("one", [20])], protocol="paper-aligned"))
    assert "quoted" not in text and "cameras aligned" in text


@pytest.mark.parametrize("lack", [{"missing": ("two",)}, {"failed": {"two": "is broken"}}])
def test_a_mean_over_fewer_scenes_is_refused_unless_asked(lack):
    refused = made([scores("one", [20])], **lack)
    assert refused["mean"] is None and refused["mean_over_images"] is None and "two" in refused["mean_refused"]
    assert "No mean: 1" in results.table(refused) and "| one | 20.00" in results.table(refused)
    allowed = made([scores("one", [20])], allow_missing=True, **lack)
    assert allowed["mean"]["psnr"] == 20 and "two" in results.table(allowed)


def test_a_chosen_subset_counts_its_scenes():
    result = made([scores("one", [20])], missing=("two", "three"), subset=True)
    assert result["mean"]["psnr"] == 20 and result["missing"] == []
    assert "| 1 of 3 |" in results.table(result)


def test_error_map_by_hand():
    photo = np.zeros((2, 2, 3), np.uint8)
    render = photo.copy()
    render[0, 1], render[1, 0] = 255, (191, 0, 0)
    colors = error_map(render, photo)
    assert colors[0, 0].tolist() == [0, 0, 4] and colors[0, 1].tolist() == [252, 255, 164]
    np.testing.assert_allclose(colors[1, 0], colors[0, 1], atol=3)  # 191 / 3 / 255 is just below 0.25


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.pictures, self.links, self.sliders, self.anchors, self.tags = [], [], 0, set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.anchors.add(values.get("id"))
        if tag == "img":
            self.pictures.append(unquote(values["src"]))
        if tag == "a":
            self.links.append(unquote(values["href"]))
        self.sliders += tag == "input" and values["type"] == "range"


def test_the_page_needs_nothing_but_the_files_beside_it(tmp_path):
    write_scenes(tmp_path / "scenes", NAMES)
    out = tmp_path / "out"
    assert run.main(arguments(tmp_path / "scenes", out)) == 0
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.pictures and all((out / path).is_file() for path in page.pictures)
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert page.sliders == 8  # two targets a scene, each also among the worst or best
    assert "a &lt;b&gt; &amp; c" in text and "b" in page.tags and "<b> &" not in text
    assert {link.removeprefix("#") for link in page.links} == page.anchors - {None}
    inputs = {path for path in page.pictures if path.endswith("-input.jpg")}
    assert len(inputs) == 24
    assert text.index("Worst and best images") < text.index("Scenes, worst first")

    strays = sorted(p.name for p in out.iterdir())
    assert strays == [*NAMES, "report-files", "report.html", "results.json", "table.md"]
