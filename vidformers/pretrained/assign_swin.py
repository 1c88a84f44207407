"""Assigning the weights of a Swin or a Video Swin to the parameters of `swin`."""

import math

import numpy as np

from vidformers.errors import ConfigError, require
from vidformers.models.pyramid import Pyramid
from vidformers.models.swin import TubeletEmbedding
from vidformers.pretrained.assign import Assignment, with_views


class SwinAssignment(Assignment):
    """Assigns `layouts.SwinWeights`. One block of the model is two blocks of the weights: one has shifted windows.

    Weights for images are inflated in time: the patch kernel as `Init.tube` says, and the position tables are repeated,
    so that the bias of a pair of patches does not depend on their frames (Video Swin, arXiv:2106.13230, sec. 3.3).
    """

    def place(self, model):
        weights, encoder = self.weights, model.encoder
        if not isinstance(encoder, Pyramid) or not isinstance(encoder.embeddings[0], TubeletEmbedding):
            self.refuse_model()
        self.check_depths([2 * stage.depth for stage in encoder.stages])
        embedding = encoder.embeddings[0]
        self.place_patch(("encoder", "embeddings", 0, "patch"), embedding.frames, embedding.patch_size)
        for i, (stage, blocks) in enumerate(zip(encoder.stages, weights.stages, strict=True)):
            self.place_tree(("encoder", "embeddings", i), weights.embeddings[i], f"embedding {i}")
            for j, sublayer in enumerate(stage.layers.sublayers):
                name = "mlp" if j % 2 else "attention"
                trees = [block[name] for block in blocks[j // 2 :: 2]]
                if name == "attention":
                    self._check_table(sublayer, trees[0]["table"])
                    repeats = 2 * sublayer.window[0] - 1 if weights.is_image_model else 1
                    trees = [tree | {"table": np.tile(tree["table"], (repeats, 1))} for tree in trees]
                    trees = [with_views(tree, sublayer) for tree in trees]
                self.place_layers(
                    ("encoder", "stages", i, "layers", "sublayers", j),
                    trees,
                    f"stage {i}, {'shifted' if j // 2 else 'whole'} windows, {name}",
                )
        self.place_tree(("encoder", "norm"), weights.norm, "norm")

    def _check_table(self, sublayer, table):
        """Refuses a position table (rows, heads) for another window or another number of heads.

        Tables of different windows can have the same length, so the index of the file is compared, too.
        """
        window = sublayer.window[1:] if self.weights.is_image_model else sublayer.window
        rows = sublayer.rows(np.arange(math.prod(window)))
        rows -= rows.min()  # of pairs in one frame, the first has the row that an image has as row 0
        index = self.weights.position_index
        if len(table) != rows.max() + 1 or index is not None and not np.array_equal(index.ravel(), rows.ravel()):
            raise ConfigError(
                f"its position tables are for another window than model.window={sublayer.window}"
                + " has in a frame" * self.weights.is_image_model
            )
        require(
            table.shape[1] == sublayer.heads,
            f"it has {table.shape[1]} heads where the model has {sublayer.heads}: model.heads is the number of heads "
            "of the first stage.",
        )
