"""Reconstruction in the caller's frame: whatever the world and its unit, the same scene comes back in it."""

import pytest
import torch

from geometry.cameras import Cameras, project
from geometry.cameras import transform as transform_cameras
from geometry.network import Features, Geometry
from geometry.rotations import matrices_from_quats
from splat.adapter import pose_scale
from splat.camera_path import orbit
from splat.gaussians import Gaussians, transform
from splat.model import GaussianModel
from splat.predict import estimate_bytes, predict
from splat.reconstruct import reconstruct
from tests.tiny_networks import random_rotations, tiny_config

SIZE = (42, 56)


def model(**changes) -> GaussianModel:
    torch.manual_seed(0)
    return GaussianModel(tiny_config("a", **changes)).eval()


def views(count: int) -> tuple[torch.Tensor, Cameras]:
    """Noise for photos, and cameras on a path around (0, 0, 4)."""
    K = torch.tensor([[50.0, 0, 30], [0, 52.0, 20], [0, 0, 1]])[None]
    cameras = orbit(Cameras(torch.eye(4)[None], K, SIZE), 4.0, count)
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)), cameras


def some_similarity(scale: float):
    rotation = matrices_from_quats(torch.tensor([0.4, -0.7, 0.2, 0.6]))
    return rotation, torch.tensor([3.0, -20.0, 7.0]), scale


@pytest.mark.parametrize("count", [2, 4])
def test_the_worlds_frame_does_not_matter(count):
    images, cameras = views(count)
    network = model(cameras_given="given")
    here = reconstruct(images, cameras, network)
    there = reconstruct(images, transform_cameras(cameras, *some_similarity(1.0)), network)
    torch.testing.assert_close(there.depth, here.depth, rtol=1e-3, atol=1e-4)
    moved = transform(here.gaussians, *some_similarity(1.0))
    torch.testing.assert_close(there.gaussians.means, moved.means, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there.gaussians.scales, moved.scales, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("cameras_given", ["given", "predicted"])
def test_the_worlds_unit_does_not_matter(count, scale, cameras_given):
    images, cameras = views(count)
    network = model(cameras_given=cameras_given)
    # In float32 the small world, so far from its origin, would have few digits left.
    cameras = orbit(Cameras(torch.eye(4, dtype=torch.float64)[None], cameras.K[:1].double(), SIZE), 4.0, count)
    rotation, translation = random_rotations(1)[0], torch.tensor([3.0, -20, 7], dtype=torch.float64)
    large = transform_cameras(cameras, rotation, translation, scale)
    a, b = reconstruct(images, cameras, network), reconstruct(images, large, network)
    torch.testing.assert_close(scale * a.depth, b.depth, rtol=2e-3, atol=0)
    moved = transform(a.gaussians, rotation, translation, scale)
    torch.testing.assert_close(b.gaussians.means, moved.means, rtol=2e-3, atol=1e-4 + 2e-3 * scale)
    torch.testing.assert_close(b.gaussians.scales, moved.scales, rtol=2e-3, atol=0)


def test_gaussians_lie_in_front_of_the_cameras_given():
    images, cameras = views(3)
    cameras = transform_cameras(cameras, *some_similarity(5.0))
    result = reconstruct(images, cameras, model(gs=None))
    assert "no Gaussian head" in result.notes[0] and result.gaussians.count == 3 * SIZE[0] * SIZE[1]
    pixels, depth = project(result.gaussians.means.reshape(3, -1, 3), cameras)
    torch.testing.assert_close(depth, result.depth.flatten(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pixels[:, :2], torch.tensor([[0.5, 0.5], [1.5, 0.5]]).repeat(3, 1, 1), rtol=0, atol=0.02)
    torch.testing.assert_close(result.cameras.w2c, cameras.w2c)


class Answer(GaussianModel):
    """A network whose answer is known: cameras that differ from the given ones by a similarity, and what fits them."""

    def encode(self, images, cameras=None, **options):
        return Features(images, cameras, (), images, None, torch.zeros(1, dtype=torch.int64))

    def decode(self, features, rays=False):
        self.seen = transform_cameras(features.cameras, *self.similarity)
        depth = torch.full((1, *features.images.shape[1:2], *SIZE), 5.0 * self.similarity[2])
        return Geometry(depth, depth + 1, None, None, self.seen)

    def gaussians(self, features, geometry, backdrop=True, looks=None):
        answer = transform(self.local, *self.similarity)
        if self.config.gs.convention == "upstream":
            factor = pose_scale(geometry.cameras.centers, features.cameras.centers).clamp(1 / 3, 3)[0]
            answer = transform(answer, torch.eye(3), torch.zeros(3), factor)
        return answer


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("convention", ["exact", "upstream"])
@pytest.mark.parametrize("line", [False, True])
def test_answers_in_the_frame_of_predicted_cameras_are_brought_home(count, convention, line):
    config = tiny_config("a")
    network = Answer(tiny_config("a", gs=type(config.gs)(**{**vars(config.gs), "convention": convention})))
    images, cameras = views(count)
    if line:
        cameras.w2c[:, :3, 3] = torch.arange(count)[:, None] * torch.tensor([0.3, 0.1, 0.0])
        cameras.w2c[:, :3, :3] = torch.eye(3)
    unit = torch.linalg.vector_norm(cameras.centers - cameras.centers[0], dim=-1).median() if count > 2 else None
    unit = torch.linalg.vector_norm(cameras.centers[1] - cameras.centers[0]) if count == 2 else unit
    unit = torch.tensor(1.0) if count == 1 else 30.0 * unit
    cameras = transform_cameras(cameras, *some_similarity(30.0))
    # One view has no baseline, so nothing tells the scale.
    network.similarity = (matrices_from_quats(torch.tensor([0.9, 0.1, -0.3, 0.2])), torch.ones(3), 1.7 ** (count > 1))
    generator = torch.Generator().manual_seed(2)
    local = torch.randn(1, 50, 3, generator=generator) + torch.tensor([0.0, 0, 5])
    quats = torch.nn.functional.normalize(torch.randn(1, 50, 4, generator=generator), dim=-1)
    sh = torch.randn(1, 50, 4, 3, generator=generator)
    network.local = Gaussians(local, torch.rand(1, 50, 3, generator=generator), quats, torch.rand(1, 50), sh)
    got = predict(images, cameras, network)
    c2w = cameras.c2w[0]
    want = transform(Gaussians(*(x[0] for x in vars(network.local).values())), c2w[:3, :3], c2w[:3, 3], unit)
    torch.testing.assert_close(got.depth, torch.full((count, *SIZE), 5.0) * unit, rtol=1e-3, atol=0)
    torch.testing.assert_close(got.gaussians.means, want.means, rtol=1e-3, atol=1e-3 * float(unit))
    torch.testing.assert_close(got.gaussians.scales, want.scales, rtol=1e-3, atol=0)
    torch.testing.assert_close(got.gaussians.sh, want.sh, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got.cameras.w2c, cameras.w2c)


def test_without_cameras_the_first_view_is_the_world_and_all_fits_together():
    images, _ = views(2)
    result = reconstruct(images, None, model(gs=None))
    torch.testing.assert_close(result.cameras.w2c[0], torch.eye(4), rtol=0, atol=1e-5)
    _, depth = project(result.gaussians.means.reshape(2, -1, 3), result.cameras)
    torch.testing.assert_close(depth, result.depth.flatten(1), rtol=1e-3, atol=1e-3)
    assert result.names == ("0000", "0001") and result.weights == "tiny (none)"
    # The Gaussian head's answer moves along with the cameras: seen from them, it stays where it was.
    network = model()
    with torch.no_grad():
        geometry, gaussians = network(images[None])
    result = reconstruct(images, None, network)
    before, after = (
        project(means, cameras)[1]
        for means, cameras in (
            (gaussians.means[0], geometry.cameras[0]),
            (result.gaussians.means, result.cameras),
        )
    )
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_too_little_memory_says_what_to_lower(monkeypatch):
    images, cameras = views(2)
    network = model()

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(network, "encode", no_memory)
    with pytest.raises(MemoryError, match="2 views of 42x56 need about .* lower --views or --size"):
        reconstruct(images, cameras, network)
    assert estimate_bytes(network, 4, SIZE) > estimate_bytes(network, 2, SIZE) > 0


def test_wrong_shapes_are_refused():
    images, cameras = views(2)
    with pytest.raises(ValueError, match=r"\[V, 3, H, W\]"):
        reconstruct(images[None], cameras, model())
    with pytest.raises(ValueError, match="multiples of 14"):
        reconstruct(images[..., :-3], None, model())
