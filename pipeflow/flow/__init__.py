"""Layers, flows and parts: mathematics on one device, without anything distributed."""

from pipeflow.flow.adapters import NormflowsLayer, ZukoLayer, from_normflows, from_zuko
from pipeflow.flow.coupling import Coupling, FlowStep
from pipeflow.flow.cuts import configured_cuts, cut_names, split_flow
from pipeflow.flow.flow import Flow
from pipeflow.flow.glow import build_flow, glow
from pipeflow.flow.heads import head_maker, local_heads
from pipeflow.flow.layers import ActNorm, ConditionalLayer, FactorOut, InvertibleConv1x1, Layer, Squeeze
from pipeflow.flow.part import Part
from pipeflow.flow.priors import ClassPrior, ConditionalPrior, GaussianPrior, Prior, StandardPrior
from pipeflow.flow.values import Values

__all__ = [
    "ActNorm", "ClassPrior", "ConditionalLayer", "ConditionalPrior", "Coupling", "FactorOut", "Flow", "FlowStep",
    "GaussianPrior", "InvertibleConv1x1", "Layer", "NormflowsLayer", "Part", "Prior", "Squeeze", "StandardPrior", "Values",
    "ZukoLayer", "build_flow", "configured_cuts", "cut_names", "from_normflows", "from_zuko", "glow", "head_maker",
    "local_heads", "split_flow",
]  # fmt: skip
