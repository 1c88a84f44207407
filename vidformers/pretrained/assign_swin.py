"""Assigning the weights of a Video Swin to the parameters of `swin`."""

import math

import numpy as np

from vidformers.errors import ConfigError, require
from vidformers.models.pyramid import Pyramid
from vidformers.models.swin import TubeletEmbedding
from vidformers.pretrained.assign import Assignment, with_views


class SwinAssignment(Assignment):
    """Assigns `layouts.SwinWeights`. One block of the model is two blocks of the weights: one has shifted windows."""

    def place(self, model):
        weights, encoder = self.weights, model.encoder
        if not isinstance(encoder, Pyramid) or not isinstance(encoder.embeddings[0], TubeletEmbedding):
            self.refuse_model()
        model_depths, weight_depths = [2 * stage.depth for stage in encoder.stages], list(map(len, weights.stages))
        require(
            model_depths == weight_depths,
            f"its stages have {weight_depths} blocks, and model.depths is {model_depths}.",
        )
        embedding = encoder.embeddings[0]
        self.place_patch(("encoder", "embeddings", 0, "patch"), embedding.frames, embedding.patch_size)
        for i, (stage, blocks) in enumerate(zip(encoder.stages, weights.stages, strict=True)):
            self.place_tree(("encoder", "embeddings", i), weights.embeddings[i], f"embedding {i}")
            for j, sublayer in enumerate(stage.layers.sublayers):
                name = "mlp" if j % 2 else "attention"
                trees = [block[name] for block in blocks[j // 2 :: 2]]
                if name == "attention":
                    self._check_table(sublayer, trees[0]["table"])
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
        rows = sublayer.rows(np.arange(math.prod(sublayer.window)))
        index = self.weights.position_index
        if len(table) != rows.max() + 1 or index is not None and not np.array_equal(index.ravel(), rows.ravel()):
            raise ConfigError(f"its position tables are for another window than model.window={sublayer.window}")
        require(
            table.shape[1] == sublayer.heads,
            f"it has {table.shape[1]} heads where the model has {sublayer.heads}: model.heads is the number of heads "
            "of the first stage.",
        )
