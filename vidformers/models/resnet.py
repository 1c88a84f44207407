"""ResNet-50 without normalisation, frame by frame: the convolutional backbone of VTN.

Paper: He et al., "Deep Residual Learning for Image Recognition", 2016, in the form called V1.5. A scale and a bias take
the place of every batch normalisation. The statistics of pretrained weights are folded into them.

    7 x 7 convolution with stride 2 -> max pooling with stride 2
    depths[i] x [ 1 x 1 -> 3 x 3 -> 1 x 1 convolution, skip connection ]    each later stage halves the side of the map
    mean over the map -> linear map to the width
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from input_pipeline.fields import shown
from vidformers.errors import require, require_range
from vidformers.layers.convolution import Convolution
from vidformers.layers.embedding import normalise
from vidformers.layers.linear import Linear, square_init
from vidformers.models.config import MAX_DEPTH
from vidformers.parallel.activations import batch_shards, has_context
from vidformers.parallel.target import TILE_LANES, target_platform

he_convolution = partial(Convolution, kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"))


class Bottleneck(nnx.Module):
    """relu(x + 1x1(relu(3x3(relu(1x1 x))))), with the stride in the 3x3 convolution.

    The last scale starts at zero. Otherwise, without normalisation, the output would grow with the depth of the
    network.
    """

    def __init__(self, inputs: int, hidden: int, *, stride: int = 1, dtype=jnp.float32, rngs: nnx.Rngs):
        options, self.hidden = dict(dtype=dtype, rngs=rngs), hidden
        self.reduce = he_convolution(inputs, hidden, 1, **options)
        self.spatial = he_convolution(hidden, hidden, 3, stride=stride, **options)
        self.expand = he_convolution(hidden, 4 * hidden, 1, scale=0.0, **options)
        self.skip = nnx.data(None)
        if stride > 1 or inputs != 4 * hidden:
            self.skip = he_convolution(inputs, 4 * hidden, 1, stride=stride, **options)

    def __call__(self, x):
        return self._residual(x, self.expand(self._hidden(self.reduce(x))))

    def separate(self, x):
        """Returns a list of two maps (n y x c), one for each frame of the pairs in x (n y x 2c)."""
        hidden = self._hidden(self.reduce(x))
        return [self._residual(frame, self.expand(hidden, only=i)) for i, frame in enumerate(jnp.split(x, 2, axis=-1))]

    def join(self, frames, shards: int):
        """Returns the maps (2n y x c) of single frames, of the two maps that `separate` returned."""
        assert self.skip is not None, "a block after pairs is the first of its stage"
        hidden = self._hidden(_join(map(self.reduce, frames), shards))
        return jax.nn.relu(_join(map(self.skip, frames), shards) + self.expand(hidden))

    def _hidden(self, reduced):
        return jax.nn.relu(self.spatial(jax.nn.relu(reduced)))

    def _residual(self, x, branch):
        return jax.nn.relu((x if self.skip is None else self.skip(x)) + branch)


class ResNet(nnx.Module):
    """Video (b t y x 3) -> frame features (b t d): the mean over the last map, then a linear map.

    Args:
        frames, image_size: of a clip.
        width: d.
        mean, std: normalisation of the colour channels.
        depths: bottleneck blocks of each stage, (3, 4, 6, 3) in ResNet-50.
        stem: channels of the first convolution. Stage i has 4 * 2^i * stem channels.
        projection: 'linear', or 'none' for the mean of the last map itself, whose channels are then d.
    Raises:
        ConfigError: there is no stage, a number is below 1, the projection is unknown, or there is none and d is not
            the number of channels.
    """

    def __init__(
        self,
        *,
        frames: int,
        image_size: int,
        width: int,
        mean,
        std,
        depths: Sequence[int] = (3, 4, 6, 3),
        stem: int = 64,
        projection: str = "linear",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_resnet(depths, stem, projection)
        self.shape, self.mean, self.std, self.dtype = (frames, image_size, image_size, 3), mean, std, dtype
        self.stem_width = stem
        self.stem = he_convolution(3, stem, 7, stride=2, dtype=dtype, rngs=rngs)
        blocks, channels = [], stem
        for stage, depth in enumerate(depths):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                blocks.append(Bottleneck(channels, stem * 2**stage, stride=stride, dtype=dtype, rngs=rngs))
                channels = 4 * stem * 2**stage
        self.blocks = nnx.List(blocks)
        require(
            projection == "linear" or width == channels,
            f"model.width={width} must be {channels}, the channels of the last stage, with model.projection=none.",
        )
        self.out = nnx.data(None)
        if projection == "linear":
            self.out = Linear(channels, width, kernel_init=square_init, dtype=dtype, rngs=rngs)

    def __call__(self, video, key=None):
        return self.features(self.maps(video))

    def features(self, maps):
        """Returns the features of frames (b t d) from their last maps (b t y x c)."""
        features = maps.mean(axis=(2, 3))
        return features if self.out is None else self.out(features)

    def maps(self, video):
        """Returns the last maps of the frames (b t y x c) of a video (b t y x 3)."""
        x = rearrange(normalise(video, self.mean, self.std, self.dtype), "b t y x c -> (b t) y x c")
        shards, is_paired = batch_shards(), False
        is_divisible = x.shape[0] % (2 * shards) == 0 and not has_context()
        if target_platform() == "tpu" and is_divisible and 2 * self.stem_width <= TILE_LANES:
            # Two frames share the channels where those of one would fill half a tile.
            x, is_paired = _pair_frames(x, shards), True
        pool = partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = jax.nn.relu(self.stem(x, pool))  # pooling commutes with relu, too
        blocks = list(self.blocks)
        if is_paired:
            end = sum(2 * block.hidden <= TILE_LANES for block in blocks)  # of the blocks whose maps are in pairs
            x, blocks = self._leave_pairs(x, blocks[:end], blocks[end:], shards)
        for block in blocks:
            x = block(x)
        return rearrange(x, "(b t) y x c -> b t y x c", b=video.shape[0])

    @staticmethod
    def _leave_pairs(x, paired: list[Bottleneck], single: list[Bottleneck], shards: int):
        """Returns the maps (n y x c) of single frames after the blocks in pairs, and the blocks that are left."""
        for block in paired[:-1]:
            x = block(x)
        frames = paired[-1].separate(x)
        return (single[0].join(frames, shards), single[1:]) if single else (_join(frames, shards), [])


def check_resnet(depths: Sequence[int], stem: int, projection: str) -> None:
    """Raises ConfigError if a field of `ResNet` is out of range."""
    require(
        1 <= len(depths) <= 8 and min(depths) >= 1 and sum(depths) <= MAX_DEPTH,
        f"model.depths={shown(tuple(depths))} must be 1 to 8 numbers of at least 1, with a sum of at "
        f"most {MAX_DEPTH:,}.",
    )
    require_range("model.stem", stem, 1, 4096)
    require(projection in ("linear", "none"), f"model.projection={projection!r} must be linear or none.")


def _pair_frames(x, shards: int):
    """Returns maps (n/2 y x 2c), each of two frames of (n y x c) side by side. Both are on the same shard of n."""
    return rearrange(x, "(s p n) y x c -> (s n) y x (p c)", s=shards, p=2)


def _join(frames, shards: int):
    """Returns the maps (n y x c) of both frames of pairs, each (n/2 y x c), in the order before `_pair_frames`."""
    frames = [frame.reshape(shards, -1, *frame.shape[1:]) for frame in frames]
    return jnp.concatenate(frames, axis=1).reshape(-1, *frames[0].shape[2:])
