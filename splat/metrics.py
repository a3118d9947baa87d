"""How near a picture comes to a photo, PSNR and SSIM, and depth to the truth: one definition for all that is reported.

LPIPS, which needs a network, is in `splat.perceptual`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# What equal pictures score, in dB: infinity would swallow every mean, and JSON has none. No renderer comes near.
MOST_PSNR = 100.0


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one shape, any, clipped to [0, 1]; at most 100."""
    error = float((a.double().clamp(0, 1) - b.double().clamp(0, 1)).square().mean())
    return MOST_PSNR if error == 0 else min(MOST_PSNR, -10 * math.log10(error))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al., 2004) of pictures [3, H, W], clipped to [0, 1], both sides 11 px or more.

    scikit-image's: 11 px Gaussian window of sigma 1.5, range 1, sample covariance (divided by 120, not 121), the mean
    over the channels and over all pixels whose window lies inside. So do pixelSplat and what descends from it. Raises
    ImportError without scikit-image, ValueError for smaller pictures.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError("SSIM needs scikit-image: pip install 'raysplat[eval]'") from error
    return float(
        structural_similarity(
            *(x.detach().double().clamp(0, 1).cpu().numpy() for x in (a, b)),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=True,
        )
    )


def depth_errors(depth: Tensor, truth: Tensor) -> tuple[float, float]:
    """AbsRel, the mean relative error, and delta 1.25, the share within that factor; depths above 0, of any shape."""
    ratio = depth / truth
    within = torch.maximum(ratio, 1 / ratio) < 1.25
    return float((ratio - 1).abs().mean()), float(within.float().mean())
