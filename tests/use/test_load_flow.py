"""Whatever a path stands for, its flow is the one that the run evaluates, or the error says what is missing."""

import hashlib
import json
import os
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pipeflow
from pipeflow import Latents, load_flow
from pipeflow.data import dead_leaves
from pipeflow.errors import CheckpointError, ConfigError


def weights(path, **given) -> dict[str, torch.Tensor]:
    return load_flow(path, device="cpu", **given).flow.state_dict()


def assert_same(left, right) -> None:
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def change_config(folder, section: str, **options) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings[section].update(options)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


class TestPaths:
    def test_a_model_file_goes_anywhere(self, finished_run, tmp_path, monkeypatch):
        moved = shutil.copy(finished_run / "model.safetensors", tmp_path / "moved.safetensors")
        assert_same(weights(moved), weights(finished_run))
        loaded = load_flow(moved, device="cpu")
        assert loaded.shape == (3, 32, 32) and str(loaded.source) == str(moved)
        assert_same(weights(finished_run / "model.safetensors"), weights(finished_run))
        monkeypatch.setenv("HOME", str(tmp_path))
        assert load_flow("~/moved.safetensors", device="cpu").source == loaded.source

    def test_files_of_models_and_latents_can_be_read_by_whom_the_umask_lets(self, finished_run, tmp_path):
        Latents(torch.zeros(1)).save(tmp_path / "latents.safetensors")
        umask = os.umask(0)
        os.umask(umask)
        for file in (finished_run / "model.safetensors", tmp_path / "latents.safetensors"):
            assert file.stat().st_mode & 0o777 == 0o666 & ~umask

    def test_a_checkpoint_has_the_averaged_weights_without_heads(self, finished_run, copy, tmp_path):
        assert_same(weights(copy / "checkpoints" / "epoch-000002"), weights(finished_run))
        moved = shutil.move(copy / "checkpoints" / "epoch-000001", tmp_path)  # of parts that are not yet gathered
        saved = load_file(tmp_path / "epoch-000001" / "worker-0.safetensors")
        assert any("/heads." in name for name in saved)
        name = "blocks.0.steps.0.coupling.net.conv_mid.weight"
        assert not torch.equal(saved[f"ema/{name}"], saved[f"model/{name}"])
        assert torch.equal(weights(moved)[name], saved[f"ema/{name}"])

    def test_a_run_without_its_end_gives_its_newest_good_checkpoint_and_says_so(self, finished_run, copy, caplog):
        (copy / "summary.json").unlink()  # the model file may be of a shorter run that went on
        newest = copy / "checkpoints" / "epoch-000002"
        loaded = load_flow(copy, device="cpu")
        assert (
            loaded.source == newest and f"{copy} has not ended: this is its newest checkpoint, {newest}" in caplog.text
        )
        file = newest / "worker-0.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        assert load_flow(copy, device="cpu").source.name == "epoch-000001" and "is damaged" in caplog.text

    def test_an_ended_run_without_its_model_gives_its_newest_checkpoint_and_says_so(self, finished_run, copy, caplog):
        (copy / "model.safetensors").unlink()
        assert_same(weights(copy), weights(finished_run))
        assert "has no model.safetensors: this is its newest checkpoint" in caplog.text
        shutil.rmtree(copy / "checkpoints")
        with pytest.raises(CheckpointError, match="no model.safetensors and no good checkpoint"):
            load_flow(copy)

    def test_a_model_beside_its_configuration_is_enough(self, finished_run, copy):
        for name in ("summary.json", "checkpoints"):
            (copy / name).rename(copy / f"no-{name}")
        assert_same(weights(copy), weights(finished_run))

    def test_another_path_says_what_it_may_be(self, copy, tmp_path):
        with pytest.raises(
            CheckpointError, match="is not a run folder .*config.yaml.*, nor a checkpoint.*model.safetensors"
        ):
            load_flow(tmp_path)
        for name in ("nowhere", "no.safetensors"):
            with pytest.raises(CheckpointError, match=f"^there is no {tmp_path}/{name}: give a run folder"):
                load_flow(tmp_path / name)
        load_flow(copy).encode(dead_leaves(1, seed=0)).save(tmp_path / "latents.safetensors")
        with pytest.raises(
            CheckpointError, match="latents.safetensors is a safetensors file without a flow, .* give a model"
        ):
            load_flow(tmp_path / "latents.safetensors")


class TestOlderRuns:
    def test_a_model_file_of_before_is_loaded_from_its_run_folder_or_with_its_flow(self, finished_run, copy, tmp_path):
        with safe_open(copy / "model.safetensors", framework="pt") as file:
            shape = file.metadata()["shape"]
        alone = tmp_path / "old.safetensors"
        save_file(load_file(copy / "model.safetensors"), copy / "model.safetensors", metadata={"shape": shape})
        assert_same(weights(copy), weights(finished_run))
        shutil.copy(copy / "model.safetensors", alone)
        with pytest.raises(
            CheckpointError, match="does not tell its model: keep it beside its run's config.yaml, or give it"
        ):
            load_flow(alone)
        flow = pipeflow.glow((3, 32, 32), num_blocks=2, num_steps=2, width=8)
        assert_same(weights(alone, flow=flow), weights(finished_run))

    def test_a_checkpoint_of_before_is_loaded_with_its_flow(self, finished_run, copy):
        folder = copy / "checkpoints" / "epoch-000002"
        content = json.loads((folder / "manifest.json").read_text())["content"]
        del content["shape"]
        sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        document = {"format": 1, "sha256": sha256, "content": content}
        (folder / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match="does not tell the shape of an image"):
            load_flow(folder)
        flow = pipeflow.glow((3, 32, 32), num_blocks=2, num_steps=2, width=8)
        assert_same(weights(folder, flow=flow), weights(finished_run))

    def test_options_that_are_gone_are_left_out_and_named(self, finished_run, copy, caplog):
        change_config(copy, "link", cache_draws=7)
        assert_same(weights(copy), weights(finished_run))
        assert "options that are gone are ignored: link.cache_draws (was 7)" in caplog.text


@pytest.fixture(scope="class")
def package(tmp_path_factory):
    """A module of flows that a user wrote."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "their_flows.py").write_text(
        "from pipeflow import glow\n"
        "def bare(): return glow((2, 4, 4), num_blocks=1, num_steps=1, width=4)\n"
        "def named(config, shape): return glow(shape, num_blocks=1, num_steps=1, width=4)\n"
        "def other(): return glow((2, 4, 4), num_blocks=1, num_steps=2, width=4)\n"
        "def small(): return glow((2, 2, 2), num_blocks=1, num_steps=1, width=4)\n"
        "def nothing(): return None\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


class TestOwnFlows:
    def test_given_from_python_it_is_given_again_in_any_way(self, train_own, noise, tmp_path, package):
        import their_flows

        trained = their_flows.bare()
        run = train_own(tmp_path / "run", trained, noise)
        for given in (their_flows.bare(), their_flows.bare, their_flows.named, "their_flows:bare", "their_flows:named"):
            assert_same(weights(run, flow=given), trained.state_dict())
        with pytest.raises(
            CheckpointError, match=r"given from Python; give it: load_flow\(path, flow=...\).*--flow module:"
        ):
            load_flow(run)
        with pytest.raises(CheckpointError, match="Python"):
            load_flow(run / "checkpoints" / "epoch-000001")
        with pytest.raises(ConfigError, match="flow: nothing returned a NoneType"):
            load_flow(run, flow="their_flows:nothing")
        with pytest.raises(ConfigError, match=r"flow: small returned a flow for images of shape \(2, 2, 2\)"):
            load_flow(run, flow=their_flows.small)
        with pytest.raises(ConfigError, match=r"flow: made for images of shape \(2, 2, 2\)"):
            load_flow(run, flow=their_flows.small())
        with pytest.raises(CheckpointError, match="holds another flow than the one .*: it has no (layers|blocks)"):
            load_flow(run, flow=their_flows.other)
        with pytest.raises(ConfigError, match="flow: a list: give a Flow, a function"):
            load_flow(run, flow=[])
        with pytest.raises(ConfigError, match="no function 'missing'"):
            load_flow(run, flow="their_flows:missing")

    def test_a_function_that_is_gone_is_named_and_a_file_by_itself_calls_none(self, copy, tmp_path):
        change_config(copy, "model", name="gone_flows:make")
        with pytest.raises(CheckpointError, match="flow cannot be built: .*no module 'gone_flows'"):
            load_flow(copy)
        with safe_open(copy / "model.safetensors", framework="pt") as file:
            metadata = file.metadata()
        built_by = json.loads(metadata["config"])
        built_by["model"]["name"] = "gone_flows:make"
        alone = tmp_path / "alone.safetensors"
        save_file(load_file(copy / "model.safetensors"), alone, metadata={**metadata, "config": json.dumps(built_by)})
        with pytest.raises(
            CheckpointError, match="built by 'gone_flows:make'. A model file by itself calls no functions"
        ):
            load_flow(alone)

    @pytest.mark.parametrize(
        "config", ['"text"', "[]", "{", '{"model": 5}', '{"model": {"num_steps": "x"}}', '{"x": {}}']
    )
    def test_a_file_that_tells_of_no_model_is_damaged(self, finished_run, tmp_path, config):
        alone = tmp_path / "alone.safetensors"
        tensors = load_file(finished_run / "model.safetensors")
        save_file(tensors, alone, metadata={"shape": "[3, 32, 32]", "config": config})
        with pytest.raises(CheckpointError, match="alone.safetensors is damaged"):
            load_flow(alone)
