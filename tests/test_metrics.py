"""PSNR, SSIM and LPIPS against values by hand, formulas written out, and the libraries."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from splat import perceptual
from splat.metrics import psnr, ssim
from splat.perceptual import Perceptual, find_backbone
from tests.backbones import ALEX, write_alexnet
from tests.tiny_networks import SHARED


def noise(seed=0, size=(3, 40, 52)):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def test_psnr_by_hand():
    grey = torch.full((3, 20, 30), 0.5)
    assert psnr(grey, grey + 0.1) == pytest.approx(20.0, abs=1e-5)
    assert psnr(torch.zeros(3, 4, 4), torch.ones(3, 4, 4)) == pytest.approx(0.0)
    one = torch.zeros(3, 10, 10)
    one[0, 0, 0] = 1  # one value of 300
    assert psnr(torch.zeros(3, 10, 10), one) == pytest.approx(10 * math.log10(300))


def test_psnr_of_equal_images_is_finite_and_the_most():
    a = noise()
    assert psnr(a, a) == 100.0
    assert psnr(a, a + 1e-9) == 100.0
    assert psnr(a.double(), a.double() + 1e-4) < 100


def test_psnr_clips_to_the_range_of_pictures():
    assert psnr(torch.full((3, 8, 8), 1.0), torch.full((3, 8, 8), 7.0)) == 100.0
    assert psnr(torch.full((3, 8, 8), -3.0), torch.full((3, 8, 8), 0.1)) == pytest.approx(20.0, abs=1e-5)


def test_ssim_is_wang_s_formula():
    a, b = noise(0), (noise(0) * 0.7 + 0.3 * noise(1))
    line = torch.exp(-(torch.arange(-5.0, 6).double() ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)

    def mean(x):
        return F.conv2d(x.double()[None], window, groups=3)[0]

    sample = 121 / 120
    var_a, var_b = (sample * (mean(x * x) - mean(x) ** 2) for x in (a.double(), b.double()))
    covariance = sample * (mean(a.double() * b.double()) - mean(a) * mean(b))
    top = (2 * mean(a) * mean(b) + 0.01**2) * (2 * covariance + 0.03**2)
    bottom = (mean(a) ** 2 + mean(b) ** 2 + 0.01**2) * (var_a + var_b + 0.03**2)
    assert ssim(a, b) == pytest.approx(float((top / bottom).mean()), abs=1e-9)


def test_ssim_is_that_of_the_pixelsplat_family():
    from skimage.metrics import structural_similarity

    a, b = noise(0), (noise(0) * 0.7 + 0.3 * noise(1))
    theirs = structural_similarity(
        a.numpy(), b.numpy(), win_size=11, gaussian_weights=True, channel_axis=0, data_range=1.0
    )
    assert ssim(a, b) == pytest.approx(float(theirs), abs=1e-5)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, 1 - a) < 0
    with pytest.raises(ValueError):
        ssim(a[:, :8], b[:, :8])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_alexnet(tmp_path_factory.mktemp("lpips") / "alex.npz")


def by_hand(path, a, b):
    """LPIPS of two images [3, H, W], written out: unit features, squared difference, learnt weights, mean, sum."""
    metric = Perceptual(path, "alex")
    linear = [getattr(metric.lpips, f"lin{i}").model[1].weight[0, :, 0, 0] for i in range(5)]
    with np.load(path) as arrays:
        weights = {
            layer: [torch.from_numpy(arrays[f"features.{layer}.{n}"]) for n in ("weight", "bias")] for layer in ALEX
        }
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = 0.0
    x = [(2 * image - 1 - shift[:, None, None]) / scale[:, None, None] for image in (a, b)]
    for i, layer in enumerate(ALEX):
        options = {"stride": 4, "padding": 2} if i == 0 else {"padding": 2 if i == 1 else 1}
        if i in (1, 2):
            x = [F.max_pool2d(y, 3, 2) for y in x]
        x = [F.relu(F.conv2d(y, *weights[layer], **options)) for y in x]
        unit = [y / (y.square().sum(0, keepdim=True).sqrt() + 1e-10) for y in x]
        total += float(((unit[0] - unit[1]).square() * linear[i][:, None, None]).sum(0).mean())
    return total


def test_lpips_is_its_formula(backbone):
    a, b = noise(0, (3, 64, 80)), noise(1, (3, 64, 80))
    metric = Perceptual(backbone, "alex")
    both = metric(torch.stack([a, a]), torch.stack([b, a]))
    assert both[0].item() == pytest.approx(by_hand(backbone, a, b), rel=1e-4)
    assert both[1].item() == 0


def test_a_backbone_is_found_by_its_shapes_and_never_replaced(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_backbone("alex", [backbone]) == find_backbone("alex", [backbone.parent]) == backbone
    assert find_backbone("vgg", [backbone]) is None
    assert find_backbone("alex") is None
    with pytest.raises(ValueError, match="not the vgg backbone"):
        Perceptual(backbone, "vgg")
    with pytest.raises(ValueError, match="holds no backbone"):
        find_backbone("alex", [tmp_path])
    with pytest.raises(ValueError, match="no such file"):
        find_backbone("alex", [tmp_path / "nothing.npz"])


def test_torchvision_s_own_copy_is_opened_only_with_the_right_hash(backbone, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with np.load(backbone) as arrays:
        torch.save({name: torch.from_numpy(arrays[name]) for name in arrays.files}, folder / "alexnet-owt-7be5be79.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = find_backbone("alex")
    with pytest.raises(ValueError, match="damaged"):
        Perceptual(path, "alex")
    digest = perceptual.hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right = path.rename(folder / f"alexnet-owt-{digest}.pth")
    monkeypatch.setitem(perceptual._TORCHVISION, "alex", right.name)
    a, b = noise(0, (1, 3, 64, 64)), noise(1, (1, 3, 64, 64))
    assert Perceptual(find_backbone("alex"), "alex")(a, b).equal(Perceptual(backbone, "alex")(a, b))


def test_real_backbones_where_they_are_at_hand():
    places = [SHARED / "weights"]
    if not places[0].is_dir():
        pytest.skip("no backbones in ../shared/weights")
    a = noise(0, (1, 3, 64, 64))
    blurred = nn.functional.avg_pool2d(a, 5, 1, 2)
    for net in ("alex", "vgg"):
        metric = Perceptual(find_backbone(net, places), net)
        near, far = (float(metric(a, b)) for b in ((a + 0.02).clamp(0, 1), blurred))
        assert 0 < near < far < 2
