"""Counts the parameters and multiply-adds of a model from its traced program, without running it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.parallel.target import traced_for

# Floating-point operations of training per multiply-add of a forward pass: a multiplication and an addition, and the
# backward pass has twice the products.
TRAINING_OPERATIONS = 2 * 3


class Macs(NamedTuple):
    """Multiply-adds of a program."""

    total: int  # of all products and convolutions
    linear: int  # of the products and convolutions with weights


def count_macs(function, *args) -> Macs:
    """Returns the multiply-adds of `function(*args)`, counted in its jaxpr. Nothing is computed.

    The body of a loop counts once for each iteration, that of a Pallas kernel once for each point of its grid. A
    product with batch dimensions multiplies tokens with tokens (query-key, weight-value), so it is not `linear`.
    Elementwise operations, norms and softmax are not counted, as in papers, whose "GFLOPs" are multiply-adds.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def count_kernel_macs(jaxpr) -> int:
    """Returns the multiply-adds of the Pallas kernels in a jaxpr, as if every kernel ran all of its branches."""
    total = 0
    for equation in jaxpr.eqns:
        is_kernel = equation.primitive.name == "pallas_call"
        for inner in _inner_jaxprs(equation.params):
            total += _runs(equation) * (_count(inner).total if is_kernel else count_kernel_macs(inner))
    return total


def _count_normalised(jaxpr) -> int:
    """Returns the number of elements that pass a norm: those of the products with an inverse root."""
    roots = {id(equation.outvars[0]) for equation in jaxpr.eqns if equation.primitive.name == "rsqrt"}
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "mul" and any(id(variable) in roots for variable in equation.invars):
            total += math.prod(equation.outvars[0].aval.shape)
        for inner in _inner_jaxprs(equation.params):
            total += _runs(equation) * _count_normalised(inner)
    return total


def _count(jaxpr) -> Macs:
    total = linear = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), (batch, _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            macs = math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contract)
            total, linear = total + macs, linear + (0 if batch else macs)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            macs = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
            total, linear = total + macs, linear + macs
        else:
            times = _runs(equation)
            for inner in _inner_jaxprs(equation.params):
                inner_macs = _count(inner)
                total, linear = total + times * inner_macs.total, linear + times * inner_macs.linear
    return Macs(total, linear)


def _runs(equation) -> int:
    """Returns how often the inner jaxpr of an equation runs: the length of a scan, or the grid of a Pallas kernel."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return 1


def _inner_jaxprs(params):
    """Yields the jaxprs in the parameters of an equation: the body of a loop, a checkpoint or a nested jit."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


class Summary(NamedTuple):
    params: int
    macs_per_view: int
    macs_per_view_linear: int
    modules: list[tuple[str, int]]  # name and number of parameters of each sublayer
    normalised_per_view: int  # elements that pass a norm


def summarise(make_model) -> Summary:
    """Returns the cost of one view of the model that `make_model(rngs=...)` builds. No array is allocated."""
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    parameters = nnx.to_pure_dict(state)
    video = jax.ShapeDtypeStruct((1, *model.shape), jnp.uint8)
    # As on CPUs, where no layout adds padding or products under a mask.
    with traced_for("cpu"):
        jaxpr = jax.make_jaxpr(lambda p, x: nnx.merge(graph, p)(x))(parameters, video).jaxpr
    macs = _count(jaxpr)
    return Summary(_size(parameters), macs.total, macs.linear, list(_rows(parameters)), _count_normalised(jaxpr))


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _rows(parameters, prefix=""):
    """Yields (name, parameters) of each sublayer in a stage, of what its layers share, and of each other module."""
    for name, tree in parameters.items():
        if name in ("encoder", "readout"):
            yield from _rows(tree, f"{prefix}{name}.")
        elif name == "stages":
            for i, stage in tree.items():
                for j, sublayer in stage["layers"]["sublayers"].items():
                    depth = jax.tree.leaves(sublayer)[0].shape[0]
                    yield f"{prefix}stages.{i} x {depth}: {j} ({', '.join(sublayer)})", _size(sublayer)
                for kind, dictionary in stage.get("dictionary", {}).items():
                    yield f"{prefix}stages.{i}: dictionary.{kind}", _size(dictionary)
        else:
            yield f"{prefix}{name}", _size(tree)
