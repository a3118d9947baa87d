"""Synthetic scenes: exact depth and cameras, determinism, and looks that hold together from view to view."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from geometry.cameras import project, unproject, validate
from geometry.synthetic import SyntheticConfig, make_atlas, sample_batch, write_sample
from geometry.synthetic.dice import Dice
from geometry.synthetic.intersect import hit_boxes, hit_implicit, hit_panels, hit_rounds
from geometry.synthetic.parts import CYLINDER, rows
from geometry.synthetic.rigs import clear_of, into_frames, without_obstacles
from geometry.synthetic.scenes import KINDS, primitive_table, sample_layout
from geometry.synthetic.textures import lookup, pack, side, unpack
from geometry.synthetic.transforms import rotations

SIZE = (28, 36)
SMALL = SyntheticConfig(boxes=32, rounds=16, panels=32, implicits=2, steps=16, shadows=1.0, noise=0.0, exposure=0.0)


@pytest.fixture(scope="module")
def atlas():
    return make_atlas(0, 12, size=32)


@pytest.fixture(scope="module")
def batch(atlas):
    return sample_batch(5, 6, 5, SIZE, atlas, config=SMALL)


def rays(count: int, seed: int = 0):
    """Origins on a sphere of radius 4 that look at points near the centre."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * 4
    return origin, torch.randn(count, 3, generator=generator) * 0.5 - origin


def test_a_batch_holds_what_it_says(batch):
    assert batch.images.shape == (6, 5, 3, *SIZE) and batch.depth.shape == batch.valid.shape == (6, 5, *SIZE)
    assert torch.isfinite(batch.images).all() and batch.images.min() >= 0 and batch.images.max() <= 1
    assert torch.isfinite(batch.depth).all()
    assert torch.equal(batch.depth > 0, batch.valid)
    assert (batch.valid.float().mean((2, 3)) > 0.2).float().mean() > 0.9
    assert batch.images.std((2, 3, 4)).min() > 0.01
    validate(batch.cameras, [str(i) for i in range(30)])


def test_the_seed_alone_decides(atlas, batch):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = sample_batch(5, 6, 5, SIZE, atlas, config=SMALL)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(again.images, batch.images) and torch.equal(again.cameras.w2c, batch.cameras.w2c)
    other = sample_batch(6, 6, 5, SIZE, atlas, config=SMALL)
    assert (other.images - batch.images).abs().mean() > 0.05


def test_views_may_have_lenses_of_their_own(atlas):
    def focal(lenses):
        made = sample_batch(5, 24, 5, (14, 14), atlas, config=replace(SMALL, fov=(25, 115), lenses=lenses))
        seen = made.depth[made.valid]
        assert torch.isfinite(made.images).all() and seen.min() > 0 and torch.isfinite(seen).all()
        return made.cameras.K[..., 0, 0] / 14

    several, one = focal(1.0), focal(0.0)
    ratio = several.amax(1) / several.amin(1)
    assert 1.6 < ratio.median() < 4 and ratio.min() > 1.01
    assert several.min() == pytest.approx(0.3) and 1.5 < several.max() <= 3.001
    assert (one.amax(1) / one.amin(1)).max() < 1.4
    mixed = focal(0.5)
    of_one = (mixed.amax(1) / mixed.amin(1)) < 1.4
    assert 6 <= of_one.sum() <= 20


def test_autocast_does_not_touch_the_geometry(atlas):
    plain = sample_batch(5, 1, 3, (12, 12), atlas, config=SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sample_batch(5, 1, 3, (12, 12), atlas, config=SMALL)
    assert torch.equal(plain.depth, cast.depth) and torch.equal(plain.cameras.w2c, cast.cameras.w2c)
    assert torch.equal(plain.images, cast.images)


def test_views_of_a_scene_agree_on_its_surfaces(batch):
    """A point seen in one view and carried into another lies on what that one sees, or behind it."""
    on_surface, compared, before = 0, 0, 0
    colors = []
    for scene in range(6):
        cameras, depth, valid = batch.cameras[scene], batch.depth[scene], batch.valid[scene]
        points = unproject(depth, cameras)
        for a in range(5):
            for b in range(5):
                if a == b:
                    continue
                uv, z = project(points[a].reshape(-1, 3), cameras[b])
                inside = (z > 0) & (uv >= 0).all(-1) & (uv[:, 0] < SIZE[1]) & (uv[:, 1] < SIZE[0])
                column, row = uv[:, 0].clamp(0, SIZE[1] - 1).long(), uv[:, 1].clamp(0, SIZE[0] - 1).long()
                # The depths of the 3 x 3 pixels around bound what the surface does within a pixel.
                around = torch.where(valid[b], depth[b], 1e9)[None, None]
                nearest = -torch.nn.functional.max_pool2d(-around, 3, 1, 1)[0, 0][row, column]
                farthest = torch.nn.functional.max_pool2d(around, 3, 1, 1)[0, 0][row, column]
                check = inside & valid[a].reshape(-1)
                compared += int(check.sum())
                before += int((check & (z < nearest * 0.98)).sum())
                same = check & (z > nearest * 0.98) & (z < farthest * 1.02) & (farthest < nearest * 1.1)
                on_surface += int(same.sum())
                first = batch.images[scene, a].flatten(1)[:, same]
                second = batch.images[scene, b, :, row, column][:, same]
                colors.append((first - second).abs().mean(0))
    assert compared > 10000
    assert before < 0.02 * compared  # nothing may stand in front of what another view sees
    assert on_surface > 0.4 * compared
    assert torch.cat(colors).median() < 0.06


def test_most_of_every_view_is_seen_by_a_context_view(atlas):
    made = sample_batch(11, 8, 4, (20, 20), atlas, config=replace(SMALL, targets=1))
    shares = []
    for scene in range(8):
        points = unproject(made.depth[scene], made.cameras[scene])
        for a in range(4):
            seen = torch.zeros(400, dtype=torch.bool)
            for b in range(3):
                uv, z = project(points[a].reshape(-1, 3), made.cameras[scene, b])
                seen |= (z > 0) & (uv >= 0).all(-1) & (uv < 20).all(-1) & (a != b)
            valid = made.valid[scene, a].flatten()
            shares.append(float((seen & valid).sum() / valid.sum().clamp_min(1)))
    shares = torch.tensor(shares)
    assert shares.median() > 0.7 and shares.quantile(0.1) > 0.35


def test_slender_things_in_front_of_the_lens_are_taken_away(atlas):
    dice = Dice(0, 1, "cpu")
    layout, _ = sample_layout(dice, SMALL.counts, tuple(float(kind.__name__ == "statue") for kind in KINDS))
    near, far, wide = 3, 4, 5  # slots of rounds
    eye = torch.tensor([40.0, 0.0, 1.0])
    for slot, x, radius in ((near, 39.8, 0.02), (far, 39.0, 0.02), (wide, 39.0, 0.95)):
        layout.rounds[:, slot] = rows(dice, 1, (x, 0.0, 1.0), (radius, radius, 1.0), shape=CYLINDER)[:, 0]
    table = primitive_table(dice, layout, 12)
    c2w = torch.eye(4).repeat(1, 1, 1, 1)
    c2w[0, 0, :3, 3] = eye
    left = without_obstacles(table, c2w, torch.tensor([[0.5]]), SMALL.counts)
    changed = (left != table).any(1)[0].nonzero()[:, 0]
    assert changed.tolist() == [SMALL.boxes + near]
    # No ray meets it: it is as small and as far away as an empty slot.
    assert torch.allclose(left[0, :15, changed[0]], table[0, :15, table[0, 12] <= 1e-3][:, 0])


def test_things_stay_clear_of_the_lens_by_part_of_the_way_to_the_next_views():
    c2w = torch.eye(4).repeat(1, 4, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 1.0, 3.0, 2.0])  # three contexts and a target
    far, near = torch.full((1, 4), 100.0), torch.full((1, 4), 1.0)
    assert torch.allclose(clear_of(far, c2w, 3), torch.full((1, 4), 15.0))
    assert torch.allclose(clear_of(near, c2w, 3), 0.5 * torch.tensor([[2.0, 1.5, 2.5, 1.0]]))
    assert torch.allclose(clear_of(near, c2w, 1), torch.full((1, 4), 0.15))


def test_world_scale_and_frame_are_arbitrary_and_depth_follows(atlas):
    one = sample_batch(5, 3, 4, SIZE, atlas, config=replace(SMALL, world_scale=(1, 1.0001)))
    ten = sample_batch(5, 3, 4, SIZE, atlas, config=replace(SMALL, world_scale=(10, 10.001)))
    assert torch.allclose(10 * one.depth, ten.depth, rtol=1e-3)
    assert torch.allclose(10 * one.cameras.centers, ten.cameras.centers, rtol=1e-3, atol=1e-3)
    assert torch.equal(one.images, ten.images)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[k.__name__ for k in KINDS])
def test_every_sort_of_scene(kind, atlas):
    weights = tuple(float(i == kind) for i in range(len(KINDS)))
    made = sample_batch(kind, 2, 3, (16, 16), atlas, config=replace(SMALL, kinds=weights, targets=1))
    assert (made.kind == kind).all() and torch.isfinite(made.images).all()
    assert made.valid.float().mean() > 0.3


def test_views_must_leave_a_context_view(atlas):
    with pytest.raises(ValueError, match="no context view"):
        sample_batch(0, 1, 2, SIZE, atlas)


def test_other_slot_counts(atlas):
    with pytest.raises(ValueError, match="boxes must be at least"):
        SyntheticConfig(boxes=8)
    with pytest.raises(ValueError, match="at most 127"):
        SyntheticConfig(boxes=100)
    least = sample_batch(0, 9, 3, (8, 8), atlas, config=replace(SMALL, boxes=28, rounds=11, panels=14))
    assert torch.isfinite(least.images).all()
    made = sample_batch(0, 2, 3, (12, 12), atlas, config=replace(SMALL, implicits=0, boxes=40, rounds=18, panels=36))
    assert torch.isfinite(made.images).all()


def test_box_depth_is_the_closed_form():
    """A slab under a tilted camera: its depth is that of the plane through its top."""
    origin, direction = rays(200)
    t = hit_boxes(origin.unbind(-1), direction.unbind(-1), torch.zeros(()))
    hit = torch.isfinite(t)
    point = (origin + t[:, None] * direction)[hit]
    assert 20 < hit.sum() < 200
    assert torch.allclose(point.abs().amax(-1), torch.ones(len(point)), atol=1e-5)
    inside = hit_boxes((origin * 0.1).unbind(-1), direction.unbind(-1), torch.ones(()))
    assert torch.allclose((origin * 0.1 + inside[:, None] * direction).abs().amax(-1), torch.ones(200), atol=1e-5)
    # From straight above, the top face lies at a depth known beforehand.
    down = hit_boxes(tuple(torch.tensor([0.2, 0.3, 5.0])), tuple(torch.tensor([0.1, 0.0, -1.0])), torch.zeros(()))
    assert float(down) == pytest.approx(4.0, abs=1e-6)


def test_plane_depth_through_the_frames_is_exact():
    """A wall of any attitude: depth of its hit equals n . (p - c) / n . d to float precision."""
    dice = Dice(3, 50, "cpu")
    rotation, center = rotations(dice.uniform(3, high=6.28)), dice.normal(3, std=0.3)
    half = torch.tensor([50.0, 50.0, 1.0])
    frame = rotation.transpose(-1, -2) / half[:, None]
    table = torch.zeros(50, 15, 1)
    table[:, :9, 0], table[:, 9:12, 0] = frame.flatten(1), -(frame @ center[..., None])[..., 0]
    c2w = torch.eye(4).repeat(50, 1, 1, 1)
    c2w[:, 0, :3, :3] = rotations(dice.uniform(3, high=6.28))
    c2w[:, 0, :3, 3] = center + rotation[..., 2] * dice.uniform(1, low=1, high=3) + dice.normal(3, std=0.1)
    to_local, eye = into_frames(table, c2w)
    x, y = dice.normal(2, std=0.5).unbind(-1)
    d = torch.stack(
        [to_local[:, 3 * i, 0] * x + to_local[:, 3 * i + 1, 0] * y + to_local[:, 3 * i + 2, 0] for i in range(3)]
    )
    t = hit_panels(tuple(eye[:, :, 0].unbind(-1)), tuple(d), (0 * x, 0 * x, 0 * x, 0 * x + 1))
    direction = (c2w[:, 0, :3, :3] @ torch.stack([x, y, torch.ones_like(x)], -1)[..., None])[..., 0]
    normal = rotation[..., 2]
    exact = (normal * (center - c2w[:, 0, :3, 3])).sum(-1) / (normal * direction).sum(-1)
    near = (exact > 0) & (exact < 20)
    assert near.sum() > 10
    assert torch.allclose(t[near], exact[near], rtol=1e-4)
    assert torch.isinf(t[exact < 0]).all()


@pytest.mark.parametrize("profile", [(1, 0, -1), (1, 0, 0), (0.25, -0.5, 0.25), (0.45, -0.1, 0.45), (0.5, 0.5, 0)])
def test_rounds_are_hit_on_their_surface_and_nowhere_before(profile):
    origin, direction = rays(400)
    p0, p1, p2 = profile

    def value(p):
        z = p[..., 2]
        return torch.maximum(p[..., 0] ** 2 + p[..., 1] ** 2 - (p0 + p1 * z + p2 * z * z), (z.abs() - 1) * 3)

    t = hit_rounds(origin.unbind(-1), direction.unbind(-1), tuple(torch.tensor(v).float() for v in profile))
    hit = torch.isfinite(t)
    assert 50 < hit.sum() < 400
    assert value((origin + t[:, None] * direction)[hit]).abs().max() < 1e-3
    share = torch.linspace(0, 1, 200)
    before = origin[:, None] + (torch.where(hit, t, 3.0)[:, None] * share * 0.995)[..., None] * direction[:, None]
    assert value(before).min() > -2e-2


def test_a_thin_far_pole_is_hit_precisely():
    eye = (torch.tensor(1000.0), torch.tensor(0.0), torch.tensor(0.0))  # 10 units from a pole 1 cm thick
    offset = torch.linspace(-1.5, 1.5, 301)
    t = hit_rounds(
        eye, (torch.full((301,), -1000.0), offset, torch.zeros(301)), tuple(torch.tensor(v) for v in (1.0, 0.0, 0.0))
    )
    clear = (offset.abs() - 1).abs() > 0.02
    assert torch.equal(torch.isfinite(t)[clear], (offset.abs() < 1)[clear])
    hit = torch.isfinite(t)
    surface = 1 - torch.sqrt((1 - offset[hit] ** 2).clamp_min(0)) / 1000
    assert (t[hit] - surface).abs().max() < 2e-5


def test_panel_outlines():
    u, v = torch.meshgrid(torch.linspace(-1.2, 1.2, 101), torch.linspace(-1.2, 1.2, 101), indexing="ij")
    ray = (u, v, torch.ones_like(u)), (torch.zeros(()), torch.zeros(()), -torch.ones(()))

    def area(*shape):
        return (
            float(torch.isfinite(hit_panels(*ray, tuple(torch.tensor(float(s)) for s in shape))).float().mean())
            * 2.4**2
        )

    assert area(0, 0, 0, 1) == pytest.approx(4, rel=0.05)
    assert area(1, 1, 0, 1) == pytest.approx(math.pi, rel=0.05)
    assert area(1, 0, 0, 1) == pytest.approx(8 / 3, rel=0.05)
    assert area(0, 0, 5, 0.3) == pytest.approx(1.2, rel=0.15)
    assert area(0, 0, -5, 0.3) == pytest.approx(4 * (1 - 0.49), rel=0.15)


def test_implicit_plane_and_its_march():
    waves = torch.zeros(1, 5, 2)
    origin, direction = rays(300, 1)
    o, d = (tuple(p[None] for p in q.unbind(-1)) for q in (origin, direction))
    t = hit_implicit(o, d, torch.zeros(1, 1), waves, 24)[0]
    point = origin + t[:, None] * direction
    down = torch.isfinite(t) & (origin[:, 2] > 1) & (direction[:, 2] < 0)
    assert down.sum() > 30
    top = down & (point[:, :2].abs() < 0.99).all(-1)
    assert point[top, 2].abs().max() < 1e-4


def test_atlas_levels_and_lookup():
    textures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    atlas = pack(textures)
    assert side(atlas) == 16 and (unpack(atlas) - textures).abs().max() <= 0.5 / 255 + 1e-6
    index = torch.tensor([2])
    center = (torch.tensor([(5 + 0.5) / 16]), torch.tensor([(9 + 0.5) / 16]))
    sharp = torch.stack(lookup(atlas, index, *center, torch.tensor([0.0])))[:, 0]
    assert torch.allclose(sharp, textures[2, :, 9, 5], atol=3e-3)
    mirrored = torch.stack(lookup(atlas, index, 2 - center[0], center[1] - 2, torch.tensor([0.0])))[:, 0]
    assert torch.allclose(mirrored, sharp, atol=3e-3)
    flat = torch.stack(lookup(atlas, index, *center, torch.tensor([9.0])))[:, 0]
    assert torch.allclose(flat, textures[2].mean((1, 2)), atol=1e-2)


def test_atlas_is_made_from_its_seed_and_from_photos(tmp_path):
    from PIL import Image

    assert torch.equal(make_atlas(3, 10, size=16), make_atlas(3, 10, size=16))
    with pytest.raises(ValueError, match="no image"):
        make_atlas(0, 4, size=16, photos=tmp_path)
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / "deep" / "a.png")
    colors = unpack(make_atlas(0, 4, size=16, photos=tmp_path))[2:].mean((0, 2, 3))
    assert torch.allclose(colors, torch.tensor([200, 100, 50]) / 255, atol=0.02)
    with pytest.raises(ValueError, match="power of two"):
        pack(torch.zeros(1, 3, 12, 12))


def test_the_sample_scene_is_read_back(tmp_path):
    from geometry.scene import open_scene

    assert write_sample(tmp_path, views=4, size=(18, 24)) == tmp_path / "transforms.json"
    scene = open_scene(tmp_path)
    assert len(scene) == 4 and scene.sizes == ((18, 24),) * 4 and scene.load(3).std() > 10
    w2c = torch.tensor(scene.w2c)
    centers = -(w2c[:, :3, :3].transpose(1, 2) @ w2c[:, :3, 3:])[..., 0]
    steps = (centers[1:] - centers[:-1]).norm(dim=-1)
    assert steps.min() > 0 and (centers[0] - centers[-1]).norm() > steps.max()  # in order along the arc


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", [1, 2, 5])
def test_kernels_on_cuda_agree_with_the_reference(seed, monkeypatch):
    """The same calls on both devices: first hits, shadows and contact of whole scenes."""
    from geometry.synthetic import shade

    calls = {}

    def recorded(name, function):
        def record(*arguments):
            calls[name] = (function, arguments, function(*arguments))
            return calls[name][2]

        return record

    for name in ("first_hit", "blocked", "contact"):
        monkeypatch.setattr(shade, name, recorded(name, getattr(shade, name)))
    sample_batch(seed, 1, 1, (24, 32), make_atlas(0, 8), config=SyntheticConfig(targets=0, shadows=1.0))

    def to_cuda(value):
        if isinstance(value, torch.Tensor):
            return value.cuda()
        # A NamedTuple of numbers stays itself, a triple of tensors travels.
        return tuple(map(to_cuda, value)) if type(value) is tuple else value

    function, arguments, (depth, index) = calls["first_hit"]
    on_cuda, index_on_cuda = (v.cpu() for v in function(*map(to_cuda, arguments)))
    same = index == index_on_cuda
    assert same[depth < torch.inf].float().mean() > 0.999
    seen = same & (depth < torch.inf)
    torch.testing.assert_close(on_cuda[seen], depth[seen], rtol=1e-4, atol=1e-5)
    function, arguments, dark = calls["blocked"]
    assert (function(*map(to_cuda, arguments)).cpu() == dark).float().mean() > 0.999
    function, arguments, share = calls["contact"]
    torch.testing.assert_close(function(*map(to_cuda, arguments)).cpu(), share, rtol=1e-3, atol=1e-4)
