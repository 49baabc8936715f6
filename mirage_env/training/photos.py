"""Photographs for the codec: any folder of pictures becomes a stack of random crops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mirage_env.errors import ImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def photo_crops(folder: Path, size: int, crops_a_photo: int, seed: int) -> Iterator[np.ndarray]:
    """Square uint8 crops (size, size, 3) of every picture below `folder`, of random place, scale and mirroring.

    The pictures come in random order. A crop covers between a quarter of the shorter side and all of it, reduced with
    antialiasing, so that textures come at every scale. Raises `ImageError` where there is no picture.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.is_symlink())
    if not paths:
        raise ImageError(f"no pictures ({', '.join(sorted(SUFFIXES))}) below {folder}; name a folder that holds some")
    rng = np.random.default_rng(seed)
    for path in rng.permutation(np.array(paths, dtype=object)):  # so that the last ones, held out, are any
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        image.thumbnail((2048, 2048), Image.Resampling.BOX)
        short = min(image.size)
        for _ in range(crops_a_photo):
            side = int(np.clip(short * np.exp(rng.uniform(np.log(0.25), 0.0)), min(size, short), short))
            left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
            crop = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
            pixels = np.asarray(crop)
            yield np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels
