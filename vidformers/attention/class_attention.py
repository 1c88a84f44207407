"""Class attention: a late class token attends to patches that no longer change."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.kernels import softmax
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch
from vidformers.parallel.target import TILE_ROWS, target_platform


class ClassAttention(nnx.Module):
    """z_cls + W_O attend(LN z_cls, LN z_patches) with the NT patches as keys (MEViT eq. 10).

    The class token is not a key, as in the equation and unlike in CaiT. Patches are returned bit for bit. The class
    token and the patches share the norm.

    Raises:
        ConfigError: the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, dtype=jnp.float32, rngs: nnx.Rngs):
        check_heads(width, heads)
        self.heads, self.dropout, self.kernel = heads, dropout, softmax
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.q = Linear(width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.kv = Linear(width, 2 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        return add_branch(tokens, self.branch(tokens), self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: None for the patches, and class tokens (b c d)."""
        q = rearrange(self.q(self.norm(tokens.class_tokens)), "b c (h e) -> b c h e", h=self.heads)
        patches, mask = one_sequence(tokens.patches)
        k, v = self.kv.to_heads(self.norm(patches), 2, self.heads)
        return None, self.out(rearrange(self.attend(q, k, v, mask), "b c h e -> b c (h e)"))

    def attend(self, q, k, v, mask=None):
        """Returns the outputs of the heads (b c h e)."""
        return compute_attention(q, k, v, mask, kernel=self.kernel)


def one_sequence(patches):
    """Returns the patches (b t n d) of all frames as one sequence (b k d), and a mask (k), False at padding, or None.

    On TPUs each frame is padded to whole tiles. Joining frames of another length would move every row, which takes ten
    times as long as the padding (benchmarks/NOTES.md).
    """
    b, t, n, d = patches.shape
    padding = -n % TILE_ROWS if target_platform() == "tpu" else 0
    if not padding:
        return patches.reshape(b, t * n, d), None
    padded = jnp.pad(patches, ((0, 0), (0, 0), (0, padding), (0, 0)))
    is_patch = jax.lax.iota(jnp.int32, t * (n + padding)) % (n + padding) < n
    return padded.reshape(b, -1, d), is_patch
