"""Heads: local priors that stand in for the parts to come while a part is trained, and are discarded at the gather.

A head is any module with `log_prob(latent) -> [batch]`. A new kind of head is one more entry of `HEADS`.
"""

from collections.abc import Callable

from pipeflow.flow.priors import GaussianPrior, Prior, StandardPrior

HEADS: dict[str, Callable[[tuple[int, ...]], Prior]] = {"gaussian": GaussianPrior, "standard": StandardPrior}
"""Makes a head for a latent's shape, by the kind that `parts.head` names."""
