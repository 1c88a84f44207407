"""Linear maps."""

import math

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.errors import divisors_near, require
from vidformers.parallel.activations import batch_shards, context_size, has_context
from vidformers.parallel.target import target_platform

# For a square d -> d projection, Glorot's bound equals that of fan-in scaling. With fan-in scaling, a kernel that holds
# several square projections side by side starts with the distribution of separate kernels.
square_init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
glorot = nnx.initializers.xavier_uniform()


def on_rows(function, x, axes: int = 1):
    """Returns function(x) of a linear `function` that acts on the last `axes` axes of x (... i).

    On CPUs the function sees all other axes flattened to one axis of rows. With several axes, XLA transposes the
    cotangent for the gradient of the weights, which copies an array as large as the tokens. On TPUs flattening would
    itself be a copy, since the last two axes of an array are stored in tiles. Under context parallelism the
    partitioner must see the axis of frames, so x is not flattened.
    """
    lead = x.shape[: x.ndim - axes]
    if len(lead) < 2 or has_context() or target_platform() != "cpu":
        return function(x)
    out = function(x.reshape(math.prod(lead), *x.shape[x.ndim - axes :]))
    return out.reshape(*lead, *out.shape[1:])


class Linear(nnx.Linear):
    """A linear map (... inputs) -> (... outputs)."""

    def __call__(self, x):  # type: ignore[override]  # without `out_sharding`, which older versions of Flax lack
        return on_rows(super().__call__, x)

    def for_several_calls(self, dtype):
        """Returns this map as a function, with its parameters cast to `dtype` once.

        The gradients of all calls are then added before devices exchange them. Each call of the module would cast the
        parameters again, and XLA would exchange the gradient of each cast.
        """
        assert self.bias is not None
        kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
        return lambda x: on_rows(lambda rows: rows @ kernel + bias, x)

    def to_heads(self, x, parts: int, heads: int, move=lambda x, part: x) -> list:
        """Returns `parts` projections (... h e) of x (... inputs) by the parts of the kernel (inputs, parts h e).

        On TPUs a product that yields heads is faster than one that is split and reshaped afterwards, since e fills a
        part of a tile. Except on CPUs the kernels are taken one by one with their inputs last, as a training step holds
        them there (`parallel.state`): then no copy of them is made.

        Args:
            x: (... inputs).
            parts: number of projections, side by side in the kernel.
            heads: h.
            move: move(x, part) permutes or copies the entries of a projection (... h e), by its index. It commutes with
                adding the bias.
        """
        assert self.bias is not None
        if target_platform() == "cpu":
            if batch_shards() * context_size() == 1:  # one large product is faster, on one device
                joined = rearrange(self(x), "... (s h e) -> s ... h e", s=parts, h=heads)
                return [move(part, i) for i, part in enumerate(joined)]
            # On several, GSPMD gathers less if each part has a product of its own.
            kernels, biases = (
                rearrange(parameter[...].astype(x.dtype), "... (s h e) -> s ... h e", s=parts, h=heads)
                for parameter in (self.kernel, self.bias)
            )
            return [
                move(on_rows(lambda rows, kernel=kernel: jnp.tensordot(rows, kernel, 1), x), i) + bias
                for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True))
            ]
        # Split first: XLA moves no split across a cast, so it would cast and join kernels that are separate arrays.
        split = [jnp.split(parameter[...], parts, axis=-1) for parameter in (self.kernel, self.bias)]
        out = []
        for i, part in enumerate(zip(*split, strict=True)):
            kernel, bias = (_heads(array.T.astype(x.dtype), heads) for array in part)
            out.append(move(jnp.einsum("...d,hed->...he", x, kernel), i) + bias)
        return out

    def from_heads(self, x):
        """Returns the projection (... outputs) of x (... h e)."""
        assert self.bias is not None
        kernel = rearrange(self.kernel[...].astype(x.dtype), "(h e) d -> h e d", h=x.shape[-2])
        return on_rows(lambda rows: jnp.tensordot(rows, kernel, 2), x, axes=2) + self.bias[...].astype(x.dtype)


def _heads(x, heads: int):
    """Returns (h e ...) of (h e) on one axis."""
    return x.reshape(heads, -1, *x.shape[1:])


def check_heads(width: int, heads: int) -> None:
    """Raises ConfigError if the heads do not divide the width."""
    require(
        heads > 0 and width % heads == 0,
        f"model.heads={heads} does not divide model.width={width}. Set model.heads to {divisors_near(width, heads)}.",
    )
