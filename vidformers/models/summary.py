"""What a model costs, without running it: parameters by module, multiply-adds counted from the traced program."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Macs(NamedTuple):
    """Multiply-adds of a program: of all products and convolutions, and of those with weights alone."""

    total: int
    linear: int


def count_macs(function, *args) -> Macs:
    """Multiply-adds of `function(*args)` from its jaxpr, loops multiplied out; nothing is computed.

    A product with batch dimensions pairs tokens with tokens (query-key, weight-value) and is not `linear`. Elementwise
    work, norms and softmax are not counted, as papers do ("GFLOPs" there are multiply-adds).
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> Macs:
    total = linear = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contract, _), (batch, _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            macs = math.prod(out.shape) * math.prod(shape[i] for i in contract)
            total, linear = total + macs, linear + (0 if batch else macs)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            macs = math.prod(out.shape) * math.prod(kernel) // outputs
            total, linear = total + macs, linear + macs
        else:
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            for inner in _inner(equation.params):
                macs = _count(inner)
                total, linear = total + times * macs.total, linear + times * macs.linear
    return Macs(total, linear)


def _inner(params):
    """The programs that an equation holds: the body of a loop, of a checkpoint, of a nested jit."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


class Summary(NamedTuple):
    params: int
    macs_per_view: int
    macs_per_view_linear: int
    modules: list  # (name, parameters), one a sublayer


def summarise(make_model) -> Summary:
    """The cost of one view of the model that `make_model(rngs=...)` builds; by shape alone, no array is made."""
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    parameters = nnx.to_pure_dict(state)
    video = jax.ShapeDtypeStruct((1, *model.shape), jnp.uint8)
    macs = count_macs(lambda p, x: nnx.merge(graph, p)(x), parameters, video)
    return Summary(_size(parameters), macs.total, macs.linear, list(_rows(parameters)))


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _rows(parameters, prefix=""):
    """One row a module: the sublayers of encoder and readout, and what stands outside their stages."""
    for name, tree in parameters.items():
        if name in ("encoder", "readout"):
            yield from _rows(tree, f"{prefix}{name}.")
        elif name == "stages":
            for i, stage in tree.items():
                for j, sublayer in stage["layers"]["sublayers"].items():
                    depth = jax.tree.leaves(sublayer)[0].shape[0]
                    yield f"{prefix}stages.{i} x {depth}: {j} ({', '.join(sublayer)})", _size(sublayer)
        else:
            yield f"{prefix}{name}", _size(tree)
