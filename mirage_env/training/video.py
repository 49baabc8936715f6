"""Real videos as training clips: an LMDB store of pictures, latents, depth, masks, cameras and captions.

A store is a folder with store.json and one LMDB a shard. A video is cut into clips of `chunks` chunks, one frame of
overlap between two; everything that the networks of the preset see in them is computed here, once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import functional as F

from mirage_env.cameras_io import CameraPath, read_cameras
from mirage_env.codec.wan import WanCodec, to_float
from mirage_env.denoise.text import TEXT_TOKENS
from mirage_env.errors import InvalidValueError, MirageError
from mirage_env.memory.depth_grid import depth_to_grid
from mirage_env.memory.recall import recall
from mirage_env.perception import Perception
from mirage_env.training.chunks import Clip
from mirage_env.training.clips import DYNAMIC, SKY
from mirage_env.types import Cameras

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
PICTURES = (".jpg", ".jpeg", ".png")
_MAP_BYTES = 1 << 42
"""How far a shard may grow; LMDB takes the room as it fills."""
Report = Callable[[int, int, str], None]
"""(clips done, clips in all, note)"""
Embed = Callable[[Iterable[str | None]], Iterator[Float[Tensor, "1 l d"]]]
"""Captions, or None where there is none, to the embedding of each."""


class StoreError(MirageError, OSError):
    """A store that cannot be read or written."""


@dataclass(frozen=True)
class VideoConfig:
    """How videos are cut, in latent frames."""

    size: tuple[int, int] = (704, 1280)
    chunk: int = 8
    """New latent frames of a chunk."""
    chunks: int = 3
    key_stride: int = 4
    """Every how many-th latent frame can be a keyframe: its depth, masks, picture and image latent are kept."""
    references: int = 4
    """Past keyframes that are noted for a chunk, at most."""
    every: int = 1
    """Every how many-th picture of the video is taken."""

    def __post_init__(self) -> None:
        if min(self.chunk, self.chunks, self.key_stride, self.every) < 1 or self.chunk % self.key_stride:
            raise InvalidValueError(
                f"need counts of at least 1 and a chunk that is a multiple of key_stride, got {self}"
            )

    @property
    def frames(self) -> int:
        """Latent frames of a clip."""
        return 1 + self.chunk * self.chunks


@dataclass(frozen=True)
class Video:
    """A camera file with the pictures that belong to it."""

    name: str
    cameras: Path
    pictures: Path
    """A video, or a folder."""
    caption: str | None


def find_videos(folder: Path) -> list[Video]:
    """Every camera file below `folder` (RealEstate10K text or JSON) with the video or folder of its name beside it.

    NAME.caption.txt, where it is there, is what the video shows in words.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".json") and ".caption" not in p.suffixes)
    videos = []
    for path in files:
        beside = [path.with_suffix(suffix) for suffix in ("", *VIDEOS)]
        frames = path.parent.parent / "frames" / path.stem  # where `mirage-env export --to realestate10k` puts them
        pictures = next((p for p in (*beside, frames) if p.exists()), path.with_suffix(""))
        caption = path.with_suffix(".caption.txt")
        words = caption.read_text(encoding="utf-8").strip() if caption.exists() else None
        videos.append(Video(str(path.relative_to(folder).with_suffix("")), path, pictures, words))
    if not videos:
        raise InvalidValueError(
            f"no camera file below {folder}; a clip is NAME.txt (RealEstate10K) or NAME.json beside NAME.mp4 or a "
            "folder NAME of pictures"
        )
    return videos


def read_pictures(video: Video, cameras: CameraPath) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The picture of every camera, in turn; raises `InvalidValueError` where one is missing or cannot be read."""
    if not video.pictures.exists():
        raise InvalidValueError(f"there is no video or folder of pictures beside {video.cameras}")
    if video.pictures.is_dir():
        files = {path.stem: path for path in video.pictures.iterdir() if path.suffix.lower() in PICTURES}
        times = [] if cameras.timestamp_s is None else [str(round(float(t) * 1e6)) for t in cameras.timestamp_s]
        names = times if times and times[0] in files else sorted(files)
        if len(names) < len(cameras) or not all(name in files for name in names):
            raise InvalidValueError(f"{video.pictures} has {len(files)} pictures for {len(cameras)} cameras")
        for name in names[: len(cameras)]:
            with Image.open(files[name]) as picture:
                yield np.asarray(picture.convert("RGB"))
        return
    from imageio_ffmpeg import count_frames_and_secs

    try:
        total, seconds = count_frames_and_secs(str(video.pictures))
    except RuntimeError:
        raise InvalidValueError(f"{video.pictures} is damaged or no video") from None
    wanted: Sequence[int] = range(len(cameras))
    if cameras.timestamp_s is not None and total != len(cameras):  # cameras of some frames: their times tell which
        wanted = [round(float(t) * total / max(seconds, 1e-6)) for t in cameras.timestamp_s]
    given = 0
    for index, frame in enumerate(_decoded(video.pictures)):
        while given < len(wanted) and wanted[given] == index:
            yield frame
            given += 1
        if given == len(wanted):
            return
    raise InvalidValueError(f"{video.pictures} ends after {total} frames, before its last camera")


def _decoded(path: Path) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Every frame of a video. (imageio's own reader leaves its pipes open.)"""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "image2pipe", "-c:v", "ppm", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            while process.stdout.readline() == b"P6\n":
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # the largest value
                data = process.stdout.read(3 * width * height)
                if len(data) < 3 * width * height:
                    return
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        finally:
            process.kill()


def cropped(
    picture: UInt8[np.ndarray, "H W 3"], intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "3 3"]]:
    """The largest middle part of the shape of `size`, scaled to it, and K in its pixels; `intrinsics` is over sides."""
    height, width = picture.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    box_w, box_h = size[1] / scale, size[0] / scale
    left, top = (width - box_w) / 2, (height - box_h) / 2
    box = (left, top, left + box_w, top + box_h)
    part = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
    pixels = np.diag([width, height, 1.0]) @ intrinsics
    pixels[:2, 2] -= (left, top)
    return np.asarray(part), np.diag([scale, scale, 1.0]) @ pixels


def codec_hash(codec: WanCodec) -> str:
    """Tells codecs apart, by the tensors that make and read latents."""
    digest = hashlib.sha256()
    for tensor in (codec.vae.quant_conv.weight, codec.vae.post_quant_conv.weight, codec.mean, codec.std):
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


class VideoWriter:
    """Fills one shard of a store; opened again, it goes on."""

    def __init__(
        self, folder: Path, config: VideoConfig, codec: WanCodec, perception: Perception, embed: Embed,
        device: torch.device, shard: int = 0, shards: int = 1,
    ):  # fmt: skip
        self.config, self.codec, self.perception, self.embed, self.device = config, codec, perception, embed, device
        self.shard, self.shards = shard, shards
        folder.mkdir(parents=True, exist_ok=True)
        about = {**asdict(config), "size": list(config.size), "shards": shards, "codec_hash": codec_hash(codec)}
        path = folder / "store.json"
        if path.exists() and json.loads(path.read_text()) != about:
            raise InvalidValueError(f"{folder} holds a store of other settings ({path}); use another folder")
        partial = folder / f"store-{shard}.tmp"
        partial.write_text(json.dumps(about, indent=1) + "\n")
        os.replace(partial, path)
        self.path = folder / f"shard-{shard:04d}"

    def add(self, videos: Sequence[Video], report: Report = lambda done, total, note: None) -> dict[str, str]:
        """Adds this shard's share of the videos; returns those that were skipped, with the reason of each.

        A video that turns out to be damaged behind its first clips leaves these in the store. Raises `StoreError` where
        the store itself cannot be written.
        """
        import lmdb

        try:
            with lmdb.open(str(self.path), map_size=_MAP_BYTES) as store:
                return self._add(store, videos[self.shard :: self.shards], report)
        except lmdb.Error as error:
            raise StoreError(
                f"the store {self.path} cannot be written ({error}); free space or use another disk, the same command "
                "goes on"
            ) from None

    def _add(self, store: Any, videos: Sequence[Video], report: Report) -> dict[str, str]:
        def put(key: str, tensors: dict[str, Tensor]) -> None:
            with store.begin(write=True) as transaction:
                transaction.put(key.encode(), save_tensors({k: v.cpu().contiguous() for k, v in tensors.items()}))

        def missing(key: str) -> bool:
            with store.begin() as transaction:
                return transaction.get(key.encode()) is None

        todo = [video for video in videos if missing(f"done:{video.name}")]
        done, skipped = len(videos) - len(todo), dict[str, str]()
        report(done, len(videos), "captions")
        captions = [c for c in dict.fromkeys([None, *(video.caption for video in todo)]) if missing(_caption_key(c))]
        if captions:  # all of them before the first video, so that the text encoder is read once
            for caption, embedding in zip(captions, self.embed(captions), strict=True):
                put(_caption_key(caption), {"text": _trimmed(embedding[0])})
        for video in todo:
            report(done, len(videos), video.name)
            with store.begin() as transaction:
                text = load_tensors(transaction.get(_caption_key(video.caption).encode()))
            parts = 0
            try:
                for tensors in self._clips(video):
                    put(f"clip:{video.name}:{parts}", tensors | text)
                    parts += 1
                put(f"done:{video.name}", {})
            except (MirageError, OSError, ValueError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                skipped[video.name] = f"after {parts} clips, which are kept: {reason}" if parts else reason
            done += 1
        report(done, len(videos), f"{len(skipped)} skipped" if skipped else "")
        return skipped

    def _clips(self, video: Video) -> Iterator[dict[str, Tensor]]:
        path, config, stride = read_cameras(video.cameras), self.config, self.codec.temporal_stride
        if path.intrinsics is None:
            raise InvalidValueError(f"{video.cameras} has no lens; a clip needs intrinsics")
        length = 1 + (config.frames - 1) * stride
        taken = range(0, len(path), config.every)
        if len(taken) < length:
            raise InvalidValueError(f"it has {len(taken)} frames and a clip needs {length}; take fewer chunks")
        rgb: list[np.ndarray] = []
        lenses: list[np.ndarray] = []
        for index, picture in enumerate(read_pictures(video, path)):
            if index % config.every:
                continue
            pixels, lens = cropped(picture, path.intrinsics[index], config.size)
            rgb.append(pixels)
            lenses.append(lens)
            if len(rgb) == length:
                last = index // config.every
                numbers = list(taken[last - length + 1 : last + 1])
                poses = np.linalg.inv(path.world_from_camera[numbers[0]]) @ path.world_from_camera[numbers]
                cameras = Cameras(
                    torch.from_numpy(poses).float(), torch.from_numpy(np.stack(lenses)).float(), config.size
                )
                yield self._clip(np.stack(rgb), cameras.to(self.device))
                rgb, lenses = rgb[-1:], lenses[-1:]  # the next clip begins where this one ends

    @torch.inference_mode()
    def _clip(self, rgb: UInt8[np.ndarray, "T H W 3"], cameras: Cameras) -> dict[str, Tensor]:
        config, stride = self.config, self.codec.temporal_stride
        images = to_float(torch.from_numpy(rgb)).to(self.device)
        dtype = next(self.codec.parameters()).dtype
        nothing = images.new_zeros(1, *self.codec.latent_size(config.size))
        latents, depth, masks = [], [], []
        for chunk in range(config.chunks):
            begin = chunk * config.chunk * stride
            part = slice(begin, begin + config.chunk * stride + 1)
            video = self.codec.encode_video(images[part][None].to(dtype))[0].float()
            seen = self.perception(images[part], cameras[part], nothing.expand(len(images[part]), -1, -1), 0.0)
            keep = slice(0 if chunk == 0 else config.key_stride * stride, None, config.key_stride * stride)
            latents.append(video[0 if chunk == 0 else 1 :])
            depth.append(torch.where(torch.isfinite(seen.depth_m), seen.depth_m, 0.0)[keep])
            masks.append((seen.sky * SKY + seen.dynamic * DYNAMIC)[keep])
        keys = torch.arange(0, config.frames, config.key_stride)
        stills = torch.cat([self.codec.encode(images[k : k + 1].to(dtype)).float() for k in (keys * stride).tolist()])
        depth_m, mask, latent_size = torch.cat(depth), torch.cat(masks), self.codec.latent_size(config.size)
        grid, places = cameras[::stride].resized(latent_size), depth_to_grid(depth_m, mask == 0, latent_size)
        references = torch.full((config.chunks, config.references), -1)
        for chunk in range(1, config.chunks):
            overlap = chunk * config.chunk
            past = keys[keys < overlap].to(depth_m.device)
            best = recall(
                places[: len(past)], grid[past], grid[overlap + 1 : overlap + 1 + config.chunk], config.references
            )
            references[chunk, : len(best)] = past[best].cpu()
        pictures = {f"rgb.{i}": _jpeg(rgb[k]) for i, k in enumerate((keys * stride).tolist())}
        at = cameras[::stride]
        return pictures | {
            "latents": torch.cat(latents).half(),
            "stills": stills.half(),
            "depth_m": depth_m.half(),
            "masks": mask.to(torch.uint8),
            "references": references,
            "world_from_camera": at.world_from_camera,
            "intrinsics_px": at.intrinsics_px,
        }


class VideoClips:
    """Implements `ClipSource` over a store that `VideoWriter` filled."""

    def __init__(self, folder: Path, text_dropout: float = 0.0):
        path = folder / "store.json"
        if not path.exists():
            raise InvalidValueError(f"no store of videos in {folder}; make one with mirage-env data")
        values = json.loads(path.read_text())
        self.codec_hash, self.text_dropout = values.pop("codec_hash"), text_dropout
        shards = values.pop("shards")
        self.config = VideoConfig(**values | {"size": tuple(values["size"])})
        self.frames, self.key_stride = self.config.frames, self.config.key_stride
        self._shards = [_opened(p) for p in sorted(folder.glob("shard-*"))]
        if len(self._shards) != shards:
            raise InvalidValueError(
                f"the store {folder} should have {shards} shards, got {len(self._shards)}; let mirage-env data finish"
            )
        self._keys: list[tuple[int, bytes]] = []
        for shard, environment in enumerate(self._shards):
            with environment.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                self._keys += [(shard, bytes(key)) for key in keys if key.startswith(b"clip:")]
        # shuffled by video, so that what is held out is no neighbour of what is trained on
        self._keys.sort(key=lambda entry: (hashlib.sha256(entry[1].rpartition(b":")[0]).digest(), entry[1]))
        self._empty = self._get(0, _caption_key(None).encode())["text"] if self._keys else torch.zeros(0)

    def __len__(self) -> int:
        return len(self._keys)

    def overlaps(self, targets: int) -> Sequence[int]:
        """Latents were made chunk by chunk: one can only begin where they did."""
        if targets > self.config.chunk:
            raise InvalidValueError(f"the store's chunks have {self.config.chunk} frames, training asks for {targets}")
        return range(0, self.frames - 1, self.config.chunk)

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        tensors = self._get(*self._keys[index])
        latents, stills = tensors["latents"].float(), tensors["stills"].float()
        held = latents.clone()
        held[:: self.key_stride] = stills
        dropped = rng is not None and rng.random() < self.text_dropout
        words = (self._empty if dropped else tensors["text"]).float()
        rgb = [np.asarray(Image.open(io.BytesIO(tensors[f"rgb.{i}"].numpy().tobytes()))) for i in range(len(stills))]
        return Clip(
            Cameras(tensors["world_from_camera"], tensors["intrinsics_px"], self.config.size),
            latents,
            held,
            tensors["depth_m"].numpy(),
            tensors["masks"].numpy(),
            np.stack(rgb),
            F.pad(words, (0, 0, 0, TEXT_TOKENS - len(words)))[None],
            {i * self.config.chunk: [k for k in row if k >= 0] for i, row in enumerate(tensors["references"].tolist())},
        )

    def _get(self, shard: int, key: bytes) -> dict[str, Tensor]:
        with self._shards[shard].begin() as transaction:
            stored: bytes = transaction.get(key)
        return load_tensors(stored)


def _caption_key(caption: str | None) -> str:
    return "text:" + hashlib.sha256((caption or "").encode()).hexdigest()


def _trimmed(embedding: Float[Tensor, "l d"]) -> Float[Tensor, "words d"]:
    """Without the zeros after its last word."""
    return embedding[: int(embedding.abs().amax(1).nonzero().max()) + 1].half()


@cache
def _opened(shard: Path) -> Any:
    """LMDB wants a file opened once a process."""
    import lmdb

    try:
        return lmdb.open(str(shard), readonly=True, lock=False)
    except lmdb.Error as error:
        raise StoreError(
            f"the shard {shard} is damaged ({error}); delete its folder, and mirage-env data makes it anew"
        ) from None


def _jpeg(rgb: UInt8[np.ndarray, "H W 3"]) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=95, subsampling=0)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
