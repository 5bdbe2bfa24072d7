"""Flows of one's own that configurations of tests name."""

import normflows

from pipeflow import Config, Flow, from_normflows
from pipeflow.flow import glow


def with_their_actnorm(config: Config, shape: tuple[int, ...]) -> Flow:
    """A Glow with a layer of another library behind it, which takes its values from the first batch that it sees."""
    (actnorm,) = from_normflows([normflows.flows.ActNorm((24, 1, 1))])
    return Flow({**dict(glow(shape, 2, 2, 8).named_layers()), "blocks.1.theirs": actnorm}, shape)
