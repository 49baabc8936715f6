"""From scenes to numbers with intervals: means, margins, the headline, and the bars that a release must clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mirage_env.evaluation.metrics import Interval, bootstrap, bootstrap_ratio
from mirage_env.evaluation.readout import DOWNSAMPLINGS, READOUT_METRICS
from mirage_env.evaluation.run import SceneResult, names_of
from mirage_env.evaluation.scores import CHUNK, METRICS

Results = Sequence[SceneResult]


def summarise(results: Results) -> dict[str, dict[str, Interval]]:
    """candidate -> metric -> mean over scenes, or what all together score, with its 95% bootstrap interval, for metrics
    that anybody scored."""
    table = {name: {metric: _of(name, metric)(results) for metric in METRICS} for name in names_of(results)}
    scored = [m for m in METRICS if any(row[m].scenes for row in table.values())]
    return {name: {m: row[m] for m in scored} for name, row in table.items()}


def margin(results: Results, better: str, worse: str, metric: str = "psnr_db") -> Interval:
    """How much more `better` scores than `worse`, scene by scene: pairs cancel how hard the scenes are."""
    return bootstrap([r.value(better, metric) - r.value(worse, metric) for r in results])


def margins(results: Results, table: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, Interval]]:
    """`table`'s candidates -> its metrics -> how much more the model scores than they do, scene by scene."""
    rows = {n: {m: margin(results, "model", n, m) for m in row} for n, row in table.items() if n != "model"}
    return {name: row for name, row in rows.items() if any(value.scenes for value in row.values())}


def gap_closed(results: Results, candidate: str = "model") -> Interval:
    """The headline: which share of the PSNR gap from the true-depth warp to the codec's ceiling is closed."""
    warp = [r.value("warp-true-depth", "psnr_db") for r in results]
    return bootstrap_ratio(
        [r.value(candidate, "psnr_db") - w for r, w in zip(results, warp, strict=True)],
        [r.value("codec", "psnr_db") - w for r, w in zip(results, warp, strict=True)],
    )


def curve(results: Results, candidate: str) -> list[Interval]:
    """PSNR of every frame over scenes."""
    return _curve([r.scores[candidate].psnr_db for r in results if candidate in r.scores])


def depth_curve(results: Results, candidate: str) -> list[Interval]:
    """Depth error of every chunk of 8 frames over scenes."""
    return _curve([r.scores[candidate].depth_abs_rel for r in results if candidate in r.scores])


def _curve(rows: list[list[float]]) -> list[Interval]:
    length = max((len(row) for row in rows), default=0)
    columns = [[row[i] for row in rows if i < len(row)] for i in range(length)]
    return [interval for column in columns if (interval := bootstrap(column, 500)).scenes]


def readout_table(results: Results) -> dict[str, dict[str, Interval]]:
    """downsampling -> metric -> mean over scenes."""
    known = [r.readout for r in results if r.readout]
    if not known:
        return {}
    return {d: {m: bootstrap([r[d][m] for r in known]) for m in READOUT_METRICS} for d in DOWNSAMPLINGS}


@dataclass(frozen=True)
class Bar:
    """What the shipped weights should reach."""

    label: str
    floor: float
    aim: float
    measure: Callable[[Results], Interval]
    spread: bool = False
    """A ratio, of which both `floor` and 1 / `floor`-like bounds matter: floor to 2 - floor is met."""

    def verdict(self, value: Interval) -> Literal["aim", "floor", "missed", "unknown"]:
        """How far the mean comes."""
        if not value.scenes:
            return "unknown"
        if self.spread:
            off = abs(value.mean - 1.0)
            return "aim" if off <= 1.0 - self.aim else "floor" if off <= 1.0 - self.floor else "missed"
        sign = 1.0 if self.aim > self.floor else -1.0
        if sign * value.mean >= sign * self.aim:
            return "aim"
        return "floor" if sign * value.mean >= sign * self.floor else "missed"


def _of(candidate: str, metric: str) -> Callable[[Results], Interval]:
    if METRICS[metric].pooled:
        return lambda results: pooled_iou(results, candidate, metric)
    return lambda results: bootstrap([r.value(candidate, metric) for r in results])


def pooled_iou(results: Results, candidate: str, metric: str) -> Interval:
    """Over all pixels of all scenes together, as sets of masks are scored: by scene, one without any sky and with a
    false pixel of it would count 0. Scenes where neither truth nor candidate has any count for nothing."""
    known = [r.scores[candidate].overlap_px.get(metric, (0, 0)) for r in results if candidate in r.scores]
    pairs = [pair for pair in known if pair[1]]
    return bootstrap_ratio([both for both, _ in pairs], [either for _, either in pairs])


_NOVEL = [
    Bar("share of the gap closed", 0.4, 0.75, gap_closed),
    Bar("PSNR, dB", 19.0, 23.0, _of("model", "psnr_db")),
    Bar("SSIM", 0.72, 0.85, _of("model", "ssim")),
    Bar("invented: gradient energy over the truth's", 0.6, 0.8, _of("model", "invented_gradient_ratio"), spread=True),
    Bar("codec, dB", 28.0, 32.0, _of("codec", "psnr_db")),
    Bar("depth error, metric", 0.12, 0.06, _of("perception", "depth_abs_rel")),
    Bar("depth error, aligned", 0.10, 0.05, _of("perception", "depth_aligned_abs_rel")),
    Bar("moving things, IoU", 0.6, 0.8, _of("perception", "dynamic_iou")),
    Bar("sky, IoU", 0.9, 0.97, _of("perception", "sky_iou")),
]
BARS: dict[str, list[Bar]] = {
    "novel-view": _NOVEL,
    "held-out-family": _NOVEL,
    "closed-loop": [
        Bar("PSNR, last against first, dB", 20.0, 25.0, _of("model", "revisit_psnr_db")),
        Bar("SSIM, last against first", 0.75, 0.88, _of("model", "revisit_ssim")),
    ],
    "revisit-invented": [
        Bar(
            "PSNR between the visits over no memory, dB", 3.0, 6.0,
            lambda results: margin(results, "model", "no-memory", "revisit_psnr_db"),
        ),
        Bar("invented: gradient energy over the truth's", 0.6, 0.8, _of("model", "invented_gradient_ratio"), True),
    ],
    "long": [Bar("PSNR lost from chunk 2 to 16, dB", 2.0, 0.5, _of("model", "psnr_lost_db"))],
    "photos": [Bar("codec, dB", 23.0, 27.0, _of("codec", "psnr_db"))],
}  # fmt: skip
"""suite -> what is asked of the shipped weights at 128 x 128."""


def as_json(results: Results, suite: str) -> dict[str, Any]:
    """Everything above as JSON objects."""

    def plain(interval: Interval) -> dict[str, float]:
        return interval._asdict()

    def table(rows: dict[str, dict[str, Interval]]) -> dict[str, Any]:
        return {name: {metric: plain(value) for metric, value in row.items()} for name, row in rows.items()}

    names, summary = list(names_of(results)), summarise(results)
    measured = [(bar, bar.measure(results)) for bar in BARS.get(suite, [])]
    return {
        "gap_closed": {name: plain(value) for name in names if (value := gap_closed(results, name)).scenes},
        "summary": table(summary),
        "model_over": table(margins(results, summary)),
        "bars": [
            {"what": bar.label, "floor": bar.floor, "aim": bar.aim, "verdict": bar.verdict(v), **plain(v)}
            for bar, v in measured
        ],
        "psnr_by_frame": {name: [plain(x) for x in curve(results, name)] for name in names},
        "depth_error_by_chunk": {name: [plain(x) for x in depth_curve(results, name)] for name in names},
        "readout": table(readout_table(results)),
        "seconds_a_scene": {
            name: float(np.mean([r.seconds[name] for r in results if name in r.seconds])) for name in names
        },
        "chunk": CHUNK,
        "scenes": [{"id": r.id, "scores": {n: s.values for n, s in r.scores.items()}} for r in results],
    }
