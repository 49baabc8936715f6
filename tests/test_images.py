from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirage_env.errors import ImageError, UnknownNameError
from mirage_env.images import DEFAULT_IMAGE, builtin_image, builtin_names, check_image, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(height: int = 64, width: int = 64) -> np.ndarray:
    """Red, green above blue, white."""
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2], rgb[: height // 2, width // 2 :] = RED, GREEN
    rgb[height // 2 :, : width // 2], rgb[height // 2 :, width // 2 :] = BLUE, WHITE
    return rgb


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_picture_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(quarters()))
    loaded = load_image(path, (64, 64))
    np.testing.assert_array_equal(loaded.rgb, quarters())
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.source == str(path)
    assert loaded.fov_deg is None
    assert loaded.rgb.flags.writeable


def test_path_array_and_pil_agree(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(noise))
    from_path, from_array, from_pil = (load_image(source, (32, 48)) for source in (path, noise, Image.fromarray(noise)))
    assert from_path.rgb.shape == (32, 48, 3)
    np.testing.assert_array_equal(from_path.rgb, from_array.rgb)
    np.testing.assert_array_equal(from_path.rgb, from_pil.rgb)
    assert from_array.sha256 == from_pil.sha256 == hashlib.sha256(noise.tobytes()).hexdigest()


def test_the_crop_is_central_and_keeps_the_shape_of_things() -> None:
    wide = np.zeros((64, 256, 3), np.uint8)
    wide[:, 96:160] = WHITE  # the middle square
    assert load_image(wide, (32, 32)).rgb.min() > 230  # the filter reaches half a pixel past the crop
    tall = np.zeros((256, 64, 3), np.uint8)
    tall[96:160] = WHITE
    assert load_image(tall, (32, 32)).rgb.min() > 230


def test_reducing_averages_instead_of_picking() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = load_image(stripes, (32, 32)).rgb[4:-4, 4:-4]
    np.testing.assert_allclose(reduced, 127.5, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # stored turned to the left, to be shown turned to the right
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(quarters(64, 96))
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", stored, exif=exif, quality=95, subsampling=0)
    rgb = load_image(path, (32, 48)).rgb.astype(int)
    corners = rgb[4, 4], rgb[4, -4], rgb[-4, 4], rgb[-4, -4]
    np.testing.assert_allclose(corners, (RED, GREEN, BLUE, WHITE), atol=12)


@pytest.mark.parametrize("turned", [False, True])
def test_field_of_view_from_exif_follows_the_crop(tmp_path: Path, turned: bool) -> None:
    # A 3:2 picture taken at 35 mm (equivalent) is 36 mm wide; a square crop is 24 mm wide.
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35
    if turned:
        exif[0x0112] = 6
    size = (100, 150) if turned else (150, 100)
    path = save(tmp_path / "a.jpg", Image.new("RGB", size, RED), exif=exif)
    square = load_image(path, (64, 64)).fov_deg
    whole = load_image(path, (64, 96)).fov_deg
    assert square == pytest.approx(2 * math.degrees(math.atan(12 / 35)))
    assert whole == pytest.approx(2 * math.degrees(math.atan(18 / 35)))


def test_grey_palette_cmyk_and_alpha(tmp_path: Path) -> None:
    grey = load_image(save(tmp_path / "grey.png", Image.new("L", (32, 32), 77)), (16, 16)).rgb
    assert (grey == 77).all()
    palette = load_image(save(tmp_path / "p.png", Image.fromarray(quarters()).quantize(4)), (64, 64)).rgb
    np.testing.assert_array_equal(palette, quarters())
    cmyk = load_image(save(tmp_path / "c.jpg", Image.new("CMYK", (32, 32), (0, 255, 255, 0))), (16, 16)).rgb
    np.testing.assert_allclose(cmyk.astype(int), np.broadcast_to(RED, cmyk.shape), atol=3)
    half = load_image(save(tmp_path / "rgba.png", Image.new("RGBA", (32, 32), (0, 0, 0, 128))), (16, 16)).rgb
    np.testing.assert_allclose(half, 127, atol=1)  # half transparent black over white
    clear = Image.new("P", (32, 32), 0)
    clear.putpalette(bytes(RED))
    assert (load_image(save(tmp_path / "t.gif", clear, transparency=0), (16, 16)).rgb == 255).all()
    bilevel = load_image(save(tmp_path / "1.png", Image.new("1", (32, 32), 1)), (16, 16)).rgb
    assert (bilevel == 255).all()


def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.full((32, 32), 200 * 257, np.uint16)
    for name in ("a.png", "a.tif"):
        assert (load_image(save(tmp_path / name, Image.fromarray(values)), (16, 16)).rgb == 200).all()
    assert (load_image(values, (16, 16)).rgb == 200).all()


def test_float_arrays() -> None:
    assert (load_image(np.full((32, 32, 3), 0.2, np.float32), (16, 16)).rgb == 51).all()
    for bad in (np.full((32, 32, 3), 200.0), np.full((32, 32), np.nan)):
        with pytest.raises(ImageError, match=r"finite and within \[0, 1\]; divide by 255"):
            load_image(bad)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 32, 32), np.uint8), r"must be \(H, W\).*got \(3, 32, 32\)"),
        (np.zeros((0, 32, 3), np.uint8), r"must not be empty"),
        (np.zeros((32, 32, 3), np.int64), r"must be uint8, uint16 or float in \[0, 1\], got int64"),
        (np.zeros((1, 1, 3), np.uint8), r"array is 1 x 1 pixels; a picture needs at least 16 a side"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no picture at .*none\.jpg; give the path of a picture, or a built-in name"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match=r"is a folder; name one picture inside it"):
        load_image(tmp_path)
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.jpg is not a picture that can be read"):
        load_image(text)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png is not a picture"):
        load_image(tmp_path / "empty.png")
    pixel = save(tmp_path / "pixel.png", Image.new("RGB", (1, 1)))
    with pytest.raises(ImageError, match=r"is 1 x 1 pixels; a picture needs at least 16 a side"):
        load_image(pixel)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "gif", "bmp"])
def test_truncated_files(tmp_path: Path, format: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, format)
    whole = tmp_path / f"whole.{format}"
    whole.write_bytes(buffer.getvalue())
    assert load_image(whole, (32, 32)).rgb.shape == (32, 32, 3)
    path = tmp_path / f"half.{format}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"half\.\w+ is (damaged and cannot be read|not a picture that can be read)"):
        load_image(path)


@pytest.mark.parametrize("format", ["jpg", "png"])
def test_a_picture_20_000_pixels_wide_is_scaled(tmp_path: Path, format: str) -> None:
    path = save(tmp_path / f"wide.{format}", Image.new("L", (20_000, 2_600), 90))
    rgb = load_image(path, (64, 64)).rgb
    np.testing.assert_allclose(rgb, 90, atol=2)


def test_a_strip_is_refused(tmp_path: Path) -> None:
    for width, height in ((20_000, 16), (16, 20_000), (20_000, 300)):
        path = save(tmp_path / "strip.png", Image.new("RGB", (width, height)))
        shown = f"{width} x {height} pixels, of which a frame of 64 x 64 would show [0-9.]+ %; cut out the part"
        for check in (load_image, check_image):
            with pytest.raises(ImageError, match=shown):
                check(path, (64, 64))
    assert load_image(path, (4, 64)).rgb.shape == (4, 64, 3)  # a frame of that shape shows much of it


def test_the_header_tells_what_reading_would(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture")
    small = save(tmp_path / "small.png", Image.new("RGB", (8, 8)))
    for source in (tmp_path / "notes.jpg", small, tmp_path / "gone.png", tmp_path, np.zeros((4, 4), np.uint8)):
        with pytest.raises(ImageError) as read:
            load_image(source)
        with pytest.raises(ImageError) as checked:
            check_image(source)
        assert str(checked.value) == str(read.value)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "turned.jpg", Image.new("RGB", (320, 32)), exif=exif)
    for check in (check_image, load_image):
        check(turned, (64, 16))
        with pytest.raises(ImageError, match="is 32 x 320 pixels"):
            check(turned, (16, 64))
    check_image("room")


@pytest.mark.parametrize("damage", ["header", "offset", "cut"])
def test_damaged_exif_does_not_refuse_a_sound_picture(tmp_path: Path, damage: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 35
    raw = exif.tobytes()
    start = len(b"Exif\0\0")
    bad = {
        "header": raw[:start] + b"XX" + raw[start + 2 :],
        "offset": raw[: start + 4] + b"\xff\xff\xff\x7f" + raw[start + 8 :],
        "cut": raw[: start + 14],
    }[damage]
    path = save(tmp_path / "a.jpg", Image.fromarray(quarters(64, 96)), exif=bad, quality=95, subsampling=0)
    loaded = load_image(path, (64, 96))
    check_image(path, (64, 96))
    assert loaded.fov_deg is None
    np.testing.assert_allclose(loaded.rgb[4, 4].astype(int), RED, atol=12)  # as stored: who knows which way is up


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "bomb.png", Image.new("RGB", (300, 300)))
    for limit in (80_000, 20_000):  # Pillow warns above its limit and raises above twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"bomb\.png has more than 0 million pixels; scale it down first"):
            load_image(path)


def test_builtin_pictures() -> None:
    assert DEFAULT_IMAGE in builtin_names()
    for name in builtin_names():
        rgb = load_image(name).rgb
        assert rgb.shape == (128, 128, 3)
        assert rgb.std() > 20
    total = sum(builtin_image(name).stat().st_size for name in builtin_names())
    assert total < 1_500_000
    with pytest.raises(UnknownNameError, match=r'unknown built-in image "temle"; known are .*did you mean "temple"\?'):
        load_image("temle")


def test_a_name_too_long_for_a_file_is_told():
    with pytest.raises(ImageError, match=r"no picture at x{80} "):
        load_image("x" * 5000)
