"""The transformer: DINOv2's blocks, in which from the middle on every other one lets all views attend to each other.

Paper section 3.2. In the monocular networks none does. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerScale, Mlp, PatchEmbed
from torch import Tensor, nn

from geometry.presets import PATCH, BackboneConfig
from geometry.reference_view import MIN_VIEWS, check_strategy, choose_reference, front_orders, reorder
from geometry.tables import resize_matrix, rope_of_camera, rope_of_patches


class RelativePosition(Protocol):
    """What tells attention where tokens are: moves queries, keys and values [R, heads, T, C] and the result likewise.

    Under autocast queries and keys come in float32 and values in the lower precision.
    """

    def before(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def after(self, out: Tensor) -> Tensor: ...


class PatchRope:
    """2D RoPE inside a view: the first half of a head turns with the row of a patch, the second with its column."""

    def __init__(self, grid: tuple[int, int], head_dim: int, device: torch.device):
        self.table = rope_of_patches(*grid, head_dim, device)

    def before(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return rotate(q, self.table), rotate(k, self.table), v

    def after(self, out: Tensor) -> Tensor:
        return out


class CameraRope:
    """RoPE across views, where all patches share the position (1, 1) and camera tokens have (0, 0).

    Only differences count, so it is enough to turn the camera tokens, one in `tokens` of the sequence, the other way.
    """

    def __init__(self, tokens: int, head_dim: int, device: torch.device):
        self.tokens = tokens
        self.table = rope_of_camera(head_dim, device)

    def before(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.turn(q), self.turn(k), v

    def after(self, out: Tensor) -> Tensor:
        return out

    def turn(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, self.tokens))
        return torch.cat([rotate(x[..., :1, :], self.table), x[..., 1:, :]], -2).flatten(2, 3)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channel pairs of x [..., T, C] by the angles of `table`, cosine and sine [T, 2, C / 4]."""
    cos, sin = (t.to(x.dtype) for t in table)
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -2).flatten(-3)


class Attention(nn.Module):
    """Multi-head self-attention over x [R, T, E], with LayerNorm on queries and keys where `qk_norm`."""

    def __init__(self, dim: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, position: RelativePosition | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "r t (qkv heads c) -> qkv r heads t c", qkv=3, heads=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if position is not None:
            q, k, v = position.before(q, k, v)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        if position is not None:
            out = position.after(out)
        return self.proj(rearrange(out, "r heads t c -> r t (heads c)"))


class SwiGLU(nn.Module):
    """DINOv2's gated feed-forward network, with its hidden width: two thirds, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm transformer block over x [R, T, E]."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        ffn: str = "mlp",
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        layer_scale: float = 1.0,
    ):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = SwiGLU(dim, hidden) if ffn == "swiglu" else Mlp(dim, hidden)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, position: RelativePosition | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), position))
        return x + self.ls2(self.mlp(self.norm2(x)))


@dataclass(frozen=True)
class Tokens:
    """What the transformer makes of images [B, V, 3, H, W], views in the order given. C is 2E across views, else E."""

    patches: tuple[Tensor, ...]  # of the four out_layers, each [B, V, P, C]
    camera: Tensor  # [B, V, C], token 0 of the last one
    reference: Tensor  # [B] int, the view whose frame is the world where no cameras are given
    layers: dict[int, Tensor] = field(default_factory=dict)  # by block, those asked for: [B, V, ph, pw, E], normalised


class VisionTransformer(nn.Module):
    """Images of several views to patch features; the names of its parts are those of the checkpoints."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        dim, side = config.dim, config.pos_grid
        self.meet = math.inf if config.alt_start is None else config.alt_start  # the block from which views meet
        self.patch_embed = PatchEmbed(None, PATCH, embed_dim=dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        tokens = [self.cls_token]
        if config.alt_start is not None:
            self.camera_token = nn.Parameter(torch.zeros(1, 2, dim))
            tokens.append(self.camera_token)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.mlp_ratio, config.ffn, qk_norm=i >= self.meet, norm_eps=1e-6)
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (*tokens, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)

    def forward(
        self,
        images: Tensor,
        camera_tokens: Tensor | None = None,
        *,
        reference_view: str = "saddle_balanced",
        export_layers: tuple[int, ...] = (),
        patch_bias: Tensor | None = None,
        relative: RelativePosition | None = None,
    ) -> Tokens:
        """Features of normalised images [B, V, 3, H, W].

        `camera_tokens` [B, V, E] stand for known cameras; without them the learned ones do, and from three views on a
        reference view is chosen by `reference_view`. `export_layers` are the blocks whose patch tokens are given out as
        well. `patch_bias` [B, V, P, E] is added to the patch tokens; `relative` takes the place of RoPE in attention
        across views, where it sees [B, heads, V*T, C]. ValueError for blocks that the network does not have.
        """
        config, meet = self.config, self.meet
        check_strategy(reference_view)
        if not set(export_layers) <= set(range(config.depth)):
            raise ValueError(f"export_layers must be blocks from 0 to {config.depth - 1}, got {export_layers}")
        batch, views, _, height, width = images.shape
        grid = (height // PATCH, width // PATCH)
        head_dim = config.dim // config.heads
        within = PatchRope(grid, head_dim, images.device)
        across = CameraRope(1 + grid[0] * grid[1], head_dim, images.device) if relative is None else relative

        x = self.embed(images, grid, patch_bias)
        undo, reference = None, torch.zeros(batch, dtype=torch.int64, device=images.device)
        patches, layers = [], {}
        for i, block in enumerate(self.blocks):
            if i == meet - 1 and camera_tokens is None and views >= MIN_VIEWS:
                reference = choose_reference(x[:, :, 0], reference_view)
                order, undo = front_orders(reference, views)
                x = reorder(x, order)
            if i == meet:
                if camera_tokens is None:
                    others = self.camera_token[:, 1:].expand(batch, views - 1, -1)
                    camera_tokens = torch.cat([self.camera_token[:, :1].expand(batch, -1, -1), others], 1)
                x = torch.cat([camera_tokens[:, :, None].to(x.dtype), x[:, :, 1:]], 2)
            if i >= meet and i % 2 == 1:
                x = block(x.flatten(1, 2), across).unflatten(1, (views, -1))
            else:
                x = block(x.flatten(0, 1), within if i >= meet else None).unflatten(0, (batch, views))
                local = x
            if i in export_layers:
                tokens = x if undo is None else reorder(x, undo)
                layers[i] = self.norm(tokens[:, :, 1:]).unflatten(2, grid)
            if i in config.out_layers:
                within_views, across_views = (t if undo is None else reorder(t, undo) for t in (local, x))
                patches.append(self.norm(across_views[:, :, 1:]))
                camera = across_views[:, :, 0]
                if config.alt_start is not None:
                    patches[-1] = torch.cat([within_views[:, :, 1:], patches[-1]], -1)
                    camera = torch.cat([within_views[:, :, 0], camera], -1)
        return Tokens(tuple(patches), camera, reference, layers)

    def embed(self, images: Tensor, grid: tuple[int, int], patch_bias: Tensor | None) -> Tensor:
        """Tokens [B, V, T, E] with their positions, the class token first."""
        batch, views = images.shape[:2]
        patches = self.patch_embed(images.flatten(0, 1))
        position = self.position_embedding(grid)
        patches = patches + position[1:].to(patches.dtype)
        if patch_bias is not None:
            patches = patches + patch_bias.flatten(0, 1)
        first = (self.cls_token[0] + position[:1]).expand(batch * views, 1, -1)
        return torch.cat([first, patches.to(first.dtype)], 1).unflatten(0, (batch, views))

    def position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """The stored embedding resampled to `grid` (rows, columns) of patches [1 + P, E], the class token's first."""
        side, device = self.config.pos_grid, self.pos_embed.device
        stored = self.pos_embed[0].float()
        if grid == (side, side):
            return stored
        # Bicubic resampling is separable, and as two products it is quick and differentiable on every device.
        with torch.autocast(device.type, enabled=False):
            patches = stored[1:].unflatten(0, (side, side))
            patches = torch.einsum("yr,rce->yce", resize_matrix(side, grid[0], device), patches)
            patches = torch.einsum("xc,yce->yxe", resize_matrix(side, grid[1], device), patches)
        return torch.cat([stored[:1], patches.flatten(0, 1)])


class Backbone(nn.Module):
    """Holds the transformer under the name `pretrained`, as the checkpoints have it."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.pretrained = VisionTransformer(config)

    def forward(self, images: Tensor, camera_tokens: Tensor | None = None, **options) -> Tokens:
        """See `VisionTransformer.forward`."""
        return self.pretrained(images, camera_tokens, **options)
