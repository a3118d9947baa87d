"""Similarities between camera sets: published figures, and equivariance for one, two, collinear and general views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry.alignment import Similarity, align_cameras, nearest_rotation, rotation_error
from geometry.camera_heads import normalize_cameras
from geometry.cameras import Cameras, invert_rigid, project, unproject
from geometry.preprocess import preprocess
from splat.adapter import pose_scale
from tests.tiny_networks import cameras_of, golden, image, random_rotations, tiny_model

PARTS = Path(__file__).parent / "data" / "da3_parts.npz"
LAYOUTS = ("one", "two", "line", "ring", "same place", "general")


@pytest.fixture(scope="module")
def parts():
    return np.load(PARTS)


def cameras(w2c) -> Cameras:
    w2c = torch.as_tensor(np.asarray(w2c))
    return Cameras(w2c, torch.eye(3, dtype=w2c.dtype).expand(len(w2c), 3, 3), (10, 10))


def layout(name: str, seed: int = 0) -> Cameras:
    """Cameras of which all but "general" leave the rotation or the scale undetermined by their centres."""
    views = {"one": 1, "two": 2}.get(name, 6)
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(views, 3, generator=generator, dtype=torch.float64)
    if name == "line":
        centers = centers[:1] + centers[1:2] * torch.arange(views)[:, None]
    elif name == "ring":
        centers[:, 2] = 0
    elif name == "same place":
        centers = centers[:1].repeat(views, 1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    # Turned up to some 40 degrees, as views of one scene are.
    turns = torch.linalg.matrix_exp(0.2 * skew(torch.randn(views, 3, generator=generator, dtype=torch.float64)))
    c2w[:, :3, :3], c2w[:, :3, 3] = turns, centers
    return cameras(invert_rigid(c2w))


def skew(v: torch.Tensor) -> torch.Tensor:
    x, y, z = v.unbind(-1)
    rows = [[torch.zeros_like(x), -z, y], [z, torch.zeros_like(x), -x], [-y, x, torch.zeros_like(x)]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def noisy(given_cameras: Cameras, noise: float, seed: int) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    draw = noise * torch.randn(2, len(given_cameras.w2c), 3, generator=generator, dtype=torch.float64)
    c2w = given_cameras.c2w
    c2w[:, :3, :3] = c2w[:, :3, :3] @ torch.linalg.matrix_exp(skew(draw[0]))
    c2w[:, :3, 3] += draw[1]
    return cameras(invert_rigid(c2w))


def similarity(seed: int, log_scale: float = 0.7) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    translation = 5 * torch.randn(3, generator=generator, dtype=torch.float64)
    return Similarity(random_rotations(seed=seed), translation, torch.tensor(log_scale, dtype=torch.float64).exp())


def assert_same(got: Similarity, want: Similarity, atol: float = 1e-7, rotation_only: bool = False) -> None:
    torch.testing.assert_close(got.rotation, want.rotation, rtol=0, atol=atol)
    if not rotation_only:
        torch.testing.assert_close(got.scale, want.scale, rtol=atol, atol=0)
        torch.testing.assert_close(got.translation, want.translation, rtol=atol, atol=atol * 10)


def check_published(figures, prefix: str) -> None:
    source, target = cameras(figures[f"{prefix}est"]), cameras(figures[f"{prefix}ref"])
    cases = {"plain": (12, False), "ransac42": (12, None), "batch6": (6, None)}
    for name, (views, robust) in cases.items():
        fit = align_cameras(source[:views], target[:views], robust)
        atol = 1e-6 if name == "batch6" else 1e-10  # that one was computed in float32
        for got, key in ((fit.rotation, "r"), (fit.translation, "t"), (fit.scale, "s")):
            np.testing.assert_allclose(got, figures[f"{prefix}{name}.{key}"].reshape(got.shape), rtol=0, atol=atol)
        if f"{prefix}{name}.aligned" in figures.files:
            np.testing.assert_allclose(fit.cameras(source).w2c, figures[f"{prefix}{name}.aligned"], rtol=0, atol=atol)
        if name == "batch6":
            applied = figures[f"{prefix}batch6.applied"][0]
            np.testing.assert_allclose(fit.cameras(source[: len(applied)]).w2c, applied, rtol=0, atol=atol)
    fit = align_cameras(source, target)
    points = source.w2c[:, :3, 3]
    np.testing.assert_allclose(fit.cameras(source).w2c, figures[f"{prefix}apply_ext"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(fit.points(points), figures[f"{prefix}apply_pts"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(fit.inverse().points(points), figures[f"{prefix}apply_pts_inv"], rtol=0, atol=1e-10)


def test_published_alignments(parts):
    check_published(parts, "pure/umeyama.")


def test_published_alignments_with_every_pose():
    check_published(golden("pure"), "umeyama.")


@pytest.mark.parametrize("case, tolerance", [("posed_align0", 1e-4), ("v11", 3e-3)])
def test_inference_with_given_cameras(case, tolerance):
    """Photos to pixels, cameras to the network's unit, and its prediction aligned: the whole of the official API.

    OpenCV's cubic resampling rounds two of the pixels of `v11` up or down by the CPU: that moves depth by 1.4e-3.
    """
    figures = golden("api")
    w2c, K = (figures[f"{'v11.' if case == 'v11' else ''}in.{name}"] for name in ("extrinsics", "intrinsics"))
    size = (40, 56) if case == "v11" else (95, 131)
    photos = [(image(v, *size).transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8) for v in range(len(w2c))]
    method, long_side = ("upper_bound_crop", 78) if case == "v11" else ("upper_bound_resize", 56)
    pixels, K = preprocess(photos, K, long_side, method)
    np.testing.assert_allclose(K, figures[f"{case}.intrinsics"], rtol=1e-6)
    given_cameras = cameras_of(w2c, K, tuple(pixels.shape[-2:]))
    normalized, _ = normalize_cameras(given_cameras)
    batch = Cameras(normalized.w2c[None], normalized.K[None], normalized.size)
    predicted = tiny_model("a").geometry(pixels[None], batch)
    np.testing.assert_allclose(predicted.depth[0], figures[f"{case}.depth"], rtol=0, atol=tolerance)
    fit = align_cameras(given_cameras, predicted.cameras[0])
    np.testing.assert_allclose(fit.cameras(given_cameras).w2c, figures[f"{case}.extrinsics"], rtol=0, atol=1e-4)
    if case == "posed_align0":
        np.testing.assert_allclose(predicted.depth[0] / fit.scale, figures["posed_align1.depth"], rtol=0, atol=1e-4)


def test_rotation_error_is_that_between_views():
    seen = layout("general")
    assert float(rotation_error(similarity(1).cameras(seen), seen)) < 1e-4  # the world may be turned
    turned = seen.w2c.clone()
    turned[0, :3] = torch.linalg.matrix_exp(skew(torch.tensor([0.0, 0.2, 0.0], dtype=torch.float64))) @ turned[0, :3]
    off = rotation_error(cameras(turned)[:2], seen[:2])
    assert float(off) == pytest.approx(np.rad2deg(0.2), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(LAYOUTS), seed=st.integers(0, 10_000), log_scale=st.floats(-3, 3))
def test_a_similarity_comes_back(name, seed, log_scale):
    source, truth = layout(name, seed), similarity(seed + 1, log_scale)
    target = truth.cameras(source)
    untold = name in ("one", "same place")
    fit = align_cameras(source, target, scale=float(truth.scale) if untold else 1.0)
    assert_same(fit, truth, atol=1e-5)
    torch.testing.assert_close(fit.cameras(source).w2c, target.w2c, rtol=0, atol=1e-4)
    if untold:
        assert_same(align_cameras(source, target), truth, rotation_only=True, atol=1e-5)
        assert float(align_cameras(source, target).scale) == 1


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(LAYOUTS), seed=st.integers(0, 10_000), log_scale=st.floats(-3, 3))
def test_moving_either_set_moves_the_result(name, seed, log_scale):
    source = layout(name, seed)
    target = noisy(similarity(seed + 1).cameras(source), 0.02, seed) if name != "same place" else source
    move = similarity(seed + 2, log_scale)
    fit = align_cameras(source, target)
    if name in ("one", "same place"):  # nothing tells their scale, so it stays at 1 and the centres still meet
        moved = align_cameras(move.cameras(source), move.cameras(target))
        assert_same(
            moved, Similarity(move.rotation @ fit.rotation @ move.rotation.T, moved.translation, fit.scale), 1e-5
        )
        meet = moved.points(move.cameras(source).centers)
        torch.testing.assert_close(meet, move.cameras(target).centers, rtol=1e-6, atol=1e-5)
        return
    assert_same(align_cameras(source, move.cameras(target)), fit.then(move), atol=1e-5)
    assert_same(align_cameras(move.cameras(source), target), move.inverse().then(fit), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(LAYOUTS), seed=st.integers(0, 10_000))
def test_rounding_never_decides(name, seed):
    """What upstream leaves to noise of 1e-16 must not even see noise of 1e-7 or float32."""
    source = layout(name, seed)
    target = noisy(similarity(seed + 1).cameras(source), 0.01, seed + 5)
    fit = align_cameras(source, target)
    if name == "same place":  # the noise set the target's centres apart, but the source still tells no scale
        assert float(fit.scale) == 1
        return
    again = align_cameras(noisy(source, 1e-7, seed + 6), noisy(target, 1e-7, seed + 7))
    assert_same(again, fit, atol=1e-4)
    single = align_cameras(source.to(torch.float32), target.to(torch.float32))
    assert single.rotation.dtype == torch.float32
    assert_same(single.to(torch.float64), fit, atol=1e-4)


def test_order_does_not_matter():
    for name in LAYOUTS:
        source = layout(name)
        target = noisy(similarity(3).cameras(source), 0.05, 1)
        order = torch.arange(len(source.w2c)).flip(0)
        assert_same(align_cameras(source[order], target[order]), align_cameras(source, target), atol=1e-6)


@pytest.mark.parametrize("name", ["two", "line"])
def test_rule_without_a_rotation_from_centres(name):
    source = layout(name)
    target = noisy(similarity(2).cameras(source), 1e-3, 4)
    fit = align_cameras(source, target)
    torch.testing.assert_close(fit.scale, pose_scale(source.centers[None], target.centers[None])[0], rtol=1e-7, atol=0)
    if name == "two":
        baselines = [torch.linalg.vector_norm(c.centers[1] - c.centers[0]) for c in (source, target)]
        torch.testing.assert_close(fit.scale, baselines[1] / baselines[0])
    turns = target.c2w[:, :3, :3] @ source.w2c[:, :3, :3]
    torch.testing.assert_close(fit.rotation, nearest_rotation(turns.mean(0)))
    torch.testing.assert_close(fit.points(source.centers).mean(0), target.centers.mean(0))


def test_a_little_off_the_line_is_still_a_line():
    """A hand-held walk: 1 % aside must not decide how the world is rolled about its line."""
    source = layout("line", seed=3)
    truth = similarity(1)
    length = torch.linalg.vector_norm(source.centers[-1] - source.centers[0])
    source = noisy(source, 0, 0)
    c2w, generator = source.c2w, torch.Generator().manual_seed(0)
    c2w[:, :3, 3] += 0.002 * length * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    source = cameras(invert_rigid(c2w))
    target = noisy(truth.cameras(source), 0, 0)
    c2w = target.c2w
    c2w[:, :3, 3] += 0.002 * length * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    fit = align_cameras(source, cameras(invert_rigid(c2w)))
    torch.testing.assert_close(fit.rotation, truth.rotation, rtol=0, atol=1e-9)
    torch.testing.assert_close(fit.scale, truth.scale, rtol=0.02, atol=0)


def test_centres_that_are_off_do_not_turn_the_world_by_orientations():
    source, truth = layout("ring"), similarity(3)
    target = truth.cameras(source)
    c2w = target.c2w
    c2w[0, :3, 3] += 0.3 * truth.scale
    target = cameras(invert_rigid(c2w))
    by_centers = align_cameras(source, target)
    by_orientations = align_cameras(source, target, turn_by="orientations")
    torch.testing.assert_close(by_orientations.rotation, truth.rotation, rtol=0, atol=1e-9)
    assert float((by_centers.rotation - truth.rotation).abs().max()) > 0.01
    meet = by_orientations.points(source.centers).mean(0)
    torch.testing.assert_close(meet, target.centers.mean(0), rtol=0, atol=1e-9)
    moved = align_cameras(similarity(4).cameras(source), target, turn_by="orientations")
    assert_same(moved, similarity(4).inverse().then(by_orientations), atol=1e-9)


def test_wrong_views_are_left_out():
    generator = torch.Generator().manual_seed(0)
    c2w = torch.eye(4, dtype=torch.float64).repeat(12, 1, 1)
    c2w[:, :3, 3] = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    source, truth = cameras(invert_rigid(c2w)), similarity(5)
    target = noisy(truth.cameras(source), 1e-3, 0)
    target.w2c[3, :3, 3] += 20
    robust, plain = align_cameras(source, target), align_cameras(source, target, robust=False)
    assert (robust.rotation - truth.rotation).abs().max() < 0.01 < (plain.rotation - truth.rotation).abs().max()
    for few in (layout("one"), layout("two"), layout("line")):  # asked for where it cannot be: the plain answer
        assert_same(align_cameras(few, few, robust=True), align_cameras(few, few, robust=False), atol=1e-9)


def test_the_value_is_a_group():
    a, b = similarity(1, 0.5), similarity(2, -0.3)
    points = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(a.then(b).points(points), b.points(a.points(points)))
    torch.testing.assert_close(a.inverse().points(a.points(points)), points)
    c = layout("general")
    torch.testing.assert_close(a.then(b).cameras(c).w2c, b.cameras(a.cameras(c)).w2c)
    torch.testing.assert_close(a.cameras(c).centers, a.points(c.centers))
    pixels, depth = project(points, c)
    moved_pixels, moved_depth = project(a.points(points), a.cameras(c))
    torch.testing.assert_close(moved_depth, a.scale * depth)
    front = depth > 0.1
    torch.testing.assert_close(moved_pixels[front], pixels[front])
    depth = torch.ones(6, 2, 2, dtype=torch.float64)
    world = unproject(depth, c).flatten(0, 2)
    torch.testing.assert_close(unproject(a.scale * depth, a.cameras(c)).flatten(0, 2), a.points(world))


def test_batches_of_similarities():
    pair = Similarity(
        torch.stack([similarity(1).rotation, similarity(2).rotation]),
        torch.stack([similarity(1).translation, similarity(2).translation]),
        torch.tensor([0.5, 2.0], dtype=torch.float64),
    )
    c = layout("general")
    both = pair.cameras(Cameras(c.w2c.expand(2, -1, 4, 4), c.K.expand(2, -1, 3, 3), c.size))
    torch.testing.assert_close(both.centers, pair.points(c.centers.expand(2, -1, 3)))


def test_wrong_inputs_are_named():
    good = layout("general")
    with pytest.raises(ValueError, match="two sets"):
        align_cameras(good, good[:3])
    with pytest.raises(ValueError, match="two sets"):
        align_cameras(good[:0], good[:0])
    with pytest.raises(ValueError, match="scale must be above 0"):
        align_cameras(good, good, scale=0)
    bad = Cameras(good.w2c.clone(), good.K, good.size)
    bad.w2c[0, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        align_cameras(bad, good)
