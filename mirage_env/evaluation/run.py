"""A suite, scene by scene; every scene's scores are kept, so that a run goes on where it was cut off."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mirage_env.artefacts import prepare_folder
from mirage_env.evaluation import lpips
from mirage_env.evaluation.candidates import Candidate, latent_config
from mirage_env.evaluation.codec import codec_psnr, crops, photograph
from mirage_env.evaluation.readout import readout_study
from mirage_env.evaluation.scores import METRICS, Judge, Score
from mirage_env.evaluation.suites import PhotographTake, Suite, Take, cached_walk
from mirage_env.evaluation.walk import Walk
from mirage_env.world_model import WorldModel

FORMAT = 1
"""Of a scene's file; raised when scores change their meaning."""
COLUMNS = 9
"""Pictures of a strip."""
TRUTH = "truth"


@dataclass(frozen=True)
class SceneResult:
    """Scores of every candidate on one scene."""

    id: str
    scores: dict[str, Score]
    seconds: dict[str, float]
    """What each candidate took."""
    readout: dict[str, dict[str, float]]
    """See `readout.readout_study`."""
    strips: Path
    """A folder with one picture a candidate, and the truth's: `COLUMNS` moments side by side."""

    def value(self, candidate: str, metric: str) -> float:
        """NaN where there is none."""
        score = self.scores.get(candidate)
        return math.nan if score is None else score.values[metric]


def run_suite(
    suite: Suite,
    model: WorldModel,
    candidates: Mapping[str, Candidate],
    folder: Path,
    *,
    scenes: int | None = None,
    cache: Path | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> list[SceneResult]:
    """Every candidate on the suite's first `scenes` scenes, or on all. `report(done, total, note)` after each scene.

    What `folder` holds of an earlier run with the same suite, weights, preset and size is not worked out again.
    """
    takes = suite.takes[:scenes]
    preset = repr(model.preset)
    about = [FORMAT, suite.name, suite.version, model.size, model.weights, preset, lpips.found(), list(METRICS)]
    results = []
    for done, take in enumerate(takes):
        report(done, len(takes), take.id)
        results.append(_scene(take, model, candidates, prepare_folder(folder), about, cache))
    report(len(takes), len(takes), "")
    return results


def _scene(
    take: Take,
    model: WorldModel,
    candidates: Mapping[str, Candidate],
    folder: Path,
    about: list[Any],
    cache: Path | None,
) -> SceneResult:
    """One scene, with what its file holds taken from there."""
    file, strips = folder / "scenes" / f"{take.id}.json", folder / "strips" / take.id
    key = hashlib.sha256(json.dumps([*about, str(take)], default=str).encode()).hexdigest()
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if stored.get("key") != key:
        stored = {"key": key, "candidates": {}, "readout": None}
    kept = stored["candidates"]
    missing = {n: c for n, c in candidates.items() if c.key is None or kept.get(n, {}).get("key") != c.key}
    if missing or stored["readout"] is None:
        walk = cached_walk(take, model.size, cache)
        judge = Judge.of(walk, model.latent_size)
        save_strip(strips / f"{TRUTH}.jpg", walk, walk.goal.rgb if walk.pictures else None)
        for name, candidate in missing.items():
            if not candidate.answers(walk):
                continue
            start = time.perf_counter()
            guess = candidate.answer(model, walk)
            seconds = time.perf_counter() - start
            if guess.rgb is not None:
                save_strip(strips / f"{name}.jpg", walk, guess.rgb)
            kept[name] = {"key": candidate.key, "seconds": seconds, "score": asdict(judge.score(guess))}
        if "codec" in missing and isinstance(take, PhotographTake):
            kept["codec"] = {"key": "", "seconds": 0.0, "score": asdict(_codec_alone(model, take.id))}
        stored["readout"] = readout_study(walk, model.latent_size, latent_config(model))
        write_json(file, stored)
    answered = {name: kept[name] for name in candidates if name in kept}
    scores = {name: Score(**_nan(entry["score"])) for name, entry in answered.items()}
    seconds_of = {name: entry["seconds"] for name, entry in answered.items()}
    return SceneResult(take.id, scores, seconds_of, _nan(stored["readout"]), strips)


def _codec_alone(model: WorldModel, name: str) -> Score:
    """The codec on five crops of a photograph, which has no true pictures along a walk."""
    decibels = float(codec_psnr(model, crops(photograph(name), model.size)).mean())
    return Score({**dict.fromkeys(METRICS, math.nan), "psnr_db": decibels}, [], [])


def moments(count: int) -> list[int]:
    """Which frames of a walk stand on a strip: the given one, then evenly spread ones up to the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, COLUMNS)})


def save_strip(path: Path, walk: Walk, goal: torch.Tensor | None) -> None:
    """The given picture and the moments of `goal` side by side; without a goal the given picture alone."""
    frames = walk.truth.rgb[:1] if goal is None else torch.cat([walk.truth.rgb[:1], goal])[moments(len(walk.truth))]
    prepare_folder(path.parent)
    Image.fromarray(np.concatenate(list(frames.numpy()), 1)).save(path, quality=92, subsampling=0)


def write_json(path: Path, values: Any) -> None:
    """Atomically; NaN, which JSON does not know, becomes null."""
    prepare_folder(path.parent)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_null(values), allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan(value: Any) -> Any:
    """The inverse of `_null`, for numbers."""
    if isinstance(value, dict):
        return {key: _nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_nan(inner) for inner in value]
    return math.nan if value is None else value


def names_of(results: Sequence[SceneResult]) -> Iterator[str]:
    """Candidates that answered any scene, in their order."""
    yield from dict.fromkeys(name for result in results for name in result.scores)
