"""The equations and constants of a traced program, those of inner programs included."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def equations(program):
    """Yields the equations of a `jax.make_jaxpr(...)(...)`, and those of loops, nested jits and custom gradients."""
    for jaxpr in _jaxprs(program):
        yield from jaxpr.eqns


def constants(program):
    """Yields the arrays that a `jax.make_jaxpr(...)(...)` holds as constants and literals."""
    yield from program.consts
    for equation in equations(program):
        yield from (variable.val for variable in equation.invars if isinstance(variable, Literal))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr)):
            if isinstance(inner, ClosedJaxpr):
                yield from inner.consts


def _jaxprs(program):
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    yield jaxpr
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, (ClosedJaxpr, Jaxpr))):
            if isinstance(inner, (ClosedJaxpr, Jaxpr)):
                yield from _jaxprs(inner)
