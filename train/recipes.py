"""Named runs. Every value can be changed on the command line: `train/nvs.py base-apache --scenes SCENES --lr 1e-4`.

The paper (arXiv 2511.10647) states for its rendering models: DL3DV, 200k steps, 8 GPUs, 12 input views at 270x480, MSE
and LPIPS on target views, a scale-shift-invariant depth loss on the inputs (sections 5.1, 5.3, 7.1, 7.5). What it does
not state is marked here as ours.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import LossWeights, TrainConfig
from train.scene_sources import SceneOptions

PAPER_SIZE = (266, 476)  # the multiples of 14 next to 270x480

_paper_losses = LossWeights(
    depth=0,
    ssi_depth=0.1,  # ours
    cue=0,
    ray=0,
    camera=0,
    fov=0,
    mse=1,
    ssim=0,
    perceptual=0.05,  # ours, after pixelSplat, MVSplat and DepthSplat
    gaussian_depth=0,
)

# Section 5.1: all of the network is trained, poses are given. Non-commercial weights.
paper_pose_conditioned = TrainConfig(
    init="giant",  # ours: the paper does not say which size
    new_head=True,
    cameras_given="given",
    teacher="giant",  # ours: the paper's teacher is not public
    steps=200_000,
    geometry_steps=0,
    scenes_share=1,
    scenes_from=0,
    data=SceneOptions(sampling="farthest", depth="sparse"),  # COLMAP's points, where a scene has them
    sizes=(PAPER_SIZE,),
    contexts=(12,),
    targets=4,  # ours
    draw=1,
    joint_views=24,  # one scene of 12 views
    batches=8,
    pose_dropout=0,
    lr=2e-4,  # from here on ours
    backbone_lr=0.1,
    warmup=2000,
    decay=1.0,
    ema=0.9995,
    checkpointing=True,
    loss=_paper_losses,
    lpips_net="vgg",
    save_every=2000,
    validate_every=5000,
    val_size=476,
    val_context=12,
    val_targets=4,
)

RECIPES = {
    # From nothing, on synthetic scenes first; docs/nano.md.
    "nano": TrainConfig(
        sweep_steps=2_000,
        contexts=(1, 2, 3, 4, 4, 4, 6),
        pose_dropout=0.2,
        loss=LossWeights(psnr=0.3, mse=3, camera=8),
    ),
    # A permissive model: DA3-BASE with a Gaussian head, with poses and without.
    "base-apache": replace(
        paper_pose_conditioned,
        init="base",
        teacher="base",
        steps=60_000,
        sizes=(PAPER_SIZE, (252, 252), (336, 504), (504, 336)),
        contexts=(2, 3, 4, 6, 8, 12),
        pose_dropout=0.2,
        unposed_gaussians=True,
        checkpointing=False,
    ),
    "paper-pose-conditioned": paper_pose_conditioned,
    # Section 5.2: the backbone is frozen, the Gaussian head alone is trained, with and without poses; more views at
    # small sizes, fewer at large ones.
    "paper-pose-adaptive": replace(
        paper_pose_conditioned,
        cameras_given="predicted",
        data=SceneOptions(sampling="farthest"),
        teacher=None,  # frozen depth needs none, nor points
        trained="gaussians",
        sizes=(PAPER_SIZE, (252, 252), (336, 504), (504, 336), (504, 504)),
        contexts=tuple(range(2, 19)),
        pose_dropout=0.5,
        unposed_gaussians=True,
        checkpointing=False,
        loss=replace(_paper_losses, ssi_depth=0),
    ),
    # A minute on two cores: shows that the loop runs and learns, nothing else.
    "smoke": replace(
        TrainConfig(),
        steps=30,
        geometry_steps=20,
        textures=16,
        sizes=((56, 56),),
        geometry_sizes=((56, 56),),
        contexts=(2,),
        targets=1,
        views=0.4,
        joint_views=0.4,
        warmup=5,
        log_every=5,
        save_every=15,
        validate_every=30,
        val_size=56,
        val_context=2,
        val_targets=1,
    ),
}
