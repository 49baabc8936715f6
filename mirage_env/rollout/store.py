"""Episodes on disk. A unit is a few episodes in two files: an archive, and a sidecar that vouches for it.

    units/000/000012.zip     members are stored, not compressed again; each begins with its episode's number
        000096/episode.json          what it is and what made it, with its certificate
        000096/rgb/000000.png        8-bit RGB; or 000096/rgb.mp4, where video was chosen
        000096/depth/000000.png      16-bit grey, metres over `depth.unit_m`, 0 where not valid
        000096/world_from_camera.npy, intrinsics_px.npy, timestamp_s.npy, remembered.npy      one row a frame
        000096/actions.npy, rewards.npy                                                       one row a step
    units/000/000012.json    the archive's sha256, and a line about each episode; canonical, with its own sha256

Frame 0 is the picture that the episode began with, or the simulator's first view. All frames were generated: drafts
are never stored. The archive is written under another name and renamed when whole; then the sidecar is, and only then
does the unit exist. Equal configurations give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from mirage_env.artefacts import VideoFile, read_video
from mirage_env.errors import InvalidValueError, OutputError
from mirage_env.resources import sha256_of
from mirage_env.rollout import png
from mirage_env.rollout.certificate import Certifier
from mirage_env.types import Frames

FORMAT = "mirage-rollout 1"
DEPTH_LEVELS = 65535
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold: no clock in the bytes
_A_FRAME = ("world_from_camera", "intrinsics_px", "timestamp_s", "remembered")
_A_STEP = ("actions", "rewards")


@dataclass(frozen=True)
class Layout:
    """How pictures are written, the same for a whole run."""

    rgb: str = "png"
    """"png" is lossless, "video" is H.264 (crf 16, yuv420p)."""
    depth_unit_m: float = 0.001
    """Depth is rounded to whole units: the error is at most half of one. What exceeds 65535 units is not valid."""
    fps: float = 5.0
    """Frames a second, which only decides the timestamps."""

    def quantised(self, frames: Frames) -> UInt16[np.ndarray, "T H W"]:
        """Depth in units; 0 where there is none: sky, nothing finite and positive, or farther than 16 bits reach."""
        depth = frames.depth_m.float().cpu().numpy() / np.float32(self.depth_unit_m)
        known = np.isfinite(depth) & (depth > 0) & (depth < DEPTH_LEVELS + 0.5) & ~frames.sky.cpu().numpy()
        return np.where(known, np.rint(np.where(known, depth, 1.0)).clip(1, DEPTH_LEVELS), 0).astype(np.uint16)

    def about(self) -> dict[str, Any]:
        """For an episode's metadata."""
        depth = {"unit_m": self.depth_unit_m, "max_error_m": self.depth_unit_m / 2, "invalid": 0, "bits": 16}
        return {"rgb": "png" if self.rgb == "png" else "h264 crf 16 yuv420p", "depth": depth, "fps": self.fps}


class UnitWriter:
    """One unit on its way to the disk; it exists once `commit` has returned, and leaves nothing behind otherwise.

    The partial file is locked while it is written: what a killed process left is taken over, what a living one has in
    hand or has made whole is not, and `in_use` says so. Raises OutputError for a place that cannot be written to.
    """

    def __init__(self, archive: Path, layout: Layout):
        self.archive, self.layout, self.in_use = archive, layout, False
        self._partial = archive.with_name(f".{archive.stem}.partial")
        with _told(archive):
            archive.parent.mkdir(parents=True, exist_ok=True)
            file = _open_locked(self._partial)
            if file is not None and sidecar_of(archive).exists():  # made whole while this process came to it
                self._partial.unlink()
                file.close()
                file = None
        if file is None:
            self.in_use = True
            return
        self._file = file
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def beside(self, name: str) -> Path:
        """A place for a file that is written on the way."""
        return self._partial.with_name(f"{self._partial.name}.{name}")

    def write(self, name: str, data: bytes, deflate: bool = False) -> None:
        """Adds a member.

        `ZipFile.writestr` goes back to each header and flushes, which is half of what a small picture costs; here all
        that a header says is known beforehand.
        """
        entry = zipfile.ZipInfo(name, _EPOCH)
        entry.external_attr = 0o644 << 16
        entry.CRC, entry.file_size = zlib.crc32(data), len(data)
        if deflate:
            entry.compress_type = zipfile.ZIP_DEFLATED
            data = zlib.compress(data, wbits=-15)
        entry.compress_size, entry.header_offset = len(data), self._zip.start_dir
        with _told(self.archive):
            written = self._file.write(entry.FileHeader() + data)
        self._zip.start_dir += written
        self._zip.filelist.append(entry)
        self._zip.NameToInfo[name] = entry

    def commit(self, sidecar: Mapping[str, Any], dropped: Iterable[str] = ()) -> dict[str, Any]:
        """Makes the unit exist, without the members below the folders in `dropped`; returns its whole sidecar."""
        with _told(self.archive):
            self._zip.close()
            if drop := tuple(f"{folder}/" for folder in dropped):
                self._file = _without(self._file, self._partial, drop)
            self._file.flush()
            os.fsync(self._file.fileno())
            digest, size = sha256_of(self._partial), self._partial.stat().st_size
            os.replace(self._partial, self.archive)
            self._file.close()
            whole = {**sidecar, "sha256": digest, "bytes": size}
            write_sealed(sidecar_of(self.archive), whole)
        return whole

    def abandon(self) -> None:
        """Removes what was written so far."""
        with contextlib.suppress(OSError):  # a full disk can fail once more while it closes
            self._zip.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()


class EpisodeWriter:
    """One episode of a unit: frames and steps go in as they come; only a few numbers a frame stay in memory."""

    def __init__(self, unit: UnitWriter, folder: str, frames_a_step: int):
        self.folder, self._unit, self._layout = folder, unit, unit.layout
        self._frames_a_step = frames_a_step
        self._rows: dict[str, list[Any]] = {name: [] for name in (*_A_FRAME, *_A_STEP)}
        self._certifier = Certifier()
        self._video: VideoFile | None = None

    @property
    def frames(self) -> int:
        return len(self._rows["timestamp_s"])

    @property
    def steps(self) -> int:
        return len(self._rows["rewards"])

    def add_frames(self, frames: Frames) -> None:
        """Generated frames, in order."""
        rgb, units = frames.rgb.cpu().numpy(), self._layout.quantised(frames)
        depth_m = units * np.float32(self._layout.depth_unit_m)
        poses = frames.cameras.world_from_camera.float().cpu().numpy()
        lenses = frames.cameras.intrinsics_px.float().cpu().numpy()
        remembered = frames.remembered.cpu().numpy()
        first = self.frames
        for index, (picture, depth) in enumerate(zip(rgb, units, strict=True), start=first):
            self._unit.write(f"{self.folder}/depth/{index:06d}.png", png.encode(depth))
            if self._layout.rgb == "png":
                self._unit.write(f"{self.folder}/rgb/{index:06d}.png", png.encode(picture))
            else:
                self._video_file(rgb.shape[1:3]).write(picture)
        self._certifier.frames(rgb, depth_m, poses.astype(float), lenses.astype(float), remembered)
        times = [index / self._layout.fps for index in range(first, first + len(rgb))]
        rows: tuple[Iterable[Any], ...] = (poses, lenses, times, remembered)
        for name, more in zip(_A_FRAME, rows, strict=True):
            self._rows[name].extend(more)

    def add_step(self, action: Any, reward: float) -> None:
        """An action that was taken and what it earned."""
        self._rows["actions"].append(np.array(action))
        self._rows["rewards"].append(reward)

    def finish(self, about: Mapping[str, Any], collisions: int) -> dict[str, Any]:
        """Writes what is left; returns the episode's metadata, certificate included."""
        for name, rows in self._rows.items():
            buffer = io.BytesIO()
            np.save(buffer, np.array(rows), allow_pickle=False)
            self._unit.write(f"{self.folder}/{name}.npy", buffer.getvalue(), deflate=True)
        if self._video is not None:
            self._video.close()
            self._unit.write(f"{self.folder}/rgb.mp4", self._video.path.read_bytes())
        self.close()
        size = {"frames": self.frames, "steps": self.steps, "frames_a_step": self._frames_a_step}
        rewards = float(np.sum(self._rows["rewards"]))
        about = {"format": FORMAT, **about, **size, "return": rewards, **self._layout.about()}
        about["certificate"] = self._certifier.certificate(collisions)
        about["convention"] = "OpenCV axes, metres; x_world = world_from_camera @ x_camera; pixel centres at +0.5"
        self._unit.write(f"{self.folder}/episode.json", _canonical(about))
        return about

    def close(self) -> None:
        """Ends what runs beside: call it where `finish` is not reached."""
        if self._video is not None:
            with contextlib.suppress(OutputError):
                self._video.close()
            self._video.path.unlink(missing_ok=True)

    def _video_file(self, size: tuple[int, int]) -> VideoFile:
        if self._video is None:
            self._video = VideoFile(self._unit.beside(f"{self.folder}.mp4"), size, fps=self._layout.fps)
        return self._video


class StoredEpisode:
    """One episode of a store, read when asked for."""

    def __init__(self, archive: Path, summary: Mapping[str, Any]):
        self._archive, self.summary = archive, dict(summary)
        self.name = f"{summary['episode']:06d}"

    def __len__(self) -> int:
        """Frames."""
        return int(self.summary["frames"])

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return json.loads(self._read("episode.json"))

    @property
    def certificate(self) -> dict[str, Any]:
        return self.metadata["certificate"]

    @property
    def depth_unit_m(self) -> float:
        return float(self.metadata["depth"]["unit_m"])

    def rgb(self) -> UInt8[np.ndarray, "T H W 3"]:
        """Every picture."""
        return np.stack(list(self.pictures()))

    def pictures(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """One picture after another."""
        if self.metadata["rgb"] == "png":
            yield from (png.decode(data) for data in self._members("rgb"))
            return
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "rgb.mp4"
            video.write_bytes(self._read("rgb.mp4"))
            height, width = self.metadata["size_px"]
            yield from read_video(video, (height, width))

    def depth_units(self) -> Iterator[UInt16[np.ndarray, "H W"]]:
        """Depth as it is stored, one frame after another: times `depth_unit_m` it is metres, 0 is not valid."""
        return (png.decode(data) for data in self._members("depth"))

    def depth_m(self) -> Float[np.ndarray, "T H W"]:
        """z-depth in metres, float32; 0 where not valid."""
        return np.stack(list(self.depth_units())) * np.float32(self.depth_unit_m)

    def depth_valid(self) -> Bool[np.ndarray, "T H W"]:
        return np.stack(list(self.depth_units())) > 0

    def array(self, name: str) -> np.ndarray:
        """world_from_camera (T, 4, 4), intrinsics_px (T, 3, 3), timestamp_s (T,), remembered (T, h, w) bool; actions
        and rewards, one row a step."""
        if name not in (*_A_FRAME, *_A_STEP):
            raise InvalidValueError(f"an episode has the arrays {', '.join((*_A_FRAME, *_A_STEP))}; got {name!r}")
        return np.load(io.BytesIO(self._read(f"{name}.npy")), allow_pickle=False)

    def _read(self, name: str) -> bytes:
        return next(self._inside([name]))

    def _members(self, kind: str) -> Iterator[bytes]:
        return self._inside(f"{kind}/{index:06d}.png" for index in range(len(self)))

    def _inside(self, names: Iterable[str]) -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(self._archive) as archive:
                for name in names:
                    yield archive.read(f"{self.name}/{name}")
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise InvalidValueError(
                f"{self._archive} cannot be read ({error}); mirage-env rollout verify says which units are whole"
            ) from None


def sidecar_of(archive: Path) -> Path:
    return archive.with_suffix(".json")


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """JSON that vouches for itself: canonical bytes with their sha256 inside; appears whole or not at all.

    What is there already stays as it is: of several that write at once the first one counts. What a process that was
    killed in here left behind is taken over.
    """
    sealed = {**values, "seal": hashlib.sha256(_canonical(values)).hexdigest()}
    partial = path.with_name(f".{path.name}.partial")
    while (file := _open_locked(partial)) is None:
        time.sleep(0.01)  # another process writes the same name
    with file:
        try:
            if path.exists():
                partial.unlink()
                return
            file.write(_canonical(sealed))
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, every byte of it; raises InvalidValueError where one differs."""
    try:
        data = path.read_bytes()
        values = json.loads(data)
        seal = values.pop("seal")
        whole = data == _canonical({**values, "seal": seal}) and seal == hashlib.sha256(_canonical(values)).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidValueError(f"{path} cannot be read ({error}); it is not what a rollout wrote") from None
    if not whole:
        raise InvalidValueError(f"{path} was changed after it was written: its seal does not fit")
    return values


def verify_unit(archive: Path, fingerprint: str | None = None) -> list[str]:
    """What is wrong with a unit, one sentence each; reads every byte of the archive and of the sidecar.

    `fingerprint` is that of the run which it should belong to; None: of any.
    """
    try:
        sidecar = read_sealed(sidecar_of(archive))
    except InvalidValueError as error:
        return [str(error)]
    if fingerprint is not None and (sidecar["fingerprint"], sidecar["archive"]) != (fingerprint, archive.name):
        return [f"{archive} is a unit of another run, or another unit of this one"]
    try:
        if archive.stat().st_size != sidecar["bytes"] or sha256_of(archive) != sidecar["sha256"]:
            return [f"{archive} is not what was written: its sha256 differs from the sidecar's"]
        wrong = []
        for summary in sidecar["episodes"]:
            if summary["kept"]:
                wrong += [f"{archive}: episode {summary['episode']}: {fault}" for fault in _faults(archive, summary)]
        return wrong
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        return [f"{archive} cannot be read ({error})"]


def _faults(archive: Path, summary: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit inside one episode, beyond bytes that changed."""
    episode = StoredEpisode(archive, summary)
    frames, about = len(episode), episode.metadata
    height, width = about["size_px"]
    for name in (*_A_FRAME, *_A_STEP):
        array, rows = episode.array(name), frames if name in _A_FRAME else about["steps"]
        if len(array) != rows or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            yield f"{name} must be {rows} finite rows, got {len(array)}"
    for kind, pictures, shape in (
        ("rgb", episode.pictures(), (height, width, 3)),
        ("depth", episode.depth_units(), (height, width)),
    ):
        count = 0
        for picture in pictures:
            count += picture.shape == shape
        if count != frames:
            yield f"{kind} must be {frames} pictures of {shape}, got {count}"


def _canonical(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _without(file: IO[bytes], path: Path, folders: Sequence[str]) -> IO[bytes]:
    """The archive copied without some folders, under the same name and lock."""
    beside = path.with_name(f"{path.name}.kept")
    kept = _open_locked(beside)
    assert kept is not None  # who has the archive has this name
    try:
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(kept, "w") as new:
            for entry in old.infolist():
                if not entry.filename.startswith(tuple(folders)):
                    new.writestr(entry, old.read(entry))
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            kept.close()
        raise
    file.close()
    return kept


def remove_stray(partial: Path) -> None:
    """Removes what a killed process left half-written, and nothing that a living one has in hand."""
    with contextlib.suppress(OSError), partial.open("r+b") as file:
        if _lock(file, partial):
            partial.unlink()


def _open_locked(path: Path) -> IO[bytes] | None:
    """The empty file at `path`, this process's alone; None while another one has it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    if not _lock(file, path):
        file.close()
        return None
    file.truncate()
    return file


def _lock(file: IO[bytes], path: Path) -> bool:
    """Whether this process alone has the file now; True where the file system knows no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    try:  # between open and lock the one before may have renamed it to its final name
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _told(archive: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {archive} ({error.strerror or error}); make room or choose another folder, then run again"
        ) from error
