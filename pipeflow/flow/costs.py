"""What a flow costs to compute."""

from pipeflow.flow.flow import Flow


def multiply_adds(flow: Flow) -> list[int]:
    """Of one forward of one image through each layer."""
    return [layer.multiply_adds(shape) for (_, layer), shape in zip(flow.named_layers(), flow.shapes)]
