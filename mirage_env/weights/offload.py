"""A world model on a GPU that is smaller than it: parts or blocks wait in main memory until their turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

Offload = Literal["none", "model", "group"]


def offload(parts: Sequence[nn.Module], how: Offload, device: torch.device) -> None:
    """Hooks onto the parts, in whatever order they are then called.

    `model` keeps one of them on the device at a time: calling a part sends the one before it away. `group` streams each
    part's blocks through the device, one at work and one to come: the least memory, for a transfer a block.
    """
    if how == "group":
        from diffusers.hooks import apply_group_offloading

        for part in parts:
            apply_group_offloading(
                part, device, offload_type="block_level", num_blocks_per_group=1, use_stream=device.type == "cuda"
            )
        return
    from accelerate.hooks import ModelHook, add_hook_to_module  # what diffusers' enable_model_cpu_offload is made of
    from accelerate.utils.memory import clear_device_cache

    at_work: list[nn.Module] = []

    class Turns(ModelHook):
        """diffusers' own chain sends away the part before in the list alone; the VAE comes twice in a chunk."""

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module not in at_work:
                while at_work:
                    at_work.pop().to("cpu")
                    clear_device_cache()
                at_work.append(module.to(device))
            return args, kwargs

    for part in parts:
        add_hook_to_module(part.to("cpu"), Turns())
