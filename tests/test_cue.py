"""The matching cue and what it is made of: sweep, neighbours, PRoPE, units."""

import math

import pytest
import torch

from geometry.cameras import Cameras, invert_rigid, transform
from geometry.cue import CueConfig, MatchingCue, baseline_unit, neighbors
from geometry.normalize import normalize
from geometry.prope import RelativeCameras
from geometry.sweep import homographies, neighbor_rows, peak, reference_sweep, sweep


def cameras_along_x(views=4, step=0.5, size=(56, 56), focal=50.0):
    w2c = torch.eye(4).repeat(1, views, 1, 1)
    w2c[..., 0, 3] = -step * torch.arange(views)
    K = torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])
    return Cameras(w2c, K.expand(1, views, 3, 3), size)


def random_cameras(batch=2, views=3, size=(28, 42), seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(batch, views, 3, 3, generator=generator))[0]
    w2c = torch.eye(4).repeat(batch, views, 1, 1)
    w2c[..., :3, :3] = q * torch.linalg.det(q)[..., None, None]
    w2c[..., :3, 3] = torch.randn(batch, views, 3, generator=generator)
    K = torch.tensor([[30.0, 0.2, 20], [0, 33, 15], [0, 0, 1]]).expand(batch, views, 3, 3)
    return Cameras(w2c, K, size)


def test_sweep_finds_the_plane():
    """A textured plane at depth 4 seen by shifted cameras: the correlation peaks at 4 in every inner pixel."""
    torch.manual_seed(0)
    cameras, depth = cameras_along_x(size=(24, 40), focal=16.0), 4.0
    shift = int(0.5 * 16 / depth)
    texture = torch.nn.functional.normalize(torch.randn(8, 24, 60), dim=0)
    features = torch.stack([texture[:, :, shift * i : shift * i + 40] for i in range(4)])
    index, _ = neighbors(cameras, 3)
    A, b = homographies(cameras, index[0], (24, 40))
    planes = math.log(2.0) * (1 + torch.arange(9) / 4)[None, :, None, None].expand(4, 9, 24, 40)
    mean = sweep(features, index[0], A, b, planes, 1)[:, 0]
    best = mean.argmax(1)
    assert (best[:, 2:-2, 8:-8] == 4).all()


@pytest.mark.cuda
def test_fused_sweep_agrees_with_the_reference():
    torch.manual_seed(0)
    features = torch.randn(6, 16, 9, 11, device="cuda")
    cameras = random_cameras(2, 3, (9, 11)).to("cuda")
    cameras = Cameras(cameras.w2c * 0.3 + 0.7 * torch.eye(4, device="cuda"), cameras.K, cameras.size)
    index, _ = neighbors(cameras, 2)
    source = neighbor_rows(index)
    A, b = homographies(cameras, source, (9, 11))
    planes = torch.randn(6, 5, 9, 11, device="cuda") * 0.3
    results = []
    for function in (sweep, reference_sweep):
        x = features.clone().requires_grad_()
        out = function(x, source, A, b, planes, 4)
        (out * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
        results.append((out.detach(), x.grad))
    for ours, true in zip(*results, strict=True):
        assert (ours - true).norm() < 1e-4 * true.norm()


def test_compiled_sweep_agrees_with_the_reference():
    torch.manual_seed(0)
    features = torch.randn(6, 16, 9, 11)
    cameras = random_cameras(2, 3, (9, 11))
    index, _ = neighbors(cameras, 2)
    source = (index + 3 * torch.arange(2)[:, None, None]).flatten(0, 1)
    planes = torch.randn(6, 5, 9, 11) * 0.3 - 0.1
    planes[0, :, 3] = math.nan
    K = torch.tensor([[6.0, 0, 5.5], [0, 6.0, 4.5], [0, 0, 1]]).expand_as(cameras.K)
    for pull in (0.3, 0.8):  # cameras that look anywhere, and such as look one way
        near = Cameras((1 - pull) * cameras.w2c + pull * torch.eye(4), K, cameras.size)
        A, b = homographies(near, source, (9, 11))
        ours = sweep(features, source, A, b, planes, 4)
        true = reference_sweep(features, source, A, b, planes, 4)
        torch.testing.assert_close(ours, true, atol=2e-4, rtol=1e-4)
        assert 0.1 < (true != 0).float().mean() < 0.9
    assert sweep(features.requires_grad_(), source, A, b, planes, 4).requires_grad


def test_neighbors_are_nearest_and_never_oneself():
    cameras = cameras_along_x(views=6)
    index, baseline = neighbors(cameras, 3)
    assert index.shape == (1, 6, 3)
    assert not (index == torch.arange(6)[None, :, None]).any()
    assert set(index[0, 0].tolist()) == {1, 2, 3}
    assert baseline[0, 0] == pytest.approx((0.5 + 1 + 1.5) / 3)


def test_neighbor_that_looks_away_comes_last():
    cameras = cameras_along_x(views=5)
    w2c = cameras.w2c.clone()
    w2c[0, 1, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))  # turned round, though nearest to view 0
    index, _ = neighbors(Cameras(w2c, cameras.K, cameras.size), 3)
    assert 1 not in index[0, 0].tolist()


def test_unit_scales_with_the_scene():
    cameras = random_cameras()
    bigger = transform(cameras, torch.eye(3), torch.zeros(3), 7.0)
    torch.testing.assert_close(baseline_unit(bigger), 7 * baseline_unit(cameras))
    assert (baseline_unit(cameras[:, :1]) == 1).all()


def test_normalize_undoes_any_similarity():
    cameras = random_cameras(2, 4)
    rotation = random_cameras(1, 1, seed=5).w2c[0, 0, :3, :3]
    moved = transform(cameras, rotation, torch.tensor([3.0, -1, 2]), 5.0)
    depth = torch.rand(2, 4, 28, 42) + 1
    ours, our_depth = normalize(cameras, 3, "baseline", depth, torch.ones_like(depth).bool())
    theirs, their_depth = normalize(moved, 3, "baseline", 5 * depth, torch.ones_like(depth).bool())
    torch.testing.assert_close(ours.w2c, theirs.w2c, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_depth, their_depth)
    torch.testing.assert_close(ours.w2c[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)


def test_normalize_by_points_gives_points_at_mean_distance_one():
    cameras = random_cameras(2, 3)
    depth = torch.rand(2, 3, 28, 42) + 1
    ours, scaled = normalize(cameras, 3, "points", depth, torch.ones_like(depth).bool())
    from geometry.cameras import unproject

    torch.testing.assert_close(
        torch.linalg.vector_norm(unproject(scaled, ours), dim=-1).mean((1, 2, 3)), torch.ones(2), atol=1e-4, rtol=0
    )


def test_prope_depends_on_relative_cameras_alone():
    """Moving the world leaves attention scores and results as they were."""
    cameras = random_cameras()
    moved = transform(cameras, random_cameras(1, 1, seed=9).w2c[0, 0, :3, :3], torch.tensor([0.5, 1, -1]))
    x = torch.randn(2, 2, 3 * 5, 16, generator=torch.Generator().manual_seed(1))
    outputs = []
    for c in (cameras, moved):
        relative = RelativeCameras(c)
        q, k, v = relative.before(x, x, x)
        outputs.append(relative.after(torch.nn.functional.scaled_dot_product_attention(q, k, v)))
    torch.testing.assert_close(*outputs, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(outputs[0], torch.nn.functional.scaled_dot_product_attention(x, x, x), atol=1e-2)


def test_peak_does_not_blend_two_surfaces():
    logits = torch.full((1, 20, 1, 1), -10.0)
    logits[0, 3], logits[0, 15] = 5.0, 4.5
    position, mass = peak(logits)
    assert position.item() == pytest.approx(3, abs=0.05)
    assert 0.5 < mass.item() < 0.7


def test_cue_scales_with_its_cameras():
    torch.manual_seed(0)
    cue = MatchingCue(CueConfig(planes=16, fine_planes=4), 32, 16).eval()
    images = torch.rand(1, 3, 3, 28, 42)
    cameras = random_cameras(1, 3)
    bigger = transform(cameras, torch.eye(3), torch.zeros(3), 3.0)
    with torch.no_grad():
        a, b = cue(images, cameras), cue(images, bigger)
    torch.testing.assert_close(a.log_depth + math.log(3.0), b.log_depth, atol=2e-3, rtol=0)
    assert a.patch_bias.shape == (1, 3, 6, 32) and a.lateral.shape == (3, 16, 8, 12)
    assert invert_rigid(cameras.w2c).isfinite().all()


def test_cue_trains_to_the_true_depth():
    """A few steps on one pair of views of a plane.

    The first estimate moves to its depth. Fails if gradients do not flow.
    """
    from train.losses import cue_loss

    torch.manual_seed(0)
    cue = MatchingCue(CueConfig(planes=24, fine_planes=8), 16, 8)
    cameras, depth = cameras_along_x(views=2, step=0.5, size=(56, 56), focal=56.0), 3.5
    shift = int(0.5 * 56 / depth)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 28, 40), (56, 80), mode="bilinear")[0]
    images = torch.stack([texture[:, :, shift * i : shift * i + 56] for i in range(2)])[None]
    target = torch.full((1, 2, 56, 56), depth)
    optimizer = torch.optim.Adam(cue.parameters(), 2e-3)
    for _ in range(50):
        loss, _ = cue_loss(cue(images, cameras), target, torch.ones_like(target).bool())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (cue(images, cameras).log_depth.exp() / depth - 1).abs().median()
    assert error < 0.05
