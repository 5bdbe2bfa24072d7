import pytest
import torch

from pipeflow.device import choose_device
from pipeflow.errors import ConfigError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_the_cpu_is_the_cpu_even_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu):
    assert choose_device("auto", local_rank=1) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error(no_gpu):
    with pytest.raises(ConfigError, match=r"^run\.device: cuda, but torch finds no GPU here: use auto or cpu"):
        choose_device("cuda")
