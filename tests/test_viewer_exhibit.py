"""What the viewer opens: reconstructions, files of Gaussians, photos; whole, damaged, and broken."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from splat.gaussians import join
from splat.outputs import save as save_reconstruction
from splat.ply import write_ply
from tests import viewer_scene
from tests.viewer_scene import wall
from viewer.cameras_panel import point_cloud
from viewer.exhibit import from_reconstruction, make_exhibit, read_exhibit, write_exhibit
from viewer.look import Look, browser_splats, picture, rendered, shown, thin
from viewer.opening import Photos, open_thing


@pytest.fixture(scope="module")
def reconstruction():
    return viewer_scene.reconstruction()


@pytest.fixture(scope="module")
def exhibit():
    return viewer_scene.exhibit()


def test_a_reconstruction_folder_gives_everything_back(tmp_path, reconstruction):
    save_reconstruction(reconstruction, tmp_path / "out")
    opened = open_thing(tmp_path / "out")
    assert opened.name == "out" and opened.names == ("a.jpg", "b.jpg", "c.jpg") and opened.notes == ()
    assert float((opened.images - reconstruction.images).abs().max()) < 0.5 / 255 + 1e-6
    assert torch.allclose(opened.depth, reconstruction.depth, rtol=1e-3, atol=1e-3)
    assert torch.allclose(opened.confidence, reconstruction.confidence, atol=1e-4)
    assert torch.allclose(opened.cameras.w2c, reconstruction.cameras.w2c, atol=1e-6)


def test_a_network_without_confidence_leaves_none(tmp_path, reconstruction):
    unsure = replace(reconstruction, confidence=None)
    save_reconstruction(unsure, tmp_path / "out")
    for opened in (open_thing(tmp_path / "out"), from_reconstruction("x", unsure)):
        assert opened.confidence is None and opened.splat_confidence is None and opened.images is not None
        assert not any("confidence" in note for note in opened.notes)
        write_exhibit(tmp_path / "x.safetensors", opened)
        assert read_exhibit(tmp_path / "x.safetensors").confidence is None
        assert shown(opened, Look(confidence=0.9)).count == opened.gaussians.count
        assert len(point_cloud(opened, "coloured by confidence", 0.9)[0]) > 0


def test_a_damaged_part_costs_that_part_only(tmp_path, reconstruction):
    save_reconstruction(reconstruction, tmp_path / "out")
    (tmp_path / "out" / "images" / "c.png").write_bytes(b"no picture")
    (tmp_path / "out" / "depth" / "b.png").unlink()
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / "out" / "confidence" / "a.png")
    opened = open_thing(tmp_path / "out")
    assert opened.images is None and opened.depth is None and opened.confidence is None and len(opened.notes) == 3
    for note, named in zip(opened.notes, ("images/c.png", "depth/b.png", "confidence/"), strict=True):
        assert named in note


def test_parts_that_are_not_there_are_not_missed(tmp_path, reconstruction):
    save_reconstruction(reconstruction, tmp_path / "out")
    for part in ("images", "depth", "confidence"):
        shutil.rmtree(tmp_path / "out" / part)
    opened = open_thing(tmp_path / "out")
    assert opened.images is None and opened.depth is None and opened.notes == () and not opened.guessed


def test_a_bare_ply_is_seen_whole_from_a_guessed_camera(tmp_path):
    write_ply(tmp_path / "wall.ply", wall())
    opened = open_thing(tmp_path / "wall.ply")
    assert opened.guessed and "guess" in opened.notes[0]
    seen = rendered(opened, opened.gaussians, opened.cameras, Look())
    assert 0.2 < float(seen.alpha.mean()) < 0.95


def test_photos_are_listed_and_nonsense_is_refused(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "a.png")
    assert open_thing(folder) == Photos(folder, "photos", 1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_thing(tmp_path / "nowhere")
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    with pytest.raises(ValueError, match="bad.ply"):
        open_thing(tmp_path / "bad.ply")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no photos"):
        open_thing(empty)


def test_an_exhibit_survives_the_way_from_a_job(tmp_path, exhibit):
    write_exhibit(tmp_path / "x.safetensors", exhibit)
    back = read_exhibit(tmp_path / "x.safetensors")
    assert (back.name, back.names, back.notes) == (exhibit.name, exhibit.names, exhibit.notes)
    for name in ("images", "depth", "confidence"):
        assert torch.equal(getattr(back, name), getattr(exhibit, name))
    assert torch.equal(back.gaussians.sh, exhibit.gaussians.sh) and back.distance == exhibit.distance
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(OSError, match="x.safetensors"):
        read_exhibit(tmp_path / "x.safetensors")


def with_backdrop(reconstruction, count=40):
    """As from a network with a Gaussian a pixel and a backdrop behind them."""
    pixels = reconstruction.depth.numel()
    gaussians = wall(70)
    parts = [gaussians.select(slice(0, pixels)), gaussians.select(slice(-count, None))]
    return replace(reconstruction, gaussians=join(*parts), backdrop=count)


def test_a_backdrop_can_be_hidden_wherever_a_scene_comes_from(tmp_path, reconstruction):
    made = with_backdrop(reconstruction)
    save_reconstruction(made, tmp_path / "out")
    write_exhibit(tmp_path / "x.safetensors", from_reconstruction("x", made))
    for opened in (open_thing(tmp_path / "out"), read_exhibit(tmp_path / "x.safetensors")):
        assert opened.backdrop == 40
        bare = shown(opened, Look(backdrop=False))
        assert shown(opened, Look()).count == bare.count + 40 == made.gaussians.count
        assert torch.equal(bare.means, opened.gaussians.means[:-40])
        # What the network doubts is hidden pixel by pixel, and the backdrop is not doubted.
        sure = shown(opened, Look(confidence=0.5))
        assert abs(sure.count - 40 - made.depth.numel() // 2) < 2
        assert torch.equal(sure.means[-40:], opened.gaussians.means[-40:])
    save_reconstruction(reconstruction, tmp_path / "bare")
    bare = open_thing(tmp_path / "bare")
    assert bare.backdrop == 0 and shown(bare, Look(backdrop=False)).count == bare.gaussians.count


def test_broken_scenes_are_refused_or_mended(tmp_path):
    none = wall(2).select(torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no Gaussians$"):
        make_exhibit("empty", none, None)
    write_ply(tmp_path / "empty.ply", none)
    with pytest.raises(ValueError, match="no Gaussians"):
        open_thing(tmp_path / "empty.ply")
    gaussians = wall(4)
    broken = replace(gaussians, means=gaussians.means.clone(), sh=gaussians.sh.clone())
    broken.means[:5, 0], broken.sh[5:7] = float("nan"), float("inf")
    half = make_exhibit("half", broken, None)
    assert half.gaussians.count == 9 and "7 Gaussians are not finite" in half.notes[0] and half.distance > 0
    broken.means[:] = float("nan")
    with pytest.raises(ValueError, match="that are finite"):
        make_exhibit("broken", broken, None)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_one_gaussian_is_a_scene(size):
    gaussians = wall(2).select(torch.tensor([True, False, False, False]))
    one = make_exhibit("one", replace(gaussians, means=size * gaussians.means, scales=size * gaussians.scales), None)
    for kind in ("color", "depth", "alpha"):
        assert picture(one, one.gaussians, one.cameras, Look(kind=kind)).shape == (*one.cameras.size, 3)
    splats = browser_splats(thin(one.gaussians, 1), one.cameras.centers[0], one.browser_scale)
    assert np.isfinite(splats.centers).all() and np.isfinite(splats.covariances).all()
