"""What remembering costs: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mirage_env.cli.console import Meter, out


def bench(
    full: Annotated[
        bool, typer.Option("--full", help="704 x 1280 with the architecture of Wan2.2's VAE; minutes, 8 GB.")
    ] = False,
    chunks: Annotated[int, typer.Option(min=1, help="How many chunks both memories grow over.")] = 10,
    endless: Annotated[
        int | None,
        typer.Option(min=11, help="Instead: walk on for so many chunks; what the last costs beside the 10th."),
    ] = None,
    rule: Annotated[str, typer.Option(help="paper: every cell and pixel is stored. novel: what is new.")] = "paper",
    folder: Annotated[Path, typer.Option("--out", help="bench.json and bench.html go there.")] = Path("bench"),
    preset: Annotated[str, typer.Option(help="Which model, where not --full.")] = "mirage-tiny",
) -> None:
    """What remembering costs: latent beside RGB memory, in time and bytes, chunk by chunk (the paper's Figure 5).

    [dim]mirage-env bench --chunks 20 --out bench[/]
    [dim]mirage-env bench --endless 1000 --out bench[/]
    """
    import torch

    from mirage_env.artefacts import prepare_folder
    from mirage_env.evaluation import memory_bench as measure

    target = prepare_folder(folder)
    if endless is not None:
        _bench_endless(target, endless, full, preset)
        return
    split: dict[str, dict[str, float]] = {}
    encode_ms = None
    if full:
        scale = measure.FULL
        with Meter("one encode", 1, "pictures") as meter:
            encode_ms = measure.encode_once(measure.WAN22, scale.size)
            meter.update(1, 1)
        encode = measure.no_encode(scale)
    else:
        from mirage_env.world_model import load_world

        model = load_world(preset, device="cpu")
        scale, encode = measure.tiny(model), model.encode
        with Meter("whole chunks", 1, "chunks") as meter:
            split = measure.end_to_end(model, max(5, chunks), meter.update)
    with torch.inference_mode():
        with Meter("chunks", chunks, "chunks") as meter:
            costs = measure.over_chunks(scale, chunks, encode, rule, meter.update, encode_ms)
        grown = measure.growth()
    ways = measure.bytes_every_way(scale, 5)
    files = measure.write_report(target, scale, costs, ways, grown, split)
    _print_bench(scale, costs, ways, split)
    for file in files:
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix == ".html" else "")


def _bench_endless(target: Path, chunks: int, full: bool, preset: str) -> None:
    """The whole model in small pictures and its memory alone; with `full`, the memory of the paper's size alone."""
    import torch
    from rich.table import Table

    from mirage_env.evaluation import endless
    from mirage_env.evaluation import memory_bench as measure
    from mirage_env.memory import LatentMemory, Memory, MemoryConfig
    from mirage_env.world_model import load_world

    walks = []
    scale = measure.FULL
    memory: Memory = LatentMemory(MemoryConfig(max_points=2**20, token_dtype="float16"))
    if not full:
        small = load_world(preset, (64, 64), device="cpu")
        with Meter("whole chunks", chunks, unit="chunks") as meter:
            walks.append(endless.whole_chunks(small, chunks, meter.update))
        scale, memory = measure.tiny(load_world(preset, device="cpu")), small.memory
    with torch.inference_mode(), Meter("memory alone", chunks, unit="chunks") as meter:
        walks.append(endless.memory_alone(scale, memory, chunks, meter.update))
    for walk in walks:
        rows = Table(title=f"{walk.name}: {walk.about}")
        for column in ("chunk", "points", "memory MiB", "resident MiB", "read ms", "write ms", "all ms"):
            rows.add_column(column, justify="right")
        for mark in walk.marks:
            sizes = f"{mark.points:,}", f"{mark.bytes / 2**20:.2f}", f"{mark.resident_mib:.0f}"
            rows.add_row(f"{mark.chunk:,}", *sizes, *(f"{mark.ms[part]:.1f}" for part in ("read", "write", "all")))
        for after, row in ((endless.EARLY, walk.early_ms), (chunks, walk.late_ms)):
            rows.add_row(f"{after:,} in turn", "", "", "", *(f"{row[part]:.1f}" for part in ("read", "write", "all")))
        out.print(rows)
        grew = f"resident memory {walk.growth_mib:+.0f} MiB over the second half"
        out.print(f"{walk.name}: chunk {chunks:,} costs [bold]{walk.ratio:.2f}x[/] chunk {endless.EARLY}; {grew}\n")
    for file in endless.write_report(target, walks):
        out.print(f"  {escape(str(file))}", style="bold" if file.suffix == ".html" else "")


def _print_bench(scale, costs, ways, split) -> None:  # type: ignore[no-untyped-def]
    from rich.table import Table

    from mirage_env.evaluation.memory_bench import PAPER_SPEED

    table = Table(title=f"{scale.name}: one read of one frame, and the cache")
    for column in ("chunk", "latent ms", "RGB ms", "of it encode", "ratio", "latent MiB", "RGB MiB", "ratio"):
        table.add_column(column, justify="right")
    for latent, rgb in zip(costs["latent"], costs["rgb"], strict=True):
        table.add_row(
            str(latent.chunk), f"{latent.read_ms:.2f}", f"{rgb.read_ms:,.1f}", f"{rgb.encode_ms:,.1f}",
            f"{rgb.read_ms / latent.read_ms:,.1f}", f"{latent.bytes / 2**20:.2f}", f"{rgb.bytes / 2**20:.1f}",
            f"{rgb.bytes / latent.bytes:.1f}",
        )  # fmt: skip
    out.print(table)
    table = Table(title="Cache at chunk 5, every cell and pixel stored; the paper says 55")
    for column in ("stored", "counted", "latent MiB", "RGB MiB", "ratio"):
        table.add_column(column, justify="left" if column in ("stored", "counted") else "right")
    for way in ways:
        sizes = (f"{way['latent'] / 2**20:.2f}", f"{way['rgb'] / 2**20:.1f}", f"{way['ratio']:.1f}")
        table.add_row(way["stored"], way["counted"], *sizes)
    out.print(table)
    if split:
        table = Table(title="One chunk of 8 frames, end to end, ms; see: depth and masks")
        parts = list(dict.fromkeys(part for row in split.values() for part in row))
        for column in ("memory", *parts):
            table.add_column(column, justify="right")
        for name, row in split.items():
            table.add_row(name, *(f"{row.get(part, 0.0):.1f}" for part in parts))
        out.print(table)
        ratio = split["rgb"]["all"] / split["latent"]["all"]
        out.print(f"end to end the RGB memory takes [bold]{ratio:.2f}x[/] as long; the paper says {PAPER_SPEED}x\n")
