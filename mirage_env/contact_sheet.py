"""Pictures of walks for people: rows of frames with labels, depth and remembered cells in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from mirage_env.errors import InvalidValueError

_PAPER, _INK, _FAINT = (250, 250, 248), (28, 30, 34), (128, 132, 140)
_SKY = np.array((214, 222, 232), np.uint8)
_REMEMBERED, _INVENTED = np.array((42, 157, 143), np.float32), np.array((231, 111, 81), np.float32)
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 73, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (110, 206, 88), (181, 222, 43), (253, 231, 37),
    ],
    np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Strip:
    """One row of a contact sheet: the same moments as every other row."""

    label: str
    note: str
    """A few words below the label: a unit, a score, a legend."""
    pictures: UInt8[np.ndarray, "T H W 3"]


def colour_depth(
    depth_m: Float[np.ndarray, "*b H W"], valid: Bool[np.ndarray, "*b H W"], range_m: tuple[float, float]
) -> UInt8[np.ndarray, "*b H W 3"]:
    """Near is yellow, far is violet (viridis over inverse depth, as parallax goes); invalid is pale grey."""
    near, far = range_m
    inverse = 1.0 / np.clip(np.where(valid, depth_m, far), near, far)
    position = (inverse - 1.0 / far) / (1.0 / near - 1.0 / far) * (len(_VIRIDIS) - 1)
    stops = np.arange(len(_VIRIDIS))
    colours = np.stack([np.interp(position, stops, channel) for channel in _VIRIDIS.T], -1).round().astype(np.uint8)
    return np.where(valid[..., None], colours, _SKY)


def colour_remembered(
    rgb: UInt8[np.ndarray, "*b H W 3"], remembered: Bool[np.ndarray, "*b h w"]
) -> UInt8[np.ndarray, "*b H W 3"]:
    """The picture in grey, tinted green where the memory showed the cell and orange where the model invented it."""
    rows, columns = rgb.shape[-3] // remembered.shape[-2], rgb.shape[-2] // remembered.shape[-1]
    cells = remembered.repeat(rows, -2).repeat(columns, -1)[..., None]
    grey = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    tint = np.where(cells, _REMEMBERED, _INVENTED)
    return (0.45 * tint + 0.55 * grey[..., None]).round().astype(np.uint8)


def contact_sheet(
    strips: Sequence[Strip], *, title: str, subtitle: str = "", frame_labels: Sequence[str] = (), picture_px: int = 192
) -> Image.Image:
    """One row a strip, one column a moment; pictures are enlarged or reduced to `picture_px` in height.

    `frame_labels` has one short text a column and stands below the last row.
    """
    columns = len(strips[0].pictures)
    if any(len(strip.pictures) != columns for strip in strips) or len(frame_labels) not in (0, columns):
        raise InvalidValueError(
            f"every strip and frame_labels must have the same length, got {[len(s.pictures) for s in strips]} "
            f"and {len(frame_labels)}"
        )
    frame_height, frame_width = strips[0].pictures.shape[1:3]
    height, width = picture_px, round(picture_px * frame_width / frame_height)
    gap, margin, label_width, head = 6, 36, 168, 104 if subtitle else 76
    sheet = Image.new(
        "RGB",
        (
            2 * margin + label_width + columns * (width + gap) - gap,
            head + len(strips) * (height + gap) - gap + (34 if frame_labels else 0) + margin // 2,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 26), title, _INK, _font(28))
    draw.text((margin, 64), subtitle, _FAINT, _font(17))
    for row, strip in enumerate(strips):
        top = head + row * (height + gap)
        draw.text((margin, top + height / 2 - 14), strip.label, _INK, _font(20), anchor="lm")
        draw.multiline_text((margin, top + height / 2 + 4), strip.note, _FAINT, _font(14), spacing=5)
        for column, picture in enumerate(strip.pictures):
            enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (margin + label_width + column * (width + gap), top))
    for column, text in enumerate(frame_labels):
        centre = margin + label_width + column * (width + gap) + width / 2
        draw.text((centre, head + len(strips) * (height + gap) + 8), text, _FAINT, _font(15), anchor="ma")
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
