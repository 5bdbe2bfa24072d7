"""The Glow of y0ast/Glow-PyTorch, imported: its likelihood, its use, and files that are none such."""

import collections
import functools
import math
import os
import re
import zipfile

import pytest
import torch
from safetensors.torch import load_file

import pipeflow
from pipeflow import cli, import_glow, load_flow
from pipeflow.errors import CheckpointError, ConfigError
from tests.hostile.refusals import refusal
from tests.small_runs import small_config
from tests.use.other_glow import NUM_STEPS, SHAPE, WIDTH, other_log_prob, other_state_dict

assert_equal = functools.partial(torch.testing.assert_close, atol=0, rtol=0)

ALL = {"num_train": None, "num_test": None}
"""All of the images that are given."""


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def save(tmp_path):
    """Saves an object as the other code does; the path."""

    def write(content, name="glow_model_250.pth", **how):
        torch.save(content, tmp_path / name, **how)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    "lu, affine, learn_top",
    [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (True, True, False)],
    ids=["lu affine", "lu additive", "plain affine", "plain additive", "fixed top"],
)
def test_the_likelihood_is_the_other_models(lu, affine, learn_top, images, save, tmp_path):
    state = other_state_dict(lu, affine, learn_top)
    imported = import_glow(save(state), tmp_path / "glow")
    trained = load_flow(imported.path)
    x = (images + 0.5) / 256 - 0.5
    bits = trained.flow.values.bits_per_dim
    ours, theirs = bits(trained.log_prob(x)), bits(other_log_prob(state, x))
    assert (ours - theirs).abs().max() < 4e-6
    assert theirs.min() > 1 and theirs.max() < 30 and theirs.std() > 1e-3  # it says something of the images
    assert (trained.decode(trained.encode(images)) == images).all()


def test_a_likelihood_given_the_label(images, save, tmp_path):
    state = other_state_dict(lu=True, affine=True, num_classes=3)
    trained = load_flow(import_glow(save(state), tmp_path / "glow").path)
    x, labels = (images + 0.5) / 256 - 0.5, torch.tensor([0, 1, 2, 2, 1, 0])
    bits = trained.flow.values.bits_per_dim
    given = bits(other_log_prob(state, x, labels))
    assert (bits(trained.log_prob(x, labels=labels)) - given).abs().max() < 4e-6
    assert (given - bits(other_log_prob(state, x, labels.flip(0) * 0))).abs().max() > 1e-3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}},
        lambda state: {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: collections.OrderedDict((name, torch.nn.Parameter(value)) for name, value in state.items()),
    ],
    ids=["ignite", "data-parallel", "parameters"],
)
def test_checkpoints_that_hold_a_state_dict(wrap, save, tmp_path):
    state = other_state_dict(lu=True, affine=True)
    plain = load_file(import_glow(save(state), tmp_path / "plain").path)
    old = save(wrap(state), "old.pth", _use_new_zipfile_serialization=False)
    for name, path in [("new", save(wrap(state))), ("old", old)]:
        assert_equal(load_file(import_glow(path, tmp_path / name).path), plain)


@pytest.mark.slow
def test_a_run_by_parts_starts_from_it(images, save, tmp_path):
    """Its bits/dim before the first epoch are those of what was imported, and training lowers them."""
    import_glow(save(other_state_dict(lu=True, affine=True)), tmp_path / "glow")
    data = pipeflow.ImageData(images.repeat(4, 1, 1, 1), images, "noise")
    model = {"num_blocks": 2, "num_steps": NUM_STEPS, "width": WIDTH, "init": str(tmp_path / "glow")}
    config = small_config(
        tmp_path / "run",
        model=model,
        data=ALL,
        optim={"batch_size": 8, "ema": 0.0, "lr": 1e-3},
        eval={"num_images": None},
    )
    summary = pipeflow.train(config, data=data)
    before = load_flow(tmp_path / "glow").bits_per_dim(images).mean().item()
    assert summary.initial_bpd == pytest.approx(before, abs=1e-6) and summary.test_bpd < before
    assert pipeflow.evaluate(tmp_path / "glow", data=data).test_bpd == pytest.approx(before, abs=1e-6)
    (tmp_path / "glow" / "model.safetensors").unlink()
    longer = small_config(
        tmp_path / "run",
        model=model,
        data=ALL,
        optim={"batch_size": 8, "ema": 0.0, "lr": 1e-3},
        schedule={"finetune_epochs": 2},
    )
    assert pipeflow.train(longer, data=data).num_epochs == 4  # a run that goes on needs it no more


@pytest.mark.slow
def test_a_flow_to_start_from_has_finite_parameters(images, save, tmp_path):
    tensors = other_state_dict(lu=True, affine=True)
    name = next(name for name in tensors if name.endswith("conv.bias"))
    tensors[name] = torch.full_like(tensors[name], math.nan)
    import_glow(save(tensors), tmp_path / "glow")
    model = {"num_blocks": 2, "num_steps": NUM_STEPS, "width": WIDTH, "init": str(tmp_path / "glow")}
    with pytest.raises(ConfigError, match="^model.init: blocks.* in .*glow.* has values that are NaN"):
        pipeflow.train(
            small_config(tmp_path / "run", model=model, data=ALL, optim={"batch_size": 8}),
            data=(images.repeat(4, 1, 1, 1), images),
        )


@pytest.mark.slow
def test_a_run_says_which_options_the_flow_it_starts_from_has(images, save, tmp_path):
    import_glow(save(other_state_dict(lu=True, affine=True)), tmp_path / "glow")
    data = pipeflow.ImageData(images.repeat(4, 1, 1, 1), images, "noise")
    small = {"num_blocks": 2, "num_steps": 2, "width": 8}
    for init, words in [
        (tmp_path / "glow", f"model.num_steps {NUM_STEPS}, model.width {WIDTH}, model.coupling affine"),
        (tmp_path / "nowhere", "model.init: there is no .*nowhere"),
    ]:
        config = small_config(tmp_path / "run", model={**small, "init": str(init)}, data=ALL, optim={"batch_size": 8})
        with pytest.raises(ConfigError, match=words):
            pipeflow.train(config, data=data)
        assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_found_and_what_comes_next(capsys, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(other_state_dict(lu=False, affine=False))
    assert cli.main(["import", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 blocks of 3 steps, width 6, additive, plain, for images of 8x12 pixels and 3 channels" in said
    assert "pipeflow evaluate glow_model_250 --data PATH" in said
    command = said.splitlines()[-1].partition("pipeflow train ")[2]
    given = command.replace("PATH", "photos").replace("DIR", "runs/more").split()
    config = pipeflow.config.load(*pipeflow.config.parse_arguments(given))
    assert (config.model.num_steps, config.model.coupling, config.model.init) == (3, "additive", "glow_model_250")
    assert cli.main(["sample", "glow_model_250", "--num", "2", "--out", "two.png"]) == 0
    assert cli.main(["import", str(path)]) == 1
    assert "is there already" in capsys.readouterr().err


def changed(change):
    state = other_state_dict(lu=True, affine=True)
    change(state)
    return state


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


REFUSED = {
    "another model": ({"weight": torch.zeros(2)}, "holds 1 tensors, of which the first are weight; expected are flow"),
    "a list": ([torch.zeros(2)], "holds a list: expected is a state dict"),
    "an optimizer": ({"state": {}, "param_groups": []}, "a dict in which 'state' is a dict: expected is a state dict"),
    "nothing": ({}, "holds a dict: expected is a state dict"),
    "a whole model": (torch.nn.Linear(1, 1), r"torch.save\(model.state_dict\(\), path\) writes"),
    "code": ({"model": Code()}, "would run code"),
    "half a label": (
        changed(lambda s: s.update({"project_ycond.linear.weight": torch.zeros(48, 3)})), "no project_ycond.linear.bias"
    ),
    "shuffled": ({k: v for k, v in changed(len).items() if "invconv" not in k}, "--flow_permutation shuffle or reverse"),
    "no step": (changed(lambda s: s.pop("flow.layers.2.actnorm.logs")), "has no flow.layers.2.actnorm.logs"),
    "one more": (changed(lambda s: s.update({"flow.layers.0.x": torch.zeros(1)})), "1 tensors more than that model"),
    "another shape": (
        changed(lambda s: s.update({"flow.layers.2.block.4.conv.weight": torch.zeros(5, WIDTH, 3, 3)})),
        r"'flow.layers.2.block.4.conv.weight' is torch.float32 \[5, 6, 3, 3\]; expected is torch.float32 \[12, 6, 3, 3\]",
    ),
    "another type": (
        changed(lambda s: s.update({"flow.layers.1.actnorm.bias": torch.zeros(1, 12, 1, 1).double()})), "torch.float64"
    ),
    "endless tensors": (
        changed(lambda s: s.update({"flow.layers.1.block.0.conv.weight": torch.zeros(1).expand(10**9, 6, 3, 3)})),
        "does not hold its values one by one",
    ),
    "endless images": (changed(lambda s: s.update(prior_h=torch.zeros(1, 48, 300, 300))), "limit is 4,000,000 values"),
    "a top that moves": (changed(lambda s: s["prior_h"].add_(1)), "prior_h has values other than 0"),
    "a flat top": (changed(lambda s: s.update(prior_h=torch.zeros(48))), r"prior_h has the shape \[48\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused_by_what_they_hold(case, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = REFUSED[case]
    message = refusal(CheckpointError, import_glow, save(content), tmp_path / "out")
    assert re.search(words, message), message
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()


def test_files_that_torch_did_not_write(save, tmp_path, monkeypatch):
    path = save(other_state_dict(lu=True, affine=True))
    whole = path.read_bytes()
    (tmp_path / "text").write_text("a text")
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
        bomb.writestr("archive/data/x", bytes(10**8))
    for name in ("text", "half", "empty", "pipe", "bomb", "nowhere", "."):
        assert name in refusal(CheckpointError, import_glow, tmp_path / name, tmp_path / "out")
    monkeypatch.setattr("pipeflow.use.torch_file.MAX_FILE_BYTES", 1000)
    assert "the limit is 1,000" in refusal(CheckpointError, import_glow, path, tmp_path / "out")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "unset it" in refusal(CheckpointError, import_glow, path, tmp_path / "out")
