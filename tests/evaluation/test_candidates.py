from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mirage_env.errors import UnknownNameError
from mirage_env.evaluation import candidates
from mirage_env.evaluation.candidates import ABLATIONS, STANDARD, choose_ablations
from mirage_env.evaluation.codec import reconstruct
from mirage_env.evaluation.scores import Judge
from mirage_env.evaluation.walk import seen_in_first_frame
from mirage_env.memory.latent import LatentMemory, MemoryConfig
from mirage_env.memory.none import NoMemory
from mirage_env.memory.protocol import ChunkRecord
from mirage_env.memory.resampled import ResampledMemory, ResampledMemoryConfig
from mirage_env.perception.tiny import Perceived
from mirage_env.world_model import WorldModel

ALONG = [0.1 * i for i in range(11)]
STILL = [0.0] * 4


def test_a_model_is_asked_chunk_by_chunk(make_walk):
    """One that answers with the truth, at the cameras that it is asked for."""
    walk = make_walk(ALONG)

    class Oracle(WorldModel):
        def __init__(self):
            pass

        def begin(self, scene, seed):
            assert np.array_equal(scene.image, walk.truth.rgb[0].numpy()) and (scene.camera_height_m, seed) == (1.2, 5)
            return walk.truth[:1], 1

        def advance(self, state, cameras):
            frames = walk.truth[state : state + len(cameras)]
            assert torch.equal(frames.cameras.world_from_camera, cameras.world_from_camera)
            return frames, state + len(cameras)

    guess = candidates.generate(Oracle(), walk)
    assert torch.equal(guess.rgb, walk.goal.rgb) and torch.equal(guess.depth_m, walk.goal.depth_m)


def test_a_still_warp_is_the_codec_itself(model, make_walk):
    walk = make_walk(STILL)
    assert torch.equal(candidates.warp_true_depth(model, walk).rgb, reconstruct(model, walk.goal.rgb))


def test_a_warp_from_behind_is_the_mean_colour(model, make_walk):
    walk = make_walk([0.0, 50.0])
    mean = walk.truth.rgb[0].float().mean((0, 1)).round().to(torch.uint8)
    for warp in (candidates.warp_true_depth, candidates.warp_predicted_depth):
        assert torch.equal(warp(model, walk).rgb, mean.expand(1, 32, 48, 3))


def levels_off(one, other):
    """By how many of 255 levels two pictures differ at most: sums of float32 may round to the next."""
    return int((one.int() - other.int()).abs().max())


def test_without_memory_an_untrained_model_repeats(model, make_walk):
    """Its base is then the overlap frame; with memory a still camera gets that too, from the readout."""
    walk = make_walk([0.0, 1.0, 2.0, 3.0, 4.0])
    expected = reconstruct(model, walk.truth.rgb[:1]).expand(4, 32, 48, 3)
    assert levels_off(STANDARD["no-memory"].answer(model, walk).rgb, expected) <= 1
    assert levels_off(STANDARD["model"].answer(model, walk).rgb, expected) > 1
    assert not isinstance(model.memory, NoMemory)


@pytest.mark.parametrize("name", [*STANDARD, *ABLATIONS])
def test_every_candidate_answers(model, make_walk, name):
    walk = make_walk(ALONG)
    candidate = (STANDARD | ABLATIONS)[name]
    assert candidate.answers(walk)
    guess = candidate.answer(model, walk)
    assert (guess.rgb is None) == (name == "perception")
    if guess.rgb is not None:
        assert guess.rgb.shape == (10, 32, 48, 3) and guess.rgb.dtype == torch.uint8
    assert not candidate.geometry or not candidate.answers(replace(walk, geometry=False))


def test_pixels_are_lifted_by_their_own_depth(model, make_walk):
    walk = make_walk([0.0])
    camera, nothing = walk.truth.cameras, torch.zeros(1, 32, 48, dtype=torch.bool)
    depth = 2.0 + torch.rand(1, 32, 48)
    record = ChunkRecord(torch.randn(1, 6, 4, 6), depth, nothing, nothing, camera)
    config = MemoryConfig(depth_edges="keep")
    memory = candidates.PixelLiftedMemory(config)
    state = memory.write(memory.empty(6), record)
    assert len(state) == 32 * 48 and len(LatentMemory(config).write(memory.empty(6), record)) == 4 * 6
    shown = memory.read(state, camera).grid
    torch.testing.assert_close(shown.depth_m, depth)
    assert torch.equal(shown.tokens[0, :, 9, 17], record.latents[0, :, 1, 2])


def test_a_memory_is_written_otherwise_and_read_by_the_same_network(model):
    memory = ResampledMemory(ResampledMemoryConfig(channels=6, maps=2, hidden=8, width=8, blocks=1, reach=0.7))
    torch.nn.init.normal_(memory.resampler.head.weight)
    own = model.with_memory(memory)
    rules = set()
    for make in (candidates.paper_memory, candidates.unbounded_memory, candidates.tight_memory, candidates.edge_memory):
        other = make(own)
        assert isinstance(other, ResampledMemory) and other.config.reach == 0.7
        assert torch.equal(other.resampler.head.weight, memory.resampler.head.weight)
        rules.add((other.config.write_rule, other.config.max_points, other.config.depth_edges))
    assert len(rules) == 4
    assert type(candidates.bare_memory(own)) is type(candidates.paper_memory(model)) is LatentMemory


def memories(monkeypatch, answer, model, walk) -> list[int]:
    """How many points are remembered after each chunk, and at which depth the first picture's lie."""
    states = []
    advance = WorldModel.advance

    def watched(self, state, cameras):
        states.append(state.memory)
        return advance(self, state, cameras)

    monkeypatch.setattr(WorldModel, "advance", watched)
    answer(model, walk)
    monkeypatch.undo()
    return [(len(memory), memory.points[:, 2].unique().tolist()) for memory in states]


def test_the_filter_and_true_geometry_reach_the_memory(model, make_walk, monkeypatch):
    """An eye that takes the left half of the wall for a moving thing, at two metres."""

    def eye(images, cameras, memory_depth_m, floor_y):
        moving = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        moving[:, :, :24] = True
        return Perceived(torch.full(moving.shape, 2.0), moving & False, moving)

    biased, walk = model.with_parts(see=eye), make_walk([0.0] * 9)
    answers = (candidates.generate, candidates.generate_without_filter, candidates.generate_with_true_depth)
    (filtered,), (whole,), (true,) = (memories(monkeypatch, answer, biased, walk) for answer in answers)
    assert filtered == (12, [2.0]) and whole == (24, [2.0]) and true == (24, [3.0])


def test_cells_with_edges_lie_where_most_of_them_is(model, make_walk, monkeypatch):
    """An eye that sees a step from two to four metres at the fourth pixel of every cell of the second row."""

    def eye(images, cameras, memory_depth_m, floor_y):
        depth, nothing = torch.full((len(images), *images.shape[2:]), 2.0), torch.zeros(len(images), 32, 48).bool()
        depth[:, 8:16, torch.arange(48) % 8 >= 3] = 4.0
        return Perceived(depth, nothing, nothing)

    biased, walk = model.with_parts(see=eye), make_walk([0.0] * 9)
    answers = candidates.generate, candidates.ABLATIONS["depth-edges"].answer
    (without,), (within,) = (memories(monkeypatch, answer, biased, walk) for answer in answers)
    assert without == (18, [2.0]) and within == (24, [2.0, 4.0])


def test_perfect_recall_is_the_truth_where_it_was_seen(model, make_walk):
    walk = make_walk([0.0, 1.5])
    guess = candidates.ABLATIONS["perfect-recall"].answer(model, walk)
    seen = seen_in_first_frame(walk.truth)[0]
    assert 0.2 < seen.float().mean() < 0.8
    assert torch.equal(guess.rgb[0, seen], reconstruct(model, walk.goal.rgb)[0, seen])
    assert torch.equal(guess.rgb[0, ~seen], candidates.generate(model, walk).rgb[0, ~seen])


def test_video_latents_are_those_that_were_denoised(model, make_walk):
    """A wall that stands still: re-encoding changes what is remembered, denoised latents stay as they were read."""
    walk = make_walk([0.0] * 25)
    video, image = (candidates.ABLATIONS["video-latents"].answer(model, walk), candidates.generate(model, walk))
    assert levels_off(video.rgb, video.rgb[:1]) <= 1
    moved = make_walk([0.06 * i for i in range(25)])
    answers = (candidates.generate_from_video_latents, candidates.generate)
    assert levels_off(*(answer(model, moved).rgb for answer in answers)) > 1
    assert image.rgb.shape == video.rgb.shape


def test_true_depth_and_video_latents_follow_keyframes_that_come_first(model, make_walk, monkeypatch):
    """The wall comes nearer frame by frame, and each frame's own distance is written."""
    first, walk = model.with_parts(), make_walk([0.05 * i for i in range(9)])
    first.preset = replace(model.preset, keyframes_first=True)
    written, write = [], LatentMemory.write

    def witness(self, state, record):
        written.extend(record.depth_m[:, 0, 0].tolist())
        return write(self, state, record)

    monkeypatch.setattr(LatentMemory, "write", witness)
    candidates.generate_with_true_depth(first, walk)
    assert written == pytest.approx(walk.truth.depth_m[::4, 0, 0].tolist())
    still = candidates.generate_from_video_latents(first, make_walk([0.0] * 9)).rgb
    assert levels_off(still, still[:1]) <= 1


def test_depth_is_judged_in_metres(model, make_walk):
    """An eye that sees two metres everywhere, before a wall three metres away."""
    biased = copy.copy(model)

    def two_metres(images, cameras, memory_depth_m, floor_y):
        assert floor_y == 1.2 and not memory_depth_m.any()
        nothing = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        return Perceived(torch.full(nothing.shape, 2.0), nothing, nothing)

    biased.perception = two_metres
    walk = make_walk(ALONG)
    values = Judge.of(walk, model.latent_size).score(candidates.see_truth(biased, walk)).values
    assert values["depth_abs_rel"] == pytest.approx(1 / 3)


def test_ablations_are_chosen_by_name():
    assert list(choose_ablations(["true-depth", "paper-write"])) == ["true-depth", "paper-write"]
    with pytest.raises(UnknownNameError, match='unknown ablation "paper-rule"'):
        choose_ablations(["paper-rule"])
