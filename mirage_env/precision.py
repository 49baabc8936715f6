"""Which precision a processor is fast in."""

from __future__ import annotations

import math
import threading
import time
from functools import lru_cache

import torch

SIDE = 256
"""Of the matrices that are timed: a product takes less than a slice of the scheduler's time."""
ROUNDS = 12
AHEAD = 0.8
"""bfloat16 must take less than this share of float32's time. Processors take half of it or twice as much, so that
chance does not decide."""
_one_at_a_time = threading.Lock()


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether products in bfloat16 take less time there than in float32.

    On CPUs that know bfloat16 the two are timed once a process, in turn: some have twice the rate in it, some half.
    """
    device = torch.device(device)
    if device.type == "cpu":
        known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        with _one_at_a_time:
            return bool(known) and _cpu_is_faster_in_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def fast_autocast(device: torch.device | str) -> torch.autocast:
    """Products in bfloat16 where the device is fast at it."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_fast_bf16(device))


@lru_cache(maxsize=1)
def _cpu_is_faster_in_bf16() -> bool:
    dtypes = (torch.float32, torch.bfloat16)
    squares = {dtype: torch.ones(SIDE, SIDE, dtype=dtype, device="cpu") for dtype in dtypes}
    least = dict.fromkeys(dtypes, math.inf)
    with torch.autocast("cpu", enabled=False):  # whatever the caller is in
        for _ in range(ROUNDS):  # the least of many is what it takes undisturbed
            for dtype, square in squares.items():
                start = time.perf_counter()
                torch.mm(square, square)
                least[dtype] = min(least[dtype], time.perf_counter() - start)
    return least[torch.bfloat16] < AHEAD * least[torch.float32]
