"""Quantities with their units: what is printed, and what is read."""

import pytest

from pipeflow.errors import ConfigError
from pipeflow.units import bytes_text, duration_text, macs_text, megabytes_text, rate_text, read_quantity, seconds_text


@pytest.mark.parametrize(
    "write, texts",
    [
        (
            bytes_text,
            {0: "0 bytes", 120: "120 bytes", 999.7: "1 kB", 24_600_000: "24.6 MB", 999_700_000: "1 GB", 2e15: "2 PB"},
        ),
        (megabytes_text, {0: "0", 20_000: "0.0", 1_024_500_000: "1,024.5"}),
        (lambda rate: rate_text(rate, "bit/s"), {12.0: "12 bit/s", 1e9: "1 Gbit/s"}),
        (lambda rate: rate_text(rate, "FLOP/s"), {1e13: "10 TFLOP/s"}),
        (macs_text, {3.48e16: "3.48e16", 5e9: "5.00e09"}),
        (duration_text, {45.12: "45.1 s", 59.97: "1 min 00 s", 200: "3 min 20 s", 7500: "2 h 05 min"}),
        (seconds_text, {0: "0 s", 1e-4: "100 us", 0.0032: "3.2 ms", 40.8: "40.8 s", 1024: "1,024 s", 11_160: "3.1 h"}),
    ],
)
def test_a_quantity_is_written_in_the_unit_that_suits_it(write, texts):
    assert {value: write(value) for value in texts} == texts


@pytest.mark.parametrize(
    "kind, value, number",
    [
        ("bandwidth", "1 Gbit/s", 1e9), ("bandwidth", "450 GB/s", 3.6e12), ("bandwidth", "100Mbit/s", 1e8),
        ("bandwidth", 5e6, 5e6), ("bandwidth", "1e9", 1e9), ("time", "0.1 ms", 1e-4), ("time", "20us", 2e-5),
        ("time", 0, 0.0), ("memory", "16 GiB", 16 * 2**30), ("memory", "80 GB", 8e10), ("flops", "50e12", 5e13),
        ("flops", "50 TFLOP/s", 5e13),
    ],
)  # fmt: skip
def test_a_quantity_is_read_in_its_base_unit(kind, value, number):
    assert read_quantity("name", kind, value) == pytest.approx(number)


@pytest.mark.parametrize(
    "kind, value, words",
    [
        ("bandwidth", "1 parsec", r"name: expected '1 Gbit/s'.* got '1 parsec'"),
        ("bandwidth", "1 GB", r"name: .* got '1 GB'"),
        ("bandwidth", -1, r"name: .* above 0, got -1"),
        ("bandwidth", True, r"name: .* got True"),
        ("time", "-1 ms", r"name: .* 0 or more, got '-1 ms'"),
        ("memory", 10**400, r"name: expected '80 GB'"),
        ("flops", 0, r"name: .* above 0, got 0"),
        ("flops", "many", r"name: expected 50e12 .* got 'many'"),
        ("flops", "nan", r"name: .* got 'nan'"),
    ],
)
def test_a_value_that_is_no_such_quantity_is_refused_with_an_example(kind, value, words):
    with pytest.raises(ConfigError, match=words):
        read_quantity("name", kind, value)
