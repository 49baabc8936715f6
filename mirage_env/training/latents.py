"""What is learned from, computed once: image latents, predicted depth, and walks of an earlier model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mirage_env.codec.wan import WanCodec, to_float
from mirage_env.perception.tiny import Perceived, Perception, TinyPerception
from mirage_env.precision import fast_autocast
from mirage_env.training.clips import ClipStore
from mirage_env.types import Cameras, Frames, SceneSpec
from mirage_env.world_model import WorldModel

Report = Callable[[int, int], None]
"""(clips done, clips in all)"""


def latents_name(codec_hash: str) -> str:
    return f"latents-{codec_hash[:12]}"


def depth_name(perception_hash: str) -> str:
    return f"predicted-depth-{perception_hash[:12]}"


def walked_name(denoiser_hash: str) -> str:
    return f"walked-{denoiser_hash[:12]}"


def glimpse_name(denoiser_hash: str) -> str:
    return f"glimpse-{denoiser_hash[:12]}"


def glimpse_stride(row: int, strides: tuple[int, ...]) -> int:
    """Every how many-th frame of its clip a walk of `glimpse_clips` meets."""
    return strides[row % len(strides)]


def encode_latents(store: ClipStore, codec: WanCodec, codec_hash: str, report: Report, device: str = "cpu") -> None:
    """Adds every frame's image latent (C, h, w) to a store, once for the codec that made it."""
    name, codec = latents_name(codec_hash), codec.to(device)

    def fill(out: np.ndarray) -> None:
        rgb = store.array("rgb")
        with torch.inference_mode(), fast_autocast(device):
            for i in range(len(out)):
                out[i] = codec.encode(to_float(torch.from_numpy(np.array(rgb[i])).to(device))).float().cpu().numpy()
                report(i + 1, len(out))

    if not store.has(name):
        store.add({name: (codec.channels, *codec.latent_size(store.config.size))}, fill)


def predict_depth(
    store: ClipStore,
    perception: TinyPerception,
    perception_hash: str,
    cell_px: int,
    report: Report,
    device: str = "cpu",
) -> None:
    """Adds every frame's predicted depth (H, W) in metres to a store, once for the weights that made it.

    It is cut free of its own scale error: every frame of a clip keeps the error of the clip's first frame, as a rollout
    does whose chunks are aligned to its memory.
    """
    name, perception = depth_name(perception_hash), perception.to(device)
    length, (height, width) = store.config.frames, store.config.size
    unknown = torch.zeros(length, height // cell_px, width // cell_px, device=device)

    def fill(out: np.ndarray) -> None:
        rgb, true_depth, masks = (store.array(x) for x in ("rgb", "depth", "masks"))
        with torch.inference_mode(), fast_autocast(device):
            for i in range(len(out)):
                cameras = store.cameras(np.full(length, i), np.arange(length)).to(device)
                images = to_float(torch.from_numpy(np.array(rgb[i])).to(device))
                depth = perception(images, cameras, unknown, 0.0).depth_m.cpu()
                truth, solid = torch.from_numpy(true_depth[i].astype(np.float32)), torch.from_numpy(masks[i] == 0)
                log_error = torch.where(solid, (depth / truth.clamp_min(1e-2)).log(), torch.nan)
                bias = log_error.flatten(1).nanmedian(1).values.nan_to_num(0.0)
                out[i] = (depth * (bias[0] - bias).exp()[:, None, None]).numpy()
                report(i + 1, len(out))

    if not store.has(name):
        store.add({name: (height, width)}, fill)


def walk_clips(store: ClipStore, model: WorldModel, denoiser_hash: str, count: int, chunk: int, report: Report) -> None:
    """Adds walks of `model` along the first `count` clips, once for its denoiser: what a rollout holds of every frame.

    Two arrays of `count` rows: image latents of the generated frames (the first frame is the true one), and the depth
    seen in them, in metres. A denoiser that learns from them meets its own errors before its user does.
    """
    name, frames = walked_name(denoiser_hash), store.config.frames
    count = min(count, len(store))

    def fill(latents: np.ndarray, depth: np.ndarray) -> None:
        for i in range(count):
            walk = list(walk_along(model, store, i, np.arange(frames), chunk))
            with torch.inference_mode(), model.precision():
                seen = model.codec.encode(to_float(torch.cat([part.rgb for part in walk])))
            latents[i] = seen.float().cpu().numpy()
            depth[i] = torch.cat([part.depth_m for part in walk]).cpu().numpy()
            report(i + 1, count)

    if not all(map(store.has, (name, f"{name}-depth"))):
        shapes = {name: (model.codec.channels, *model.latent_size), f"{name}-depth": store.config.size}
        store.add(shapes, fill, rows=count)


def glimpse_clips(
    store: ClipStore,
    model: WorldModel,
    denoiser_hash: str,
    count: int,
    strides: tuple[int, ...],
    chunks: tuple[int, ...],
    report: Report,
) -> None:
    """Adds what the eyes of `model` are shown on walks of its own, once for its denoiser.

    Each of the last `count` clips is a row, walked along with every `glimpse_stride(row, strides)`-th of its frames and
    in chunks of one of the given lengths. Two arrays, zero at frames that were left out: pictures (3, H, W) from 0 to
    255, and the depth (h, w) that the memory showed with them, in metres, 0 for nothing. Frames of a chunk do not know
    one another, whatever `keyframes_first` says.
    """
    name, cell, count = glimpse_name(denoiser_hash), model.codec.spatial_stride, min(count, len(store))
    eyes = _Glimpses(model.perception)
    model = model.with_perception(eyes)
    model.preset = replace(model.preset, keyframes_first=False)

    def fill(pictures: np.ndarray, known: np.ndarray) -> None:
        for row in range(count):
            moments = np.arange(0, store.config.frames, glimpse_stride(row, strides))
            chunk = chunks[row // len(strides) % len(chunks)]
            eyes.shown.clear()
            for _ in walk_along(model, store, len(store) - count + row, moments, chunk):
                pass
            images, depths = zip(*eyes.shown, strict=True)
            pictures[row, moments] = ((torch.cat(images) + 1) * 127.5).round().cpu().numpy()
            known[row, moments] = torch.cat(depths).cpu().numpy()
            report(row + 1, count)

    if not all(map(store.has, (name, f"{name}-memory"))):
        height, width = store.config.size
        shapes = {name: (3, height, width), f"{name}-memory": (height // cell, width // cell)}
        store.add(shapes, fill, rows=count)


class _Glimpses:
    """Eyes that note what they are shown: pictures, and the depth that the memory shows with them."""

    def __init__(self, eyes: Perception):
        self._eyes, self.frames_alone, self.max_depth_m = eyes, eyes.frames_alone, eyes.max_depth_m
        self.shown: list[tuple[Tensor, Tensor]] = []

    def __call__(self, images: Tensor, cameras: Cameras, memory_depth_m: Tensor, floor_y: float | Tensor) -> Perceived:
        self.shown.append((images.float(), memory_depth_m.float()))
        return self._eyes(images, cameras, memory_depth_m, floor_y)


def walk_along(model: WorldModel, store: ClipStore, clip: int, moments: np.ndarray, chunk: int) -> Iterator[Frames]:
    """The first frame, and so many more at a time, of a walk along some moments of a clip."""
    cameras = store.cameras(np.full(len(moments), clip), moments)
    poses = cameras.world_from_camera.clone()
    floor_y = float(-poses[0, 1, 3])  # a world's origin is its first camera, a clip's lies on its floor
    poses[:, :3, 3] -= cameras.world_from_camera[0, :3, 3]
    cameras = replace(cameras, world_from_camera=poses)
    picture = store.array("rgb")[clip, moments[0]]
    first, state = model.begin(SceneSpec(poses[0], cameras.intrinsics_px[0], floor_y, picture), seed=clip)
    yield first
    for start in range(1, len(moments), chunk):
        part, state = model.advance(state, cameras[start : start + chunk])
        yield part
