"""Softmax attention by other programs than einsums: XLA's function, cuDNN's or Pallas' kernels, which store no weights.

What stays with einsums, even if the config names another backend, and why:

- All: dropout of attention weights, as in training of VTN's Longformer, because the other backends do not return the
  weights; the masked form, which is the reference in tests; and class attention (MEViT), whose scores have one row.
  Linear kernels have no other form.
- 'cudnn' and 'pallas': a batch that cannot be divided equally among the devices.
- 'pallas': a bias, and a mask that differs between queries, as in schemes that are not partitions. Splash attention has
  no bias, and hides keys by their segments, which are the same for all queries.
- 'xla': keys with fewer axes than the queries, as those of a dictionary alone. XLA (jaxlib 0.10.2, CPUs) returns wrong
  values under jit from about 2,000 queries on.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from vidformers.attention.kernels import (
    KeyValues,
    linear_attention,
    quadratic_attention,
    side_by_side,
    softmax,
    softmax_with_dropout,
)
from vidformers.attention.pallas import splash_attention
from vidformers.attention.sharding import on_each_device, pad_axis, partition, with_queries
from vidformers.errors import require
from vidformers.parallel.target import device_platform, is_assumed, target_platform

BACKENDS = ("auto", "einsum", "xla", "cudnn", "pallas")
_PLATFORMS = {"cudnn": ("gpu", "an NVIDIA GPU"), "pallas": ("tpu", "a TPU")}
# From these lengths on, 'auto' uses kernels. Both numbers are guesses: no GPU or TPU has been measured, and the TPU
# compiler gives no estimate for Pallas kernels. The float32 scores of 12 heads and 1,569 tokens (joint attention over 8
# frames) take 118 MB per clip and layer, and limit the batch. Those of 197 tokens take 2 MB per frame. By the programs
# for an H100, cuDNN moves fewer bytes for groups of 32 tokens (motion attention), too. But if it computes tiles of
# 128 x 128 pairs, these multiply 16 times as much as needed, which takes as long as the bytes saved. See
# benchmarks/NOTES.md.
_CUDNN_LENGTH = 64
_PALLAS_LENGTH = 1024

_recorded: ContextVar[dict[str, str] | None] = ContextVar("the backends that `record_backends` collects", default=None)


def attention_kernel(kernel, backend: str, *, masked: bool = False, dropout: Callable | None = None):
    """Returns the kernel of a name.

    Args:
        kernel: one of `kernels.KERNELS`. A callable is returned unchanged.
        backend: one of `BACKENDS`, for softmax.
        masked: returns the kernel of the masked form: softmax with einsums, or a linear kernel in its quadratic form,
            which supports any mask.
        dropout: that of `Softmax`.
    """
    if callable(kernel):
        return kernel
    if kernel == "softmax":
        return Softmax("einsum" if masked else backend, dropout=dropout)
    return quadratic_attention if masked else linear_attention


def rematerialised(kernel):
    """Returns a kernel that keeps no attention weights for the backward pass."""
    return replace(kernel, rematerialise=True) if isinstance(kernel, Softmax) else jax.checkpoint(kernel)


def check_backend(backend: str, kernel: str, dtype, head_width: int) -> None:
    """Raises ConfigError if the backend does not support this kernel, dtype or width of a head.

    The platform is checked when attention is traced, by `check_platform`: a model may be built on another machine than
    the one it runs on.
    """
    require(backend in BACKENDS, f"model.backend={backend!r} is unknown. Use one of {', '.join(BACKENDS)}.")
    require(
        backend in ("auto", "einsum") or kernel == "softmax",
        f"model.backend={backend} computes softmax, not model.kernel={kernel}. Set model.backend=auto.",
    )
    if backend == "cudnn":
        require(
            dtype == jnp.bfloat16,
            f"model.backend=cudnn does not support model.dtype={jnp.dtype(dtype).name}. Set model.dtype=bfloat16.",
        )
        require(
            _cudnn_supports_width(head_width),
            f"model.backend=cudnn does not support model.width / model.heads={head_width}. Choose a multiple of 8 up "
            "to 128.",
        )
    if backend == "pallas":
        require(
            dtype in (jnp.bfloat16, jnp.float32),
            f"model.backend=pallas does not support model.dtype={jnp.dtype(dtype).name}. Set model.dtype=bfloat16.",
        )


def check_platform(backend: str) -> None:
    """Raises ConfigError if the backend does not run on the devices of the mesh.

    Does not raise within `traced_for`, where a program is only counted or compared.
    """
    if backend in _PLATFORMS and not is_assumed():
        platform, device = _PLATFORMS[backend]
        require(
            target_platform() == platform,
            f"model.backend={backend} needs {device}, but JAX runs on {target_platform()}. Set model.backend=auto.",
        )


@contextmanager
def record_backends() -> Iterator[dict[str, str]]:
    """Collects the backends that are chosen while programs are traced: {"1569x1569": "einsum"} by queries x keys."""
    found: dict[str, str] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


@dataclass(frozen=True)
class Softmax:
    """A kernel that returns the same as `kernels.softmax`, but for rounding.

    Attributes:
        backend: one of `BACKENDS`. `chosen_backend` decides what 'auto' is, and where another one is not applicable.
        rematerialise: whether attention weights are rematerialised in the backward pass. 'cudnn' and 'pallas' always
            do this.
        dropout: a function that is applied to the weights (... h q k), or None. With dropout the backend is einsum.
    """

    backend: str
    rematerialise: bool = False
    dropout: Callable | None = None

    def __call__(self, q, key_values):
        key_values = [_with_axes(item) for item in key_values]
        if self.dropout is not None:
            _record("einsum", q, key_values, ", dropout")
            kernel = partial(softmax_with_dropout, dropout_fn=self.dropout)
            return (jax.checkpoint(kernel) if self.rematerialise else kernel)(q, key_values)
        backend = chosen_backend(self.backend, q, key_values)
        _record(backend, q, key_values)
        if backend == "einsum":
            return softmax(q, key_values, rematerialise=self.rematerialise)
        if backend == "xla":
            kernel = partial(_joined, _xla)
            return (jax.checkpoint(kernel) if self.rematerialise else kernel)(q, key_values)
        return on_each_device(partial(_joined, _cudnn if backend == "cudnn" else _pallas), q, key_values)


def chosen_backend(backend: str, q, key_values) -> str:
    """Returns the backend that computes this attention: 'einsum', 'xla', 'cudnn' or 'pallas'.

    'auto' is 'cudnn' on GPUs in bfloat16 for groups of at least 64 tokens, 'pallas' on TPUs for groups of at least
    1,024 tokens, and 'einsum' elsewhere. All become 'einsum' where they are not applicable, see above.

    Args:
        backend: one of `BACKENDS`.
        q: queries (... q h e).
        key_values: a list of `KeyValues` whose masks and biases have at least three axes.
    Raises:
        ConfigError: the backend does not run on the devices of the mesh.
    """
    platform, supported = target_platform(), {"einsum": True, "xla": _xla_supports(q, key_values)}
    supported["cudnn"] = platform == device_platform() == "gpu" and _cudnn_supports(q, key_values)
    supported["pallas"] = platform == "tpu" and _pallas_supports(q, key_values)
    if backend != "auto":
        check_platform(backend)
        return backend if supported[backend] else "einsum"
    length = min(q.shape[-3], sum(item.k.shape[-3] for item in key_values))
    if supported["cudnn"] and length >= _CUDNN_LENGTH and _has_flash_attention():
        return "cudnn"
    return "pallas" if supported["pallas"] and length >= _PALLAS_LENGTH else "einsum"


def _xla_supports(q, key_values) -> bool:
    return key_values[0].k.shape[:-3] == q.shape[:-3]


def _cudnn_supports(q, key_values) -> bool:
    """Returns whether `_cudnn` can compute this attention."""
    return q.dtype == jnp.bfloat16 and _cudnn_supports_width(q.shape[-1]) and partition(q) is not None


def _pallas_supports(q, key_values) -> bool:
    """Returns whether `_pallas` can compute this attention."""
    hides_keys_from_all = all(item.mask is None or item.mask.shape[-3:-1] == (1, 1) for item in key_values)
    has_bias = any(item.bias is not None for item in key_values)
    is_supported = q.dtype in (jnp.bfloat16, jnp.float32) and hides_keys_from_all and not has_bias
    return is_supported and partition(q) is not None


def _cudnn_supports_width(head_width: int) -> bool:
    return head_width % 8 == 0 and head_width <= 128


def _has_flash_attention() -> bool:
    """Returns whether the GPU is of the Ampere generation or later, as cuDNN requires; True for one not present."""
    if jax.default_backend() != "gpu":
        return True
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # "9.0", and "gfx90a" on ROCm
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8


def _differs_by_group(x) -> bool:
    """Returns whether a mask or a bias (... h q k) has more than one entry on its leading axes."""
    return x is not None and math.prod(x.shape[:-3]) > 1


def _with_axes(item: KeyValues) -> KeyValues:
    """Returns `item` with masks and biases of at least three axes, (h q k)."""
    mask, bias = (None if x is None else x.reshape((1,) * (3 - x.ndim) + x.shape) for x in (item.mask, item.bias))
    return item._replace(mask=mask, bias=bias)


def _record(backend: str, q, key_values, suffix: str = "") -> None:
    found = _recorded.get()
    if found is None:
        return
    name = f"{q.shape[-3]}x{sum(item.k.shape[-3] for item in key_values)}"
    name += ", mask" if any(item.mask is not None for item in key_values) else ""
    name += ", bias" if any(item.bias is not None for item in key_values) else ""
    found[name + suffix] = backend


def _joined(function, q, key_values):
    """Returns `function(q, k, v, mask, bias)` for arrays with one leading axis, the keys of all items on one axis.

    `function` gets q (b q h e), k and v (b k h e), and a mask and a bias, each None or (b h q k), with 1 in place of b,
    h or q where entries are equal.
    """
    lead, item = q.shape[:-3], side_by_side(q, key_values)

    def flat(x):
        return jnp.broadcast_to(x, (*lead, *x.shape[-3:])).reshape(-1, *x.shape[-3:])

    mask, bias = (
        x if x is None else flat(x) if _differs_by_group(x) else x.reshape(1, *x.shape[-3:])
        for x in (item.mask, item.bias)
    )
    return function(flat(q), flat(item.k), flat(item.v), mask, bias).reshape(q.shape)


def _xla(q, k, v, mask, bias):
    return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="xla")


def _cudnn(q, k, v, mask, bias):
    """Returns attention by cuDNN for the arrays of `_joined`.

    cuDNN's backward pass needs even numbers of queries and keys, so odd ones are padded. Lengths hide the padding. With
    a mask or a bias, the mask hides it: cuDNN adds masks to the scores as biases in q.dtype. In Swin's shifted windows
    the sum of bias and mask has as many elements as the scores. XLA's program for an H100 still moves 20 GB in a step
    of Swin-T, and 36 GB with einsums there (benchmarks/NOTES.md).
    """
    b, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    pad_q, pad_k = queries % 2, keys % 2
    query_lengths = key_lengths = None
    if mask is not None or bias is not None:
        if pad_k:
            mask = jnp.ones((1, 1, 1, keys), bool) if mask is None else mask
            mask = pad_axis(mask, -1, pad_k)
        mask, bias = (with_queries(x, queries, pad_q) for x in (mask, bias))
        if bias is not None:
            bias = pad_axis(bias.astype(q.dtype), -1, pad_k)
    elif pad_q or pad_k:
        query_lengths, key_lengths = (jnp.full((b,), n, jnp.int32) for n in (queries, keys))
    q, k, v = pad_axis(q, 1, pad_q), pad_axis(k, 1, pad_k), pad_axis(v, 1, pad_k)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        mask,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
    return out[:, :queries]


def _pallas(q, k, v, mask, bias):
    """Returns attention by the kernel for TPUs, which is interpreted on other devices (within `traced_for`)."""
    assert bias is None
    visible = None if mask is None else mask[:, 0, 0]
    return splash_attention(q, k, v, visible, interpret=device_platform() != "tpu")
