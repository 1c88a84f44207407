"""Softmax attention by `jax.nn.dot_product_attention`: XLA, or cuDNN's flash attention, which stores no weights."""

from functools import partial
from typing import Literal, cast

import jax
import jax.numpy as jnp

from vidformers.attention.kernels import softmax
from vidformers.errors import require

BACKENDS = ("auto", "einsum", "xla", "cudnn")


def softmax_kernel(backend: str):
    """Returns the softmax kernel of a backend, one of `BACKENDS`.

    'auto' is 'einsum'. On CPUs `benchmarks.attention` measured it as the fastest for groups as large as a frame. On
    GPUs and TPUs nothing has been measured yet.
    """
    return softmax if backend in ("auto", "einsum") else partial(_fused, cast(Literal["xla", "cudnn"], backend))


def check_backend(backend: str, kernel: str, dtype, head_width: int) -> None:
    """Raises ConfigError if the backend does not support this kernel, dtype or width of a head."""
    require(backend in BACKENDS, f"model.backend={backend!r} is unknown. Use one of {', '.join(BACKENDS)}.")
    require(
        backend in ("auto", "einsum") or kernel == "softmax",
        f"model.backend={backend} computes softmax, not model.kernel={kernel}. Set model.backend=auto.",
    )
    if backend == "cudnn":
        platform = jax.default_backend()
        require(
            platform == "gpu",
            f"model.backend=cudnn needs an NVIDIA GPU, but JAX runs on {platform}. Set model.backend=auto.",
        )
        require(
            dtype == jnp.bfloat16,
            f"model.backend=cudnn does not support model.dtype={jnp.dtype(dtype).name}. Set model.dtype=bfloat16.",
        )
        require(
            head_width % 8 == 0 and head_width <= 128,
            f"model.backend=cudnn does not support model.width / model.heads={head_width}. Choose a multiple of 8 up "
            "to 128.",
        )


def _fused(implementation: Literal["xla", "cudnn"], q, key_values):
    """Returns the same as `softmax`, (... q h e), for q (... q h e) and `key_values` without a bias.

    Uses einsums where `jax.nn.dot_product_attention` fails. cuDNN does not support masks of an odd size. The keys of a
    dictionary have fewer axes than the queries: cuDNN's function cannot shard such keys, and XLA (jaxlib 0.10.2, CPUs)
    returns wrong values under jit from about 2,000 queries on.
    """
    has_fewer_axes = key_values[0].k.shape[:-3] != q.shape[:-3]
    if has_fewer_axes or implementation == "cudnn" and (len(key_values) > 1 or key_values[0].mask is not None):
        return softmax(q, key_values)
    lead, (queries, _, _) = q.shape[:-3], q.shape[-3:]

    def flat(x):
        """Returns (b ...) of an array that broadcasts to (... x y z), with its last three axes."""
        x = jnp.broadcast_to(x, (*lead, *x.shape[-3:]))
        return x.reshape(-1, *x.shape[-3:])

    def mask():
        """Returns the mask of all keys, (b h q k) or (b 1 q k), or None if there is no mask."""
        if all(item.mask is None for item in key_values):
            return None
        masks = [jnp.asarray(True if item.mask is None else item.mask) for item in key_values]
        masks = [mask.reshape((1,) * (3 - mask.ndim) + mask.shape) for mask in masks]
        heads = max(mask.shape[-3] for mask in masks)
        return jnp.concatenate(
            [
                flat(jnp.broadcast_to(mask, (*mask.shape[:-3], heads, queries, item.k.shape[-3])))
                for mask, item in zip(masks, key_values, strict=True)
            ],
            axis=-1,
        )

    k, v = (jnp.concatenate([flat(getattr(item, name)) for item in key_values], axis=-3) for name in "kv")
    out = jax.nn.dot_product_attention(flat(q), k, v, mask=mask(), implementation=implementation)
    return out.reshape(*lead, *out.shape[1:])
