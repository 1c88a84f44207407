"""Linear maps."""

from flax import nnx

from vidformers.parallel.activations import has_context

# For a square d -> d projection, Glorot's bound equals that of fan-in scaling. With fan-in scaling, a kernel that holds
# several square projections side by side starts with the distribution of separate kernels.
square_init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
glorot = nnx.initializers.xavier_uniform()


class Linear(nnx.Linear):
    """A linear map (... inputs) -> (... outputs), computed as one product of two matrices.

    With more than two axes, XLA transposes the cotangent for the gradient of the weights, which copies an array as
    large as the tokens. Flattening to a matrix avoids the copy. Under context parallelism the partitioner must see the
    axis of frames, so inputs are not flattened.
    """

    def __call__(self, x):  # type: ignore[override]  # without `out_sharding`, which older versions of Flax lack
        if x.ndim <= 2 or has_context():
            return super().__call__(x)
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)
