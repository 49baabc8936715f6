from __future__ import annotations

from pathlib import Path

import pytest

from mirage_env.agents.config import AGENTS, PROOFS, AgentConfig, load
from mirage_env.agents.proof import ProofConfig
from mirage_env.config import with_overrides
from mirage_env.errors import InvalidValueError, UnknownNameError


@pytest.mark.parametrize("path", sorted(AGENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_agent_can_be_read(path: Path) -> None:
    config = load(path.stem)
    assert config.world.id == "Mirage-v0"
    assert config.test.id == "MirageSim-v0"
    assert config == load(path)


@pytest.mark.parametrize("path", sorted(PROOFS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_proof_can_be_read(path: Path) -> None:
    assert load(path.stem, cls=ProofConfig, folder=PROOFS).seeds


def test_overrides_are_yaml_and_reach_into_mappings() -> None:
    config = load("explore", ["ppo.learning_rate=1e-3", "world.kwargs.images=photos", "seed=7", "world.steps=5"])
    assert (config.ppo.learning_rate, config.world.kwargs["images"], config.seed) == (1e-3, "photos", 7)
    assert config.world.steps == 5
    assert config.ppo.n_steps == load("explore").ppo.n_steps
    assert "images" not in config.test.kwargs  # `world` and `test` share values in YAML, not the override


def test_an_override_leaves_what_it_was_given_as_it_was() -> None:
    before = {"a": {"b": 1}}
    assert with_overrides(before, ["a.b=[2, 3]", "c.d=x"]) == {"a": {"b": [2, 3]}, "c": {"d": "x"}}
    assert before == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.learning_rat=1", 'has no key "learning_rat"; did you mean "learning_rate"'),
        ("ppo.envs=0", "envs must be a whole number of at least 1, got 0"),
        ("ppo.gamma=7", "gamma must be a number above 0 and at most 1, got 7"),
        ("ppo.vf_coef=-.5", "vf_coef must be a number of at least 0, got -0.5"),
        ("seed=-1", "seed must be a whole number of at least 0, got -1"),
        ("test_episodes=0", "test_episodes must be a whole number of at least 1, got 0"),
        ("ppo.envs=many", "ppo: envs must be int, got 'many'"),
        ("ppo.batch_size=100000", r"batch_size must be at most envs \* n_steps = \d+, got 100000"),
        ("world.steps=0", "steps must be a whole number of at least 1, got 0"),
        ("agent=ppo2", "agent must be one of ppo, explorer, random, got 'ppo2'"),
        ("test.drafts_only=true", "drafts_only needs the world Mirage-v0, got MirageSim-v0"),
        ("seed.x=1", 'the override "seed.x=1" reaches into 0, which has no keys'),
        ("seed", 'an override must look like ppo.learning_rate=1e-3, got "seed"'),
        ("seed=[", 'the value of the override "seed=\\[" is not YAML'),
    ],
)
def test_mistakes_are_told_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as caught:
        load("explore", ["seed=0", override])
    assert "\n" not in str(caught.value)


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown agent config "explor".*did you mean "explore"'):
        load("explor", cls=AgentConfig)
    with pytest.raises(InvalidValueError, match=r"no config file at none\.yaml; built-in ones are explore, point-goal"):
        load("none.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks=[free]", 'unknown task of the proof "free"'),
        ("methods=[luck]", 'unknown method "luck"'),
        ("seeds=[]", "seeds must name at least one seed"),
        ("seeds=[0, -1]", "a seed must be a whole number of at least 0, got -1"),
        ("pool_first=3", "pool_first must be a training seed, 1000000 or more, got 3"),
    ],
)
def test_mistakes_of_a_proof(override: str, message: str) -> None:
    with pytest.raises((InvalidValueError, UnknownNameError), match=message):
        load("small", [override], ProofConfig, PROOFS)
