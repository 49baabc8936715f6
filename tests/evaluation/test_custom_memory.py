"""examples/custom_memory.py in a world: it is read, written, evaluated, and asked for references."""

from __future__ import annotations

import torch

from examples.custom_memory import Postcard
from mirage_env.evaluation.candidates import generate, with_memory
from mirage_env.memory.none import NoMemory


def test_the_postcard_appears_in_evaluation(model, make_walk):
    walk = make_walk([0.0, 1.0, 2.0, 3.0])
    postcard = with_memory(lambda _: Postcard())(model, walk)
    # an untrained model repeats what it is shown: the postcard of the first frame, wherever the camera went
    assert torch.equal(postcard.rgb, with_memory(lambda _: NoMemory())(model, walk).rgb)
    assert not torch.equal(postcard.rgb, generate(model, walk).rgb)


def test_its_state_is_a_value(model, make_walk):
    other = model.with_memory(Postcard())
    _, state = other.begin(make_walk([0.0, 1.0]).scene, 0)
    assert other.stats(state)["memory_points"] == 1 and state.memory.nbytes == state.memory.tokens.nbytes
    again = type(state.memory).from_tensors(state.memory.tensors())
    assert torch.equal(again.tokens, state.memory.tokens)
    assert not other.memory.contrast.requires_grad
