from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mirage_env.errors import InvalidValueError
from mirage_env.evaluation import walks
from mirage_env.evaluation.codec import reconstruct
from mirage_env.evaluation.metrics import MAX_PSNR_DB
from mirage_env.evaluation.walks import CANDIDATES, METRICS, Guess, WalkResult, evaluate_walk, score
from mirage_env.geometry.poses import intrinsics_from_fov, rigid, rotation_from_yaw_pitch_roll
from mirage_env.geometry.projection import camera_rays
from mirage_env.memory.none import NoMemory
from mirage_env.perception.tiny import Perceived
from mirage_env.types import Cameras
from mirage_env.world_model import WorldModel

ALONG = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
STILL = [0.0] * 4


def the_truth_about(walk: walks.Walk) -> Guess:
    return Guess(walk.goal.rgb.clone(), walk.goal.depth_m)


def test_an_oracle_is_perfect(model, make_walk):
    """A model that answers with the truth, chunk by chunk, at the cameras that it is asked for."""
    walk = make_walk(ALONG)

    class Oracle(WorldModel):
        def __init__(self):
            pass

        def begin(self, scene, seed):
            assert np.array_equal(scene.image, walk.truth.rgb[0].numpy()) and scene.camera_height_m == 1.2
            return walk.truth[:1], 1

        def advance(self, state, cameras):
            frames = walk.truth[state : state + len(cameras)]
            assert torch.equal(frames.cameras.world_from_camera, cameras.world_from_camera)
            return frames, state + len(cameras)

    result = score(CANDIDATES["model"](Oracle(), walk), walk, model.latent_size)
    assert result == {
        "psnr_db": pytest.approx(MAX_PSNR_DB),
        "seen_psnr_db": pytest.approx(MAX_PSNR_DB),
        "unseen_psnr_db": pytest.approx(MAX_PSNR_DB),
        "ssim": pytest.approx(1.0),
        "depth_abs_rel": 0.0,
    }


def test_repeating_scores_what_it_must(model, make_walk):
    walk = make_walk(ALONG)
    rgb = walk.truth.rgb.double()
    expected = np.mean([10 * math.log10(255**2 / float((frame - rgb[0]).square().mean())) for frame in rgb[1:]])
    guess = walks.repeat(model, walk)
    assert score(guess, walk, model.latent_size)["psnr_db"] == pytest.approx(expected, abs=1e-3)
    assert math.isnan(score(guess, walk, model.latent_size)["depth_abs_rel"])
    still = make_walk(STILL)
    assert score(walks.repeat(model, still), still, model.latent_size)["psnr_db"] == pytest.approx(MAX_PSNR_DB)


def test_moving_things_do_not_count(model, make_walk):
    walk = make_walk(ALONG)
    moving = torch.zeros_like(walk.truth.dynamic)
    moving[:, :, 20:30] = True
    walk = replace(walk, truth=replace(walk.truth, dynamic=moving))
    wrong = the_truth_about(walk)
    wrong.rgb[walk.goal.dynamic] //= 2
    assert score(wrong, walk, model.latent_size)["psnr_db"] == pytest.approx(MAX_PSNR_DB)


def test_what_the_first_frame_saw_of_a_wall(make_walk):
    """Moving right by d brings a wall at z into view from the right, f d / z pixels wide."""
    walk = make_walk([0.0, 0.5, -0.5])
    shift = float(walk.truth.cameras.intrinsics_px[0, 0, 0]) * 0.5 / 3.0
    columns = torch.arange(48) + 0.5
    right, left = walks.seen_in_first_frame(walk.truth)
    assert torch.equal(right, (columns + shift < 48).expand(32, 48))
    assert torch.equal(left, (columns - shift >= 0).expand(32, 48))
    assert 0 < int((~right[0]).sum()) < 48


def test_what_stood_behind_something_was_not_seen(make_walk):
    walk = make_walk([0.0, 0.0])
    walk.truth.depth_m[0, :, :24] = 1.0
    (seen,) = walks.seen_in_first_frame(walk.truth)
    assert not seen[:, :23].any() and seen[:, 24:].all()


def test_sky_is_seen_by_direction(make_walk):
    walk = make_walk([0.0, 0.5])
    sky = torch.ones_like(walk.truth.sky)
    truth = replace(walk.truth, sky=sky, depth_m=torch.zeros_like(walk.truth.depth_m))
    assert walks.seen_in_first_frame(truth).all()
    turn = torch.tensor([[0.0, math.pi], [0.0, 0.0], [0.0, 0.0]])
    poses = rigid(rotation_from_yaw_pitch_roll(*turn), torch.zeros(2, 3))
    assert not walks.seen_in_first_frame(replace(truth, cameras=replace(truth.cameras, world_from_camera=poses))).any()


def test_seen_and_unseen_cells_share_no_pixel(model, make_walk):
    walk = make_walk(ALONG)
    wrong = the_truth_about(walk)
    wrong.rgb[~walks.seen_in_first_frame(walk.truth)] //= 2
    result = score(wrong, walk, model.latent_size)
    assert result["seen_psnr_db"] == pytest.approx(MAX_PSNR_DB) and result["unseen_psnr_db"] < 30


def test_a_still_warp_is_the_codec_itself(model, make_walk):
    walk = make_walk(STILL)
    assert torch.equal(walks.warp_true_depth(model, walk).rgb, reconstruct(model, walk.goal.rgb))


def test_a_warp_from_behind_is_the_mean_colour(model, make_walk):
    walk = make_walk([0.0, 50.0])
    mean = walk.truth.rgb[0].float().mean((0, 1)).round().to(torch.uint8)
    for warp in (walks.warp_true_depth, walks.warp_predicted_depth):
        assert torch.equal(warp(model, walk).rgb, mean.expand(1, 32, 48, 3))


def test_without_memory_an_untrained_model_repeats(model, make_walk):
    """Its base is then the overlap frame; with memory a still camera gets that too, from the readout."""
    walk = make_walk([0.0, 1.0, 2.0, 3.0, 4.0])
    expected = reconstruct(model, walk.truth.rgb[:1]).expand(4, 32, 48, 3)
    assert torch.equal(walks.generate_without_memory(model, walk).rgb, expected)
    assert not torch.equal(walks.generate(model, walk).rgb, expected)
    assert type(model.memory) is not NoMemory
    _, state = model.begin(walk.scene, 0)
    assert len(state.memory) > 0


def test_every_candidate_answers(model, make_walk):
    result = evaluate_walk(model, make_walk(ALONG))
    assert list(result.scores) == list(CANDIDATES)
    for name, guess in result.guesses.items():
        assert guess.rgb.shape == (10, 32, 48, 3) and guess.rgb.dtype == torch.uint8, name
        assert set(result.scores[name]) == set(METRICS)
    assert {name for name, guess in result.guesses.items() if guess.depth_m is not None} == {
        "model", "no memory", "truth"
    }  # fmt: skip


def test_depth_is_judged_in_metres(model, make_walk):
    """An eye that sees two metres everywhere, before a wall three metres away."""
    biased = copy.copy(model)

    def two_metres(images, cameras, memory_depth_m, floor_y):
        assert floor_y == 1.2 and not memory_depth_m.any()
        nothing = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        return Perceived(torch.full(nothing.shape, 2.0), nothing, nothing)

    biased.perception = two_metres
    walk = make_walk(ALONG)
    assert score(walks.see_truth(biased, walk), walk, model.latent_size)["depth_abs_rel"] == pytest.approx(1 / 3)


def test_summaries_and_margins(make_walk):
    def result(**psnr_db: float) -> WalkResult:
        nothing = dict.fromkeys(METRICS, math.nan)
        return WalkResult(make_walk(STILL), {}, {name: nothing | {"psnr_db": x} for name, x in psnr_db.items()})

    results = [result(model=20.0, other=18.0), result(model=30.0, other=28.0)]
    summary = walks.summarise(results)
    assert summary["model"]["psnr_db"] == (25.0, 20.0, 30.0, 2) and summary["model"]["ssim"].scenes == 0
    assert walks.margin(results, "model", "other") == (2.0, 2.0, 2.0, 2)  # pairs agree, though scenes do not


def test_a_scene_s_walk_begins_at_the_origin_without_yaw(make_walk):
    turns = torch.tensor([[2.5, 2.7], [0.2, 0.1], [0.05, 0.0]])
    poses = rigid(rotation_from_yaw_pitch_roll(*turns), torch.tensor([[4.0, -1.6, -7.0], [4.2, -1.6, -7.1]]))
    frames = copy.copy(make_walk([0.0, 0.0]).truth)
    intrinsics = intrinsics_from_fov(1.2, (32, 48)).repeat(2, 1, 1)
    walk = walks.from_first_camera("room", 7, replace(frames, cameras=Cameras(poses, intrinsics, (32, 48))))
    moved = walk.truth.cameras.world_from_camera
    levelled = rotation_from_yaw_pitch_roll(*torch.tensor([0.0, 0.2, 0.05]))
    torch.testing.assert_close(moved[0], rigid(levelled, torch.zeros(3)))
    torch.testing.assert_close(moved[0].inverse() @ moved[1], poses[0].inverse() @ poses[1])
    assert walk.camera_height_m == pytest.approx(1.6)


def test_held_out_walks_are_gentle_and_repeat():
    walk, again = (next(walks.held_out_walks(1, (32, 32), frames=6, first_seed=5)) for _ in range(2))
    assert (walk.family, walk.seed, len(walk.goal)) == ("room", 5, 5)
    assert torch.equal(walk.truth.rgb, again.truth.rgb)
    poses = walk.truth.cameras.world_from_camera
    torch.testing.assert_close(poses[0, :3, 3], torch.zeros(3))
    moved = (poses[1:, :3, 3] - poses[:-1, :3, 3]).norm(dim=1)
    turned = (poses[1:, :3, 2] * poses[:-1, :3, 2]).sum(1).clamp(max=1.0).acos().rad2deg()
    assert moved.max() < 1.5 * walks.STEP_M and turned.max() < walks.TURN_DEG + 0.1 and moved.max() + turned.max() > 0
    on_floor = walk.truth.depth_m[0, -1, 16] * camera_rays(walk.truth.cameras[:1])[0, -1, 16]
    assert (poses[0, :3, :3] @ on_floor)[1] <= walk.camera_height_m + 1e-3


def test_training_seeds_are_refused():
    with pytest.raises(InvalidValueError, match="lie below 1000000, got 999999 to 1000000; start lower"):
        next(walks.held_out_walks(2, first_seed=999_999))
