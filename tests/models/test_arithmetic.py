import sys

import pytest
import torch

from models import arithmetic, gpu_arithmetic


@pytest.fixture
def asked(monkeypatch):
    arithmetic.default_arithmetic.cache_clear()
    yield monkeypatch
    arithmetic.default_arithmetic.cache_clear()


def test_a_machine_without_a_gpu_does_not_ask_torch(asked):
    asked.setattr(arithmetic, "_GPU_DEVICES", ("/dev/no-such-gpu",))
    asked.setattr(sys, "platform", "linux")
    assert not arithmetic.may_have_gpu()
    asked.delitem(sys.modules, "torch")
    asked.setattr(gpu_arithmetic, "is_available", lambda: pytest.fail("asked"))
    assert isinstance(arithmetic.default_arithmetic(), arithmetic.ProcessorArithmetic)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_machine_that_may_have_one_does(asked, platform, tmp_path):
    asked.setattr(arithmetic, "_GPU_DEVICES", (str(tmp_path),))
    asked.setattr(sys, "platform", platform)
    asked.delitem(sys.modules, "torch")
    asked.setattr(gpu_arithmetic, "is_available", lambda: False)
    assert isinstance(arithmetic.default_arithmetic(), arithmetic.ProcessorArithmetic)
    arithmetic.default_arithmetic.cache_clear()
    asked.setattr(gpu_arithmetic, "is_available", lambda: True)
    found = arithmetic.default_arithmetic()
    assert isinstance(found, gpu_arithmetic.TorchArithmetic)
    assert found._device == torch.device("cuda")
