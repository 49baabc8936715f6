"""What the table and the curves of benchmarks/learning.py are made of."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")

from mirage_env.errors import InvalidValueError

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "learning.py"
spec: Any = importlib.util.spec_from_file_location("benchmark_of_learning", SOURCE)
learning = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(learning)

HALF = learning.Setting(4, "hold", 32)


def test_a_setting_learns_with_its_chunk_and_is_examined_without(tmp_path: Path) -> None:
    assert learning.Setting.parse("4:hold:32") == HALF
    config = learning.configured("explore", HALF, tmp_path, None)
    learns, walks = config.world.kwargs, config.test.kwargs
    assert (learns["chunk"], learns["feedback"], learns["size"], learns["task"]) == (4, "hold", [32, 32], "explore")
    assert (walks["chunk"], walks["size"], config.test.id) == (1, [32, 32], "MirageSim-v0")
    with pytest.raises(InvalidValueError, match='a setting must look like 4:draft:64, got "4:draft"'):
        learning.Setting.parse("4:draft")


def test_the_table_has_a_row_a_setting_and_goes_on_where_it_was(tmp_path: Path) -> None:
    points = [
        {"seconds": 4.0, "steps": 100, "scores": [1.0, 3.0]},
        {"seconds": 10.0, "steps": 250, "scores": [4.0] * 2},
    ]
    for folder, found in (("random", [{"seconds": 0.0, "steps": 0, "scores": [1.0, 1.0]}]), (HALF.folder, points)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "points.json").write_text(json.dumps(found))
    other = learning.Setting(1, "draft", 64)
    table = learning.write_report(tmp_path, "explore", [HALF, other], [4.0, 8.0, 16.0])
    assert "| chunk 4 hold, 32 px | 40.0 | 250 | 2.00 (1.00 to 3.00) | 4.00 (4.00 to 4.00) | - | - |" in table
    assert "| random | - | 0 | 1.00 (1.00 to 1.00) | - | - | - |" in table
    assert other.name not in table  # it has no point yet
    curves = ElementTree.fromstring((tmp_path / "learning.svg").read_text("utf-8"))
    assert len(curves.findall("{*}polyline")) == 1 and len(curves.findall("{*}circle")) == 3

    (tmp_path / other.folder).mkdir()
    (tmp_path / other.folder / "points.json").write_text(json.dumps([{**points[0], "scores": [2.0, 4.0]}]))
    table = learning.write_report(tmp_path, "explore", [HALF, other], [4.0, 8.0])
    assert "| chunk 1, 64 px | 40.0 | 100 | 3.00 (2.00 to 4.00) | - | +1.00 (+1.00 to +1.00) |" in table

    config = learning.configured("explore", HALF, tmp_path, None)
    learning.learn(config, "explore", tmp_path / HALF.folder, [4.0, 8.0], episodes=1)
    assert not (tmp_path / HALF.folder / learning.CHECKPOINT).exists()  # both points are there already
