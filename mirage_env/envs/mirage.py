"""Mirage-v0: walk into a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import logger
from gymnasium.utils import EzPickle

from mirage_env.envs.env import WalkEnv
from mirage_env.envs.world import SceneSpec
from mirage_env.errors import ImageError, InvalidValueError, UnknownNameError, check_array, check_size
from mirage_env.images import DEFAULT_IMAGE, LoadedImage, check_image, load_image

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MOST_DRAWN = 10
"""So many damaged pictures in a row are no accident."""


class MirageEnv(WalkEnv):
    """The world that Mirage generates from one image (id `Mirage-v0`).

    Args:
        image: the first frame: a path, the name of a built-in picture, or an array. Prefer names to arrays in
            `gym.make`: it copies its arguments, and only names can be written to JSON.
        images: a pool to draw from at each reset: a folder, a text file with one path a line (relative to the file,
            `#` begins a comment), or a list of anything that `image` takes. Without either, a built-in picture. One
            that cannot be used is named in a warning and left out.
        preset, weights: the model, and a folder of weights of your own for it, see `mirage_env.world_model.load_world`.
        prompt: words that accompany the image, for presets that read text.
        size: (H, W) of the frames.
        device: where the model runs; "auto" is a GPU where there is one.
        **walk: everything else is shared by all worlds, see `WalkEnv`.

    `reset(options={"image": ...})` begins one episode at another picture; `intrinsics` (K in pixels of `size`),
    `prompt` and `depth` (H, W; metres along the view, 0 where unknown) may accompany it.
    """

    reset_options = (*WalkEnv.reset_options, "image", "intrinsics", "depth", "prompt")

    def __init__(
        self,
        image: Any = None,
        images: Any = None,
        *,
        preset: str = "mirage-tiny",
        prompt: str | None = None,
        size: Sequence[int] = (128, 128),
        device: str = "auto",
        weights: str | Path | None = None,
        **walk: Any,
    ):
        from mirage_env.world_model import load_world

        EzPickle.__init__(
            self, image, images, preset=preset, prompt=prompt, size=size, device=device, weights=weights, **walk
        )
        if sum(given is not None for given in (image, images, walk.get("world"))) > 1:
            raise InvalidValueError("give one of image, images and world, not several")
        self.prompt, size = prompt, check_size(size)
        if images is None:
            self.pool = [DEFAULT_IMAGE if image is None else image]
        else:
            self.pool = usable_pictures(picture_pool(images), size)
        WalkEnv.__init__(self, load_world(preset, size, device, weights), **walk)
        self._only = load_image(self.pool[0], self.world.size) if len(self.pool) == 1 else None

    def scene(self, options: Mapping[str, Any]) -> tuple[SceneSpec, dict[str, Any]]:
        source = options.get("image")
        picture = self._drawn() if source is None else load_image(source, self.world.size)
        intrinsics_px, about = self.lens(picture.fov_deg, options.get("intrinsics"))
        depth_m = options.get("depth")
        if depth_m is not None:
            depth_m = check_array("depth", np.nan_to_num(depth_m, posinf=0.0, neginf=0.0), self.world.size)
        scene = SceneSpec(
            self.first_camera(),
            intrinsics_px,
            self.camera_height_m,
            image=picture.rgb,
            prompt=options.get("prompt", self.prompt),
            depth_m=depth_m,
        )
        return scene, {"image": picture.source, "image_sha256": picture.sha256, **about}

    def _drawn(self) -> LoadedImage:
        """A picture of the pool; one that turns out to be damaged below its header is named and another is drawn."""
        if self._only is not None:
            return self._only
        bad: list[str] = []
        while len(bad) < MOST_DRAWN:
            try:
                return load_image(self.pool[int(self.np_random.integers(len(self.pool)))], self.world.size)
            except ImageError as error:
                bad.append(str(error))
                logger.warn(f"another picture of the pool is drawn: {error}")
        raise ImageError(f"{len(bad)} pictures drawn in a row cannot be used; the last: {bad[-1]}")


def usable_pictures(pool: Sequence[Any], size: tuple[int, int]) -> list[Any]:
    """The pool without what cannot be a first frame of `size`, as far as the headers of files tell.

    Each picture that is left out is named in a warning; ImageError is raised where none is left.
    """
    usable, problems = [], []
    for source in pool:
        try:
            check_image(source, size)
            usable.append(source)
        except (ImageError, UnknownNameError) as error:
            problems.append(error)
    if not usable:
        raise ImageError(f"none of the {len(pool)} pictures can be used; the first: {problems[0]}")
    for problem in problems:
        logger.warn(f"left out of the pool: {problem}")
    return usable


def picture_pool(images: Any) -> list[Any]:
    """The pictures that `images` names, in a stable order; raises ImageError when there are none."""
    if not isinstance(images, (str, Path)):
        if not isinstance(images, Iterable):
            raise ImageError(f"images must be a folder, a text file or a list of pictures, got {images!r}")
        pool = list(images)
    elif (path := Path(images).expanduser()).is_dir():
        pool = sorted(str(file) for file in path.glob("[!.]*") if file.suffix.lower() in PICTURE_SUFFIXES)
    elif path.is_file():
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except UnicodeDecodeError:
            raise ImageError(
                f"{images} is not a list of pictures; images takes a folder or a text file with one path a line, "
                "image takes one picture"
            ) from None
        pool = [str(path.parent / line) for line in lines if line and not line.startswith("#")]
    else:
        raise ImageError(f"no folder or list of pictures at {images}")
    if not pool:
        raise ImageError(f"images {images!r} holds no picture; known suffixes are {', '.join(PICTURE_SUFFIXES)}")
    return pool
