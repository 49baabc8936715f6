"""One self-contained HTML page of a suite's results: the headline, tables, plots, and pictures to judge by eye."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mirage_env.artefacts import versions
from mirage_env.evaluation import lpips
from mirage_env.evaluation.candidates import REFERENCES, Candidate
from mirage_env.evaluation.metrics import Interval
from mirage_env.evaluation.plots import bar_chart, gap_chart, interval_chart, line_chart, number
from mirage_env.evaluation.readout import READOUT_METRICS
from mirage_env.evaluation.run import TRUTH, SceneResult, moments, names_of, write_json
from mirage_env.evaluation.scores import METRICS
from mirage_env.evaluation.suites import Suite
from mirage_env.evaluation.summary import (
    BARS,
    as_json,
    curve,
    depth_curve,
    gap_closed,
    margin,
    margins,
    readout_table,
    summarise,
)
from mirage_env.resources import revision
from mirage_env.world_model import WorldModel

STRIPS = 6
"""How many scenes are shown: the best, the worst and those between, evenly."""
_ORDER = (TRUTH, "model", "no-memory", "warp-true-depth", "codec")
"""Rows of pictures come in this order, then all others."""
_HIDDEN = ("first-frame", "warp-predicted-depth")
"""Rows of pictures that are left out: they teach the eye nothing new."""


def write_report(
    folder: Path,
    suite: Suite,
    model: WorldModel,
    candidates: Mapping[str, Candidate],
    results: Sequence[SceneResult],
    preset: str,
) -> tuple[Path, Path]:
    """Writes report.json and report.html; returns their paths."""
    about = {
        "suite": suite.name,
        "version": suite.version,
        "about": suite.about,
        "scenes_run": len(results),
        "scenes_in_suite": len(suite.takes),
        "size": list(model.size),
        "preset": preset,
        "weights_sha256": model.weights,
        "lpips": "AlexNet" if lpips.found() else lpips.ABSENT,
        "revision": revision(),
        "versions": versions(),
        "candidates": {name: candidate.about for name, candidate in candidates.items()},
        "metrics": {name: metric.about for name, metric in METRICS.items()},
    }
    files = folder / "report.json", folder / "report.html"
    write_json(files[0], about | {"results": as_json(results, suite.name)})
    partial = files[1].with_suffix(".partial")
    partial.write_text(page(about, candidates, results), encoding="utf-8")
    partial.replace(files[1])
    return files


def print_summary(console: Console, suite: str, results: Sequence[SceneResult]) -> None:
    """The bars and the main scores, for a terminal."""
    from rich.table import Table

    for bar in BARS.get(suite, []):
        value = bar.measure(results)
        if value.scenes:
            console.print(
                f"{bar.label}: [bold]{number(value.mean)}[/] [dim]({_range(value)})[/], floor {bar.floor:g}, "
                f"aim {bar.aim:g}: {_VERDICTS[bar.verdict(value)]}"
            )
    scores = summarise(results)
    scored = next(iter(scores.values()), {})
    metrics = [m for m in scored if not METRICS[m].pooled and m != "depth_aligned_abs_rel"]
    table = Table(title=f"{suite}: means over {len(results)} scenes")
    table.add_column("", no_wrap=True)
    for metric in metrics:
        table.add_column(METRICS[metric].label, justify="right")
    for name, row in scores.items():
        table.add_row(name, *(number(row[m].mean) for m in metrics))
    console.print(table)


def page(about: Mapping[str, Any], candidates: Mapping[str, Candidate], results: Sequence[SceneResult]) -> str:
    """The HTML."""
    suite, names = str(about["suite"]), list(names_of(results))
    lead, table = _lead(results), summarise(results)
    by_frame = {n: curve(results, n) for n in names if n != "codec"}
    by_chunk = {n: depth_curve(results, n) for n in names}
    decibels = {n: row["psnr_db"] for n, row in table.items() if "psnr_db" in row}
    dots = line_chart(by_frame, "frame", "PSNR, dB", lead)
    if dots:  # without a truth the codec would stand alone
        dots = interval_chart(decibels, "dB") + dots
    depth = line_chart(by_chunk, "chunk of 8 frames", "absolute relative error", lead)
    studied = "; ".join(f"{name.replace('_', ' ')}: {what}" for name, what in READOUT_METRICS.items())
    figures = _strips(results)
    first = figures.pop(len(figures) // 2)
    means = "Means over scenes with their 95 % intervals."
    sections = [
        _head(about, results, lead),
        _section("Look", first, "The scene of middling score; the first picture of every row is given."),
        _bars(suite, results) if lead == "model" else "",
        _section("PSNR", f"<div class=pair>{dots}</div>" if dots else "", means),
        _section("Scores", _scores(table, candidates) + _legend(table), means),
        _over(results, table, candidates) if lead == "model" else "",
        "<div class=pair>",
        _section("Depth error", depth, "Metric, static pixels without sky; perception sees true pictures one by one."),
        _section("Readout", _readout(results), f"Of the first picture written at true depth. {studied}."),
        "</div>",
        _section("More scenes", "".join(figures), "From the lowest score to the highest."),
        _section("Scenes", _scenes(results, names), ""),
    ]
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(suite)}: Mirage env evaluation</title><style>{style}</style>"
        f"<main>{''.join(sections)}</main></html>\n"
    )


def _lead(results: Sequence[SceneResult]) -> str:
    """The candidate that the report is about."""
    return "model" if any("model" in result.scores for result in results) else "submission"


def _head(about: Mapping[str, Any], results: Sequence[SceneResult], lead: str) -> str:
    share = gap_closed(results, lead)
    figures = []
    if share.scenes:
        figures.append((f"{100 * share.mean:.0f} %", "of the gap from warp to codec closed", _range(share, 100, " %")))
    table = summarise(results).get(lead, {})
    for metric in ("psnr_db", "revisit_psnr_db", "ssim"):
        if metric in table and table[metric].scenes:
            value, shown = table[metric], METRICS[metric]
            figures.append((f"{number(value.mean)} {shown.unit}", shown.label, _range(value)))
    against = margin(results, lead, "no-memory", "psnr_db")
    if lead == "model" and against.scenes:
        figures.append((f"{against.mean:+.1f} dB", "over no memory", _range(against)))
    cards = "".join(f"<div><b>{a}</b><span>{escape(b)}</span><small>{c}</small></div>" for a, b, c in figures)
    weights = ", ".join(f"{part} {digest[:8]}" for part, digest in about["weights_sha256"].items()) or "none"
    total, (height, width) = about["scenes_in_suite"], about["size"]
    facts = (
        f"{about['scenes_run']} of {total} scenes · version {about['version']} · {height} x {width} · "
        f"{escape(str(about['preset']))} · weights {escape(weights)} · revision {escape(str(about['revision'])[:10])}"
    )
    missing = "" if lpips.found() else f"<p class=note>{escape(lpips.ABSENT)}.</p>"
    return (
        f"<header><p class=kicker>Mirage env · evaluation</p><h1>{escape(str(about['suite']))}</h1>"
        f"<p>{escape(str(about['about']))}.</p><p class=facts>{facts}</p></header>"
        f"<div class=cards>{cards}</div>{_gap(results, lead)}{missing}"
    )


def _gap(results: Sequence[SceneResult], lead: str) -> str:
    """The headline as a picture."""
    table = summarise(results)
    marks = {n: row["psnr_db"].mean for n, row in table.items() if "psnr_db" in row and row["psnr_db"].scenes}
    shown = {
        n: mean for n, mean in marks.items() if n in (lead, "no-memory", "warp-true-depth", "first-frame", "codec")
    }
    if not {lead, "warp-true-depth", "codec"} <= set(shown):
        return ""
    return gap_chart(shown, "warp-true-depth", "codec", lead, "dB")


def _bars(suite: str, results: Sequence[SceneResult]) -> str:
    rows = []
    for bar in BARS.get(suite, []):
        value = bar.measure(results)
        verdict = bar.verdict(value)
        within = f" (within {bar.floor:g} to {2 - bar.floor:g})" if bar.spread else ""
        rows.append(
            f"<tr><th>{escape(bar.label)}</th><td>{bar.floor:g}{within}</td><td>{bar.aim:g}</td>"
            f"<td>{_cell(value)}</td><td class={verdict}>"
            f"{bar_chart(value, bar.floor, bar.aim, bar.spread) if value.scenes else ''}</td>"
            f"<td class={verdict}>{_VERDICTS[verdict]}</td></tr>"
        )
    if not rows:
        return ""
    head = "<tr><th></th><th>floor</th><th>aim</th><th>measured</th><th class=ends>floor, aim</th><th></th></tr>"
    return _section(
        "Bars", f"<table>{head}{''.join(rows)}</table>", "What the shipped weights should reach at 128 x 128."
    )


def _scores(table: Mapping[str, Mapping[str, Interval]], candidates: Mapping[str, Candidate]) -> str:
    metrics = list(next(iter(table.values()), {}))
    head = "".join(f'<th title="{escape(METRICS[m].about)}">{escape(METRICS[m].label)}</th>' for m in metrics)
    rows = []
    for name, row in table.items():
        about = escape(candidates[name].about) if name in candidates else ""
        cells = "".join(f"<td>{_cell(row[m])}</td>" for m in metrics)
        rows.append(f'<tr><th title="{about}">{escape(name.replace("-", " "))}</th>{cells}</tr>')
    return f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def _over(
    results: Sequence[SceneResult], table: Mapping[str, Mapping[str, Interval]], candidates: Mapping[str, Candidate]
) -> str:
    """The model against no memory, ablations and other models; the references' distance is plain from their scores."""
    rivals = {name: row for name, row in table.items() if name not in REFERENCES}
    note = "Means over scenes of differences in the same scene with their 95 % intervals; above 0 the model has more."
    rows = margins(results, rivals)
    return _section("The model less its rivals", _scores(rows, candidates) if rows else "", note)


def _legend(table: Mapping[str, Mapping[str, Interval]]) -> str:
    metrics = list(next(iter(table.values()), {}))
    arrows = {"up": "higher is better", "down": "lower is better", "one": "1 is best"}
    rows = (
        f"<dt>{METRICS[m].label}</dt><dd>{escape(METRICS[m].about)}; {arrows[METRICS[m].better]}</dd>" for m in metrics
    )
    return f"<details><summary>What the scores are</summary><dl>{''.join(rows)}</dl></details>"


def _readout(results: Sequence[SceneResult]) -> str:
    table = readout_table(results)
    if not table:
        return ""
    head = "".join(f"<th>{escape(m.replace('_', ' '))}, %</th>" for m in READOUT_METRICS)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{_cell(row[m], 100)}</td>' for m in READOUT_METRICS)}</tr>"
        for name, row in table.items()
    )
    return f"<table><tr><th>depth brought down by</th>{head}</tr>{rows}</table>"


def _strips(results: Sequence[SceneResult]) -> list[str]:
    """A figure a scene, the worst first."""
    lead = _lead(results)
    ranked = sorted(results, key=lambda r: -np.inf if isnan(v := r.value(lead, "psnr_db")) else v)
    chosen = [ranked[i] for i in sorted({round(x) for x in np.linspace(0, len(ranked) - 1, STRIPS)})]
    blocks = []
    for result in chosen:
        files = {file.stem: file for file in result.strips.glob("*.jpg") if file.stem in (TRUTH, *result.scores)}
        rows = []
        for name in [n for n in _ORDER if n in files] + sorted(set(files) - {*_ORDER, *_HIDDEN}):
            score = result.value(name, "psnr_db")
            note = "" if isnan(score) else f"{score:.1f} dB"
            alone = _alone(files[name])
            label = "given" if alone and name == TRUTH else name.replace("-", " ")
            picture = base64.b64encode(files[name].read_bytes()).decode()
            rows.append(
                f"<div class='row {'lead' if name == lead else ''}'>"
                f"<span>{escape(label)}<small>{note}</small></span>"
                f"<span class='frames {'given' if alone else ''}' style='--n:{1 if alone else len(_moments(result))}'>"
                f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{picture}"></span></div>'
            )
        blocks.append(f"<figure><figcaption>{escape(result.id)}</figcaption>{''.join(rows)}{_ruler(result)}</figure>")
    return blocks


def _moments(result: SceneResult) -> list[int]:
    """Which frames stand on the scene's strips."""
    return moments(1 + max((len(score.psnr_db) for score in result.scores.values()), default=0))


def _alone(file: Path) -> bool:
    """Whether a strip is a single picture."""
    from PIL import Image

    with Image.open(file) as picture:
        return picture.width == picture.height


def _ruler(result: SceneResult) -> str:
    """Frame numbers below the rows."""
    return f"<div class='row ruler'><span></span><div>{''.join(f'<i>{m}</i>' for m in _moments(result))}</div></div>"


def _scenes(results: Sequence[SceneResult], names: Sequence[str]) -> str:
    shown = [n for n in names if n != "perception"]
    known = any(not isnan(r.value(_lead(results), "psnr_db")) for r in results)
    metric = "psnr_db" if known else "revisit_psnr_db"
    head = "".join(f"<th>{escape(n.replace('-', ' '))}</th>" for n in shown)
    rows = []
    for result in results:
        cells = "".join(f"<td>{number(result.value(n, metric))}</td>" for n in shown)
        rows.append(f"<tr><th>{escape(result.id)}</th>{cells}</tr>")
    label = f"{METRICS[metric].label} of every scene, {METRICS[metric].unit}"
    table = f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    return f"<details><summary>{label}</summary>{table}</details>"


def _section(title: str, content: str, note: str) -> str:
    if not content:
        return ""
    return f"<section><h2>{escape(title)}</h2>{content}{f'<p class=note>{escape(note)}</p>' if note else ''}</section>"


def _cell(value: Interval, factor: float = 1.0, unit: str = "") -> str:
    if not value.scenes:
        return "<span class=none>-</span>"
    return f"{number(factor * value.mean)}{unit}<small>{_range(value, factor)}</small>"


def _range(value: Interval, factor: float = 1.0, unit: str = "") -> str:
    return f"{number(factor * value.low)} to {number(factor * value.high)}{unit}"


_VERDICTS = {"aim": "aim reached", "floor": "floor reached", "missed": "missed", "unknown": "not measured"}
