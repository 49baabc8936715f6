"""A picture from a path, an array or PIL becomes a first frame: upright, RGB, cropped, reduced to the world's size."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mirage_env.errors import ImageError, UnknownNameError
from mirage_env.resources import BUILTIN_IMAGES, sha256_of

MIN_SIDE_PX = 16
DEFAULT_IMAGE = "room"
"""The built-in scene that is used when nobody names a picture."""

MOST_CROPPED = 8.0
"""A picture that many times as long as the frame's shape is refused: little of it would be left."""

_EXIF_IFD, _ORIENTATION, _FOCAL_LENGTH_35MM = 0x8769, 0x0112, 0xA405
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that EXIF knows; from 5 on, width and height change places."""
_DIAGONAL_35MM = math.hypot(36.0, 24.0)


@dataclass(frozen=True)
class LoadedImage:
    """A picture ready to be the first frame of a world."""

    rgb: UInt8[np.ndarray, "H W 3"]
    fov_deg: float | None
    """Horizontal, of the cropped picture, where EXIF tells the 35 mm focal length; None where nothing does."""
    sha256: str
    """Of the file's bytes; of the uncropped RGB pixels where the picture did not come from a file."""
    source: str
    """The path as given, or what kind of object the picture was."""


def builtin_names() -> list[str]:
    """Names of the pictures that come with the package."""
    return sorted(path.stem for path in BUILTIN_IMAGES.glob("*") if path.suffix in (".jpg", ".png"))


def builtin_image(name: str = DEFAULT_IMAGE) -> Path:
    """Path of a built-in picture; raises UnknownNameError with the names that exist."""
    for path in BUILTIN_IMAGES.glob(f"{name}.*") if name in builtin_names() else ():
        if path.suffix in (".jpg", ".png"):
            return path
    raise UnknownNameError("built-in image", name, builtin_names())


def load_image(source: str | Path | np.ndarray | Image.Image, size: tuple[int, int] = (128, 128)) -> LoadedImage:
    """The picture, centre-cropped to the shape of `size` = (H, W) and resized to it with antialiasing.

    A string that names neither a file nor a path is taken for a built-in picture. EXIF rotation is applied; grey,
    palette, CMYK and 16-bit pictures become 8-bit RGB; transparency is laid over white; of an animation the first
    frame is used. Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, uint16, or floats in [0, 1].

    Raises ImageError for anything that is not a readable picture of at least 16 pixels a side, an eighth of which or
    more is left by the crop. Damaged EXIF counts as none.
    """
    if isinstance(source, Image.Image):
        picture, name, digest = source, f"PIL {source.mode} image", None
    elif isinstance(source, (str, Path)):
        path = _find(source)
        picture, name, digest = _open(path, size), str(source), sha256_of(path)
    else:
        picture, name, digest = _from_array(source), "array", None

    exif = _exif(picture)
    fov_diagonal = _diagonal_fov(exif)
    picture = _to_rgb(_upright(picture, exif), name)
    _check_shape(picture.size, name, size)
    if digest is None:
        digest = hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()

    height, width = size
    scale = min(picture.width / width, picture.height / height)
    crop = (width * scale, height * scale)
    left, top = (picture.width - crop[0]) / 2, (picture.height - crop[1]) / 2
    box = (left, top, left + crop[0], top + crop[1])
    resized = picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)

    fov_deg = None
    if fov_diagonal is not None:
        focal_px = 0.5 * math.hypot(*picture.size) / math.tan(0.5 * fov_diagonal)
        fov_deg = math.degrees(2.0 * math.atan(0.5 * crop[0] / focal_px))
        if not 5.0 < fov_deg < 150.0:  # nobody's lens: what EXIF says there is wrong
            fov_deg = None
    return LoadedImage(np.array(resized), fov_deg, digest, name)


def check_image(source: Any, size: tuple[int, int] = (128, 128)) -> None:
    """Raises what `load_image` would, as far as the header of a file tells: no pixel is read."""
    if isinstance(source, (str, Path)):
        height, width = upright_size(source)
        _check_shape((width, height), str(source), size)
    else:
        load_image(source, size)


def upright_size(source: str | Path) -> tuple[int, int]:
    """(H, W) of a picture file as it is meant to be seen; no pixel is read. Raises ImageError."""
    path = _find(source)
    with _telling(path), Image.open(path) as picture:
        known = "exif" in picture.info  # else a PNG would read all its pixels to look for it behind them
        turned = known and _exif(picture).get(_ORIENTATION) in (5, 6, 7, 8)
        return picture.size if turned else picture.size[::-1]


def lens_after_crop(
    intrinsics_px: Float[np.ndarray, "3 3"], whole: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "3 3"]:
    """K of a picture of `whole` = (H, W) pixels, for the frame of `size` that `load_image` makes of it."""
    scale = min(whole[0] / size[0], whole[1] / size[1])
    left, top = (whole[1] - size[1] * scale) / 2, (whole[0] - size[0] * scale) / 2
    moved = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]]) @ intrinsics_px
    return np.diag([1 / scale, 1 / scale, 1.0]) @ moved


def load_depth(source: str | Path, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Depth that belongs to a picture, cropped like it and brought to `size` by the nearest pixel; metres, 0 unknown.

    A .npy holds metres (H, W); any other file is a 16-bit grey picture in millimetres. Raises ImageError.
    """
    path = Path(source).expanduser()
    try:
        if path.suffix == ".npy":
            depth = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            with Image.open(path) as picture:
                if not picture.mode.startswith("I"):
                    raise ImageError(f"depth must be a 16-bit grey picture in millimetres, {path} is {picture.mode}")
                depth = np.asarray(picture).astype(np.float32) / 1000.0
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"the depth {path} cannot be read ({error}); give a 16-bit picture or a .npy") from error
    if depth.ndim != 2 or min(depth.shape) < 1:
        raise ImageError(f"depth must have shape (H, W), {path} has {depth.shape}")
    scale = min(depth.shape[0] / size[0], depth.shape[1] / size[1])
    rows, columns = (
        ((np.arange(side) + 0.5) * scale + (whole - side * scale) / 2).astype(int)
        for side, whole in zip(size, depth.shape, strict=True)
    )
    return np.nan_to_num(depth[rows[:, None], columns], posinf=0.0, neginf=0.0)


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise ImageError(f"no picture at {str(source)[:80]} ({error.strerror}); give the path of a picture") from None
    if path.is_dir():
        raise ImageError(f"{source} is a folder; name one picture inside it")
    if isinstance(source, str) and path.name == source and not path.suffix:
        return builtin_image(source)
    raise ImageError(
        f"no picture at {source}; give the path of a picture, or a built-in name: {', '.join(builtin_names())}"
    )


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the file inside is told in one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(f"{path} has more than {limit:.0f} million pixels; scale it down first") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path} is not a picture that can be read; JPEG, PNG, WebP, TIFF and BMP work") from None
    except Exception as error:  # on bad bytes the decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageError(f"{path} is damaged and cannot be read ({error}); save it anew") from error


def _open(path: Path, size: tuple[int, int]) -> Image.Image:
    """The decoded file; a JPEG is decoded at the smallest of its scales that still has twice the pixels needed."""
    with _telling(path), Image.open(path) as picture:
        picture.draft(None, (2 * max(size), 2 * max(size)))
        picture.load()
        return picture


def _check_shape(picture_size: tuple[int, int], name: str, size: tuple[int, int]) -> None:
    """Whether a first frame (H, W) can be cut out of (width, height) pixels; raises ImageError."""
    width, height = picture_size
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{name} is {width} x {height} pixels; a picture needs at least {MIN_SIDE_PX} a side")
    longer = (width / height) / (size[1] / size[0])
    if max(longer, 1 / longer) > MOST_CROPPED:
        raise ImageError(
            f"{name} is {width} x {height} pixels, of which a frame of {size[1]} x {size[0]} would show "
            f"{100 * min(longer, 1 / longer):.1g} %; cut out the part that you mean"
        )


def _from_array(source: Any) -> Image.Image:
    array = np.asarray(source)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"an image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    if array.size == 0:
        raise ImageError(f"an image array must not be empty, got {array.shape}")
    if array.dtype == np.uint16:
        array = _from_16_bit(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0.0 and array.max() <= 1.0):
            raise ImageError("a float image array must be finite and within [0, 1]; divide by 255 or pass uint8")
        array = np.round(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an image array must be uint8, uint16 or float in [0, 1], got {array.dtype}")
    return Image.fromarray(array)


def _from_16_bit(array: np.ndarray) -> np.ndarray:
    return np.round(np.clip(array, 0, 65535) / 257.0).astype(np.uint8)


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
            raise ImageError(f"{name} stores floats outside [0, 1]; save it with 8 or 16 bits a channel")
        picture = Image.fromarray(np.round(values * 255.0).astype(np.uint8))
    elif picture.mode.startswith("I"):
        picture = Image.fromarray(_from_16_bit(np.asarray(picture)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _exif(picture: Image.Image) -> Image.Exif:
    """What the camera wrote into the file; nothing where that is damaged, which harms no pixel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = picture.getexif()
            exif.get_ifd(_EXIF_IFD)
            return exif
    except Exception:  # as many kinds as Pillow has readers
        return Image.Exif()


def _upright(picture: Image.Image, exif: Image.Exif) -> Image.Image:
    turn = _UPRIGHT.get(exif.get(_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def _diagonal_fov(exif: Image.Exif) -> float | None:
    """Radians across the diagonal of the uncropped picture, from the 35 mm equivalent focal length."""
    focal_mm = exif.get_ifd(_EXIF_IFD).get(_FOCAL_LENGTH_35MM)
    if not isinstance(focal_mm, (int, float)) or focal_mm <= 0:
        return None
    return 2.0 * math.atan(0.5 * _DIAGONAL_35MM / focal_mm)
