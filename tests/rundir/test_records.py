"""Records come back from JSON as they were; whatever else a file holds is one error that names the place."""

import dataclasses
import json
import math

import pytest

from pipeflow.rundir.records import Carried, Epoch, Manifest, Position, Summary
from pipeflow.rundir.typed_json import RecordError, dumps
from tests.run_records import ALTERNATE, epoch, manifest, summary

POSITION = Position(step=3, losses=({"0": (5.5, math.inf)},), carried=Carried(seconds=1.5, bytes=epoch(0).bytes))


@pytest.mark.parametrize("record", [ALTERNATE[-1], summary("a"), manifest(2), manifest(1, position=POSITION)])
def test_a_record_comes_back(record):
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record


def test_keys_have_the_order_of_the_file_and_those_without_a_value_are_left_out():
    written = epoch(0).to_json()
    assert list(written) == [
        "epoch", "phase", "trained", "steps", "train_loss", "test_bpd", "exit_bpd", "seconds", "images", "macs", "bytes"
    ]  # fmt: skip
    assert list(written["bytes"]) == ["latents", "backward", "eval", "gradients", "images", "control"]
    assert epoch(0, test_bpd=None).to_json()["test_bpd"] is None, "null says that it was not evaluated"


def test_what_may_be_missing_has_its_default_and_more_keys_do_no_harm():
    written = epoch(0).to_json()
    del written["bytes"]["images"]
    assert Epoch.from_json({**written, "event": "epoch"}) == epoch(0)


@pytest.mark.parametrize("value, word", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_numbers_that_are_not_finite_are_words_in_standard_json(value, word):
    text = dumps(summary("a", test_bpd=value, exit_bpd=(1.0, value)).to_json())
    written = json.loads(text, parse_constant=pytest.fail)
    assert (written["test_bpd"], written["exit_bpd"]) == (word, [1.0, word])
    assert str(Summary.from_json(written).test_bpd) == word


def test_training_moves_latents_gradients_and_images_but_no_evaluation_and_control():
    sent = dataclasses.replace(epoch(0).bytes, gradients=500, images=20)
    assert epoch(0, bytes=sent).training_bytes == 3000 + 500 + 20


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: run["epochs"][3].update(seconds=0), "epochs[3].seconds is 0"),
        (lambda run: run["epochs"][0].update(epoch=True), "epochs[0].epoch is True"),
        (lambda run: run["epochs"][0].update(phase="sideways"), "epochs[0].phase is 'sideways'"),
        (lambda run: run["epochs"][0]["train_loss"].update({"0": "many"}), "epochs[0].train_loss.0 is 'many'"),
        (lambda run: run["epochs"][0]["train_loss"].update({"\x1b": 1.0}), "epochs[0].train_loss has '\\x1b'"),
        (lambda run: run["epochs"][0]["bytes"].update(latents=[[0, 1]]), "epochs[0].bytes.latents[0] is [0, 1]"),
        (lambda run: run["epochs"][0]["bytes"].update(images=None), "epochs[0].bytes.images is None"),
        (lambda run: run["epochs"][0].pop("images"), "epochs[0] has no images"),
        (lambda run: run.update(epochs=5), "epochs is 5 and no list"),
        (lambda run: run.update(bytes=[]), "bytes is [] and no mapping"),
        (lambda run: run["bytes"]["gather"].update(evil=1), "bytes.gather has 'evil'"),
        (lambda run: run.update(initial_bpd="inf"), "initial_bpd is 'inf'"),
        (lambda run: run.update(num_epochs=-1), "num_epochs is -1"),
    ],
)
def test_the_first_wrong_place_is_named(change, message):
    run = summary("a").to_json()
    change(run)
    with pytest.raises(RecordError) as error:
        Summary.from_json(run)
    assert str(error.value) == message


def test_a_manifest_has_the_history_of_its_epochs():
    with pytest.raises(RecordError, match="its history is not that of the 2 epochs"):
        Manifest.from_json(manifest(2, history=manifest(1).history).to_json())
