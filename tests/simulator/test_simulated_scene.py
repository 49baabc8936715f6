from dataclasses import fields

import pytest
import torch

from mirage_env.errors import InvalidValueError, UnknownNameError
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY, TRAINING_SEED, make_scene
from mirage_env.simulator.materials import TRAINING_BANKS
from mirage_env.simulator.scene import TEXTURES_SEED, bank_of


@pytest.mark.parametrize("family", [*FAMILIES, HELD_OUT_FAMILY])
def test_a_seed_is_a_scene(family):
    one, again, other = (make_scene(seed, family) for seed in (5, 5, 6))
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(again, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert one.centre.shape != other.centre.shape or not torch.equal(one.centre, other.centre)


def test_training_evaluation_and_the_held_out_family_have_banks_of_their_own():
    assert make_scene(3, "room").bank == "evaluation"
    assert make_scene(TRAINING_SEED, "room").bank.startswith("training")
    assert make_scene(3, HELD_OUT_FAMILY).bank == make_scene(TRAINING_SEED, HELD_OUT_FAMILY).bank == "held-out"


def test_textures_come_again_only_below_the_seeds_that_have_ever_new_ones():
    def banks(first: int, apart: int) -> int:
        return len({bank_of(seed, "room") for seed in range(first, first + 3 * apart, apart)})

    around = 64 * TRAINING_BANKS
    assert banks(TRAINING_SEED, 1) == 1 and banks(TRAINING_SEED, 64) == 3 and banks(TRAINING_SEED, around) == 1
    assert banks(TEXTURES_SEED, 1) == 1 and banks(TEXTURES_SEED, 16) == 3 and banks(TEXTURES_SEED, around) == 3


def test_light_is_finite_and_neither_dark_nor_blown_out():
    for family in FAMILIES:
        light = make_scene(2, family).light
        assert torch.isfinite(light).all() and (light[:3] >= 0).all() and (light[:3] <= 3.5).all()
        assert 0.2 < float(light[:3].mean()) < 2.0


def test_walkers_go_to_and_fro_between_the_ends_of_their_paths():
    scene = next(s for s in (make_scene(seed, "room") for seed in range(40)) if len(s.period_s))
    start = -scene.phase[0] * scene.period_s[0]
    times = start + scene.period_s[0] * torch.tensor([0.0, 0.5, 1.0, 0.25, 0.75])
    at = scene.mover_offset(times)[:, 0]
    assert torch.allclose(at[0], scene.path_from[0], atol=1e-4) and torch.allclose(at[2], scene.path_from[0], atol=1e-4)
    assert torch.allclose(at[1], scene.path_to[0], atol=1e-4)
    assert torch.allclose(at[3], at[4], atol=1e-3)


def test_about_a_third_of_the_scenes_have_walkers():
    share = sum(len(make_scene(seed, "courtyard").period_s) > 0 for seed in range(24)) / 24
    assert 0.1 < share < 0.65


def test_unknown_families_and_negative_seeds_are_refused():
    with pytest.raises(UnknownNameError, match=r'unknown scene family "rom".*did you mean "room"'):
        make_scene(0, "rom")
    with pytest.raises(InvalidValueError, match="seed must be 0 or more"):
        make_scene(-1, "room")
