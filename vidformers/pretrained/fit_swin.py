"""Fitting the weights of a Video Swin to `swin`."""

import math

import numpy as np

from vidformers.errors import ConfigError, require
from vidformers.models.pyramid import Pyramid
from vidformers.models.swin import TubeletEmbedding
from vidformers.pretrained.fit import Fit, with_views


class FitWindows(Fit):
    """Fits `layouts.Windows`. One block of the model is two blocks of the source: plain windows, shifted windows."""

    def place(self, model):
        source, encoder = self.source, model.encoder
        if not isinstance(encoder, Pyramid) or not isinstance(encoder.embeddings[0], TubeletEmbedding):
            self.refuse_model()
        ours, theirs = [2 * stage.depth for stage in encoder.stages], list(map(len, source.stages))
        require(ours == theirs, f"its stages have {theirs} blocks, and model.depths is {ours}.")
        first = encoder.embeddings[0]
        self.place_patch(("encoder", "embeddings", 0, "patch"), first.frames, first.patch_size)
        for i, (stage, blocks) in enumerate(zip(encoder.stages, source.stages, strict=True)):
            self.place_tree(("encoder", "embeddings", i), source.embeddings[i], f"embedding {i}")
            for j, sublayer in enumerate(stage.layers.sublayers):
                kind = "mlp" if j % 2 else "attention"
                trees = [block[kind] for block in blocks[j // 2 :: 2]]
                if kind == "attention":
                    self._check(sublayer, trees[0]["table"])
                    trees = [with_views(tree, sublayer) for tree in trees]
                self.place_layers(
                    ("encoder", "stages", i, "layers", "sublayers", j),
                    trees,
                    f"stage {i}, {'shifted' if j // 2 else 'whole'} windows, {kind}",
                )
        self.place_tree(("encoder", "norm"), source.norm, "norm")

    def _check(self, sublayer, table):
        """Refuses the position table (rows, heads) of another window, which can be as long, or of other heads."""
        rows = sublayer.rows(np.arange(math.prod(sublayer.window)))
        if (
            len(table) != rows.max() + 1
            or self.source.rows is not None
            and not np.array_equal(self.source.rows.ravel(), rows.ravel())
        ):
            raise ConfigError(f"its position tables belong to another window than model.window={sublayer.window}")
        require(
            table.shape[1] == sublayer.heads,
            f"it has {table.shape[1]} heads where the model has {sublayer.heads}: model.heads is the number of heads "
            "of the first stage.",
        )
