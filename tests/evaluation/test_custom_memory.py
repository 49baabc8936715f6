"""examples/custom_memory.py in a world: it is read, written, evaluated, and asked for references."""

from __future__ import annotations

import torch

from examples.custom_memory import Postcard
from mirage_env.evaluation import walks


def test_the_postcard_appears_in_evaluation(model, make_walk):
    walk = make_walk([0.0, 1.0, 2.0, 3.0])
    candidates = {"latent": walks.generate, "postcard": walks.with_memory(Postcard())}
    result = walks.evaluate_walk(model, walk, candidates)
    assert list(result.scores) == ["latent", "postcard"]
    # an untrained model repeats what it is shown: the postcard of the first frame, wherever the camera went
    shown = walks.generate_without_memory(model, walk)
    assert torch.equal(result.guesses["postcard"].rgb, shown.rgb)
    assert not torch.equal(result.guesses["latent"].rgb, shown.rgb)


def test_its_state_is_a_value(model, make_walk):
    other = model.with_memory(Postcard())
    _, state = other.begin(make_walk([0.0, 1.0]).scene, 0)
    assert other.stats(state)["memory_points"] == 1 and state.memory.nbytes == state.memory.tokens.nbytes
    again = type(state.memory).from_tensors(state.memory.tensors())
    assert torch.equal(again.tokens, state.memory.tokens)
    assert not other.memory.contrast.requires_grad
