"""What `train` reports to its caller, and that nothing changes where nobody asks for it."""

import pytest

from pipeflow import train
from tests.small_runs import assert_same_tensors, finish, learned, small_config


def test_every_worker_is_told_at_the_same_points(launch, tmp_path):
    """Two that wait out the fine-tuning too; rank 0 is told of the epochs, and the run is the same."""
    process = launch(3, str(tmp_path / "told"), entry="tests.training.programs.reports:main")
    output = finish(process)
    assert process.returncode == 0, output
    assert all(f"worker {rank} was told 4 times" in output for rank in range(3)), output
    train(small_config(tmp_path / "alone"))
    assert_same_tensors(tmp_path / "alone", tmp_path / "told")
    assert learned(tmp_path / "alone") == learned(tmp_path / "told")


def test_an_epoch_is_told_after_its_checkpoint(tmp_path):
    """So that who ends the run there loses nothing."""

    class Enough(Exception):
        pass

    def report(event: dict) -> None:
        if event["epoch"] == 1:
            raise Enough

    config = small_config(tmp_path / "run")
    with pytest.raises(Enough):
        train(config, report=report)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["epoch-000001", "epoch-000002"]
    told = []
    train(config, report=told.append)
    assert [event["event"] for event in told] == ["epoch", "end"]
    train(config, report=told.append)
    assert [event["event"] for event in told] == ["epoch", "end", "end"]


@pytest.mark.parametrize("figures", [True, False])
def test_the_page_is_written_after_a_run_unless_it_asks_for_none(tmp_path, figures):
    schedule = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0}
    train(small_config(tmp_path, schedule=schedule, run={"figures": figures}))
    written = {path.name for path in tmp_path.iterdir()}
    assert ({"report.html", "bpd_by_epoch.png"} <= written) == figures
