"""Training losses: zero where they should be, and moving the right way."""

import math
from dataclasses import replace

import pytest
import torch
from skimage.metrics import structural_similarity as reference_ssim

from geometry.cameras import Cameras, pixel_rays, unproject
from geometry.cue import Comparison, Cue
from geometry.network import Geometry
from splat.gaussians import Gaussians
from splat.perceptual import Perceptual, read_arrays
from splat.similarity import structural_similarity
from tests.tiny_networks import SHARED
from train import losses


def cameras(batch=1, views=2, size=(14, 28)):
    w2c = torch.eye(4).repeat(batch, views, 1, 1)
    w2c[..., 0, 3] = torch.arange(views) * -0.4
    K = torch.tensor([[25.0, 0, 14], [0, 24, 7], [0, 0, 1]]).expand(batch, views, 3, 3)
    return Cameras(w2c, K, size)


def truth(seed=0):
    depth = torch.rand(1, 2, 14, 28, generator=torch.Generator().manual_seed(seed)) + 1
    return depth, torch.ones_like(depth).bool()


def geometry(depth, confidence=None, c=None, rays=None):
    confidence = torch.full_like(depth, 2.0) if confidence is None else confidence
    return Geometry(depth, confidence, rays, None if rays is None else rays[..., 0], c or cameras())


def test_depth_loss_is_relative_and_masked():
    depth, valid = truth()
    exact, scalars = losses.depth_loss(geometry(depth), depth, valid)
    assert scalars["depth"] == 0 and scalars["delta_1.25"] == 1
    double, scalars = losses.depth_loss(geometry(2 * depth), depth, valid)
    torch.testing.assert_close(scalars["depth"], torch.tensor(2.0).log())
    assert scalars["delta_1.25"] == 0 and scalars["depth_gradient"] < 1e-6
    torch.testing.assert_close(scalars["abs_rel"], torch.tensor(1.0))
    nowhere, _ = losses.depth_loss(geometry(2 * depth), depth, valid & False)
    assert exact < double and nowhere.isfinite()


def test_where_depth_may_be_near_or_far_nearer_is_better():
    """Of pixels that look alike half are three times as far as the rest: the middle of both logarithms is too far."""
    depth, valid = torch.ones(1, 2, 14, 28), torch.ones(1, 2, 14, 28).bool()
    depth[..., ::2] = 3.0
    guesses = [1.0, 3**0.5, 3.0]
    values = [losses.depth_loss(geometry(torch.full_like(depth, z)), depth, valid)[0] for z in guesses]
    assert values[0] < values[1] < values[2]


def test_relative_error_of_a_wild_pixel_is_bounded():
    depth, valid = truth()
    wild = depth.clone()
    wild[..., 0, 0] = 1e6
    value, _ = losses.depth_loss(geometry(wild), depth, valid)
    assert value < 1


def test_confidence_is_best_at_a_fifth_over_the_error():
    depth, valid = truth()
    wrong = depth * torch.tensor(0.05).exp()  # log error 0.05, so c = 0.2 / 0.05 = 4 is best
    values = [losses.depth_loss(geometry(wrong, torch.full_like(depth, c)), depth, valid)[0] for c in (2.0, 4.0, 8.0)]
    assert values[1] < values[0] and values[1] < values[2]


def cue(depth, logits=None, candidates=None, scores=None, alone=None):
    """A cue of planes 0.1 apart from log depth 0, or of candidates; where nothing is given, all is equally likely."""
    start = torch.zeros(2)
    logits = torch.zeros(2, 8, 14, 28) if logits is None else logits
    candidates = depth[0, :, None].log() if candidates is None else candidates
    scores = torch.zeros_like(candidates) if scores is None else scores
    return Cue(
        patch_bias=None,
        lateral=None,
        log_depth=depth.log(),
        confidence=None,
        coarse_logits=logits,
        coarse_start=start,
        coarse_step=0.1,
        fine_logits=logits,
        fine_start=start.view(2, 1, 1).expand(2, 14, 28),
        fine_step=0.1,
        compared=Comparison(None, None, logits if alone is None else alone, candidates, scores),
    )


def test_cue_loss_prefers_the_true_plane():
    depth, valid = truth()
    position = depth.log().view(2, 1, 14, 28) / 0.1
    peaked = -3 * (torch.arange(8).view(8, 1, 1) - position).abs()
    flat, right = (losses.cue_loss(cue(depth, logits), depth, valid)[0] for logits in (None, peaked))
    assert right < 0.5 * flat


def test_cue_loss_prefers_the_candidate_that_is_right():
    depth, valid = truth()
    log_depth = depth[0].log()
    candidates = torch.stack([log_depth + 0.4, log_depth + 0.01, log_depth - 0.3], 1)

    def choice(first, second):
        scores = torch.tensor([first, second, 0.0]).view(1, 3, 1, 1).expand(2, 3, 14, 28)
        return losses.cue_loss(cue(depth, None, candidates, scores), depth, valid)[1]["sweep_choice"]

    assert choice(0, 5) < 0.1 < choice(0, 0) < choice(5, 0)
    hopeless = cue(depth, None, candidates + 1.0)
    assert losses.cue_loss(hopeless, depth, valid)[1]["sweep_choice"] == 0


def test_correlations_are_told_what_is_right_by_themselves():
    depth, valid = truth()
    position = depth.log().view(2, 1, 14, 28) / 0.1
    peaked = -3 * (torch.arange(8).view(8, 1, 1) - position).abs()
    told = [losses.cue_loss(cue(depth, alone=logits), depth, valid) for logits in (peaked, -peaked)]
    assert told[0][0] < told[1][0] and told[0][1]["sweep_alone"] < 0.5 * told[1][1]["sweep_alone"]


def test_without_comparison_the_planes_are_told_all_the_same():
    depth, valid = truth()
    position = depth.log().view(2, 1, 14, 28) / 0.1
    peaked = -3 * (torch.arange(8).view(8, 1, 1) - position).abs()
    flat, right = (
        losses.cue_loss(replace(cue(depth, logits), compared=None), depth, valid)[0] for logits in (None, peaked)
    )
    assert 0 < right < 0.5 * flat


def test_depth_of_the_sweeps_is_best_at_the_truth():
    depth, valid = truth()
    exact, double = (
        losses.sweep_depth_loss(replace(cue(depth), log_depth=x), depth, valid)[0]
        for x in (depth.log(), (2 * depth).log())
    )
    assert exact == 0 and double == pytest.approx(math.log(2))


def test_every_picture_counts_by_its_decibels():
    """Halving the error of a good picture is worth as much as of a bad one; the squared error sees the bad alone."""
    target = torch.full((2, 3, 4, 4), 0.5)

    def value(loss, *errors):
        return float(loss(target + torch.tensor(errors).view(2, 1, 1, 1), target)[0])

    start, good, bad = (0.1, 0.4), (0.05, 0.4), (0.1, 0.2)
    gains = [value(losses.psnr_loss, *start) - value(losses.psnr_loss, *halved) for halved in (good, bad)]
    assert gains[0] == pytest.approx(gains[1], rel=0.02) == pytest.approx(0.3, rel=0.02)
    squared = [value(losses.mse_loss, *start) - value(losses.mse_loss, *halved) for halved in (good, bad)]
    assert squared[1] > 10 * squared[0]


def test_ray_and_camera_losses_vanish_at_the_truth():
    c = cameras()
    depth, _ = truth()
    rays = torch.cat([pixel_rays(c, (8, 16)), c.centers[..., None, None, :].expand(1, 2, 8, 16, 3)], -1)
    value, _ = losses.ray_loss(geometry(depth, rays=rays), c)
    assert value < 1e-6
    assert losses.ray_loss(geometry(depth, rays=rays + 0.1), c)[0] > 0.1
    assert losses.camera_loss(c, c)[0] < 1e-6
    moved = Cameras(c.w2c + 0.1 * torch.eye(4).roll(3, 1) * torch.tensor([1.0, 0, 0, 0])[:, None], c.K, c.size)
    assert losses.camera_loss(moved, c)[0] > 0.01
    assert losses.fov_loss(moved, c)[0] < 1e-6
    zoomed = Cameras(c.w2c, c.K * torch.tensor([1.2, 1.2, 1.0])[:, None], c.size)
    assert losses.camera_loss(zoomed, c)[0] < 1e-6 and losses.fov_loss(zoomed, c)[0] > 0.05


def test_gaussian_depth_loss_counts_opaque_gaussians_alone():
    c, (depth, valid) = cameras(), truth()
    points = unproject(depth, c).flatten(1, 3)
    n = points.shape[1]
    opacity = torch.cat([torch.ones(1, n // 2), torch.zeros(1, n - n // 2)], 1)

    def loss(means):
        g = Gaussians(means, torch.ones(1, n, 3), torch.ones(1, n, 4), opacity, torch.zeros(1, n, 1, 3))
        return losses.gaussian_depth_loss(g, c, depth, valid)[0]

    assert loss(points) < 1e-6
    far = points.clone()
    far[:, n // 2 :] *= 3
    assert loss(far) < 1e-6
    far[:, : n // 2] *= 3
    assert loss(far) > 0.3


def test_ssim_is_scikit_images():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(1, 3, 40, 50, generator=generator), torch.rand(1, 3, 40, 50, generator=generator)
    b = 0.7 * a + 0.3 * b
    ours = structural_similarity(a, b)
    theirs = reference_ssim(
        a[0].permute(1, 2, 0).numpy(),
        b[0].permute(1, 2, 0).numpy(),
        channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert abs(float(ours) - theirs) < 2e-3
    assert structural_similarity(a, a) > 0.9999


def test_mse_reports_psnr():
    target = torch.full((2, 3, 16, 16), 0.5)
    value, scalars = losses.mse_loss(target + 0.1, target)
    torch.testing.assert_close(scalars["psnr"], torch.tensor(20.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(value, torch.tensor(0.01), atol=1e-5, rtol=0)
    assert losses.mse_loss(target, target)[0] == 0 and losses.ssim_loss(target, target)[0] < 1e-4


def test_perceptual_loss_is_the_mean_distance():
    distance = losses.perceptual_loss(
        lambda a, b: (a - b).abs().mean((1, 2, 3)), torch.zeros(4, 3, 8, 8), torch.ones(1)
    )
    assert distance[0] == 1 and set(distance[1]) == {"lpips"}


@pytest.mark.parametrize("net, model", [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_is_that_of_its_package(net, model, monkeypatch):
    """The package fills its network from torchvision's whole one; here that one holds our file's convolutions."""
    weights = SHARED / "weights" / f"lpips_{net}_torch_layout.npz"
    if not weights.is_file():
        pytest.skip(f"{weights.name} is not beside the repository (RAYSPLAT_SHARED)")
    lpips, models = pytest.importorskip("lpips"), pytest.importorskip("torchvision.models")
    make = getattr(models, model)

    def whole(**_):
        network = make(weights=None)
        stored = {name: torch.from_numpy(array).float() for name, array in read_arrays(weights).items()}
        missing = network.load_state_dict(stored, strict=False).missing_keys
        assert not [name for name in missing if name.startswith("features.")]
        return network

    monkeypatch.setattr(lpips.pretrained_networks.tv, model, whole)
    reference = lpips.LPIPS(net=net, verbose=False).eval()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 70, 98, generator=generator)
    b[0], b[1] = a[0], 0.5 * a[1] + 0.5 * b[1]
    perceptual, color = Perceptual(weights, net), b.clone().requires_grad_(True)
    value, scalars = losses.perceptual_loss(perceptual, color, a)
    with torch.no_grad():
        wanted = reference(2 * b - 1, 2 * a - 1).flatten()
    assert wanted[0] < 1e-6 < 0.05 < wanted[1] < wanted[2]
    torch.testing.assert_close(perceptual(b, a), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(value, wanted.mean(), atol=1e-4, rtol=0)
    value.backward()
    assert color.grad.isfinite().all() and color.grad[1:].abs().sum() > 0 and scalars["lpips"].item() == value.item()


def sparse(share=0.3, seed=1):
    depth, _ = truth()
    return depth, torch.rand(depth.shape, generator=torch.Generator().manual_seed(seed)) < share


def test_ssi_depth_is_zero_at_the_truth_and_free_of_scale_and_shift():
    depth, valid = sparse()
    wrong = depth + 0.3 * torch.rand(depth.shape, generator=torch.Generator().manual_seed(2))
    assert losses.ssi_depth_loss(depth, depth, valid)[0] < 1e-5
    value = losses.ssi_depth_loss(wrong, depth, valid)[0]
    assert value > 0.05
    for scale, shift in ((3.0, 0.0), (0.01, 5.0), (40.0, -7.0)):
        again = losses.ssi_depth_loss(scale * wrong + shift, depth, valid)[0]
        torch.testing.assert_close(again, value, rtol=2e-3, atol=1e-4)
        units = losses.ssi_depth_loss(wrong, scale * depth + shift, valid)[0]
        torch.testing.assert_close(units, value, rtol=2e-3, atol=1e-4)
    hidden = torch.where(valid, depth, torch.nan)
    torch.testing.assert_close(losses.ssi_depth_loss(wrong, hidden, valid)[0], value)


def test_ssi_alignment_ignores_outliers_where_least_squares_does_not():
    depth, valid = truth()
    target = 2 * depth + 1
    target[..., :3, :5] = 60.0  # a tenth of the labels is far off
    scale, shift = losses.align_depth(depth, target, valid)
    plain, _ = losses.align_depth(depth, target, valid, refits=0)
    assert abs(float(scale) - 2) < 0.05 and abs(float(shift) - 1) < 0.1
    assert abs(float(plain) - 2) > 0.5


def test_ssi_depth_has_finite_gradients_that_lead_to_the_truth():
    depth, valid = sparse(0.5)
    cases = {
        "wrong": (2 - depth).square() + 0.5,
        "upside down": 3 - depth,
        "flat": torch.ones_like(depth),
    }
    for name, start in cases.items():
        x = start.clone().requires_grad_(True)
        losses.ssi_depth_loss(x, depth, valid)[0].backward()
        assert x.grad.isfinite().all(), name
    x = depth.clone().requires_grad_(True)
    losses.ssi_depth_loss(x, depth, valid & False)[0].backward()
    assert x.grad.isfinite().all() and (x.grad == 0).all()
    x = cases["wrong"].clone().requires_grad_(True)
    before = losses.ssi_depth_loss(x, depth, valid)[0]
    before.backward()
    assert losses.ssi_depth_loss(x.detach() - 0.1 * x.grad / x.grad.abs().max(), depth, valid)[0] < before


def test_regularisers_count_opacity_and_angle():
    c, (depth, _) = cameras(), truth()
    means = unproject(depth, c).flatten(1, 3)
    n = means.shape[1]

    def gaussians(factor):
        scales = 0.01 * factor * torch.linalg.vector_norm(
            means.unflatten(1, (2, -1)) - c.centers[:, :, None], dim=-1
        ).flatten(1)[..., None].expand(1, n, 3)  # fmt: skip
        return Gaussians(factor * means, scales, torch.ones(1, n, 4), torch.full((1, n), 0.3), torch.zeros(1, n, 1, 3))

    torch.testing.assert_close(losses.opacity_loss(gaussians(1.0))[0], torch.tensor(0.3))
    torch.testing.assert_close(losses.scale_loss(gaussians(1.0), c)[0], torch.tensor(0.01))
    larger = Cameras(c.w2c.clone(), c.K, c.size)
    larger.w2c[..., :3, 3] *= 7
    torch.testing.assert_close(losses.scale_loss(gaussians(7.0), larger)[0], torch.tensor(0.01))


def walls(*depths: float, opacity: float = 0.9) -> Gaussians:
    """Walls of splats across what `cameras()` see, as far away as `depths`."""
    y, x = torch.meshgrid(torch.linspace(-2, 2, 41), torch.linspace(-4, 4, 81), indexing="ij")
    means = torch.cat([torch.stack([x, y, torch.full_like(x, d)], -1).reshape(1, -1, 3) for d in depths], 1)
    n = means.shape[1]
    quats = torch.tensor([1.0, 0, 0, 0]).expand(1, n, 4)
    return Gaussians(means, torch.full((1, n, 3), 0.1), quats, torch.full((1, n), opacity), torch.zeros(1, n, 1, 3))


def test_spread_counts_splats_away_from_the_surface():
    c = cameras()
    near, far = (torch.full((1, 2, 14, 28), d) for d in (2.0, 3.0))

    def spread(gaussians, depth=None):
        return losses.spread_loss(gaussians, c, depth, 0.1)[0]

    one, two = walls(3.0), walls(2.0, 3.0, opacity=0.2)
    assert spread(one) < 1e-3 and spread(one, far) < 1e-3
    # All of the weight at one wrong depth: nothing to be seen without the right one.
    torch.testing.assert_close(spread(one, near), torch.tensor(1 - math.cos(3 * math.log(1.5))), atol=2e-3, rtol=0)
    assert spread(two) > 0.05
    # The surface is known in the left half only.
    half = far.clone()
    half[..., 14:] = 0
    torch.testing.assert_close(spread(one, half), spread(one, far), atol=1e-3, rtol=0)
    assert spread(two, near) != spread(two, half)


def test_spread_fades_what_floats_before_the_surface_and_moves_it_back():
    c, floating = cameras(), walls(2.5, 3.0, opacity=0.3)
    means, opacities = floating.means.clone().requires_grad_(), floating.opacities.clone().requires_grad_()
    made = replace(floating, means=means, opacities=opacities)
    losses.spread_loss(made, c, torch.full((1, 2, 14, 28), 3.0), 0.1)[0].backward()
    first = slice(0, 41 * 81)
    assert opacities.grad[:, first].sum() > 0
    assert means.grad[:, first, 2].sum() < 0
