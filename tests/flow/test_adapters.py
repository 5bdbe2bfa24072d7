"""Flows of normflows and zuko as layers: likelihood, inverse, and training by parts, which trains the flow itself."""

import normflows
import pytest
import torch
import zuko

from pipeflow import Config, Flow, ImageData, from_normflows, from_zuko, load_flow, train
from pipeflow.flow import FactorOut, Squeeze, StandardPrior


def net():
    return normflows.nets.MLP([1, 8, 2], init_zeros=False)


def normflows_model():
    """Blocks of many kinds. An ActNorm's log-determinant is one number for the whole batch."""
    flows = normflows.flows
    blocks = [
        flows.AffineCouplingBlock(net()), flows.Permute(2, mode="swap"), flows.ActNorm(2), flows.LULinearPermute(2),
        flows.MaskedAffineFlow(torch.tensor([1.0, 0.0]), normflows.nets.MLP([2, 8, 2])),
        flows.CoupledRationalQuadraticSpline(2, 1, 8),
    ]  # fmt: skip
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(2, trainable=False), blocks)


def zuko_flow():
    """Transforms of many kinds, whose log-determinants have the shape of a batch or of x."""
    spline, affine = (
        zuko.flows.NSF(2, transforms=1, bins=4, hidden_features=[8]),
        zuko.flows.MAF(2, hidden_features=[8]),
    )
    mixing = zuko.lazy.UnconditionalTransform(zuko.transforms.LULinearTransform, torch.tensor([[1.0, 0.3], [0.2, 2.0]]))
    single = zuko.lazy.UnconditionalTransform(zuko.transforms.SignedPowerTransform, torch.tensor([0.1, -0.2]))
    turned = zuko.flows.MAF(2, transforms=1, hidden_features=[8]).transform.inv
    return zuko.lazy.Flow(
        [*spline.transform.transforms, mixing, *affine.transform.transforms, single, turned], affine.base
    )


LIBRARIES = {
    "normflows": (normflows_model, from_normflows, lambda flow, x: flow.log_prob(x)),
    "zuko": (zuko_flow, from_zuko, lambda flow, x: flow().log_prob(x)),
}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]


@pytest.fixture
def x(normal):
    return 0.5 * normal(200, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.4]]) + 0.3


def test_likelihood_and_inverse_are_the_other_librarys(library, perturbed, x):
    make, adapt, log_prob = library
    theirs = make()
    log_prob(theirs, x)  # ActNorms are initialised
    perturbed(theirs)
    ours = Flow(adapt(theirs), (2,), prior=StandardPrior((2,)))
    torch.testing.assert_close(ours.log_prob(x).float(), log_prob(theirs, x), atol=1e-4, rtol=0)
    latent, _, _ = ours(x)
    torch.testing.assert_close(ours.inverse(latent, []), x, atol=1e-3, rtol=0)
    assert ours.sample(3, torch.Generator().manual_seed(0)).shape == (3, 2)
    assert ours.multiply_adds() > 0


def test_three_parts_train_it_in_one_process(library, x, tmp_path):
    make, adapt, log_prob = library
    theirs = make()

    def flow():
        torch.manual_seed(0)
        return Flow(adapt(make()), (2,), prior=StandardPrior((2,)))

    ours = Flow(adapt(theirs), (2,), prior=StandardPrior((2,)))
    config = Config.from_dict(
        {
            "run": {"dir": str(tmp_path / "run"), "device": "cpu", "figures": False},
            "parts": {"split": "balanced", "num": 3},
            "schedule": {"local_epochs": 2, "finetune_epochs": 1},
            "optim": {"batch_size": 40, "warmup_steps": 2, "lr": 1e-2},
        }
    )
    summary = train(config, flow=ours, data=ImageData(x[:160], x[160:], "table"))
    assert len(summary.parts) == 3 and all(part.parameters for part in summary.parts)
    assert summary.test_bpd < summary.initial_bpd
    with torch.no_grad():
        nats = -log_prob(theirs, x[160:]).mean().item()
    assert ours.values.nats(summary.test_bpd) == pytest.approx(nats, abs=1e-4)
    saved = load_flow(tmp_path / "run", flow=flow)
    torch.testing.assert_close(saved.log_prob(x).float(), log_prob(theirs, x).detach(), atol=1e-4, rtol=0)


def test_a_glow_of_normflows_between_squeezes_and_factor_outs(normal):
    """An ActNorm finds its initial values on the first batch, as pipeflow's do, and keeps them."""
    blocks = [normflows.flows.GlowBlock(8, 6) for _ in range(2)]
    last = [normflows.flows.GlowBlock(16, 6)]
    layers = [Squeeze(), *from_normflows(blocks), FactorOut(8), Squeeze(), *from_normflows(last)]
    flow, images = Flow(layers, (2, 8, 8)), 3 * normal(9, 2, 8, 8) + 1
    flow.initialize(images)
    latent, _, _ = flow(images)
    assert latent.abs().mean() < 2 and latent.shape == (9, 16, 2, 2)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.initialize(5 * images)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


WRONG = {
    "two latents": (lambda: from_normflows(normflows.MultiscaleFlow([], [], [])), "MultiscaleFlow has several latents"),
    "a squeeze": (lambda: from_normflows([normflows.flows.Squeeze()]), "put pipeflow.flow.Squeeze"),
    "a split": (lambda: from_normflows([normflows.flows.Split()]), "put pipeflow.flow.FactorOut"),
    "the same twice": (lambda: Flow(2 * from_zuko(zuko_flow()), (2,)), "stands in the list twice"),
    "shared": (
        lambda: Flow([layer for flow in 2 * [zuko_flow()] for layer in from_zuko(flow)], (2,)),
        "share a parameter",
    ),
    "no block": (lambda: from_normflows(torch.nn.Linear(2, 2)), "Linear is no block of normflows"),
    "zuko for normflows": (lambda: from_normflows(zuko_flow()), "Flow is no block of normflows"),
    "a plain transform": (lambda: from_zuko(zuko.transforms.CosTransform()), "zuko.lazy.UnconditionalTransform"),
    "normflows for zuko": (lambda: from_zuko(normflows_model()), "NormalizingFlow is no lazy transform of zuko"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_layer_says_what_to_give(case):
    call, words = WRONG[case]
    with pytest.raises(ValueError, match=words):  # as ConfigError is
        call()
