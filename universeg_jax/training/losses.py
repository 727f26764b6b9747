"""Segmentation losses: one value per episode, from logits.

Every function takes logits and binary (or soft) labels [B, H, W, 1] and returns float32 [B].
"""

from typing import Any

import jax
import jax.numpy as jnp

from universeg_jax.episode import Array

AXES = (1, 2, 3)


def soft_dice(logits: Array, labels: Array, squared: bool = True, epsilon: float = 1e-7) -> jax.Array:
    """1 - (2 Σpy + ε) / (Σp² + Σy² + ε) with p = sigmoid(logits) (Milletari et al., 2016); plain sums if not `squared`.

    In [0, 1]. For an empty label it is 1, or 0 if the prediction is empty too.
    """
    p, y = jax.nn.sigmoid(logits.astype(jnp.float32)), labels.astype(jnp.float32)
    sizes = jnp.sum(p * p + y * y if squared else p + y, AXES)
    return 1 - (2 * jnp.sum(p * y, AXES) + epsilon) / (sizes + epsilon)


def bce(logits: Array, labels: Array) -> jax.Array:
    """Binary cross-entropy in nats, mean over pixels; finite for any finite logits."""
    x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(x) - x * y, AXES)


def focal(logits: Array, labels: Array, gamma: float = 20.0) -> jax.Array:
    """Cross-entropy weighted by (1 - p_t)^γ (Lin et al., 2017), mean over pixels; γ = 0 is `bce`."""
    x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
    log_p, log_not_p = -jax.nn.softplus(-x), -jax.nn.softplus(x)
    # (1 - p_t)^γ in logarithms: no overflow, and no 0 * inf at large |logits|.
    return -jnp.mean(y * jnp.exp(gamma * log_not_p) * log_p + (1 - y) * jnp.exp(gamma * log_p) * log_not_p, AXES)


TERMS = {  # weight in config.loss → the term
    "soft_dice": lambda logits, labels, config: soft_dice(logits, labels, squared=config.squared),
    "bce": lambda logits, labels, config: bce(logits, labels),
    "focal": lambda logits, labels, config: focal(logits, labels, config.focal_gamma),
}


def total(logits: Array, labels: Array, config: Any) -> jax.Array:
    """The weighted sum of `config.loss`; terms of weight 0, or without one, are not computed."""
    loss = jnp.zeros(logits.shape[0], jnp.float32)
    for name, term in TERMS.items():
        if config.get(name):
            loss += config[name] * term(logits, labels, config)
    return loss
