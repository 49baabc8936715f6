"""A wheel built from the repository works from site-packages, far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(arguments: Sequence[str | Path], cwd: Path, site: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site) if site else "", "COLUMNS": "250"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Hatchling itself, as pip would call it: no copy of the environment, no network.
    run(["-m", "hatchling", "build", "--target", "wheel", "--directory", folder], cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it lies in site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    run(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel], cwd=folder)
    return folder


def test_nothing_but_mirage_env_at_the_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mirage_env"}
    assert len(tops) == 2


def test_everything_it_needs_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        entries = {name for name in names if name.endswith("entry_points.txt")}
        assert "mirage-env = mirage_env.cli:main" in file.read(entries.pop()).decode()
    inside = {name.removeprefix("mirage_env/") for name in names}
    assert {f"envs_config/{path.name}" for path in (ROOT / "envs_config").glob("*.yaml")} <= inside
    assert {f"agents/{path.name}" for path in (ROOT / "agents").glob("*.py")} <= inside
    suites = (ROOT / "mirage_env" / "evaluation" / "suites").glob("*.json")
    assert {f"evaluation/suites/{path.name}" for path in suites} | {"evaluation/report.css"} <= inside
    assert {"builtin_images/room.jpg", "builtin_images/README.md", "types.py", "py.typed"} <= inside
    assert {f"weights/mirage-tiny/{part}.safetensors" for part in ("codec", "perception", "denoiser")} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in names)
    strays = [name for name in inside if name.startswith("tests") or name == "agents.py" or "__pycache__" in name]
    assert not strays


def test_it_works_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    code = "import mirage_env, mirage_env.agents; print(mirage_env.__file__); print(mirage_env.agents.__file__)"
    package, agents = run(["-c", code], tmp_path, site).split()
    assert Path(package).is_relative_to(site)
    assert Path(agents).is_relative_to(site)

    info = run(["-m", "mirage_env.cli", "info"], tmp_path, site)
    for name in ("mirage-tiny", "room", "Mirage-v0", "installed from a wheel"):
        assert name in info


def test_a_picture_becomes_a_walk_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    demo = ["-m", "mirage_env.cli", "demo", "--frames", "4", "--chunk", "4", "--size", "64", "--out", tmp_path / "out"]
    run(demo, tmp_path, site)
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 10_000
