"""Bundle adjustment of few views: poses, focal lengths and the depths of keypoints, from where other views see them.

Every keypoint lies on its ray at a depth of its own, and each sighting says where another view has it. So there are no
tracks to build: a keypoint that two views see again ties the lengths of both pairs together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geometry.cameras import Cameras, invert_intrinsics, invert_rigid

# What a sighting may be off, in pixels, one after the other: rough poses first, then wrong matches lose their say.
TOLERANCES = (16.0, 8.0, 4.0, 2.0, 1.0)
STEPS = 8  # of Levenberg-Marquardt at each, at most
# Deviations that logarithms are believed to have beforehand: of depths, which fixes the unit and little else (a tight
# one bends focal lengths to make wrong depths true), of the focal lengths in common, and of each view's from the rest.
DEPTH_DEVIATION, FOCAL_DEVIATION, OWN_FOCAL_DEVIATION = 2.0, 0.25, 0.03
NEAREST = 1e-3  # of its depth in the view that found it: a keypoint behind another camera is taken to lie there


@dataclass(frozen=True)
class Sightings:
    """T keypoints that are seen again N times. Pixels have their origin in the corner of the image."""

    view: Tensor  # [T] int64, in which each keypoint was found
    pixel: Tensor  # [T, 2] where
    depth: Tensor  # [T] rough z-depth there, above 0
    keypoint: Tensor  # [N] int64, which is seen again
    seen_in: Tensor  # [N] int64, the view that sees it
    seen_at: Tensor  # [N, 2] pixel there


@dataclass(frozen=True)
class Adjusted:
    cameras: Cameras  # [V] float64
    error: Tensor  # [N] px that each sighting is off
    turn_deviation: Tensor  # [V, V] degrees, see _Problem.turn_deviation
    cost: float  # what is left of the robust cost, to compare with that from another start


@dataclass(frozen=True)
class State:
    """What is adjusted."""

    w2c: Tensor  # [V, 4, 4]
    log_zoom: Tensor  # [V] of the factor on the focal lengths as given
    log_depth: Tensor  # [T]


def adjust(cameras: Cameras, sightings: Sightings, believed_zoom: float | None = 1.0) -> Adjusted:
    """Cameras [V] that fit the sightings, the first left where it is; on the CPU, in float64.

    `believed_zoom` is the factor on all focal lengths that is believed beforehand, None where they are known and stay.
    Geman-McClure's robust loss, whose tolerance falls by TOLERANCES; Levenberg-Marquardt with the depths eliminated
    (Triggs et al., Bundle Adjustment: A Modern Synthesis, 2000). The start must be near: poses within some 20 degrees.
    """
    problem = _Problem(cameras.to("cpu", torch.float64), sightings, believed_zoom)
    views = len(cameras.w2c)
    state = State(problem.cameras.w2c, torch.zeros(views, dtype=torch.float64), problem.believed_depth)
    for tolerance in TOLERANCES:
        damping, cost = 1e-3, problem.cost(state, tolerance)
        for _ in range(STEPS):
            trial = problem.step(state, tolerance, damping)
            trial_cost = problem.cost(trial, tolerance)
            gain = cost - trial_cost
            if gain > 0:
                state, cost, damping = trial, trial_cost, damping / 5
            else:
                damping *= 10
            if 0 < gain < 1e-4 * cost or damping > 1e4:
                break
    error = torch.linalg.vector_norm(problem.residual(state), dim=-1)
    deviation = torch.rad2deg(problem.turn_deviation(state, tolerance))
    return Adjusted(Cameras(state.w2c, problem.intrinsics(state), cameras.size), error, deviation, cost)


class _Problem:
    """The cost of a state and the step that lowers it."""

    def __init__(self, cameras: Cameras, sightings: Sightings, believed_zoom: float | None):
        self.cameras, self.sightings, self.focal_known = cameras, sightings, believed_zoom is None
        self.believed_depth = sightings.depth.double().log()
        views = len(cameras.w2c)
        self.believed_zoom = torch.full((views,), believed_zoom or 1.0, dtype=torch.float64).log()
        common = torch.full((views, views), FOCAL_DEVIATION**2, dtype=torch.float64)
        self.zoom_precision = torch.linalg.inv(common + OWN_FOCAL_DEVIATION**2 * torch.eye(views))
        self.found_in = sightings.view[sightings.keypoint]
        pixel = torch.cat([sightings.pixel.double(), torch.ones(len(sightings.pixel), 1)], -1)
        self.rays = (invert_intrinsics(cameras.K)[sightings.view] @ pixel[..., None])[..., 0]

    def intrinsics(self, state: State) -> Tensor:
        K = self.cameras.K.clone()
        K[:, :2, :2] *= state.log_zoom.exp()[:, None, None]
        return K

    def residual(self, state: State) -> Tensor:
        """[N, 2] px from where each sighting is to where the state has it."""
        return self._project(state)[2] - self.sightings.seen_at

    def cost(self, state: State, tolerance: float) -> float:
        squared = self.residual(state).square().sum(-1)
        robust = (tolerance**2 * squared / (tolerance**2 + squared)).sum()
        depth = ((state.log_depth - self.believed_depth) / DEPTH_DEVIATION).square().sum()
        zoom = state.log_zoom - self.believed_zoom
        return float(robust + depth + zoom @ self.zoom_precision @ zoom)

    def step(self, state: State, tolerance: float, damping: float) -> State:
        """One damped Gauss-Newton step on the cost, whose weights are those of the state."""
        H, gradient, mixed, own, pull = self.normal_equations(state, tolerance)
        H.diagonal().mul_(1 + damping).add_(1e-9)  # the first camera, which stays, has nothing but this
        own = own * (1 + damping)
        schur = H - mixed.T @ (mixed / own[:, None])
        change = -torch.linalg.solve(schur, gradient - mixed.T @ (pull / own))
        return moved(state, change.view(-1, 7), -(pull + mixed @ change) / own)

    def normal_equations(self, state: State, tolerance: float) -> tuple[Tensor, ...]:
        """H [7V, 7V] and gradient [7V] of the views, [T, 7V] what ties them to depths, H and gradient [T] of depths."""
        by_view, by_depth, residual = self.jacobian(state)
        weight = self._weight(residual, tolerance)
        views, points = len(state.w2c), len(state.log_depth)
        keypoint, size = self.sightings.keypoint, 7 * views

        # Each sighting touches two views: their blocks of the normal equations, then rows and columns of 7 per view.
        at = torch.stack([self.found_in, self.sightings.seen_in])
        weighted = by_view * weight[:, None, None]
        H = torch.zeros(views * views, 7, 7).to(by_view)
        gradient, mixed = torch.zeros(views, 7).to(by_view), torch.zeros(points * views, 7).to(by_view)
        for a in range(2):
            gradient.index_add_(0, at[a], (weighted[a].mT @ residual[..., None])[..., 0])
            mixed.index_add_(0, keypoint * views + at[a], (weighted[a].mT @ by_depth[..., None])[..., 0])
            for b in range(2):
                H.index_add_(0, at[a] * views + at[b], weighted[a].mT @ by_view[b])
        H = H.view(views, views, 7, 7).transpose(1, 2).reshape(size, size)
        H[6::7, 6::7] += self.zoom_precision
        gradient[:, 6] += self.zoom_precision @ (state.log_zoom - self.believed_zoom)

        belief = DEPTH_DEVIATION**-2
        own = torch.zeros(points).to(H).index_add_(0, keypoint, weight * by_depth.square().sum(-1)) + belief
        pull = torch.zeros(points).to(H).index_add_(0, keypoint, weight * (by_depth * residual).sum(-1))
        pull = pull + belief * (state.log_depth - self.believed_depth)
        return H, gradient.flatten(), mixed.view(points, size), own, pull

    def turn_deviation(self, state: State, tolerance: float) -> Tensor:
        """Standard deviation [V, V] in radians, about the worst axis, of the turn from one view to another.

        As the sightings have it, whose noise is taken from how far they are off: what is wrong with all of them in
        common, such as a lens that is no pinhole, adds to it.
        """
        H, _, mixed, own, _ = self.normal_equations(state, tolerance)
        residual = self.residual(state)
        weight, views = self._weight(residual, tolerance), len(state.w2c)
        # Every sighting has two coordinates, of which each keypoint's depth takes one and each view's pose six. A match
        # is seen both ways, but tells the same both times.
        free = (2 * weight.sum() - len(state.log_depth) - 6 * (views - 1)).clamp_min(1)
        noise = 2 * (weight * residual.square().sum(-1)).sum() / free
        H.diagonal().add_(1e-9)
        covariance = torch.linalg.inv(H - mixed.T @ (mixed / own[:, None])).view(views, 7, views, 7)[:, :3, :, :3]
        covariance = noise * covariance.transpose(1, 2)
        covariance[0] = covariance[:, 0] = 0  # it stays
        R = state.w2c[:, :3, :3]
        turn = R[None] @ R[:, None].mT  # [i, j] from view i to view j
        both = turn @ covariance
        variance = turn @ covariance.diagonal(dim1=0, dim2=1).permute(2, 0, 1)[:, None] @ turn.mT - both - both.mT
        variance = variance + covariance.diagonal(dim1=0, dim2=1).permute(2, 0, 1)[None]
        return torch.linalg.eigvalsh(variance)[..., -1].clamp_min(0).sqrt()

    def _weight(self, residual: Tensor, tolerance: float) -> Tensor:
        return (tolerance**2 / (tolerance**2 + residual.square().sum(-1))).square()

    def jacobian(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """How residuals [N, 2] change: [2, N, 2, 7] by what `moved` does to the view that found the keypoint and to
        the one that sees it, [N, 2] by the logarithm of its depth; and the residuals."""
        found, seen, at, turn = self._project(state)
        K, z = self.intrinsics(state)[self.sightings.seen_in], seen[:, 2:, None]
        flat = torch.cat([torch.eye(2).to(z).expand(len(z), 2, 2), -seen[:, :2, None] / z], -1)
        slide = K[:, :2, :2] @ flat / z  # [N, 2, 3] px by movement of the point in the camera that sees it
        turned = slide @ turn
        still = torch.eye(3).to(z).expand(len(z), 3, 3)
        # Longer focal lengths move the pixel outwards where it is seen, and the point inwards where it was found.
        inwards = turned @ torch.cat([found[:, :2], torch.zeros_like(z[..., 0])], -1)[..., None]
        outwards = (at - K[:, :2, 2])[..., None]
        by_found = -torch.cat([turned @ torch.cat([-_cross(found), still], -1), inwards], -1)
        by_seen = torch.cat([slide @ torch.cat([-_cross(seen), still], -1), outwards], -1)
        by_view = torch.stack([by_found, by_seen])
        by_view[..., :6][torch.stack([self.found_in, self.sightings.seen_in]) == 0] = 0
        if self.focal_known:
            by_view[..., 6] = 0
        return by_view, (turned @ found[..., None])[..., 0], at - self.sightings.seen_at

    def _project(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each sighting's point [N, 3] in the camera that found it and in the one that sees it, its pixel [N, 2] there,
        and the rotation [N, 3, 3] from the one to the other."""
        zoom = state.log_zoom.exp()[self.sightings.view]
        rays = self.rays / torch.stack([zoom, zoom, torch.ones_like(zoom)], -1)
        found = (rays * state.log_depth.exp()[:, None])[self.sightings.keypoint]
        motion = state.w2c[self.sightings.seen_in] @ invert_rigid(state.w2c)[self.found_in]
        seen = (motion[:, :3, :3] @ found[..., None])[..., 0] + motion[:, :3, 3]
        seen = torch.cat([seen[:, :2], torch.maximum(seen[:, 2:], NEAREST * found[:, 2:])], -1)
        K = self.intrinsics(state)[self.sightings.seen_in]
        return found, seen, (K @ (seen / seen[:, 2:])[..., None])[:, :2, 0], motion[:, :3, :3]


def moved(state: State, by_view: Tensor, by_depth: Tensor) -> State:
    """The state after a change of its views [V, 7] (turn and shift in the camera, log zoom) and log depths [T]."""
    twist = torch.zeros(len(by_view), 4, 4).to(by_view)
    twist[:, :3, :3], twist[:, :3, 3] = _cross(by_view[:, :3]), by_view[:, 3:6]
    w2c = torch.linalg.matrix_exp(twist) @ state.w2c
    return replace(state, w2c=w2c, log_zoom=state.log_zoom + by_view[:, 6], log_depth=state.log_depth + by_depth)


def _cross(x: Tensor) -> Tensor:
    """[N, 3, 3] matrices of the cross product with x [N, 3] from the left."""
    zero = torch.zeros_like(x[..., 0])
    a, b, c = x.unbind(-1)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))
