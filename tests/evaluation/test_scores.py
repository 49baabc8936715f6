from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mirage_env.evaluation.metrics import MAX_PSNR_DB
from mirage_env.evaluation.scores import METRICS, Judge
from mirage_env.evaluation.walk import Guess, Walk, seen_in_first_frame

ALONG = [0.1 * i for i in range(11)]
GRID = (4, 6)


def the_truth_about(walk: Walk) -> Guess:
    return Guess(walk.goal.rgb.clone(), walk.goal.depth_m, walk.goal.sky, walk.goal.dynamic)


def test_the_truth_is_perfect(make_walk):
    walk = replace(make_walk(ALONG), pairs=((10, 10),))
    score = Judge.of(walk, GRID).score(the_truth_about(walk))
    known = {name: value for name, value in score.values.items() if not math.isnan(value)}
    best = {name: MAX_PSNR_DB for name in known if name.endswith("psnr_db")}
    best |= {"ssim": 1.0, "revisit_ssim": 1.0, "invented_gradient_ratio": 1.0}
    best |= {"depth_abs_rel": 0.0, "depth_aligned_abs_rel": 0.0}
    assert known.pop("invented_kernel_distance", 0.0) <= 0.0  # unbiased, so that equal sets fall below
    assert known == {name: pytest.approx(value, abs=1e-4) for name, value in best.items()}
    assert set(score.values) == set(METRICS) and len(score.psnr_db) == 10 and score.depth_abs_rel == [0.0, 0.0]


def test_a_repeated_picture_scores_what_it_must(make_walk):
    walk = make_walk(ALONG)
    rgb = walk.truth.rgb.double()
    each = [10 * math.log10(255**2 / float((frame - rgb[0]).square().mean())) for frame in rgb[1:]]
    score = Judge.of(walk, GRID).score(Guess(walk.truth.rgb[:1].expand_as(walk.goal.rgb)))
    assert score.psnr_db == pytest.approx(each, abs=1e-3)
    assert score.values["psnr_db"] == pytest.approx(np.mean(each), abs=1e-3)
    assert math.isnan(score.values["depth_abs_rel"]) and score.depth_abs_rel == []


def test_moving_things_do_not_count(make_walk):
    walk = make_walk(ALONG)
    moving = torch.zeros_like(walk.truth.dynamic)
    moving[:, :, 20:30] = True
    walk = replace(walk, truth=replace(walk.truth, dynamic=moving))
    wrong = the_truth_about(walk)
    wrong.rgb[walk.goal.dynamic] //= 2
    assert Judge.of(walk, GRID).score(wrong).values["psnr_db"] == pytest.approx(MAX_PSNR_DB)


def test_masks_overlap_by_their_pixels(make_walk):
    walk = make_walk([0.0, 0.1, 0.2])
    moving = torch.zeros_like(walk.truth.dynamic)
    moving[:, :8, :10] = True
    walk, found = replace(walk, truth=replace(walk.truth, dynamic=moving)), moving[1:].roll(5, 2)
    score = Judge.of(walk, GRID).score(Guess(None, walk.goal.depth_m, walk.goal.sky, found))
    assert score.overlap_px == {"sky_iou": (0, 0), "dynamic_iou": (2 * 8 * 5, 2 * 8 * 15)}
    assert score.values["dynamic_iou"] == pytest.approx(1 / 3) and math.isnan(score.values["sky_iou"])
    assert Judge.of(walk, GRID).score(Guess(walk.goal.rgb)).overlap_px == {}


def test_remembered_and_invented_cells_share_no_pixel(make_walk):
    walk = make_walk(ALONG)
    wrong = the_truth_about(walk)
    wrong.rgb[~seen_in_first_frame(walk.truth)] //= 2
    values = Judge.of(walk, GRID).score(wrong).values
    assert values["remembered_psnr_db"] == pytest.approx(MAX_PSNR_DB) and values["invented_psnr_db"] < 30
    assert values["invented_gradient_ratio"] == pytest.approx(0.25, abs=0.02)  # half the contrast


def test_visits_compare_a_candidate_with_itself(make_walk):
    """Wrong twice in the same way is a perfect revisit, and no perfect return."""
    walk = replace(make_walk([0.0, 2.0, 0.0, 2.0]), pairs=((1, 3),))
    wrong = the_truth_about(walk)
    wrong.rgb[:] //= 2
    values = Judge.of(walk, GRID).score(wrong).values
    assert values["revisit_psnr_db"] == pytest.approx(MAX_PSNR_DB) and values["return_psnr_db"] < 30
    wrong.rgb[2] = walk.goal.rgb[2]
    values = Judge.of(walk, GRID).score(wrong).values
    assert values["revisit_psnr_db"] < 30 and values["return_psnr_db"] == pytest.approx(MAX_PSNR_DB)


def test_revisits_leave_out_what_the_first_picture_shows(make_walk):
    walk = replace(make_walk([0.0, 1.0, 0.0, 1.0]), pairs=((1, 3),))
    unlike = the_truth_about(walk)
    unlike.rgb[2][seen_in_first_frame(walk.truth)[2]] //= 2
    assert Judge.of(walk, GRID).score(unlike).values["revisit_psnr_db"] == pytest.approx(MAX_PSNR_DB)


def test_the_loss_from_chunk_2_to_16_is_paired(make_walk):
    walk = make_walk([0.0] * 129)
    worse = the_truth_about(walk)
    worse.rgb[8:16] = walk.goal.rgb[8:16].int().add(1).to(torch.uint8)
    worse.rgb[120:] = walk.goal.rgb[120:].int().add(10).to(torch.uint8)
    assert Judge.of(walk, GRID).score(worse).values["psnr_lost_db"] == pytest.approx(20.0, abs=0.1)


def test_depth_is_judged_in_metres_and_aligned(make_walk):
    walk = make_walk(ALONG)
    values = Judge.of(walk, GRID).score(Guess(walk.goal.rgb, 2.0 / 3.0 * walk.goal.depth_m)).values
    assert values["depth_abs_rel"] == pytest.approx(1 / 3) and values["depth_aligned_abs_rel"] == pytest.approx(
        0, abs=1e-6
    )


def test_what_is_not_known_is_not_scored(make_walk):
    """A photograph: no pictures, no geometry after the first frame."""
    walk = replace(make_walk([0.0, 0.5, 0.0]), pictures=False, geometry=False, pairs=((0, 2),))
    given = walk.truth.rgb[:1]
    values = Judge.of(walk, GRID).score(Guess(given.expand(2, -1, -1, -1).clone())).values
    assert {name for name, value in values.items() if not math.isnan(value)} == {
        "revisit_psnr_db", "revisit_ssim", "sharpness_ratio"
    }  # fmt: skip
    assert values["sharpness_ratio"] == pytest.approx(1.0) and values["revisit_psnr_db"] == pytest.approx(MAX_PSNR_DB)
