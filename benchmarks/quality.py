"""How good the embedded preset is on held-out scenes: walks beside their baselines, depth, and the codec alone.

python benchmarks/quality.py --out quality
python benchmarks/quality.py --scenes 64 --out quality
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mirage_env.artefacts import prepare_folder
from mirage_env.contact_sheet import Strip, contact_sheet
from mirage_env.evaluation.codec import codec_psnr, photographs
from mirage_env.evaluation.metrics import Interval, bootstrap
from mirage_env.evaluation.walks import (
    METRICS,
    STEP_M,
    TURN_DEG,
    WalkResult,
    evaluate_walk,
    held_out_walks,
    margin,
    summarise,
)
from mirage_env.simulator import FAMILIES, HELD_OUT_FAMILY
from mirage_env.world_model import load_world

MOMENTS = (0, 1, 4, 8, 12, 16, 20, 24, 28, 32)
"""Frames of a walk that stand on its sheet; 0 is the given one."""
ON_SHEETS = ("model", "no memory", "warp, true depth")
FLOORS = {
    "codec on simulator frames, dB": 27.0,
    "codec on photographs, dB": 22.0,
    "depth, absolute relative error": 0.15,
    "model over first frame repeated, dB": 0.0,
    "model over no memory, dB": 0.0,
    "model over warp with mean-colour holes, unseen cells, dB": 0.0,
}
"""What the embedded weights must reach; an error must stay below, a margin must lie above."""
console = Console(width=144)


def floors(results: Sequence[WalkResult], frames_db: Sequence[float], photos_db: Sequence[float]) -> list[Interval]:
    """The measured values of `FLOORS`, in their order."""
    return [
        bootstrap(frames_db),
        bootstrap(photos_db),
        bootstrap([r.scores["truth"]["depth_abs_rel"] for r in results]),
        margin(results, "model", "first frame"),
        margin(results, "model", "no memory"),
        margin(results, "model", "warp, true depth", "unseen_psnr_db"),
    ]


def shown(interval: Interval) -> str:
    """The mean, and its interval in grey."""
    if not interval.scenes:
        return ""
    digits = 1 if abs(interval.mean) >= 10 else 2 if abs(interval.mean) >= 1 else 3
    return f"{interval.mean:.{digits}f} [dim]({interval.low:.{digits}f}, {interval.high:.{digits}f})[/]"


def verdict(value: Interval, floor: float, below: bool) -> str:
    """Met or missed by the mean; uncertain where the interval holds the floor."""
    met = value.mean < floor if below else value.mean > floor
    word = "[green]met[/]" if met else "[red]missed[/]"
    return f"{word}, uncertain:" if value.low <= floor <= value.high else f"{word}:"


def walk_table(title: str, results: Sequence[WalkResult]) -> Table:
    table = Table(title=f"{title}: {len(results)} walks, mean and 95% interval over scenes")
    table.add_column("frames 1 to 32", no_wrap=True)
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, scores in summarise(results).items():
        table.add_row(name, *(shown(scores[metric]) for metric in METRICS))
    return table


def family_table(groups: dict[str, list[WalkResult]]) -> Table:
    table = Table(title="By family: psnr_db of the model and its margins, depth_abs_rel in true frames")
    columns = ("family", "walks", "model", "over first frame", "over no memory", "over warp, unseen", "depth error")
    for column in columns:
        table.add_column(column, justify="left" if column == "family" else "right", no_wrap=True)
    for name, results in groups.items():
        *_, depth, first, memory, unseen = floors(results, [], [])
        model = summarise(results)["model"]["psnr_db"]
        table.add_row(name, str(len(results)), *(shown(x) for x in (model, first, memory, unseen, depth)))
    return table


def sheet(result: WalkResult) -> Image.Image:
    """Truth, model, no memory and warp at `MOMENTS`."""
    moments = torch.tensor([i for i in MOMENTS if i < len(result.walk.truth)])
    strips = [Strip("truth", "", result.walk.truth.rgb[moments].numpy())]
    for name in ON_SHEETS:
        scores = result.scores[name]
        unseen = "" if math.isnan(scores["unseen_psnr_db"]) else f"\n{scores['unseen_psnr_db']:.1f} dB unseen"
        pictures = torch.cat([result.walk.truth.rgb[:1], result.guesses[name].rgb])[moments]
        strips.append(Strip(name, f"{scores['psnr_db']:.1f} dB{unseen}", pictures.numpy()))
    return contact_sheet(
        strips,
        title=f"{result.walk.family}, seed {result.walk.seed}",
        subtitle="frame 0 is given; PSNR of static pixels over all frames after it",
        frame_labels=[str(int(i)) for i in moments],
        picture_px=128,
    )


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes, one walk of 33 frames each.")] = 16,
    out: Annotated[Path, typer.Option(help="Where quality.json and the contact sheets go.")] = Path("quality"),
    preset: Annotated[str, typer.Option(help="Which model, by name, or the path of a .yaml file.")] = "mirage-tiny",
    size: Annotated[int, typer.Option(help="Side of the square frames in pixels.")] = 128,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    sheets: Annotated[int, typer.Option(min=0, help="At most so many contact sheets.")] = 10,
) -> None:
    """Measure the floors on held-out scenes, print them, and write them with contact sheets."""
    folder = prepare_folder(out)
    model = load_world(preset, (size, size), device)
    results, frames_db = [], []
    for i, walk in enumerate(track(held_out_walks(scenes, (size, size)), "walks", total=scenes, console=console)):
        result = evaluate_walk(model, walk)
        frames_db.append(float(codec_psnr(model, walk.truth.rgb).mean()))
        if i < sheets:
            sheet(result).save(folder / f"{i:02d}-{walk.family}.png")
        results.append(WalkResult(walk, {}, result.scores))  # pictures of many walks would fill the memory
    photos = {name: codec_psnr(model, pictures) for name, pictures in photographs((size, size)).items()}
    photos_db = [float(values.mean()) for values in photos.values()]

    families = {name: [r for r in results if r.walk.family == name] for name in (*FAMILIES, HELD_OUT_FAMILY)}
    groups = {"all": results, "known families": [r for r in results if r.walk.family in FAMILIES], **families}
    groups = {name: group for name, group in groups.items() if group}
    measured = floors(results, frames_db, photos_db)

    table = Table(title=f"Floors at {size} x {size}, seeds 0 to {scenes - 1}")
    for column in ("what", "floor", "measured"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for (name, floor), value in zip(FLOORS.items(), measured, strict=True):
        table.add_row(name, f"{floor:g}", f"{verdict(value, floor, below='error' in name)} {shown(value)}")
    console.print(table)
    console.print(walk_table("All families", results))
    console.print(family_table(groups))
    photo_table = Table("photograph", title="Codec on photographs, PSNR in dB: mean and range of five crops")
    photo_table.add_column("dB", justify="right")
    for name, values in photos.items():
        photo_table.add_row(name, f"{values.mean():.2f} [dim]{values.min():.2f} to {values.max():.2f}[/]")
    console.print(photo_table)

    about = {
        "preset": preset,
        "weights_sha256": model.weights,
        "size": size,
        "scenes": scenes,
        "step_m": STEP_M,
        "turn_deg": TURN_DEG,
        "floors": {
            name: value._asdict() | {"floor": FLOORS[name]} for name, value in zip(FLOORS, measured, strict=True)
        },
        "summary": {
            name: {c: {m: v._asdict() for m, v in s.items()} for c, s in summarise(group).items()}
            for name, group in groups.items()
        },
        "walks": [{"family": r.walk.family, "seed": r.walk.seed, "scores": r.scores} for r in results],
        "codec_frames_db": frames_db,
        "codec_photographs_db": {name: values.tolist() for name, values in photos.items()},
    }
    (folder / "quality.json").write_text(json.dumps(without_nan(about), indent=1))
    console.print(f"{folder / 'quality.json'} and {min(sheets, scenes)} contact sheets beside it")


def without_nan(value: object) -> object:
    """JSON has no NaN: null stands for what has no score."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    typer.run(main)
