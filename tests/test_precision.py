from __future__ import annotations

import time

import pytest
import torch

from mirage_env import precision
from mirage_env.precision import fast_autocast, has_fast_bf16
from mirage_env.training.loop import LoopConfig


@pytest.fixture
def measured_anew():
    precision._cpu_is_faster_in_bf16.cache_clear()
    yield
    precision._cpu_is_faster_in_bf16.cache_clear()


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_a_cpu_computes_in_what_it_is_faster_in(monkeypatch, measured_anew, slow):
    def product(one, other):
        time.sleep(0.002 if one.dtype == slow else 0.0)
        return one

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "mm", product)
    assert has_fast_bf16("cpu") == (slow == torch.float32)
    monkeypatch.setattr(torch, "mm", None)  # it is measured once a process
    assert has_fast_bf16(torch.device("cpu")) == (slow == torch.float32)
    with fast_autocast("cpu"):
        assert torch.is_autocast_enabled("cpu") == (slow == torch.float32)
    precisions = {precision: LoopConfig(1, precision=precision).bf16("cpu") for precision in ("fp32", "bf16", "auto")}
    assert precisions == {"fp32": False, "bf16": True, "auto": slow == torch.float32}


def test_a_cpu_that_does_not_know_bfloat16_is_not_asked(monkeypatch, measured_anew):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch, "mm", None)
    assert not has_fast_bf16("cpu")


def test_what_is_measured_is_the_cpu_whatever_the_caller_is_in(monkeypatch, measured_anew):
    met = []

    def product(one, other):
        met.append((torch.is_autocast_enabled("cpu"), one.device.type))
        return one

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "mm", product)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        has_fast_bf16("cpu")
    assert set(met) == {(False, "cpu")}
