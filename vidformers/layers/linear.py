"""Products of tokens with weights."""

from flax import nnx

from vidformers.parallel.activations import has_context

# Glorot's bound for a square d -> d projection is that of fan-in scaling. Written so, one kernel that holds several
# square projections side by side starts as each of them would alone.
square_init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
glorot = nnx.initializers.xavier_uniform()


class Linear(nnx.Linear):
    """(... inputs) -> (... outputs), as one product of two matrices.

    Of tokens with more axes than two XLA would first turn the cotangent about, a copy as large as the tokens, to make
    the gradient of the weights. Where frames lie on several devices, which rows of a matrix cannot say, it is left to.
    """

    def __call__(self, x):
        if x.ndim <= 2 or has_context():
            return super().__call__(x)
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)
