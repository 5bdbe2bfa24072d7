import pytest

from pipeflow.errors import ConfigError
from pipeflow.plan.predict.machines import Machines, StepSeconds, read_machines, write_machines


@pytest.mark.parametrize(
    "values, words",
    [
        ({"workers": 0}, r"workers: expected a whole number, 1 or more, got 0"),
        ({"workers": "two"}, r"workers: .* got 'two'"),
        ({"workers": 2.5}, r"workers: .* got 2.5"),
        ({"bandwith": "1 Gbit/s"}, r"unknown field 'bandwith', did you mean 'bandwidth'"),
        ({"bandwidth": "1 parsec"}, r"bandwidth: expected '1 Gbit/s'.* got '1 parsec'"),
        ({"latency": "-1 ms"}, r"latency: .* 0 or more, got '-1 ms'"),
        ({"alone": 2}, r"alone: .* at most 1, got 2"),
        ({"workers": 2, "flops": 1e12}, r"bandwidth: 2 workers need the speed of the links"),
        ({"workers": 2, "bandwidth": 1e9}, r"flops: a link's speed says nothing"),
        ({"faster_than_measured": ["about"]}, r"faster_than_measured: expected a list of the fields flops, .*'about'"),
        ({"faster_than_measured": [[1]]}, r"faster_than_measured: expected a list of the fields"),
        ({"step_seconds": 3}, r"step_seconds: expected batch_size: 64"),
        ({"step_seconds": {"batch_size": 4, "train": {"a": 1}, "multiply_adds": "x"}}, r"multiply_adds: .* got 'x'"),
        ({"step_seconds": {"batch_size": 4, "train": {"a": [1, 2]}}}, r"step_seconds.train.a: expected 1 number, "),
        ({"step_seconds": {"batch_size": [8, 4], "train": {"a": [1, 2]}}}, r"batch_size: .* ascending, got \[8, 4\]"),
        ({"step_seconds": {"batch_size": 4, "train": {"a": 1}, "speed": 3}}, r"step_seconds.speed: there is no such"),
        ({"step_seconds": {"batch_size": 4, "train": {"a": 1}, "forward": {"b": 1}}}, r"must name the same layers"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_value_and_what_would_be_right(values, words):
    with pytest.raises(ConfigError, match=words):
        read_machines(None, values)


@pytest.mark.parametrize(
    "text, words",
    [(None, "No such file"), ("a: [", "is not YAML"), ("- 3", "expected fields such as"), ("", "expected fields")],
)
def test_a_file_that_is_none(tmp_path, text, words):
    if text is not None:
        (tmp_path / "machines.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_machines(tmp_path / "machines.yaml")


def test_a_bound_is_no_measurement_and_goes_with_the_value_it_is_of(tmp_path):
    bounds = ("bandwidth", "latency", "pass_seconds")
    machines = Machines(workers=2, flops=1e12, bandwidth=3e9, faster_than_measured=bounds)
    assert "links of at least 3 Gbit/s, too quick to be measured" in machines.describe()
    write_machines(machines, tmp_path / "machines.yaml")
    assert read_machines(tmp_path / "machines.yaml") == machines
    other = read_machines(tmp_path / "machines.yaml", {"bandwidth": "1 Gbit/s"})
    assert "links of 1 Gbit/s, too quick" in other.describe() and other.faster_than_measured == bounds[1:]


def test_options_go_over_no_file_that_is_wrong(tmp_path):
    (tmp_path / "machines.yaml").write_text("faster_than_measured: 5\n")
    with pytest.raises(ConfigError, match="faster_than_measured: expected a list of the fields"):
        read_machines(tmp_path / "machines.yaml", {"bandwidth": 1e9})


def test_an_all_reduce_is_no_faster_than_the_links_that_are_given(tmp_path):
    write_machines(Machines(workers=2, flops=1e12, bandwidth=3e10, reduce_bandwidth=2e10), tmp_path / "machines.yaml")
    assert read_machines(tmp_path / "machines.yaml").reduce_bytes_per_second == 2e10 / 8
    slower = read_machines(tmp_path / "machines.yaml", {"bandwidth": "20 Mbit/s"})
    assert slower.reduce_bytes_per_second == slower.bytes_per_second == 20e6 / 8


def test_a_file_is_read_back_as_it_was_written_and_options_go_over_it(tmp_path):
    steps = StepSeconds(
        batch_size=(8, 64), train={"a": (1.0, 2.0)}, forward={"a": (0.5, 0.6)}, update=0.1, multiply_adds=7
    )
    machines = Machines(workers=3, step_seconds=steps, bandwidth=1e9, latency=1e-4, memory=8e9, alone=0.7)
    write_machines(machines, tmp_path / "machines.yaml")
    assert read_machines(tmp_path / "machines.yaml") == machines
    other = read_machines(tmp_path / "machines.yaml", {"workers": "2", "latency": None, "flops": "1e12"})
    assert (other.workers, other.latency, other.flops, other.step_seconds) == (2, 1e-4, 1e12, None)
