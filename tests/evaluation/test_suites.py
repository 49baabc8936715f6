from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.evaluation import freeze
from mirage_env.evaluation.codec import PHOTOGRAPHS
from mirage_env.evaluation.suites import (
    FOLDER,
    CameraPath,
    PhotographTake,
    SimulatedTake,
    cached_walk,
    load_suite,
    parse_suite,
    suite_names,
)
from mirage_env.geometry.projection import backproject, project
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, TRAINING_SEED, make_scene, visible_depth
from mirage_env.types import Cameras

LENGTHS = {
    "closed-loop": 49,
    "held-out-family": 33,
    "long": 129,
    "novel-view": 33,
    "revisit-invented": 49,
    "validation": 33,
    "validation-revisit": 49,
}
SIMULATED = tuple(LENGTHS)


def test_the_suites_are_these():
    assert suite_names() == sorted((*SIMULATED, "photos"))
    with pytest.raises(UnknownNameError, match=r'unknown suite "closed-lop".*did you mean "closed-loop"'):
        load_suite("closed-lop")


@pytest.mark.parametrize("name", SIMULATED)
def test_simulated_suites(name):
    suite = load_suite(name)
    assert suite.name == name and suite.version >= 1 and len(suite.takes) >= 32
    assert len({take.id for take in suite.takes}) == len(suite.takes)
    for take in suite.takes:
        assert isinstance(take, SimulatedTake) and take.seed < TRAINING_SEED
        assert len(take.path.places) == LENGTHS[name] and take.path.places[0][:4] == (0, 0, 0, 0)
        steps = np.abs(np.diff(take.path.places, axis=0))
        turns = np.minimum(steps[:, 3], 360 - steps[:, 3])
        assert np.hypot(steps[:, 0], steps[:, 2]).max() < 0.36 and turns.max() < 10.01  # what one action can do
        for early, late in take.pairs:
            assert take.path.places[early] == pytest.approx(take.path.places[late], abs=2e-3)
    families = {take.family for take in suite.takes}
    assert families == {HELD_OUT_FAMILY} if name == "held-out-family" else families >= set(FAMILIES)
    if name.startswith("validation"):  # nothing may be chosen by the family that stands for all unknown ones
        assert HELD_OUT_FAMILY not in families


def test_no_scene_is_in_two_suites():
    seeds = [take.seed for name in SIMULATED for take in load_suite(name).takes]
    assert len(set(seeds)) == len(seeds)


def test_photographs_return_to_where_they_began():
    takes = load_suite("photos").takes
    assert tuple(take.id for take in takes) == PHOTOGRAPHS
    for take in takes:
        assert isinstance(take, PhotographTake) and take.pairs == ((0, 32),)
        assert take.path.places[0] == pytest.approx(take.path.places[-1], abs=1e-3) and len(take.path.places) == 33
    walk = takes[0].walk((32, 32))
    assert walk.truth.rgb[0].float().std() > 10 and not walk.truth.rgb[1:].any() and not walk.pictures


def overlap(take: SimulatedTake, seen: int, by: int) -> float:
    """The share of frame `seen` that frame `by` shows: written apart from the code that chose the suites."""
    size = (24, 24)
    cameras = take.path.cameras(size)
    two = torch.tensor([seen, by])
    there = Cameras(take.scene_from_world @ cameras.world_from_camera[two], cameras.intrinsics_px[two], size)
    depth = visible_depth(make_scene(take.seed, take.family), there).clamp(max=1e4)
    position, distance = project(backproject(depth[:1], there[:1]).reshape(-1, 3), there[1:])
    shown = 0
    for (x, y), z in zip(position[0].tolist(), distance[0].tolist(), strict=True):
        if z > 0 and 0 <= x < 24 and 0 <= y < 24:
            around = depth[1, max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
            shown += z <= 1.05 * float(around.max())
    return shown / 576


def test_a_closed_loop_leaves_the_first_view():
    """The protocol: at the farthest point the median overlap with the first view is at most 30 %."""
    overlaps = [overlap(take, 24, 0) for take in load_suite("closed-loop").takes]
    assert np.median(overlaps) <= 0.3 and max(overlaps) < 0.4


def test_a_revisited_place_is_not_in_the_picture_and_out_of_sight_between():
    takes = load_suite("revisit-invented").takes[::4]
    assert np.median([overlap(take, 16, 0) for take in takes]) <= 0.1
    assert np.median([overlap(take, 16, 32) for take in takes]) <= 0.1
    assert np.median([overlap(take, 16, 40) for take in takes]) <= 0.35


def test_a_long_walk_sees_the_same_in_chunks_2_and_16_and_stays_in_seen_space():
    takes = load_suite("long").takes
    for take in takes:
        for k in range(9, 17):
            assert take.path.places[k] == pytest.approx(take.path.places[k + 112], abs=2e-3)
    assert min(overlap(take, 28, 0) for take in takes[::8]) > 0.3


def test_freezing_again_gives_the_same():
    stored = load_suite("novel-view").takes[0]
    assert next(freeze.choose(freeze.PROTOCOLS["novel-view"])) == stored
    assert freeze.texture(stored) >= freeze.TEXTURE_FLOOR
    photos = [json.loads(json.dumps(entry)) for entry in freeze.photographs()]
    assert photos == json.loads((FOLDER / "photos.json").read_text())["scenes"]


def short(take: SimulatedTake, frames: int = 2) -> SimulatedTake:
    path = take.path
    return replace(take, path=CameraPath(path.places[:frames], path.fov_deg, path.camera_height_m))


def test_a_walk_is_rendered_where_it_says(tmp_path):
    take = short(load_suite("novel-view").takes[0])
    walk = take.walk((32, 32))
    pose = walk.truth.cameras.world_from_camera[0]
    assert (
        pose[:3, 3].abs().max() == 0 and pose[0, 2].abs() < 1e-6 and walk.camera_height_m == take.path.camera_height_m
    )
    down = backproject(walk.truth.depth_m, walk.truth.cameras)[..., 1][~walk.truth.sky] - walk.camera_height_m
    assert (down.abs() < 0.01).float().mean() > 0.05 and (down > 0.01).float().mean() < 0.02  # the floor, where it is
    kept, again = (cached_walk(take, (32, 32), tmp_path) for _ in range(2))
    assert len(list(tmp_path.glob("*.npz"))) == 1
    for other in (kept, again):
        assert torch.equal(other.truth.rgb, walk.truth.rgb) and torch.equal(other.truth.depth_m, walk.truth.depth_m)
        assert torch.equal(other.truth.sky, walk.truth.sky) and torch.equal(other.truth.dynamic, walk.truth.dynamic)
        assert (other.name, other.seed, other.pairs) == (walk.name, walk.seed, walk.pairs)


def test_another_simulator_is_noticed():
    take, other = load_suite("novel-view").takes[:2]
    with pytest.raises(InvalidValueError, match="draws another scene for 00-room than when its suite was frozen"):
        replace(short(take), thumbnail=other.thumbnail).walk((32, 32))


def test_training_seeds_and_unknown_formats_are_refused():
    take = load_suite("novel-view").takes[0]
    with pytest.raises(InvalidValueError, match="evaluation seeds lie below 1000000, got 1000000"):
        replace(take, seed=TRAINING_SEED)
    with pytest.raises(InvalidValueError, match="a suite of format 1 is expected, got 9"):
        parse_suite({"format": 9})
