"""The viewer without a browser: what it opens, what it draws, cameras there and back, paths, comparisons."""

import io
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from geometry.cameras import Cameras, invert_rigid
from geometry.presets import PRESETS
from splat.cameras_json import write_cameras
from splat.checkpoint import config_text
from splat.gaussians import Gaussians
from splat.model import GaussianModel
from splat.outputs import psnr
from splat.outputs import save as save_reconstruction
from splat.ply import write_ply
from splat.reconstruct import Reconstruction
from tests.synthetic_photos import look_at
from viewer import camera_keys
from viewer.browser_camera import cameras_from_text, cameras_text, nearest_view, on_canvas, to_cameras, to_pose
from viewer.camera_keys import CameraPath
from viewer.cameras_panel import point_cloud
from viewer.compare import combine, error_map, error_table, paste, view_error
from viewer.evaluation import scores_table
from viewer.evaluation_panel import read_parts
from viewer.exhibit import from_reconstruction, make_exhibit, read_exhibit, write_exhibit
from viewer.look import Look, browser_splats, picture, rendered, shown, thin
from viewer.opening import Photos, open_thing
from viewer.sheet import sheet
from viewer.training_run import TrainingRun
from viewer.view_panel import png_bytes

SIZE = (30, 40)


def wall(count=64, degree=1, distance=4.0) -> Gaussians:
    """A wall of `count` x `count` splats at z = distance, its colours a pattern."""
    y, x = np.mgrid[:count, :count] / (count - 1) * 4 - 2
    means = torch.tensor(np.stack([x, 0.75 * y, np.full_like(x, distance)], -1).reshape(-1, 3)).float()
    sh = torch.zeros(len(means), (degree + 1) ** 2, 3)
    sh[:, 0] = torch.tensor(np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(3 * x + 2 * y)], -1)).reshape(-1, 3)
    if degree:
        sh[:, 1:] = 0.1 * torch.randn(sh[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    quats = torch.tensor([1.0, 0, 0, 0]).expand(len(means), 4)
    return Gaussians(means, torch.full_like(means, 2.5 / count), quats, torch.full((len(means),), 0.8), sh)


def ring(views=3) -> Cameras:
    centers = [(0.5 * math.sin(k), -0.2 * k, -0.3 * k) for k in range(views)]
    w2c = torch.tensor(np.stack([look_at(c, (0.1, 0, 4)) for c in centers])).float()
    K = torch.tensor([[36.0, 0, 21], [0, 35, 14], [0, 0, 1]]).expand(views, 3, 3)
    return Cameras(w2c, K.contiguous(), SIZE)


@pytest.fixture(scope="module")
def reconstruction() -> Reconstruction:
    gaussians, cameras = wall(), ring()
    exhibit = make_exhibit("x", gaussians, cameras, "abc")
    seen = [rendered(exhibit, gaussians, cameras[i : i + 1], Look(background=(0, 0, 0))) for i in range(3)]
    return Reconstruction(
        gaussians=gaussians,
        cameras=cameras,
        depth=torch.cat([s.depth for s in seen]),
        confidence=torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1)),
        images=torch.cat([s.color for s in seen]).movedim(-1, 1).clamp(0, 1),
        names=("a.jpg", "b.jpg", "c.jpg"),
        weights="nano (Apache-2.0)",
    )


@pytest.fixture(scope="module")
def exhibit(reconstruction):
    return from_reconstruction("wall", reconstruction)


# --- opening ---------------------------------------------------------------------------------------------------------


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


# --- looking ---------------------------------------------------------------------------------------------------------


def test_thresholds_hide_what_they_say(exhibit):
    gaussians = exhibit.gaussians
    opacities = torch.linspace(0, 1, gaussians.count)
    faded = make_exhibit(
        "f", Gaussians(*[*list(vars(gaussians).values())[:3], opacities, gaussians.sh]), exhibit.cameras
    )
    assert shown(faded, Look(opacity=0.25)).opacities.min() >= 0.25
    assert abs(shown(faded, Look(opacity=0.25)).count - 0.75 * gaussians.count) < 2
    assert shown(faded, Look(degree=0)).sh.shape[1] == 1 and shown(faded, Look(degree=3)).sh.shape[1] == 4


def test_confidence_counts_only_with_a_gaussian_for_each_pixel(exhibit):
    assert exhibit.splat_confidence is None
    assert shown(exhibit, Look(confidence=0.5)).count == exhibit.gaussians.count
    sure = torch.arange(4096.0).reshape(1, 64, 64)
    matched = make_exhibit("m", exhibit.gaussians, exhibit.cameras, confidence=sure)
    left = shown(matched, Look(confidence=0.5))
    assert left.count == 2048 and torch.equal(left.means, exhibit.gaussians.means[2048:])


def test_pictures_of_each_kind(exhibit):
    camera, gaussians = exhibit.cameras[:1], exhibit.gaussians
    color = picture(exhibit, gaussians, camera, Look(background=(0, 0, 0)))
    assert np.abs(color - np.round(255 * exhibit.images[0].permute(1, 2, 0).numpy())).max() <= 1
    alpha = picture(exhibit, gaussians, camera, Look(kind="alpha"))
    assert alpha.shape == (*SIZE, 3) and alpha.max() > 240
    assert picture(exhibit, gaussians, camera, Look(kind="depth")).std() > 5
    clipped = picture(exhibit, gaussians, camera, Look(kind="alpha", near=1.0))
    assert clipped.mean() < alpha.mean()


def test_thinning_keeps_the_picture(exhibit):
    camera, black = exhibit.cameras[:1], Look(background=(0, 0, 0))
    whole = rendered(exhibit, exhibit.gaussians, camera, black).color
    few = thin(exhibit.gaussians, 900)
    assert 890 <= few.count <= 900
    largest = exhibit.gaussians.select(exhibit.gaussians.scales.prod(-1).topk(900).indices)
    ours, naive = (psnr(rendered(exhibit, g, camera, black).color, whole) for g in (few, largest))
    assert ours > naive + 5 and ours > 20
    assert thin(exhibit.gaussians, 10**6) is exhibit.gaussians
    assert torch.equal(few.means, thin(exhibit.gaussians, 900).means)


def test_thinning_always_keeps_what_matters_most():
    gaussians = wall(30)
    scales = gaussians.scales.clone()
    scales[7] *= 500
    big = Gaussians(gaussians.means, scales, gaussians.quats, gaussians.opacities, gaussians.sh)
    assert float(thin(big, 100).scales.max()) == pytest.approx(float(scales[7].max()))


def test_the_browsers_splats_are_ours(exhibit):
    gaussians, eye = exhibit.gaussians, torch.tensor([0.1, 0.2, -3.0])
    splats = browser_splats(gaussians, eye, 2.0)
    assert splats.centers.shape == (4096, 3) and splats.opacities.shape == (4096, 1)
    assert np.allclose(splats.centers, 2 * gaussians.means.numpy())
    assert np.allclose(np.linalg.eigvalsh(splats.covariances[5]), (2 * 2.5 / 64) ** 2, rtol=1e-4)
    # The colour is what the server shows from that eye.
    w2c = torch.eye(4)
    w2c[:3, 3] = -eye
    one = gaussians.select(slice(2080, 2081))
    solid = Gaussians(one.means, 50 * one.scales, one.quats, torch.ones(1), one.sh)
    exact = rendered(exhibit, solid, Cameras(w2c[None], exhibit.cameras.K[:1], SIZE), Look())
    u, v = (exhibit.cameras.K[0] @ ((one.means[0] - eye) / (one.means[0] - eye)[2]))[:2].long().tolist()
    assert np.allclose(exact.color[0, v, u], browser_splats(one, eye, 1.0).rgbs[0], atol=0.01)


def test_points_lie_on_the_surface_and_obey_the_threshold(exhibit):
    xyz, rgb, width = point_cloud(exhibit, "in the photos' colours", 0.0)
    inside = np.abs(xyz[:, 0]) < 1.5
    assert np.abs(xyz[inside, 2] - 4).mean() < 0.05 and rgb.dtype == np.uint8 and width > 0
    fewer, _, _ = point_cloud(exhibit, "coloured by confidence", 0.9)
    assert 0.05 < len(fewer) / len(xyz) < 0.15


# --- cameras ---------------------------------------------------------------------------------------------------------


def test_cameras_go_to_the_page_and_back():
    cameras = ring()
    K = torch.tensor([[35.0, 0, 20], [0, 35, 15], [0, 0, 1]])
    centred = Cameras(cameras.w2c[1:2], K[None], SIZE)
    back = to_cameras(to_pose(centred, (300, 400), 3.7), SIZE, 3.7)
    assert torch.allclose(back.w2c, centred.w2c, atol=1e-5) and torch.allclose(back.K, centred.K, atol=1e-4)


def test_a_wide_canvas_shows_the_whole_photo(exhibit):
    camera = exhibit.cameras[:1]
    for canvas in ((90, 400), (400, 90), (61, 81)):
        widened, (top, left, height, width) = on_canvas(camera, canvas)
        assert top >= 0 and top + height <= canvas[0] and left >= 0 and left + width <= canvas[1]
        seen = picture(exhibit, exhibit.gaussians, widened, Look(background=(0, 0, 0)))
        part = np.asarray(Image.fromarray(seen[top : top + height, left : left + width]).resize(SIZE[::-1], 4))
        photo = np.round(255 * exhibit.images[0].permute(1, 2, 0).numpy())
        in_place, *aside = (np.corrcoef(np.roll(part, n, 1).ravel(), photo.ravel())[0, 1] for n in (0, 1, -1))
        assert in_place > max(0.92, *[x + 0.02 for x in aside])


def test_the_view_one_stands_in_is_known(exhibit):
    scale = exhibit.browser_scale
    pose = to_pose(exhibit.cameras[1:2], (50, 80), scale)
    assert nearest_view(pose, exhibit.cameras, scale, exhibit.distance) == 1
    aside = to_pose(Cameras(ring(4).w2c[3:], exhibit.cameras.K[:1], SIZE), (50, 80), scale)
    assert nearest_view(aside, exhibit.cameras, scale, exhibit.distance) is None


def test_a_camera_as_text():
    cameras = ring()
    text = cameras_text(cameras, ["a", "b", "c"])
    assert torch.allclose(cameras_from_text(text).w2c, cameras.w2c)
    one = json.dumps(json.loads(text)[1])
    assert torch.allclose(cameras_from_text(one).w2c, cameras.w2c[1:2])
    for bad in ("", "{", "[]", '[{"width": 3}]', "7"):
        with pytest.raises(ValueError, match="the cameras' JSON") as error:
            cameras_from_text(bad)
        assert "tmp" not in str(error.value)


def test_a_still_tells_its_camera():
    camera = ring()[:1]
    image = Image.open(io.BytesIO(png_bytes(np.zeros((*SIZE, 3), np.uint8), camera)))
    assert image.size == SIZE[::-1]
    assert torch.allclose(cameras_from_text(image.text["camera"]).K, camera.K)


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [False, True])
def test_a_path_passes_through_its_keys_smoothly(loop):
    keys = ring(4)
    path = CameraPath(keys, seconds=1.0, fps=20, loop=loop)
    cameras = camera_keys.frames(path)
    assert len(cameras.w2c) == path.frames == (80 if loop else 60)
    if loop:
        assert torch.allclose(cameras.w2c[::20], keys.w2c, atol=1e-4)
    else:
        assert torch.allclose(cameras.w2c[[0, -1]], keys.w2c[[0, -1]], atol=1e-4)
    rotation = cameras.w2c[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5)
    steps = cameras.centers.diff(dim=0).norm(dim=-1)
    assert float(steps.diff().abs().max()) < 0.3 * float(steps.max())


def test_a_path_turns_the_short_way():
    w2c = torch.eye(4).repeat(3, 1, 1)
    for i, degrees in enumerate((150.0, 180.0, 210.0)):  # where the sign of the quaternion flips
        a = math.radians(degrees)
        w2c[i, :3, :3] = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    cameras = camera_keys.frames(CameraPath(Cameras(w2c, ring(3).K, SIZE), seconds=1.0, fps=30))
    turned = (cameras.w2c[1:, :3, :3] * cameras.w2c[:-1, :3, :3]).sum((-1, -2))
    assert float(torch.rad2deg(torch.arccos(((turned - 1) / 2).clamp(-1, 1))).max()) < 3


def test_a_path_as_text():
    path = CameraPath(ring(3), seconds=1.5, fps=24, loop=True)
    back = camera_keys.path_from_text(camera_keys.path_text(path))
    assert (back.seconds, back.fps, back.loop, back.count) == (1.5, 24, True, 3)
    assert torch.allclose(back.keys.w2c, path.keys.w2c)
    plain = camera_keys.path_from_text(cameras_text(ring(2), ["a", "b"]))
    assert plain.count == 2 and plain.seconds == 2.0
    with pytest.raises(ValueError, match="no key frames"):
        camera_keys.path_text(CameraPath())
    with pytest.raises(ValueError, match="fps"):
        camera_keys.path_from_text(camera_keys.path_text(path).replace('"fps": 24', '"fps": "many"'))


def test_keys_from_windows_of_different_sizes_make_one_path():
    path = camera_keys.add_key(CameraPath(), ring()[:1])
    big = Cameras(ring().w2c[1:2], 3 * ring().K[:1], (90, 200))
    big.K[:, 2, 2] = 1
    path = camera_keys.add_key(path, big)
    assert path.keys.size == SIZE and path.count == 2
    assert torch.allclose(path.keys.K[0, 1], path.keys.K[1, 1])
    assert camera_keys.drop_last_key(camera_keys.drop_last_key(path)).keys is None
    with pytest.raises(ValueError, match="two key frames"):
        camera_keys.frames(camera_keys.drop_last_key(path))
    with pytest.raises(ValueError, match="too many"):
        camera_keys.frames(CameraPath(ring(3), seconds=60, fps=120))


# --- comparing -------------------------------------------------------------------------------------------------------


def test_a_wipe_shows_each_side():
    a, b = np.full((4, 20, 3), 10, np.uint8), np.full((4, 20, 3), 200, np.uint8)
    wiped = combine(a, b, "wipe", 0.25)
    assert (wiped[:, :4] == 10).all() and (wiped[:, 6:] == 200).all()
    assert (combine(a, b, "wipe", 0.0) == 200).all() and (combine(a, b, "wipe", 7.0) == 10).all()
    both = combine(a, b, "side by side")
    assert (both[:, :9] == 10).all() and (both[:, 11:] == 200).all() and both.shape == a.shape
    assert (a == 10).all()
    with pytest.raises(ValueError, match="shape"):
        combine(a, b[:2], "wipe")


def test_errors_are_bright_where_pictures_differ():
    a = np.zeros((6, 6, 3), np.uint8)
    b = a.copy()
    b[2:4, 2:4] = 255
    error = error_map(a, b).sum(-1)
    assert error[2:4, 2:4].min() > 500 > 20 > error[0].max()


def test_scores_are_psnr_and_worst_first(exhibit):
    errors = [view_error(exhibit, Look(), i) for i in range(3)]
    assert all(e.psnr > 60 for e in errors)
    spoiled = exhibit.images.clone()
    spoiled[1] = 1 - spoiled[1]
    worse = make_exhibit("w", exhibit.gaussians, exhibit.cameras, ("a", "b|<b>", "c"), images=spoiled)
    table = error_table([view_error(worse, Look(), i) for i in range(3)]).splitlines()
    assert table[2].startswith("| b  b ") and len(table) == 6 and "mean" in table[-1]


def test_a_photo_lies_where_it_belongs(exhibit):
    camera, place = on_canvas(exhibit.cameras[:1], (60, 200))
    ours = picture(exhibit, exhibit.gaussians, camera, Look(background=(0, 0, 0)))
    laid = paste(ours, exhibit.images[0], place)
    top, left, height, width = place
    assert np.array_equal(laid[:, :left], ours[:, :left])
    part, photo = (x[top : top + height, left : left + width].astype(float) for x in (ours, laid))
    assert np.abs(part - photo).mean() < 0.5 * np.abs(np.roll(part, 4, 1) - photo).mean()


# --- training runs ---------------------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_grows(tmp_path):
    run = TrainingRun(tmp_path)
    assert not run.read() and run.checkpoint() is None and run.drawings() == []
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 20, "loss": 2.0, "note": "x"}\n{"step": 40, "loss": NaN}\nnonsense\n{"step": 60, "lo')
    assert run.read() and not run.read()
    assert run.curve("loss")[1].tolist() == [2.0] and run.step == 20
    with open(metrics, "a") as file:
        file.write('ss": 1.0}\n')
    assert run.read() and run.curve("loss")[0].tolist() == [20, 60]
    metrics.write_text('{"step": 1, "loss": 5}\n')  # the run was started anew
    assert run.read() and run.curve("loss")[1].tolist() == [5.0]
    assert open_thing(tmp_path).path == tmp_path


def test_a_pointer_out_of_the_run_is_not_followed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("../..")
    assert TrainingRun(tmp_path).checkpoint() is None
    with pytest.raises(OSError, match="no checkpoint"):
        TrainingRun(tmp_path).export(tmp_path / "x")


def test_the_averaged_network_of_a_checkpoint_is_exported(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-0000040"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tensors = {name: p.clone() for name, p in GaussianModel(PRESETS["nano"]).state_dict().items()}
    trained = {name: p + 1 for name, p in tensors.items() if name.startswith("gs_head.")}
    save_file(tensors, folder / "model.safetensors")
    save_file(trained, folder / "ema.safetensors")
    (folder.parent / "latest").write_text(folder.name)
    run = TrainingRun(tmp_path / "run")
    with pytest.raises(OSError, match="config.json"):
        run.export(tmp_path / "out")
    (tmp_path / "run" / "config.json").write_text('{"preset": "nano"}')
    assert run.export(tmp_path / "out") == "step-0000040"
    found = GaussianModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], trained.get(name, tensors[name])) for name in tensors)
    save_file({"backbone.other": torch.zeros(1)}, folder / "ema.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        run.export(tmp_path / "out")


def test_a_run_with_a_new_head_is_known_by_its_network_json(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-0000040"
    folder.mkdir(parents=True)
    head = PRESETS["nano"].gs
    network = replace(PRESETS["nano"], gs=replace(head, token_norm=not head.token_norm), name="other")
    tensors = GaussianModel(network).state_dict()
    save_file(tensors, folder / "model.safetensors")
    save_file({}, folder / "ema.safetensors")
    (folder.parent / "latest").write_text(folder.name)
    (tmp_path / "run" / "config.json").write_text('{"preset": "nano", "new_head": true}')
    run = TrainingRun(tmp_path / "run")
    with pytest.raises(ValueError, match="config.json"):
        run.export(tmp_path / "out")
    (tmp_path / "run" / "network.json").write_text(config_text(network))
    run.export(tmp_path / "out")
    found = GaussianModel.from_pretrained(tmp_path / "out")
    assert found.config == network and torch.equal(found.state_dict()[name := next(iter(tensors))], tensors[name])
    for other, what in ((config_text(PRESETS["nested"]), "no network"), ("{}", "network.json")):
        (tmp_path / "run" / "network.json").write_text(other)
        with pytest.raises(ValueError, match=what):
            run.export(tmp_path / "out")


def test_an_evaluation_lists_its_worst_pictures_first(tmp_path):
    rows = [{"scene": "a/b", "target": f"{i}.jpg", "psnr": 20.0 - i, "ssim": 0.5} for i in range(3)]
    result = {"bench": {"name": "folder"}, "protocol": {"name": "ours"}, "images": rows, "mean": None}
    (tmp_path / "results.json").write_text(json.dumps(result))
    with pytest.raises(OSError, match="prediction.json"):
        open_thing(tmp_path)
    (tmp_path / "a__b").mkdir()
    files = {f"{i}.jpg": f"renders/{i}.png" for i in range(3)}
    (tmp_path / "a__b" / "prediction.json").write_text(json.dumps({"files": files}))
    opened = open_thing(tmp_path)
    assert [p.target for p in opened.pictures] == ["2.jpg", "1.jpg", "0.jpg"]
    assert opened.pictures[0].render == tmp_path / "a__b" / "renders" / "2.png" and opened.pictures[0].photo is None
    assert scores_table(opened, opened.pictures[0]).splitlines()[2:] == ["| PSNR, dB | 18.00 | |", "| SSIM | 0.500 | |"]
    (tmp_path / "a__b" / "prediction.json").write_text(json.dumps({"files": files | {"1.jpg": "../../secret.png"}}))
    with pytest.raises(ValueError, match="outside"):
        open_thing(tmp_path)
    for other in ("[]", '{"bench": 3}', '{"method": "x"}', "7"):
        (tmp_path / "results.json").write_text(other)
        with pytest.raises(ValueError, match="eval_nvs"):
            open_thing(tmp_path)


def test_targets_of_an_evaluation_come_from_its_report(tmp_path):
    names = ("1.jpg", "x/2.jpg", "y/2.jpg")
    rows = [{"scene": "s", "target": name, "psnr": 20.0} for name in names]
    result = {"bench": {"name": "folder"}, "protocol": {"name": "ours"}, "images": rows, "mean": {"psnr": 20.0}}
    (tmp_path / "results.json").write_text(json.dumps(result))
    for folder in ("s/renders", "report-files/s"):
        (tmp_path / folder).mkdir(parents=True)
    files = {name: f"renders/{i}.png" for i, name in enumerate(names)}
    (tmp_path / "s" / "prediction.json").write_text(json.dumps({"files": files}))
    shades = {"report-files/s/1-photo.jpg": 200, "report-files/s/1-error.png": 90, "report-files/s/2-photo.jpg": 7}
    shades |= {f"s/renders/{i}.png": 100 + i for i in range(3)}
    for file, shade in shades.items():
        Image.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(tmp_path / file)
    first, *alike = open_thing(tmp_path).pictures
    parts = read_parts(first)
    assert {name: int(part[0, 0, 0]) for name, part in parts.items()} == {"target": 200, "render": 100, "error": 90}
    # Two targets of one name: whose the photo is, nobody knows.
    assert all(list(read_parts(picture)) == ["render"] for picture in alike)


def test_a_sheet_shows_pictures_as_large_as_it_can():
    shades = {"a": 40, "b": 120, "c": 220}
    pictures = {name: np.full((30, 60, 3), shade, np.uint8) for name, shade in shades.items()}
    for canvas, rows in (((100, 900), 1), ((900, 200), 3), ((300, 420), 2)):
        page = sheet(pictures, canvas)
        assert page.shape == (*canvas, 3)
        tops = {}
        for shade in shades.values():
            ys, xs = np.nonzero((page == shade).all(-1))
            assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1) > 0.08 * page[..., 0].size  # whole, and not small
            tops[int(ys.min())] = None
        assert len(tops) == rows
    assert sheet(pictures, (16, 16)).shape == (16, 16, 3)


def test_the_cameras_text_is_what_render_reads(tmp_path, exhibit):
    write_cameras(tmp_path / "a.json", exhibit.cameras, list(exhibit.names))
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(cameras_text(exhibit.cameras, [*exhibit.names]))
    assert torch.allclose(invert_rigid(exhibit.cameras.w2c), exhibit.cameras.c2w)
