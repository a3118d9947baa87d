"""What each step does: a pure function of the configuration, the step and a batch's place among those of the step.

Nothing here knows how many processes there are, so a run gives the same samples on one as on eight.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from train.batch import Shape, sample_seed
from train.config import TrainConfig

Part = Literal["sweeps", "cameras"]  # the plane sweeps, the camera decoder


class Plan(NamedTuple):
    """A step; the same for all its batches, so that no process waits for a slower one."""

    shape: Shape  # of a batch
    posed: bool  # the network is given the cameras
    alone: Part | None  # this runs and learns, nothing else
    joint: bool  # Gaussians are trained
    real: bool  # on the scenes on disk
    seed: int  # of the draw that `config.draw` steps share
    turn: int  # this step's place among them


class Share(NamedTuple):
    """One of the batches that a process does in a step."""

    index: int  # of the batch within the step
    weight: float  # of its loss; the weights of a step add up to 1 over all processes


def plan(config: TrainConfig, step: int) -> Plan:
    draw, turn = divmod(step, config.draw)
    rng = random.Random(sample_seed(config.seed, "plan", draw))
    joint, alone = step >= config.geometry_steps, "sweeps" if step < config.sweep_steps else None
    if config.trained == "cameras":
        joint, alone = False, "cameras"
    size = rng.choice(config.sizes if joint else config.geometry_sizes)
    context = rng.choice(config.contexts)
    wide, lenses, wild = (
        random.Random(sample_seed(config.seed, what, draw)).random() < share
        for what, share in (("wide", config.wide_share), ("lenses", config.lens_share), ("wild", config.wild_share))
    )
    posed = {"sweeps": True, "cameras": False, None: rng.random() >= config.pose_dropout}[alone]
    rng = random.Random(sample_seed(config.seed, "plan", draw, turn))
    begun = bool(config.scenes) and joint and step >= config.scenes_from * config.steps
    real = begun and rng.random() < config.scenes_share
    budget = (config.joint_views if joint else config.views) * 252 * 252 / (size[0] * size[1])
    # Large images, fewer of them: tokens and memory stay bounded. One alone tells sweeps and camera decoder nothing,
    # and has no unit of length where its depth is unknown.
    context = max(min(context, max(2, int(budget))), 2 if alone or real else 1)
    shape = Shape(max(1, int(budget / context)), context, config.targets if joint else 0, size, wide, lenses, wild)
    if not config.unposed_gaussians:
        # Photos carry no depth: they train through pictures alone, for which poses must be given.
        posed = posed or real
        joint = joint and posed
    return Plan(shape, posed, alone, joint, real, sample_seed(config.seed, "draw", draw), turn)


def shares(batches: int | None, rank: int, processes: int) -> list[Share]:
    """The batches of a step that fall to process `rank` of `processes`; none = one for each process.

    All processes get equally many, since they have to meet after each. Where that does not come out even, some repeat
    another's batch with weight 0.
    """
    total = batches or processes
    rounds = -(-total // processes)
    mine = (turn * processes + rank for turn in range(rounds))
    return [Share(i % total, 1 / total if i < total else 0.0) for i in mine]
