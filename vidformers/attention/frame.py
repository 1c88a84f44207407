"""Attention inside a frame: ViT frame by frame, and the space attention of divided models."""

from dataclasses import dataclass

from einops import rearrange

from vidformers.attention.scheme import Scheme


@dataclass(frozen=True)
class Frame(Scheme):
    """Patch (p, t) sees all patches of frame t: N keys, and the class token (MEViT eq. 6)."""

    def fold(self, patches):
        return rearrange(patches, "b t y x ... -> b t (y x) ...")

    def unfold(self, groups, grid):
        return rearrange(groups, "b t (y x) ... -> b t y x ...", y=grid[1])

    def visible(self, query, key):
        return query.t == key.t
