from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")

from mirage_env.agents.config import PROOFS, load
from mirage_env.agents.proof import ProofConfig, agent_config, examinations, prove, resampled, write_report
from mirage_env.errors import InvalidValueError

SMALL = load("small", cls=ProofConfig, folder=PROOFS)


def write_scores(folder: Path, method: str, seed: int, values: list[float]) -> None:
    cell = folder / "explore" / method / f"seed-{seed}"
    cell.mkdir(parents=True)
    episodes = [{"known_m3": value} for value in values]
    (cell / "scores.json").write_text(json.dumps({"scores": {"scenes": episodes, "family": episodes}}))


def test_the_share_of_what_the_simulator_teaches(tmp_path: Path) -> None:
    config = replace(SMALL, seeds=(0, 1), tasks=("explore",))
    for seed in config.seeds:
        write_scores(tmp_path, "random", seed, [1.0, 3.0])
        write_scores(tmp_path, "simulator", seed, [5.0, 7.0])
        write_scores(tmp_path, "dream", seed, [4.0, 6.0])
    table = write_report(config, tmp_path).read_text("utf-8")
    results = json.loads((tmp_path / "proof.json").read_text("utf-8"))
    dream = results["explore/scenes/dream"]
    # All three differ by constants in every episode, so the share has no spread: (5 - 2) / (6 - 2).
    assert (dream["share"], dream["share_low"], dream["share_high"]) == pytest.approx((0.75, 0.75, 0.75))
    assert (dream["mean"], dream["seeds"], dream["episodes"]) == (5.0, 2, 2)
    assert dream["low"] < 5.0 < dream["high"]
    assert "| PPO trained in Mirage-v0 | 5.000 (4.000 to 6.000) | 0.75 (0.75 to 0.75) | 2 | 2 |" in table
    assert (tmp_path / "curves.svg").read_text("utf-8").startswith("<svg")


def test_a_curve_is_the_mean_of_the_seeds_as_far_as_all_have_come(tmp_path: Path) -> None:
    config = replace(SMALL, seeds=(0, 1, 2), tasks=("explore", "point_goal"))
    assert config.ppo.envs * config.steps == 96  # before, not every world can have ended an episode
    for seed, returns in enumerate(([1.0, 3.0, 9.0], [3.0, 5.0])):
        cell = tmp_path / "explore" / "dream" / f"seed-{seed}"
        cell.mkdir(parents=True)
        points = [{"steps": 96 * i, "return": value} for i, value in enumerate([0.0, *returns])]
        (cell / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    write_report(config, tmp_path)
    picture = ElementTree.fromstring((tmp_path / "curves.svg").read_text("utf-8"))
    assert len(picture.findall(".//{*}polyline")) == 1 and len(picture.findall(".//{*}circle")) == 2
    assert [text.text for text in picture.findall(".//{*}text[@style]")] == ["trained in dreams: 4.00"]


def test_seeds_are_drawn_for_each_method_and_episodes_for_all_alike() -> None:
    episodes = np.array([[0.0, 10.0, 20.0]])
    drawn = resampled({"a": episodes, "b": episodes + 1.0})
    assert np.allclose(drawn["b"] - drawn["a"], 1.0)
    seeds = np.array([[0.0], [1.0]])
    apart = resampled({"a": seeds, "b": seeds})
    assert not np.allclose(apart["a"], apart["b"])
    assert set(np.unique(apart["a"])) == {0.0, 0.5, 1.0}


def test_a_task_may_have_settings_of_its_own(tmp_path: Path) -> None:
    config = replace(SMALL, task_ppo={"explore": {"sureness": 1.0}}, task_worlds={"explore": {"obs": ["depth_u8"]}})
    explore, goal = (agent_config(config, tmp_path, task, "dream", 0) for task in ("explore", "point_goal"))
    assert explore.ppo == replace(goal.ppo, sureness=1.0) and goal.ppo == SMALL.ppo
    assert explore.world.kwargs["obs"] == ["depth_u8"] and "rgb" in goal.world.kwargs["obs"]
    with pytest.raises(InvalidValueError, match=r'task_ppo\.explore has no key "surenes"; did you mean "sureness"'):
        replace(SMALL, task_ppo={"explore": {"surenes": 1.0}})


def test_everybody_is_examined_in_the_true_world(tmp_path: Path) -> None:
    for method in SMALL.methods:
        agent = agent_config(SMALL, tmp_path, "point_goal", method, 0)
        assert {world.id for world in examinations(SMALL, agent).values()} == {"MirageSim-v0"}
        assert all(world.scene_seeds is None for world in examinations(SMALL, agent).values())
        assert "goal" in agent.world.kwargs["obs"]
        assert ("rgb" in agent.world.kwargs["obs"]) == ("rgb" in agent.test.kwargs["obs"]) == (method != "blind")
        assert (agent.world.id == "MirageSim-v0") == (method in ("simulator", "blind"))
    learner = agent_config(SMALL, tmp_path, "explore", "simulator", 0)
    assert learner.world.scene_seeds == SMALL.scenes  # the very scenes whose pictures the dreams are made from
    seeing = replace(SMALL, task_worlds={}, kwargs=SMALL.kwargs | {"obs": ["rgb"]})
    for config, left in ((SMALL, "last_action"), (seeing, "chunk_phase")):
        assert agent_config(config, tmp_path, "explore", "blind", 0).world.kwargs["obs"] == [left]


def test_a_proof_goes_on_and_refuses_another_configuration(tmp_path: Path) -> None:
    config = replace(SMALL, tasks=("explore",), methods=("random",), steps=2, pool=1, test_episodes=1)
    assert prove(config, tmp_path)
    scores = tmp_path / "explore" / "random" / "seed-0" / "scores.json"
    first = scores.stat().st_mtime_ns
    assert prove(replace(config, seeds=(0, 1)), tmp_path)  # a seed more
    assert scores.stat().st_mtime_ns == first
    assert (tmp_path / "explore" / "random" / "seed-1" / "scores.json").is_file()
    with pytest.raises(InvalidValueError, match="holds a proof with another steps; choose another output folder"):
        prove(replace(config, steps=3), tmp_path)


def test_no_time_leaves_training_for_later(tmp_path: Path) -> None:
    config = replace(SMALL, tasks=("explore",), methods=("simulator",), steps=2, pool=1)
    assert not prove(config, tmp_path, minutes=0.0)
    assert not list(tmp_path.glob("**/scores.json"))
    assert "PPO trained" not in write_report(config, tmp_path).read_text("utf-8")
