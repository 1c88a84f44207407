"""Multiply-adds that are counted in a traced program."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from vidformers.models.summary import count_kernel_macs, count_macs

pytestmark = pytest.mark.quick


def test_a_kernel_counts_once_for_each_point_of_its_grid_and_each_iteration_of_the_loop_around_it():
    def kernel(x, y, out):
        @pl.when(pl.program_id(0) >= 0)
        def _():
            out[...] = x[...] @ y[...]

    def product(x, y):
        rows, columns = (pl.BlockSpec((8, 32), lambda i: (i, 0)), pl.BlockSpec((32, 16), lambda i: (0, 0)))
        return pl.pallas_call(
            kernel,
            grid=(4,),
            in_specs=[rows, columns],
            out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
        )(x, y)

    def program(x, y):
        return jax.lax.scan(lambda z, _: (product(z @ z, y) @ y.T, None), x, None, length=3)[0]

    x, y = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 32), (32, 16)))
    inside, outside = 3 * 32 * 32 * 16, 3 * (32 * 32 * 32 + 32 * 16 * 32)
    assert count_kernel_macs(jax.make_jaxpr(program)(x, y).jaxpr) == inside
    assert count_macs(program, x, y).total == inside + outside
