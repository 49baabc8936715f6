"""Episodes are repeatable, and a scripted agent does what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from mirage_env.agents.config import AgentConfig, WorldConfig
from mirage_env.agents.evaluation import evaluate, film, make_agent, summary
from mirage_env.agents.explorer import ExplorerAgent
from mirage_env.agents.simple import RandomAgent
from mirage_env.agents.worlds import make_env
from mirage_env.errors import UnknownNameError

EXPLORE = WorldConfig(
    "MirageSim-v0",
    {"size": [32, 32], "obs": ["rgb"], "action_mode": "discrete", "task": "explore", "scene_seed": 0},
    40,
)


def test_episodes_repeat_by_seed_and_differ_between_seeds() -> None:
    first, second = (evaluate(lambda env: RandomAgent(), EXPLORE, [3, 4]) for _ in range(2))
    assert first == second
    assert first[0] != first[1]
    assert first[0]["length"] == 40


def test_the_explorer_finds_more_than_chance() -> None:
    found = [
        summary(evaluate(lambda env, agent=agent: agent, EXPLORE, range(2)))["known_m3"].mean
        for agent in (ExplorerAgent(), RandomAgent())
    ]
    assert found[0] > 1.5 * found[1]


@pytest.mark.parametrize("mode", ["navigation", "discrete", "planar", "free"])
def test_the_explorer_walks_to_goals_in_every_action_mode(mode: str) -> None:
    kwargs = {**EXPLORE.kwargs, "task": "point_goal", "obs": ["rgb", "goal"], "action_mode": mode}
    scores = evaluate(lambda env: ExplorerAgent(), WorldConfig("MirageSim-v0", kwargs, 60), range(3))
    assert [score["success"] for score in scores] == [1.0] * 3
    assert min(score["spl"] for score in scores) > 0.8


def test_known_m3_leaves_out_what_reset_showed() -> None:
    (score,) = evaluate(lambda env: RandomAgent(), EXPLORE, [0])
    assert score["known_m3"] == pytest.approx(score["return"])  # explore pays for exactly that


def test_an_interval_holds_its_mean_and_closes_on_equal_scores() -> None:
    spread = summary([{"return": float(value)} for value in range(10)])["return"]
    assert spread.mean == 4.5 and spread.low < 4.5 < spread.high
    assert summary([{"return": 2.0}] * 5)["return"][:3] == (2.0, 2.0, 2.0)


def test_a_film_has_a_frame_for_every_observation(tmp_path: Path) -> None:
    path = tmp_path / "episode.mp4"
    score = film(lambda env: RandomAgent(), WorldConfig(EXPLORE.id, EXPLORE.kwargs, 5), 0, path)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert (score["length"], frames, seconds) == (5, 6, pytest.approx(1.2))
    assert [file.name for file in tmp_path.iterdir()] == ["episode.mp4"]


def test_unknown_agents() -> None:
    env: Any = make_env(EXPLORE)
    with pytest.raises(UnknownNameError, match='unknown agent "ppo2"; known are explorer, ppo, random'):
        make_agent("ppo2", AgentConfig(EXPLORE, EXPLORE), env.unwrapped)
