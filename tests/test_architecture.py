"""Dependencies point one way, and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mirage_env"

BASE = {
    "errors",
    "resources",
    "cache",
    "lockstep",
    "types",
    "geometry",
    "config",
    "images",
    "cameras_io",
    "weights",
    "values",
    "precision",
    "layers",
}
SIBLINGS = {"codec", "perception", "memory", "denoise"}
WORLD = BASE | SIBLINGS | {"world_model"}
ENVS = WORLD | {"simulator", "envs"}
PICTURES = {"contact_sheet", "artefacts"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "resources": {"errors"},
    "cache": set(),
    "lockstep": set(),
    "types": {"errors"},
    "geometry": {"errors", "types"},
    "config": {"errors", "resources"},
    "images": {"errors", "resources"},
    "cameras_io": {"errors"},
    "values": {"errors"},
    "precision": set(),
    "layers": set(),
    "weights": {"errors", "resources"},
    "contact_sheet": {"errors", "types"},
    "artefacts": {"errors", "resources", "types", "contact_sheet"},
    **{sibling: BASE for sibling in SIBLINGS},
    "simulator": {"errors", "types", "geometry"},
    "world_model": BASE | SIBLINGS,
    "envs": WORLD | {"simulator"},
    "training": WORLD | {"simulator"} | PICTURES,
    "rollout": ENVS | PICTURES | {"__version__"},
    "evaluation": ENVS | PICTURES,
    "demo": {"errors", "types", "geometry"},
    "agents": ENVS | PICTURES | {"rollout", "evaluation"},
    "cli": ENVS | PICTURES | {"training", "rollout", "evaluation", "demo", "agents"},
    "__init__": {"envs"},
}
"""Part of `mirage_env` -> the parts that it may import. A new part is added here, on purpose."""


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_parts(tree: ast.AST, package: str) -> set[str]:
    """Parts of mirage_env that a module imports at run time, wherever in the file it does so."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}: relative imports hide where a dependency points; write it in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("mirage_env.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT what it may import"
    imported = imported_parts(ast.parse(path.read_text(encoding="utf-8")), str(path)) - {part}
    if part != "__init__":
        imported -= {"__version__"}
    assert imported <= MAY_IMPORT[part], f"{path.name} imports {sorted(imported - MAY_IMPORT[part])}"


def test_nothing_is_called_utils() -> None:
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_heavy_imports_stay_in_their_adapters() -> None:
    allowed = {
        "diffusers": {"codec", "denoise", "weights"},
        "transformers": {"denoise", "perception"},
        "huggingface_hub": {"weights"},
        "peft": {"denoise"},
        "accelerate": {"weights", "training"},
        "depth_anything_3": {"perception"},
        "sam3": {"perception"},
        "lmdb": {"training"},
        "stable_baselines3": {"agents"},
        "imageio_ffmpeg": {"artefacts", "training"},
        "skimage": {"training", "evaluation"},
        "typer": {"cli"},
    }
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {node.module or ""}
            else:
                continue
            for module in modules:
                vendor = module.split(".")[0]
                assert part_of(path) in allowed.get(vendor, {part_of(path)}), f"{path} imports {module}"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light_and_registers() -> None:
    heavy = "torch diffusers transformers scipy stable_baselines3 matplotlib PIL typer"
    loaded = run(f"import sys, mirage_env; print([m for m in '{heavy}'.split() if m in sys.modules])")
    assert loaded == "[]"
    assert run("import mirage_env, gymnasium; print(sorted(n for n in gymnasium.registry if 'Mirage' in n))") == str(
        ["Mirage-v0", "MirageSim-v0", "MirageTwin-v0"]
    )


def test_help_needs_no_torch() -> None:
    code = "import sys, mirage_env.cli; print('torch' in sys.modules)"
    assert run(code) == "False"


def test_public_names_exist_and_unknown_ones_do_not() -> None:
    import mirage_env

    for name in mirage_env.__all__:
        assert getattr(mirage_env, name) is not None
    assert dir(mirage_env) == sorted(mirage_env.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mirage_env.nothing
