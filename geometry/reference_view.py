"""The choice of the view whose camera becomes the world, and moving that view to the front (paper section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

STRATEGIES = ("saddle_balanced", "saddle_sim_range", "middle", "first")
MIN_VIEWS = 3  # with fewer views the first one is the reference


def choose_reference(tokens: Tensor, strategy: str) -> Tensor:
    """Index [B] of the reference view, from the class tokens [B, V, E].

    `saddle_balanced` takes the view that is most average in its similarity to the others, its token's length and its
    spread; `saddle_sim_range` the one that is at once very like one view and very unlike another. ValueError for an
    unknown strategy.
    """
    check_strategy(strategy)
    batch, views, _ = tokens.shape
    if strategy in ("first", "middle"):
        index = 0 if strategy == "first" else views // 2
        return torch.full((batch,), index, device=tokens.device)
    # In bfloat16 near-ties would fall differently from one machine to the next.
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.float()
        length = torch.linalg.vector_norm(tokens, dim=-1)
        unit = tokens / length[..., None]
        similarity = unit @ unit.transpose(1, 2) - torch.eye(views, device=tokens.device)
        if strategy == "saddle_sim_range":
            return (similarity.amax(-1) - similarity.amin(-1)).argmax(1)
        scores = torch.stack([similarity.sum(-1) / (views - 1), length, unit.var(-1)])
        low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
        return ((scores - low) / (high - low + 1e-8) - 0.5).abs().sum(0).argmin(1)


def check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"reference_view must be one of {', '.join(STRATEGIES)}, got {strategy!r}")


def front_orders(reference: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Orders [B, V] that bring view `reference` [B] to the front, the others following as they were, and undo it."""
    position = torch.arange(views, device=reference.device)[None]
    reference = reference[:, None]
    to_front = torch.where(position <= reference, position - 1, position).where(position > 0, reference)
    undo = torch.where(position < reference, position + 1, position).where(position != reference, 0)
    return to_front, undo


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """`x` [B, V, ...] with the views of each batch element taken in `order` [B, V]."""
    return x[torch.arange(len(x), device=x.device)[:, None], order]
