"""Connects the parts of a run: this worker's ends of the links between them."""

from collections.abc import Sequence

from pipeflow.config import Config
from pipeflow.flow.part import Part
from pipeflow.links.channel import Channel
from pipeflow.links.link import Link, LocalLink, ReceivingEnd, SendingEnd
from pipeflow.links.wire import make_wire
from pipeflow.workers.world import World


def connect(world: World, parts: Sequence[Part], owners: Sequence[int], config: Config) -> dict[int, Link]:
    """This worker's ends of the links between parts, by the index of the part in front.

    All workers call this together, as making groups asks for, and close the links at the same point of the run.

    Args:
        world: this worker among the others.
        parts: all parts of the flow.
        owners: the place that holds each part.
        config: the run.
    """
    links: dict[int, Link] = {}
    replica, slices = world.rank % world.num_replicas, config.finetune.micro_batches
    for part, source, target in zip(parts, owners, owners[1:]):
        micro_batches = config.memory.micro_batches
        channel = Channel(
            part.index, part.output_shape, config.link.dtype, config.run.seed, replica, micro_batches, slices
        )
        if source != target:
            for each in range(world.num_replicas):
                ranks = (source * world.num_replicas + each, target * world.num_replicas + each)
                link = _connect_ranks(world, channel, ranks, config)
                if link is not None:
                    links[part.index] = link
        elif source == world.place:
            links[part.index] = LocalLink(channel, world.traffic)
    return links


def connect_back(
    world: World, parts: Sequence[Part], owners: Sequence[int], config: Config
) -> dict[int, SendingEnd | ReceivingEnd]:
    """This worker's ends of the links on which a pipeline's gradients go back, as `connect` has those that go forward."""
    links = {}
    replica, slices = world.rank % world.num_replicas, config.finetune.micro_batches
    for part, target, source in zip(parts, owners, owners[1:]):
        if source != target:
            channel = Channel(
                part.index, part.output_shape, config.finetune.gradient_dtype, config.run.seed, replica,
                pipeline_slices=slices, is_backward=True,
            )  # fmt: skip
            for each in range(world.num_replicas):
                ranks = (source * world.num_replicas + each, target * world.num_replicas + each)
                link = _connect_ranks(world, channel, ranks, config)
                if link is not None:
                    links[part.index] = link
    return links


def _connect_ranks(
    world: World, channel: Channel, ranks: tuple[int, int], config: Config
) -> SendingEnd | ReceivingEnd | None:
    """This worker's end of the link from the first rank to the second, or None where it is neither."""
    group = world.new_group(ranks, "gloo")
    nccl = world.new_group(ranks, "nccl") if world.backend == "nccl" else None
    if group is None:
        return None
    source, target = ranks
    peer = target if world.rank == source else source
    world.watch(peer)
    end = SendingEnd if world.rank == source else ReceivingEnd
    wire = make_wire(group, nccl, peer, world.device)
    return end(channel, wire, config.link, world.traffic, world.alarm, world.timeline)
