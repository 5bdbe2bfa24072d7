"""Local priors of parts, thrown away at the gather."""

from pipeflow.flow.priors import GaussianPrior, StandardPrior

PRIORS = {"gaussian": GaussianPrior, "standard": StandardPrior}
"""Heads by the name that `parts.head` gives them; each is made for the shape of its latent."""
