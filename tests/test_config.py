from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mirage_env import config
from mirage_env.errors import InvalidValueError, UnknownNameError


@dataclass(frozen=True)
class Wheel:
    radius_m: float = 0.3
    spokes: int = 32

    def __post_init__(self) -> None:
        if self.radius_m <= 0:
            raise InvalidValueError(f"radius_m must be positive, got {self.radius_m}")


@dataclass(frozen=True)
class Bike:
    name: str
    front: Wheel = field(default_factory=Wheel)
    gears: tuple[int, ...] = ()
    size: tuple[int, int] = (1, 1)
    brake: Literal["disc", "rim"] = "disc"
    bell: bool = False
    weight_kg: float | None = None
    fov_deg: Literal["auto"] | float = "auto"


def load(tmp_path: Path, text: str) -> Bike:
    path = tmp_path / "bike.yaml"
    path.write_text(text)
    return config.load_config(path, Bike)


def test_values_arrive_with_their_types(tmp_path: Path) -> None:
    bike = load(tmp_path, "{name: red, front: {radius_m: 1}, gears: [1, 2, 3], size: [4, 5], brake: rim, fov_deg: 60}")
    assert bike == Bike("red", Wheel(1.0), (1, 2, 3), (4, 5), "rim", fov_deg=60.0)
    assert type(bike.front.radius_m) is float


def test_what_is_not_named_keeps_its_default(tmp_path: Path) -> None:
    assert load(tmp_path, "name: red") == Bike("red")


def test_yaml_reads_1e_minus_4_as_a_string_but_we_do_not(tmp_path: Path) -> None:
    assert load(tmp_path, "{name: red, weight_kg: 1e-4}").weight_kg == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: red, gear: [1]}", r'bike\.yaml has no key "gear"; did you mean "gears"\?'),
        ("{name: red, front: {spoke: 3}}", r'bike\.yaml: front has no key "spoke"; did you mean "spokes"\?'),
        ("{name: red, xyz: 3}", r'has no key "xyz"; known are name, front, gears'),
        ("{bell: true}", r'bike\.yaml lacks the key "name"'),
        ("{name: 3}", r"bike\.yaml: name must be str, got 3 \(int\)"),
        ("{name: red, bell: 1}", r"bell must be bool, got 1 \(int\)"),
        ("{name: red, front: {spokes: true}}", r"front: spokes must be int, got True \(bool\)"),
        ("{name: red, front: {spokes: 3.0}}", r"front: spokes must be int, got 3\.0 \(float\)"),
        ("{name: red, front: {radius_m: wide}}", r"front: radius_m must be float, got 'wide' \(str\)"),
        ("{name: red, front: {radius_m: -1}}", r"bike\.yaml: front: radius_m must be positive, got -1\.0"),
        ("{name: red, front: 3}", r"front must be a mapping of Wheel fields, got 3 \(int\)"),
        ("{name: red, gears: 3}", r"gears must be a list, got 3 \(int\)"),
        ("{name: red, gears: [1, x]}", r"gears\[1\] must be int, got 'x' \(str\)"),
        ("{name: red, size: [1, 2, 3]}", r"size must have 2 entries, got 3"),
        ("{name: red, brake: drum}", r"brake must be one of disc, rim, got 'drum' \(str\)"),
        ("{name: red, weight_kg: heavy}", r"weight_kg must be float, got 'heavy' \(str\)"),
        ("- name", r"bike\.yaml must be a mapping of Bike fields"),
        ("{name: [", r"cannot be read as YAML"),
        ("name: !!python/object/apply:os.getcwd []", r"cannot be read as YAML"),
    ],
)
def test_errors_name_the_key_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        load(tmp_path, text)


def test_missing_file_and_unknown_preset_name_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"no config file at .*mirage-tiny"):
        config.load_config(tmp_path / "none.yaml", Bike)
    with pytest.raises(UnknownNameError, match=r'unknown preset "mirage-tny".*did you mean "mirage-tiny"\?'):
        config.preset_path("mirage-tny")


def test_presets_are_found() -> None:
    assert "mirage-tiny" in config.preset_names()
    assert config.preset_path("mirage-tiny").is_file()


def test_overrides_change_what_the_file_says(tmp_path: Path) -> None:
    from mirage_env.rollout.config import RunConfig

    file = tmp_path / "run.yaml"
    file.write_text("steps: 5\nenv_kwargs: {size: [32, 32], chunk: 4}\n")
    run = config.load_config(
        file, RunConfig, ["steps=7", "env_kwargs.size=[64, 64]", "images=a=b.png", "env_kwargs.task=free"]
    )
    assert (run.steps, run.images) == (7, "a=b.png")
    assert run.env_kwargs == {"size": [64, 64], "chunk": 4, "task": "free"}
    for override, message in (
        ("steps", "an override must look like key=value"),
        ("=3", "an override must look like key=value"),
        ("steps=[", "steps="),
        ("stepz=3", "stepz"),
        ("steps.inner=3", "steps"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            config.load_config(file, RunConfig, [override])
