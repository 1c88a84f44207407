"""Softmax attention by JAX's own function: by XLA, or by cuDNN's flash attention, which keeps no matrix of weights."""

from functools import partial

import jax
import jax.numpy as jnp

from vidformers.attention.kernels import softmax
from vidformers.errors import require

BACKENDS = ("auto", "einsum", "xla", "cudnn")


def softmax_kernel(backend: str):
    """The softmax kernel of a backend, one of `BACKENDS`.

    'auto' is 'einsum': on CPUs `benchmarks.attention` found it fastest for groups as large as a frame, and on GPUs and
    TPUs nothing has been measured yet.
    """
    return softmax if backend in ("auto", "einsum") else partial(_fused, backend)


def check_backend(backend: str, kernel: str, dtype, head_width: int) -> None:
    """Raises ConfigError where attention of this kernel, type and width of a head has not that backend."""
    require(backend in BACKENDS, f"model.backend={backend!r} must be one of {', '.join(BACKENDS)}.")
    require(
        backend in ("auto", "einsum") or kernel == "softmax",
        f"model.backend={backend} computes softmax, not model.kernel={kernel}.",
    )
    if backend == "cudnn":
        here = jax.default_backend()
        require(here == "gpu", f"model.backend=cudnn is for NVIDIA's GPUs, and this machine computes on {here}.")
        require(
            dtype == jnp.bfloat16,
            f"model.backend=cudnn computes in bfloat16: set model.dtype, which is {jnp.dtype(dtype).name}.",
        )
        require(
            head_width % 8 == 0 and head_width <= 128,
            f"model.backend=cudnn takes heads whose width is a multiple of 8 up to 128, not model.width / "
            f"model.heads={head_width}.",
        )


def _fused(implementation: str, q, sources):
    """What `softmax` computes: q (... h q e) and sources without a bias -> (... h q e).

    cuDNN's function takes neither masks of an odd size nor, on several devices, keys that lie otherwise than queries,
    as those of a dictionary do: such attention stays with einsums.
    """
    if implementation == "cudnn" and (
        len(sources) > 1 or sources[0].mask is not None or sources[0].k.shape[:-2] != q.shape[:-2]
    ):
        return softmax(q, sources)
    lead, (_, queries, _) = q.shape[:-3], q.shape[-3:]

    def flat(x):
        """(... h n m), or what broadcasts to it -> (b h n m)."""
        x = jnp.broadcast_to(x, (*lead, *x.shape[-3:]))
        return x.reshape(-1, *x.shape[-3:])

    def mask():
        """(b h q k) of all sources, or (b 1 q k) for all heads alike; None where none has one."""
        if all(source.mask is None for source in sources):
            return None
        parts = [jnp.asarray(True if source.mask is None else source.mask) for source in sources]
        parts = [part.reshape((1,) * (3 - part.ndim) + part.shape) for part in parts]
        heads = max(part.shape[-3] for part in parts)
        return jnp.concatenate(
            [
                flat(jnp.broadcast_to(part, (*part.shape[:-3], heads, queries, source.k.shape[-2])))
                for part, source in zip(parts, sources, strict=True)
            ],
            axis=-1,
        )

    k, v = (jnp.concatenate([flat(getattr(source, name)) for source in sources], axis=-2) for name in "kv")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (flat(q), k, v))  # to (b n h e)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask(), implementation=implementation)
    return jnp.swapaxes(out, 1, 2).reshape(*lead, q.shape[-2], queries, -1)
