"""Assigning the weights of a CvT to the parameters of `cvt`, and those of a ResNet to the backbone of a VTN."""

from itertools import groupby

from vidformers.errors import ConfigError
from vidformers.models.cvt import ConvolutionalEmbedding
from vidformers.models.pyramid import Pyramid
from vidformers.models.resnet import ResNet
from vidformers.pretrained.assign import Assignment, with_views
from vidformers.pretrained.roles import patch_encoder


class CvtAssignment(Assignment):
    """Assigns `layouts.CvtWeights`. The positions of frames start as `Init.time` says, since images have none."""

    def place(self, model):
        weights, encoder = self.weights, model.encoder
        if not isinstance(encoder, Pyramid) or not isinstance(encoder.embeddings[0], ConvolutionalEmbedding):
            self.refuse_model()
        self.check_depths([stage.depth for stage in encoder.stages])
        self._check_heads(encoder.stages[0].layers.sublayers[0].heads)
        for i, (stage, blocks) in enumerate(zip(encoder.stages, weights.stages, strict=True)):
            embedding, path = weights.embeddings[i], ("encoder", "embeddings", i)
            if i == 0:
                embedding = embedding | {"convolution": self.with_channels(embedding["convolution"])}
            self.place_tree(path, embedding, f"embedding {i}")
            if encoder.embeddings[i].time is not None and self.init.time == "zero":
                self.place_zeros((*path, "time"))
            for j, name in enumerate(("attention", "mlp")):
                trees = [block[name] for block in blocks]
                if name == "attention":
                    trees = [with_views(tree, stage.layers.sublayers[0]) for tree in trees]
                self.place_layers(
                    ("encoder", "stages", i, "layers", "sublayers", j), trees, f"stage {i}, layers, {name}"
                )
        self.place_array(("encoder", "class_token"), weights.class_token, "loaded", "class token")
        self.place_tree(("encoder", "norm"), weights.norm, "norm")

    def _check_heads(self, heads: int) -> None:
        """Refuses another number of heads, which the shapes of the arrays do not show."""
        if self.weights.heads not in (None, heads) and "heads" not in self.init.allow:
            raise ConfigError(
                f"it was trained with {self.weights.heads} heads in the first stage, and model.heads is {heads}; "
                "init.allow=\"('heads',)\" loads it anyway"
            )


class ResNetAssignment(Assignment):
    """Assigns `layouts.ResNetWeights` to the backbone. The linear map after it is new, since images have none."""

    def place(self, model):
        weights, (path, encoder) = self.weights, patch_encoder(model.encoder)
        if not isinstance(encoder, ResNet):
            self.refuse_model()
        self.check_depths([len(list(blocks)) for _, blocks in groupby(block.hidden for block in encoder.blocks)])
        stem = weights.stem | {"convolution": self.with_channels(weights.stem["convolution"])}
        self.place_tree((*path, "stem"), stem, "stem")
        for i, block in enumerate(block for stage in weights.stages for block in stage):
            self.place_tree((*path, "blocks", i), block, f"block {i}")
