"""A world model on a GPU that is smaller than it: parts or blocks wait in main memory until their turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

Offload = Literal["none", "model", "group"]


def offload(parts: Sequence[nn.Module], how: Offload, device: torch.device) -> None:
    """Hooks onto the parts, which are called in this order, again and again.

    `model` keeps one of them on the device at a time: calling a part sends the one before it away. `group` streams each
    part's blocks through the device, two at a time: the least memory, at the price of a transfer a block.
    """
    if how == "group":
        from diffusers.hooks import apply_group_offloading

        for part in parts:
            apply_group_offloading(
                part, device, offload_type="block_level", num_blocks_per_group=2, use_stream=device.type == "cuda"
            )
        return
    from accelerate import cpu_offload_with_hook  # what diffusers' enable_model_cpu_offload is made of

    hooks: list[Any] = []
    for part in parts:
        _, hook = cpu_offload_with_hook(part, device, hooks[-1] if hooks else None)
        hooks.append(hook)
    if len(hooks) > 1:
        hooks[0].hook.prev_module_hook = hooks[-1]
