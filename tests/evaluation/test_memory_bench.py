"""The bench on a room so small that its numbers of points are known; nothing here asserts a time."""

import json

import pytest
import torch

from mirage_env.evaluation import memory_bench as bench
from mirage_env.evaluation.plots import log_chart
from mirage_env.types import Cameras

SCALE = bench.Scale("small", (32, 48), channels=16, stride=8, temporal_stride=1, views=4, keyframes=2)


def run(chunks: int, encode_ms: float | None = None) -> dict[str, list[bench.ChunkCost]]:
    return bench.over_chunks(SCALE, chunks, bench.no_encode(SCALE), "paper", lambda done, total: None, encode_ms)


def test_the_room_is_a_box() -> None:
    cameras = bench.walk(40, (16, 24))
    from mirage_env.geometry.projection import backproject

    points = backproject(bench.room_depth(cameras), cameras)
    to_wall = (points.abs() - torch.tensor(bench.HALF_ROOM_M)).abs().amin(-1)
    assert float(to_wall.max()) < 1e-4 and isinstance(cameras, Cameras)


def test_points_and_bytes_grow_as_counted_by_hand() -> None:
    costs = run(3)
    keys = [3, 5, 7]  # the first frame, then two a chunk
    assert [c.chunk for c in costs["latent"]] == [1, 2, 3]
    assert [c.points for c in costs["rgb"]] == [k * 32 * 48 for k in keys]
    assert [c.bytes for c in costs["rgb"]] == [k * 32 * 48 * 27 for k in keys]
    assert all(
        0 < c.points <= k * 24 and c.bytes == c.points * (24 + 32) for c, k in zip(costs["latent"], keys, strict=True)
    )


def test_an_encode_that_was_timed_before_is_added() -> None:
    (cost,) = run(1, encode_ms=5000.0)["rgb"]
    assert cost.encode_ms == 5000.0 < cost.read_ms


def test_the_formula_of_the_paper_is_among_the_ways_to_count() -> None:
    ways = bench.bytes_every_way(bench.FULL, 5)
    assert ways[0]["ratio"] == pytest.approx(256 * 3 / 48)
    assert ways[3]["ratio"] == pytest.approx(256 * 24 / 204)
    all_frames = (9 * 4 * 5 + 1) / (2 * 5 + 1)
    assert ways[8]["ratio"] == pytest.approx(ways[3]["ratio"] * all_frames)


def test_the_report_holds_what_was_measured(tmp_path) -> None:
    costs = run(2)
    split = {"latent": {"read": 1.0, "all": 4.0}, "rgb": {"read": 7.0, "all": 10.0}}
    grown = {"points": [(10.0, 1.0), (100.0, 9.0)]}
    files = bench.write_report(tmp_path, SCALE, costs, bench.bytes_every_way(SCALE, 5), grown, split)
    measured = json.loads(files[0].read_text())
    assert measured["summary"]["bytes_ratio"] == costs["rgb"][1].bytes / costs["latent"][1].bytes
    assert measured["chunks"]["rgb"][1]["points"] == 5 * 32 * 48
    page = files[1].read_text()
    assert "2.50x" in page and page.count("<svg") == 3


def test_a_report_without_whole_chunks(tmp_path) -> None:
    _, page = bench.write_report(tmp_path, SCALE, run(1), [], {}, {})
    assert "end to end" not in page.read_text() and "A whole chunk" not in page.read_text()


def test_a_power_law_is_straight() -> None:
    picture = log_chart({"a": [(1, 10), (10, 100), (100, 1000)]}, "n", "ms")
    dots = [
        tuple(float(p.split('"')[1]) for p in dot.split("cx=")[1].split("cy=")[:1])
        for dot in picture.split("<circle ")[1:]
    ]
    xs = [d[0] for d in dots]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert log_chart({}, "n", "ms") == ""
