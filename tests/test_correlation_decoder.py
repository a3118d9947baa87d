"""Cameras from where patches are found: what is found, and what is made of it."""

import dataclasses

import pytest
import torch

from geometry.correlation_decoder import CorrelationDecoder, around, compared_grid, find_patches, places
from geometry.cue import CueConfig
from geometry.presets import CameraConfig, CorrelationConfig
from splat.model import GaussianModel
from splat.predict import predict
from tests.test_network import SIZE, images
from tests.tiny_networks import tiny_config

SMALL = CorrelationConfig(dim=16, depth=1, heads=2)


def cells_of(patches: torch.Tensor) -> torch.Tensor:
    """Cells [N, G, C, 2h, 2w] of patches that look alike all over [N, G, C, h, w]."""
    cells = patches.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return torch.nn.functional.normalize(cells, dim=2)


def some_patches(count: int, h: int = 5, w: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 24, h, w, generator=torch.Generator().manual_seed(seed))


def seen_from(first: torch.Tensor, columns: int) -> torch.Tensor:
    """The same patches, so many columns further to the right; others come in from the left."""
    moved = first.roll(columns, -1)
    if columns:
        moved[..., :columns] = some_patches(len(first), *first.shape[-2:], seed=9)[..., :columns]
    return moved


def network() -> GaussianModel:
    cue = CueConfig(planes=8, fine_planes=4, channels=(16, 16))
    camera = CameraConfig(correlation=SMALL)
    torch.manual_seed(0)
    return GaussianModel(tiny_config("a", cue=cue, camera=camera, cameras_given="given")).eval()


def test_patches_are_found_where_they_went():
    first = some_patches(1)
    found = find_patches(cells_of(first), cells_of(seen_from(first, 2)))[0].unflatten(0, (5, 7))
    torch.testing.assert_close(found[..., :2].flatten(0, 1), places(5, 7, "cpu"))
    there = found[:, :5]  # the last two columns have left the picture
    # A cell at the border counts twice in a mean around it: a twelfth of a patch.
    torch.testing.assert_close(there[..., 2:4], torch.tensor([4 / 7, 0.0]).expand(5, 5, 2), atol=0.03, rtol=0)
    best, ahead, returns, astray = there[..., 4:].unbind(-1)
    assert (best > 0.999).all() and (ahead > 0.2).all() and (returns == 1).all() and (astray == 0).all()
    gone = found[:, 5:]
    assert (gone[..., 4] < 0.5).all() and (gone[..., 6] == 0).float().mean() > 0.5


def test_of_a_grid():
    torch.testing.assert_close(places(2, 4, "cpu")[[0, 7]], torch.tensor([[-0.75, -0.25], [0.75, 0.25]]))
    assert around(torch.tensor([5, 0]), 1, 3, 4).tolist() == [
        [0, 1, 2, 4, 5, 6, 8, 9, 10],
        [0, 0, 1, 0, 0, 1, 4, 4, 5],
    ]
    sizes = [(252, 252), (168, 252), (504, 378), (14, 14), (2520, 14)]
    assert [compared_grid(size) for size in sizes] == [(18, 18), (12, 18), (18, 14), (1, 1), (18, 1)]


def test_the_reference_view_is_the_world_and_others_keep_their_order():
    torch.manual_seed(0)
    decoder = CorrelationDecoder(SMALL).eval()
    cells = torch.stack([cells_of(some_patches(4, seed=seed)) for seed in range(2)])
    unmoved = torch.tensor([0.0, 0, 0, 0, 0, 0, 1])
    start = decoder(cells, torch.tensor([0, 2]))
    torch.testing.assert_close(start[..., :7], unmoved.expand(2, 4, 7))
    torch.testing.assert_close(start[..., 7:].rad2deg(), torch.full((2, 4, 2), 57.0), atol=0.5, rtol=0)
    for layer in (decoder.pose, decoder.fov):
        torch.nn.init.normal_(layer.weight)
    told = decoder(cells, torch.tensor([0, 2]))
    assert told[0, 0, :7].equal(unmoved) and told[1, 2, :7].equal(unmoved)
    assert (told[0, 1:, :7] - unmoved).abs().amax(-1).min() > 0.1
    order = [2, 3, 0, 1]
    torch.testing.assert_close(decoder(cells[:, order], torch.tensor([2, 0])), told[:, order])


def test_motion_is_learnt_from_where_patches_went():
    """Views that moved sideways by 0, 1 or 2 patches: how far is learnt, for scenes never seen."""
    torch.manual_seed(0)
    decoder = CorrelationDecoder(SMALL)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)

    def error(seed: int) -> torch.Tensor:
        first, columns = some_patches(24, seed=seed), torch.arange(24) % 3
        other = torch.stack([seen_from(first[i : i + 1], int(n))[0] for i, n in enumerate(columns)])
        told = decoder(torch.stack([cells_of(first), cells_of(other)], 1), torch.zeros(24, dtype=torch.int64))
        return (told[:, 1, 0] - columns).abs().mean()

    for step in range(60):
        optimizer.zero_grad()
        error(step).backward()
        optimizer.step()
    with torch.no_grad():
        assert error(1000) < 0.3  # 0.67 for the best constant


def test_a_network_tells_cameras_without_its_backbone_and_features_are_left_alone():
    model = network()
    photos = torch.rand(2, 3, 3, *SIZE)
    features = model.encode(photos, reference_view="middle")
    told = model.predict_cameras(features)
    assert features.reference.tolist() == [1, 1] and told.size == SIZE
    torch.testing.assert_close(told.w2c, model.compare_views(photos, torch.tensor([1, 1])).w2c)
    torch.testing.assert_close(told.K[..., 0, 0], told.K[..., 1, 1])  # the angles of its start are those of no photo
    told.K.sum().backward()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == {"cam_dec"}
    alone = predict(images(1, SIZE)[0], None, model, ("depth", "cameras"))
    torch.testing.assert_close(alone.cameras.w2c[0], torch.eye(4))
    assert alone.depth.isfinite().all() and "one photo alone is a guess" in alone.notes[0]
    assert predict(images(1, SIZE)[0].expand(2, -1, -1, -1), None, model, ("depth",)).notes == ()


def test_it_needs_the_features_of_a_cue():
    with pytest.raises(ValueError, match=r"camera\.correlation compares features of the cue: it needs a cue"):
        dataclasses.replace(network().config, cue=None)
    with pytest.raises(ValueError, match=r"camera\.correlation\.heads must divide dim 16, got 3"):
        CorrelationConfig(dim=16, heads=3)
