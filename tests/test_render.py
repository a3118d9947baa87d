"""Laws of the renderer, the dense float64 oracle, and the hard cases."""

import math
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import fields, replace

import pytest
import torch

from geometry.cameras import Cameras
from splat import raster_cpu, raster_cuda
from splat.gaussians import Gaussians
from splat.render import render
from splat.sh import C0
from tests.oracle import render_slowly

NAMES = [f.name for f in fields(Gaussians)]


def cloud(*shape, degree=2, seed=0, dtype=torch.float32, size=0.15):
    """Random Gaussians [*shape] in front of, beside and behind the cameras of `arc`."""
    g = torch.Generator().manual_seed(seed)
    bands = (degree + 1) ** 2
    return Gaussians(
        (torch.rand(*shape, 3, generator=g) * 2 - 1) * torch.tensor([3.0, 2.5, 3.0]) + torch.tensor([0.0, 0.0, 2.5]),
        torch.exp(torch.randn(*shape, 3, generator=g) * 0.7) * size,
        torch.nn.functional.normalize(torch.randn(*shape, 4, generator=g), dim=-1),
        torch.rand(*shape, generator=g) * 0.98 + 0.02,
        torch.randn(*shape, bands, 3, generator=g) * torch.tensor([0.8] + [0.3] * (bands - 1))[:, None],
    ).to(dtype)


def arc(*shape, size=(30, 45), dtype=torch.float32):
    """Cameras [*shape], V last, turned a little more from each to the next; focal lengths and centre are uneven."""
    angles = torch.linspace(-0.2, 0.25, math.prod(shape)).reshape(shape)
    w2c = torch.eye(4).repeat(*shape, 1, 1)
    w2c[..., 0, 0] = w2c[..., 2, 2] = angles.cos()
    w2c[..., 0, 2], w2c[..., 2, 0] = -angles.sin(), angles.sin()
    w2c[..., :3, 3] = torch.tensor([0.1, -0.05, 0.2])
    K = torch.tensor([[40.0, 0, 0.47 * size[1]], [0, 43.0, 0.55 * size[0]], [0, 0, 1]]).repeat(*shape, 1, 1)
    return Cameras(w2c.to(dtype), K.to(dtype), size)


def one(mean=(0.0, 0.0, 2.0), scale=0.2, opacity=0.5, color=(0.2, 0.6, 0.9)):
    """A single round Gaussian of constant colour."""
    sh = (torch.tensor(color) - 0.5) / C0
    return Gaussians(
        torch.tensor([mean]),
        torch.full((1, 3), scale),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([opacity]),
        sh[None, None],
    )


def joined(*parts):
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in NAMES))


def front(size=(21, 31), focal=50.0):
    """A camera [1] at the origin, looking along z; its axis meets the centre of the middle pixel."""
    K = torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]])
    return Cameras(torch.eye(4)[None], K[None], size)


def leaves_of(gaussians, cameras, dtype):
    tensors = {name: getattr(gaussians, name) for name in NAMES} | {"w2c": cameras.w2c}
    return {name: t.detach().clone().to(dtype).requires_grad_() for name, t in tensors.items()}


def loss_of(result):
    """A loss that weighs each pixel of colour, depth and alpha differently, the same for float32 and float64."""
    g = torch.Generator().manual_seed(9)
    planes = (result.color, result.depth * result.alpha, result.alpha)
    return sum((p * torch.randn(p.shape, generator=g).to(p)).sum() for p in planes)


def gradients(renderer, gaussians, cameras, background, dtype, **options):
    leaves = leaves_of(gaussians, cameras, dtype)
    background = background.detach().to(dtype).requires_grad_()
    scene = Gaussians(*(leaves[name] for name in NAMES))
    result = renderer(scene, Cameras(leaves["w2c"], cameras.K.to(dtype), cameras.size), background, **options)
    loss_of(result).backward()
    return result, {name: t.grad for name, t in (leaves | {"background": background}).items()}


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_agrees_with_the_dense_oracle(degree, antialiased):
    pile = cloud(40, degree=degree, seed=10 + degree, size=0.3)  # dense in one place: its pixels stop early
    pile = replace(pile, means=pile.means * 0.1 + torch.tensor([0.4, 0.0, 2.5]))
    scene = joined(cloud(300, degree=degree, seed=degree, size=0.12), pile)
    cameras, background = arc(2), torch.tensor([0.3, 0.1, 0.7])
    got, got_grad = gradients(render, scene, cameras, background, torch.float32, antialiased=antialiased)
    want, want_grad = gradients(render_slowly, scene, cameras, background, torch.float64, antialiased=antialiased)

    assert want.alpha.max() > 0.9998 and want.alpha.min() < 0.5, "the scene should hold full and thin pixels"
    torch.testing.assert_close(got.color.double(), want.color, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.alpha.double(), want.alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.depth.double() * want.alpha, want.depth * want.alpha, atol=2e-5, rtol=0)
    for name, gradient in want_grad.items():
        error = float((got_grad[name].double() - gradient).norm() / gradient.norm())
        assert error < 3e-5, f"gradient of {name}: relative error {error:.2e}"


@pytest.mark.parametrize("size", [(1, 1), (16, 32), (17, 33), (5, 70)])
def test_any_picture_size(size):
    scene, cameras = cloud(200, degree=0, seed=3), arc(1, size=size)
    want = render_slowly(scene.to(torch.float64), cameras.to(torch.float64))
    torch.testing.assert_close(render(scene, cameras).color.double(), want.color, atol=3e-6, rtol=0)


def test_far_from_the_origin_nothing_gets_lost():
    """In a world whose origin is 2000 units away, pictures are as exact as the numbers that were given."""
    far = torch.tensor([1200.0, -900.0, 1400.0])
    scene, cameras = cloud(300, degree=1, seed=4), arc(2)
    scene.means.add_(far)
    cameras.w2c[:, :3, 3] -= cameras.w2c[:, :3, :3] @ far
    want = render_slowly(scene.to(torch.float64), cameras.to(torch.float64))
    torch.testing.assert_close(render(scene, cameras).color.double(), want.color, atol=1e-5, rtol=0)
    assert want.alpha.max() > 0.5


def test_long_and_thin_gaussians_keep_their_width():
    """At an angle they have a covariance of which float32 keeps only the length, not the width."""
    turn = torch.tensor([math.cos(0.35), 0.0, 0.0, math.sin(0.35)])
    for thin in (1e-4, 0.004):
        scene = replace(one(opacity=0.9), scales=torch.tensor([[30.0, thin, thin]]), quats=turn[None])
        want = render_slowly(scene.to(torch.float64), front().to(torch.float64))
        torch.testing.assert_close(render(scene, front()).alpha.double(), want.alpha, atol=2e-3, rtol=0)
        assert 0.05 < want.alpha.mean() < 0.2


def test_one_gaussian_in_closed_form():
    result = render(one(opacity=0.5), front())
    assert result.color.shape == (1, 21, 31, 3) and result.depth.shape == result.alpha.shape == (1, 21, 31)
    torch.testing.assert_close(result.alpha[0, 10, 15], torch.tensor(0.5))
    torch.testing.assert_close(result.depth[0, 10, 15], torch.tensor(2.0))
    torch.testing.assert_close(result.color[0, 10, 15], 0.5 * torch.tensor([0.2, 0.6, 0.9]))
    variance = (0.2 * 50 / 2) ** 2 + 0.3
    torch.testing.assert_close(result.alpha[0, 10, 18], torch.tensor(0.5 * math.exp(-0.5 * 9 / variance)))


def test_alpha_is_clamped_and_the_clamp_stops_the_gradient():
    scene = one(opacity=1.0)
    opacities = scene.opacities.requires_grad_()
    result = render(scene, front())
    torch.testing.assert_close(result.alpha.max(), torch.tensor(0.999))
    result.alpha[0, 10, 15].backward()
    assert float(opacities.grad) == 0


def test_batch_axes_equal_a_loop():
    scenes, cameras = cloud(2, 3, 80), arc(2, 3, 4, size=(20, 24))
    background = torch.rand(2, 3, 4, 3)
    whole = render(scenes, cameras, background)
    assert whole.color.shape == (2, 3, 4, 20, 24, 3) and whole.alpha.shape == (2, 3, 4, 20, 24)
    for b, c in ((0, 0), (1, 2)):
        scene = Gaussians(*(getattr(scenes, name)[b, c] for name in NAMES))
        single = render(scene, cameras[b, c], background[b, c])
        for name in ("color", "depth", "alpha"):
            assert torch.equal(getattr(whole, name)[b, c], getattr(single, name))


def test_repeats_are_identical_bit_by_bit_for_any_number_of_threads():
    numba = pytest.importorskip("numba")
    scene, cameras = cloud(500, size=0.05), arc(2, size=(60, 90))
    render(scene, cameras)
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS, 1):
        numba.set_num_threads(threads)
        results.append(gradients(render, scene, cameras, torch.zeros(3), torch.float32))
    for result, grads in results[1:]:
        assert torch.equal(result.color, results[0][0].color)
        for name, gradient in grads.items():
            assert torch.equal(gradient, results[0][1][name]), name


def test_concurrent_threads_do_not_disturb_each_other():
    scene, cameras = cloud(300), arc(1)
    want, got = render(scene, cameras).color, []
    workers = [threading.Thread(target=lambda: got.append(render(scene, cameras).color)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(got) == 4 and all(torch.equal(color, want) for color in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_a_clear_error():
    scene, cameras = one(), front()
    render(scene, cameras)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        child = os.fork()
    if child == 0:
        try:
            render(scene, cameras)
        except RuntimeError as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_no_gaussians_show_the_background():
    background = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    result = render(cloud(2, 0), arc(2, 3, size=(4, 5)), background)
    assert result.color.shape == (2, 3, 4, 5, 3)
    assert torch.equal(result.color, background.expand(2, 3, 4, 5, 3))
    assert not result.alpha.any() and not result.depth.any()
    result.color.sum().backward()
    assert torch.equal(background.grad, torch.full((3,), 120.0))
    assert not render(cloud(0), arc(2)).color.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_gaussians_that_are_not_finite_are_culled(name, value):
    scene, cameras, background = cloud(60), arc(1), torch.zeros(3)
    broken = getattr(scene, name).clone()
    broken.view(60, -1)[::3, 0] = value
    kept = scene.select([i for i in range(60) if i % 3])
    got, grads = gradients(render, replace(scene, **{name: broken}), cameras, background, torch.float32)
    want, _ = gradients(render, kept, cameras, background, torch.float32)
    assert torch.equal(got.color, want.color)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in grads.values())


def test_degenerate_gaussians_neither_crash_nor_poison_the_picture():
    scene = cloud(8)
    scene.quats[0] = 0
    scene.scales[1] = 0
    scene.scales[2] = 1e20
    scene.means[3] = 1e30
    scene.means[4] = -(arc(1).w2c[0, :3, :3].T @ arc(1).w2c[0, :3, 3])  # in the camera's centre
    scene.opacities[5] = 1e30
    scene.sh[6] = 1e30
    scene.opacities[7] = -1
    for antialiased in (False, True):
        result, grads = gradients(render, scene, arc(1), torch.zeros(3), torch.float32, antialiased=antialiased)
        assert torch.isfinite(result.alpha).all()
        assert torch.isfinite(grads["means"][0]).all()


def test_depth_limits_cull_by_the_centre():
    for z, seen in ((-2.0, False), (0.5, False), (2.0, True), (9.0, False)):
        result = render(one(mean=(0.0, 0.0, z)), front(), near=1.0, far=5.0)
        assert bool(result.alpha.any()) == seen, z


def test_a_huge_gaussian_fills_the_picture():
    result = render(one(scale=1e4, opacity=0.8), front(size=(100, 150)))
    torch.testing.assert_close(result.alpha, torch.full((1, 100, 150), 0.8))


def test_nearer_gaussians_hide_farther_ones_whatever_their_order():
    near, far = one(mean=(0.0, 0.0, 1.0), opacity=0.99), one(mean=(0.0, 0.0, 3.0), color=(0.0, 0.0, 0.0))
    for pair in ((near, far), (far, near)):
        assert render(joined(*pair), front()).depth[0, 10, 15] < 1.1


@pytest.mark.parametrize("shape", [(3,), (4, 3), (1, 3), (2, 1, 3), (2, 4, 3)])
def test_backgrounds_broadcast(shape):
    scene, cameras, background = cloud(2, 50), arc(2, 4), torch.rand(shape)
    black, got = render(scene, cameras), render(scene, cameras, background)
    want = black.color + (1 - black.alpha)[..., None] * background.expand(2, 4, 3)[:, :, None, None]
    torch.testing.assert_close(got.color, want)


def test_half_and_double_precision_come_back_as_float32_with_their_own_gradients():
    for dtype in (torch.float64, torch.bfloat16):
        scene = cloud(20, dtype=dtype)
        scene.means.requires_grad_()
        result = render(scene, arc(1))
        result.color.sum().backward()
        assert result.color.dtype == torch.float32 and scene.means.grad.dtype == dtype


def test_wrong_shapes_and_limits_are_refused():
    with pytest.raises(ValueError, match="need cameras"):
        render(cloud(2, 5), arc(3))
    with pytest.raises(ValueError, match="need cameras"):
        render(cloud(5), Cameras(torch.eye(4), torch.eye(3), (4, 4)))
    with pytest.raises(ValueError, match="background must be"):
        render(cloud(5), arc(2), torch.zeros(4))
    with pytest.raises(ValueError, match="near=2"):
        render(cloud(5), arc(2), near=2, far=1)


def test_importing_the_renderer_is_light():
    code = "import sys, splat.render; print([m for m in ('numba', 'gsplat') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_missing_libraries_are_named(monkeypatch):
    scene, cameras = cloud(1, 2), arc(1, 1)
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(ImportError, match=r"pip install raysplat\[gs\]"):
        raster_cuda.rasterize(scene, cameras, None, near=0.01, far=10, antialiased=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    raster_cpu._load.cache_clear()
    with pytest.raises(ImportError, match="pip install numba"):
        render(scene, cameras)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialiased", [False, True])
def test_cuda_agrees_with_the_cpu_on_a_batch(antialiased):
    scene, cameras, background = cloud(2, 2, 2000, size=0.06), arc(2, 2, 3, size=(50, 70)), torch.rand(2, 2, 3, 3)
    want, want_grad = gradients(render, scene, cameras, background, torch.float32, antialiased=antialiased)
    got, got_grad = gradients(
        render, scene.to("cuda"), cameras.to("cuda"), background.cuda(), torch.float32, antialiased=antialiased
    )
    for name in ("color", "alpha", "depth"):
        scale = want.alpha if name == "depth" else torch.ones_like(want.alpha)
        scale = scale[..., None] if name == "color" else scale
        error = ((getattr(got, name).cpu() - getattr(want, name)) * scale).abs().flatten()
        assert error.mean() < 1e-5 and error.quantile(0.999) < 1e-3, name
    for name, gradient in want_grad.items():
        assert float((got_grad[name].cpu() - gradient).norm() / gradient.norm()) < 2e-3, name


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_culls_what_is_not_finite_and_draws_no_gaussians():
    scene, cameras = cloud(60).to("cuda"), arc(1).to("cuda")
    kept = render(scene.select([i for i in range(60) if i % 3]), cameras).color
    for name in NAMES:
        broken = getattr(scene, name).clone()
        broken.view(60, -1)[::3, 0] = math.nan
        torch.testing.assert_close(render(replace(scene, **{name: broken}), cameras).color, kept, atol=1e-5, rtol=0)
    assert not render(scene.select(slice(0, 0)), cameras).color.any()


def test_rendering_leaves_pytorchs_threads_alone():
    """In a fresh process: the first kernel launch is what used to change them."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.test_render import arc, cloud\n"
        "from splat.render import render\n"
        "render(cloud(50), arc(1)); print(torch.get_num_threads())"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["1"]
