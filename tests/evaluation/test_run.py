"""A run from scenes to a page, over walls instead of rendered scenes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from mirage_env.evaluation import lpips
from mirage_env.evaluation.candidates import STANDARD, Candidate, repeat
from mirage_env.evaluation.metrics import Interval
from mirage_env.evaluation.plots import (
    bar_chart,
    gap_chart,
    interval_chart,
    line_chart,
    number,
    point_chart,
    standalone,
)
from mirage_env.evaluation.report import write_report
from mirage_env.evaluation.run import SceneResult, moments, run_suite
from mirage_env.evaluation.scores import METRICS, Score
from mirage_env.evaluation.suites import Suite, Take
from mirage_env.evaluation.summary import Bar, as_json, curve, gap_closed, margin, pooled_iou, readout_table, summarise
from mirage_env.evaluation.walk import Walk


@dataclass(frozen=True)
class WallTake(Take):
    id: str
    truth: Walk

    def walk(self, size):
        return self.truth


@pytest.fixture
def suite(make_walk):
    ways = ([0.1 * i for i in range(11)], [0.0, 0.3, 0.0])
    takes = (WallTake(f"wall-{i}", replace(make_walk(way), pairs=((0, len(way) - 1),))) for i, way in enumerate(ways))
    return Suite("walls", 1, "walks along a wall", tuple(takes))


def test_a_run_is_kept_and_goes_on(model, suite, tmp_path):
    asked = []

    def counted(model, walk):
        asked.append(walk.name)
        return repeat(model, walk)

    several = {"model": Candidate("counted", counted), "codec": STANDARD["codec"]}
    told = []
    results = run_suite(suite, model, several, tmp_path, report=lambda *now: told.append(now))
    assert told == [(0, 2, "wall-0"), (1, 2, "wall-1"), (2, 2, "")]
    assert len(asked) == 2 and [r.id for r in results] == ["wall-0", "wall-1"]
    again = run_suite(suite, model, several | {"first-frame": STANDARD["first-frame"]}, tmp_path)
    assert len(asked) == 2 and list(again[0].scores) == ["model", "codec", "first-frame"]
    for name in METRICS:
        first, second = (r.value("model", name) for r in (results[0], again[0]))
        assert first == pytest.approx(second, nan_ok=True)
        assert again[0].value("first-frame", name) == pytest.approx(first, nan_ok=True)
    run_suite(suite, model, {"model": Candidate("never kept", counted, key=None)}, tmp_path, scenes=1)
    assert len(asked) == 3
    run_suite(replace(suite, version=2), model, several, tmp_path)
    assert len(asked) == 5
    more_keyframes = model.with_parts()
    more_keyframes.preset = replace(model.preset, max_keyframes=3)
    run_suite(replace(suite, version=2), more_keyframes, several, tmp_path)
    assert len(asked) == 7  # the weights alone do not say what a model answers
    assert not list(tmp_path.rglob("*.partial"))


def test_the_report_is_one_whole_page(model, suite, tmp_path):
    results = run_suite(suite, model, STANDARD, tmp_path)
    data, html = write_report(tmp_path, suite, model, STANDARD, results, "a preset")
    values = json.loads(data.read_text())
    assert values["results"]["summary"]["codec"]["psnr_db"]["scenes"] == 2 and values["lpips"] == lpips.ABSENT
    assert values["results"]["scenes"][0]["scores"]["first-frame"]["depth_abs_rel"] is None
    page = html.read_text()
    assert page.startswith("<!doctype html>") and "nan" not in re.sub(r'src="[^"]+"', "", page).lower()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing to be fetched
    for text in (
        "walks along a wall",
        "no memory",
        "warp true depth",
        "The model less its rivals",
        "Readout",
        "bilinear",
        "LPIPS is left out",
    ):
        assert text in page
    assert page.count("data:image/jpeg") == 2 * len(("truth", "model", "no-memory", "warp-true-depth", "codec"))


def result(number: int = 0, **psnr_db: float) -> SceneResult:
    blank = dict.fromkeys(METRICS, math.nan)
    scores = {n.replace("_", "-"): Score({**blank, "psnr_db": x}, [x, x + 1], []) for n, x in psnr_db.items()}
    return SceneResult(f"scene-{number}", scores, dict.fromkeys(scores, 1.0), {}, Path())


def test_summaries_margins_and_the_headline():
    results = [
        result(model=20.0, warp_true_depth=15.0, codec=25.0),
        result(model=26.0, warp_true_depth=25.0, codec=35.0),
    ]
    summary = summarise(results)
    assert summary["model"] == {"psnr_db": Interval(23.0, 20.0, 26.0, 2)}
    assert margin(results, "codec", "warp-true-depth") == (10.0, 10.0, 10.0, 2)
    over = as_json(results, "novel-view")["model_over"]
    assert over["codec"]["psnr_db"] == {"mean": -7.0, "low": -9.0, "high": -5.0, "scenes": 2} and "model" not in over
    assert gap_closed(results) == (pytest.approx(0.3), pytest.approx(0.1), pytest.approx(0.5), 2)
    assert [x.mean for x in curve(results, "model")] == [23.0, 24.0]
    assert math.isnan(results[0].value("nobody", "psnr_db")) and readout_table(results) == {}


def test_masks_are_scored_over_all_pixels_of_a_suite():
    """A scene without sky in which a few pixels are taken for it counts by them; one with neither does not."""
    blank = dict.fromkeys(METRICS, math.nan)
    pixels = [(90, 100), (0, 5), (0, 0), None]
    results = [
        SceneResult(str(k), {"eye": Score(blank, [], [], {} if x is None else {"sky_iou": x})}, {}, {}, Path())
        for k, x in enumerate(pixels)
    ]
    found = pooled_iou(results, "eye", "sky_iou")
    assert (found.mean, found.low, found.high, found.scenes) == (pytest.approx(90 / 105), 0.0, 0.9, 2)
    assert summarise(results) == {"eye": {"sky_iou": found}}
    assert pooled_iou(results, "eye", "dynamic_iou").scenes == 0 == pooled_iou(results, "nobody", "sky_iou").scenes


def test_bars():
    def verdicts(bar: Bar, *means: float) -> list[str]:
        return [bar.verdict(Interval(mean, mean, mean, 1)) for mean in means]

    nothing = Interval(math.nan, math.nan, math.nan, 0)
    up, down = Bar("up", 1.0, 2.0, lambda _: nothing), Bar("down", 0.2, 0.1, lambda _: nothing)
    ratio = Bar("ratio", 0.6, 0.8, lambda _: nothing, spread=True)
    assert verdicts(up, 0.9, 1.0, 2.1) == ["missed", "floor", "aim"]
    assert verdicts(down, 0.3, 0.2, 0.05) == ["missed", "floor", "aim"]
    assert verdicts(ratio, 0.5, 1.35, 1.1, 1.5) == ["missed", "floor", "aim", "missed"]
    assert up.verdict(nothing) == "unknown"


def test_moments_begin_and_end_with_the_walk():
    assert moments(33) == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    assert moments(3) == [0, 1, 2]


def test_plots_place_what_they_show():
    """Ticks 0, 10, 20 over 246 pixels from y = 14: 5 lies a quarter of the way up."""
    chart = line_chart({"model": [Interval(5.0, 0.0, 20.0, 3), Interval(15.0, 10.0, 20.0, 3)]}, "frame", "dB")
    (line,) = re.findall(r'<polyline points="([^"]+)"', chart)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.split())
    assert (x0, x1) == (52.0, 530.0) and y0 > y1
    assert (y0 + y1) / 2 == pytest.approx(14 + 246 * (1 - (10 - 5) / 10), abs=0.2)
    assert line_chart({"model": []}, "", "") == "" and interval_chart({}, "dB") == ""
    dots = interval_chart({"a": Interval(1.0, 0.5, 1.5, 2), "b": Interval(2.0, 2.0, 2.0, 2)}, "dB", {"floor": 1.0})
    first, second = (float(x) for x in re.findall(r'cx="([\d.]+)"', dots))
    (mark,) = re.findall(r'class="mark" x1="([\d.]+)"', dots)
    assert first == float(mark) < second
    assert (number(12.34), number(1.234), number(0.1234), number(math.nan)) == ("12.3", "1.23", "0.123", "-")
    assert (number(-999.96), number(38082.3)) == ("-1000.0", "38,082")


def test_points_lie_where_their_numbers_are():
    """0 to 200 over 468 pixels from x = 52; ticks 0 to 20 over 306 from y = 14."""
    chart = point_chart({"a-b": [(0.0, 0.0), (50.0, 20.0), (200.0, 10.0)], "c": [(100.0, 10.0)]}, "seconds", "m")
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert dots == [(52.0, 320.0), (169.0, 14.0), (520.0, 167.0), (286.0, 167.0)]
    ends = re.findall(r'y="([\d.]+)" style="fill:#\w+">([^<]+)', chart)
    assert [name for _, name in ends] == ["a b: 10.0", "c: 10.0"]
    assert float(ends[1][0]) - float(ends[0][0]) >= 15  # names of lines that end together stand apart
    assert point_chart({}, "", "") == "" and standalone("") == ""
    picture = ElementTree.fromstring(standalone(chart))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg" and len(picture.findall("{*}circle")) == 4


def test_the_headline_is_drawn_to_scale():
    """Four marks over 984 pixels from x = 24: 10 to 20 dB, so that 15 lies in the middle and 17.5 at three quarters."""
    marks = {"warp-true-depth": 10.0, "codec": 20.0, "model": 15.0, "no-memory": 17.5}
    drawn = gap_chart(marks, "warp-true-depth", "codec", "model", "dB")
    places = {
        float(x): (float(r), colour)
        for x, r, colour in re.findall(r'cx="([\d.]+)" cy="46" r="(\d)" fill="(#\w+)"', drawn)
    }
    assert set(places) == {24.0, 516.0, 762.0, 1008.0} and places[516.0][0] == 9.0
    assert len({colour for _, colour in places.values()}) == 4
    assert "model 15.0 dB" in drawn and "no memory 17.5" in drawn
    value = Interval(0.5, 0.4, 0.6, 3)
    assert 'cx="140.0"' in bar_chart(value, 0.0, 1.0)  # half of the way from 110 to 170
    assert 'cx="140.0"' in bar_chart(Interval(1.5, 1.5, 1.5, 3), 0.0, 1.0, spread=True)


def test_colours_stay_with_their_rows():
    def colour(rows: list[str], name: str) -> str:
        chart = interval_chart({row: Interval(i, i - 1, i + 1, 2) for i, row in enumerate(rows)}, "dB")
        dots = re.findall(r'<circle [^>]*fill="(#\w+)"', chart)
        return dots[rows.index(name)]

    assert colour(["model", "codec", "mine"], "codec") == colour(["other", "codec"], "codec")
    assert colour(["model", "mine", "yours"], "mine") != colour(["model", "mine", "yours"], "yours")


def test_lpips_by_given_weights(tmp_path, monkeypatch):
    """Random weights in place of AlexNet's: equal pictures do not differ, others do."""
    pictures = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not lpips.found()
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    weights = {}
    for layer, (outputs, inputs, side) in shapes.items():
        weights[f"features.{layer}.weight"] = torch.randn(outputs, inputs, side, side) * 0.05
        weights[f"features.{layer}.bias"] = torch.zeros(outputs)
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / lpips.BACKBONE)
    assert lpips.found()
    with pytest.raises(FileNotFoundError, match="its sha256 does not begin as its name says"):
        lpips.lpips(pictures, pictures)
    monkeypatch.setattr(lpips, "_load", lambda path, hashed: torch.load(path, "cpu", weights_only=True))
    noisy = pictures.int().add(30).clamp(max=255).to(torch.uint8)
    noisy[1] = pictures[1]
    far, near = lpips.lpips(noisy, pictures).tolist()
    assert far > 0 and near == 0
