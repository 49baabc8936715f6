from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mirage_env.agents.config import WorldConfig
from mirage_env.agents.worlds import draw_pool, make_env
from mirage_env.errors import ImageError, InvalidValueError, UnknownNameError
from mirage_env.simulator import TRAINING_SEED

SMALL: dict[str, Any] = {"size": [32, 32], "obs": ["rgb", "depth_u8"], "action_mode": "discrete"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    draw_pool(folder, [TRAINING_SEED, TRAINING_SEED + 1], (32, 32))
    return folder


def test_a_pool_is_what_the_simulator_shows_first(pool: Path) -> None:
    env = make_env(WorldConfig("MirageSim-v0", SMALL))
    observation, info = env.reset(seed=TRAINING_SEED + 1, options={"scene_seed": TRAINING_SEED + 1})
    drawn = np.asarray(Image.open(pool / f"scene-{TRAINING_SEED + 1}.png"))
    assert np.array_equal(drawn, observation["rgb"])
    about = json.loads((pool / "pool.json").read_text("utf-8"))
    assert about["family_of_scene"][str(TRAINING_SEED + 1)] == info["family"]
    assert sorted(file.name for file in pool.iterdir()) == [
        "pool.json", f"scene-{TRAINING_SEED}.png", f"scene-{TRAINING_SEED + 1}.png",
    ]  # fmt: skip


def test_what_is_drawn_stays(pool: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in pool.glob("*.png")}
    draw_pool(pool, [TRAINING_SEED, TRAINING_SEED + 1], (32, 32))
    assert {file: file.stat().st_mtime_ns for file in pool.glob("*.png")} == before


def test_scenes_come_from_the_list_unless_reset_is_told() -> None:
    env = make_env(WorldConfig("MirageSim-v0", SMALL, scene_seeds=(TRAINING_SEED, TRAINING_SEED + 1)))
    drawn = [env.reset(seed=0)[1]["scene_seed"]] + [env.reset()[1]["scene_seed"] for _ in range(7)]
    assert set(drawn) == {TRAINING_SEED, TRAINING_SEED + 1}
    again = [env.reset(seed=0)[1]["scene_seed"]] + [env.reset()[1]["scene_seed"] for _ in range(7)]
    assert again == drawn
    assert env.reset(options={"scene_seed": 5})[1]["scene_seed"] == 5


def test_a_world_of_drafts_generates_and_remembers_nothing(pool: Path) -> None:
    kwargs = {**SMALL, "images": str(pool), "turn_deg": 30}
    drafts, dream = (make_env(WorldConfig("Mirage-v0", kwargs, steps=3, drafts_only=only)) for only in (True, False))
    first, info = drafts.reset(seed=0)
    assert np.array_equal(first["rgb"], dream.reset(seed=0)[0]["rgb"])
    points, pictures = info["memory_points"], []
    for _ in range(3):
        observation, _, _, truncated, info = drafts.step(5)
        assert info["memory_points"] == points
        pictures.append(observation["rgb"])
        *_, others = dream.step(5)
    assert truncated
    assert others["memory_points"] > points
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (WorldConfig("Mirage-v1"), UnknownNameError, 'unknown environment "Mirage-v1".*did you mean "Mirage-v0"'),
        (WorldConfig(kwargs={"images": []}), ImageError, "holds no picture"),
        (WorldConfig("MirageSim-v0", {"colour": 1}), InvalidValueError, "MirageSim-v0 does not take .*colour"),
        (WorldConfig("MirageSim-v0", SMALL, scene_seeds=()), InvalidValueError, "scene_seeds must name at least one"),
        (WorldConfig("MirageSim-v0", {"obs": ["rgb", "goal"]}), InvalidValueError, "needs a task with a goal"),
    ],
)
def test_mistakes(config: WorldConfig, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_env(config)


def test_an_empty_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="a pool needs at least one scene"):
        draw_pool(tmp_path / "none", [])
    assert not (tmp_path / "none").exists()
