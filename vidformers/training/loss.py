"""The training loss: cross-entropy with one label a clip, binary cross-entropy with several."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Targets(NamedTuple):
    """What the loss compares the logits with.

    Attributes:
        classes: (b n), the target of each class, from 0 to 1, with label smoothing applied.
        weight: (b 1), the weight of the class of each clip, or () without weights or with several labels.
    """

    classes: jax.Array
    weight: Any = ()


@dataclass(frozen=True, eq=False)  # eq=False: an array has no hash
class Loss:
    """The loss of a clip.

    With one label it is the cross-entropy: -sum_c t_c log softmax(z)_c for logits z and targets t, times the weight of
    the class of the clip. Mixup and CutMix mix the weights as they mix the targets.

    With several labels it is the binary cross-entropy, averaged over the classes:
    -mean_c (w_c t_c log sigmoid(z_c) + (1 - t_c) log sigmoid(-z_c)), where w_c is the weight of the class.

    Args:
        label_smoothing: the share s of the target that is spread: over all n classes, t (1 - s) + s / n, or with
            several labels over both answers, t (1 - s) + s / 2.
        class_weights: (n) weights of the classes, or None.
        several_labels: whether a clip has several labels.
    """

    label_smoothing: float = 0.0
    class_weights: np.ndarray | None = None
    several_labels: bool = False

    def targets(self, label: jax.Array, num_classes: int) -> Targets:
        """Returns the targets of clips: `label` (b) holds class numbers, with several labels (b n) zeros and ones."""
        if self.several_labels:
            return Targets(label * (1 - self.label_smoothing) + self.label_smoothing / 2)
        targets = optax.smooth_labels(jax.nn.one_hot(label, num_classes), self.label_smoothing)
        if self.class_weights is None:
            return Targets(targets)
        return Targets(targets, jnp.asarray(self.class_weights)[label][:, None])

    def __call__(self, logits: jax.Array, targets: Targets) -> jax.Array:
        """Returns the loss of each clip (b) for logits (b n)."""
        if not self.several_labels:
            losses = optax.softmax_cross_entropy(logits, targets.classes)
            return losses if self.class_weights is None else losses * targets.weight[:, 0]
        weights = 1.0 if self.class_weights is None else jnp.asarray(self.class_weights)
        positive = weights * targets.classes * jax.nn.log_sigmoid(logits)
        negative = (1 - targets.classes) * jax.nn.log_sigmoid(-logits)
        return -(positive + negative).mean(axis=-1)
