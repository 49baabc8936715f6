"""Offloading as far as a CPU shows it: which weights would lie on the device while each part works."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from mirage_env.weights.offload import offload
from mirage_env.world_model import load_world
from tests.released.walks import SIZE, walk


class Part(nn.Module):
    """Knows where it would lie."""

    place = "cpu"

    def to(self, place):
        self.place = str(place)
        return self

    def forward(self):
        return self.place

    @apply_forward_hook
    def encode(self):
        return self.place


def test_one_part_at_a_time_is_on_the_device():
    parts = transformer, vae, depth, masks = [Part() for _ in range(4)]
    offload(parts, "model", torch.device("meta"))
    chunk = [transformer, transformer, vae.encode, depth, masks, vae.encode]  # the VAE comes twice
    for call in chunk * 2:
        assert call() == "meta"
        assert [part.place for part in parts].count("cpu") == 3


def test_every_weight_is_there_when_it_is_used_and_few_at_a_time(make_preset, adapter, monkeypatch):
    present: dict[int, int] = {}
    most = 0

    def tensors(group):
        of_modules = [p for module in group.modules for p in module.parameters()]
        return {id(p): p.nbytes for p in [*of_modules, *group.parameters]}

    def onload(group, original=ModuleGroup.onload_):
        nonlocal most
        present.update(tensors(group))
        most = max(most, sum(present.values()))
        original(group)

    def leave(group, original=ModuleGroup.offload_):
        for key in tensors(group):
            present.pop(key, None)
        original(group)

    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", leave)
    model = load_world(make_preset(adapter=str(adapter), offload="group"), SIZE, "cpu")
    parts, used = (model.denoiser.transformer, model.codec.vae), 0
    ours = {id(p) for part in parts for p in part.parameters()}

    def check(module, _):
        nonlocal used
        own = {id(p) for p in module.parameters(recurse=False)} & ours
        if not hasattr(module, "_diffusers_hook"):  # else its own hook comes after this one
            used += len(own)
            assert own <= present.keys(), module

    handle = nn.modules.module.register_module_forward_pre_hook(check)
    try:
        walk(model)
    finally:
        handle.remove()
    whole = [sum(p.nbytes for p in part.parameters()) for part in parts]
    assert used > 1000 and most < 0.6 * max(whole)


@pytest.mark.parametrize("how", ["model", "group"])
def test_offloading_changes_no_number(make_preset, free, how):
    plain, offloaded = (load_world(make_preset(**free, offload=o), SIZE, "cpu") for o in ("none", how))
    assert torch.equal(walk(plain)[0], walk(offloaded)[0])
