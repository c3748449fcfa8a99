"""Encoded images to pixels on the host, with Pillow and simplejpeg.

Pillow reads the header of every file and decodes all formats. Plain JPEGs are decoded by simplejpeg
to the same pixels, or by Pillow where simplejpeg finds any fault in them. What an image is decoded
to is of the kind that `mobilenet.data.images` describes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Decoding and resizing bound the pictures per second and core: simplejpeg and cv2 are there because
# they do them sooner than Pillow (`mobilenet benchmark` with experiments/benchmarks/input.py).
import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "H W C"]

# Pillow's own limit (a quarter GiB of RGB); above it a file is taken for an attack or an accident.
MAX_PIXELS = 89_478_485

# Pillow warns about odd files, once per file. They are either decoded right or reported as
# unreadable, so the warning only floods a log. A filter set once is safe with decoding threads;
# `warnings.catch_warnings` around each call is not.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# EXIF orientation -> the operation that puts the picture upright (EXIF 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112

# Side of the tiles in which larger images are converted.
_TILE = 2048


class UnreadableImage(ValueError):
    """A picture that cannot be decoded; the message says why."""


@contextlib.contextmanager
def memory_is_a_reason() -> Iterator[None]:
    """Turns a lack of memory, within, into an `UnreadableImage`: that image alone is too large."""
    try:
        yield
    except MemoryError as error:
        raise UnreadableImage("it needs more memory than there is.") from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise UnreadableImage("it needs more memory than there is.") from error


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} was given; use 1 (grey) or 3 (colour).")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        return 1 if isinstance(orientation, str | bytes) else int(orientation)
    except Exception:  # damaged EXIF is common and says nothing about the pixels
        return 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Pixels of any Pillow mode as "L" or "RGB"; transparency is composited on white."""
    if image.mode.startswith("I"):
        # "I;16*" is 16-bit grey; "I" is how Pillow holds 16-bit PGM and, before 10.3, PNG.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def to_array(image: Image.Image) -> Picture:
    """A Pillow image of mode "L" or "RGB" as uint8 [H, W, C]."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def check_picture(image: Picture) -> None:
    """Refuses what is not uint8 [H, W, 1 or 3] with at least one pixel."""
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an array {image.dtype}{list(image.shape)} was given as a picture; "
            "use uint8 [H, W, 1] or [H, W, 3]."
        )
    if image.shape[0] < 1 or image.shape[1] < 1:
        raise UnreadableImage("the picture has no pixels.")


def to_pil(image: Picture) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a Pillow image."""
    check_picture(image)
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


class Decoded(NamedTuple):
    """An upright picture, decoded `factor` (1, 2, 4 or 8) times smaller than its full size.

    libjpeg rounds sizes up, so the last pixels of a reduced picture may lie partly outside the full
    one: positions are divided by the factor, never scaled by the sizes.
    """

    picture: Picture
    full_width: int
    full_height: int
    factor: int = 1


def _pixels(image: Image.Image, mode: str) -> Picture:
    """Pixels of a loaded image of any mode, as "L" or "RGB" with transparency on white.

    A large image is converted tile by tile: a conversion holds up to 24 bytes per pixel.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise UnreadableImage(
            f"pixels of Pillow mode {image.mode!r} have no fixed range; save it with 8 or 16 bits."
        )
    width, height = image.size
    if width * height <= _TILE * _TILE:
        return to_array(_to_mode(image, mode))
    pixels = np.empty((height, width, len(mode)), np.uint8)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            right, bottom = min(left + _TILE, width), min(top + _TILE, height)
            tile = image.crop((left, top, right, bottom))
            pixels[top:bottom, left:right] = to_array(_to_mode(tile, mode))
    return pixels


def _decode_plain_jpeg(data: bytes, opened: Image.Image, channels: int) -> Picture | None:
    """Pixels of a JPEG in the size of `opened`, or None for what is left to Pillow.

    Both use libjpeg-turbo with the same settings, so the pixels are Pillow's. Left to Pillow are
    CMYK, grey from colour (a luma of its own), and every file that libjpeg warns of: simplejpeg is
    strict, and Pillow decides whether such a file is readable.
    """
    if opened.format != "JPEG" or (opened.mode, channels) not in (("RGB", 3), ("L", 3), ("L", 1)):
        return None
    width, height = opened.size
    mode = "GRAY" if channels == 1 else "RGB"
    try:
        # The smallest scale of at least this size: the one that `opened` was drafted to.
        pixels = simplejpeg.decode_jpeg(data, mode, min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, channels) else None


def _reduce_jpeg(image: Image.Image, orientation: int, scale: float) -> int:
    """Drafts an opened JPEG to at most `scale` times smaller; returns how many times it is."""
    width, height = image.size
    # A reduced JPEG may end in part of a pixel at the right and below; rotated, that part would
    # lie elsewhere, so those are reduced only when there is none.
    whole = orientation == 1 or (width % 8 == 0 and height % 8 == 0)
    if scale < 2 or not whole:
        return 1
    drafted = image.draft(image.mode, (int(width / scale), int(height / scale)))
    return round(width / drafted[1][2]) if drafted else 1


def _decode_upright(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None,
) -> Decoded:
    mode = "L" if channels == 1 else "RGB"
    if isinstance(data, np.ndarray):
        check_picture(data)
        same = data.shape[2] == channels
        picture = data if same else to_array(_to_mode(to_pil(data), mode))
        return Decoded(picture, data.shape[1], data.shape[0])
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(
                f"it declares {image.width} x {image.height} pixels, above {MAX_PIXELS:,}."
            )
        if image.format == "EPS":  # Pillow would start Ghostscript, if it is there
            raise UnreadableImage("it is an EPS program, not pixels; save it as PNG.")
        (width, height), factor, orientation, picture = image.size, 1, 1, None
        if image.format == "JPEG":
            orientation = _orientation(image)
            if 5 <= orientation <= 8:
                width, height = height, width
            if wanted_scale is not None:
                factor = _reduce_jpeg(image, orientation, wanted_scale(width, height))
            picture = _decode_plain_jpeg(data, image, channels)
        if picture is None:
            image.load()
            # Only now: Pillow turns a TIFF while it loads it and drops the tag.
            orientation = _orientation(image)
            picture = _pixels(image, mode)
        if orientation in _UPRIGHT:
            picture = to_array(to_pil(picture).transpose(_UPRIGHT[orientation]))
        if factor == 1:
            height, width = picture.shape[:2]
        return Decoded(picture, width, height, factor)


def decode(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None = None,
) -> Decoded:
    """Decodes, upright, to the given channels.

    Args:
      data: an encoded picture, or uint8 [H, W, 1 or 3].
      channels: 1 or 3.
      wanted_scale: (width, height) of the full picture -> how many times smaller it may be decoded.

    Raises:
      UnreadableImage: whatever way the data is broken.
    """
    _check_channels(channels)
    if isinstance(data, bytes) and not data:
        raise UnreadableImage("the file is empty (0 bytes).")
    try:
        try:
            return _decode_upright(data, channels, wanted_scale)
        except Warning as warning:
            if isinstance(warning, Image.DecompressionBombWarning):
                raise
            # Only where the caller turned warnings into errors (pytest does).
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _decode_upright(data, channels, wanted_scale)
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"it declares more than {MAX_PIXELS:,} pixels.") from error
    except Image.UnidentifiedImageError as error:
        start = bytes(data[:8])
        raise UnreadableImage(f"no known picture format begins with {start!r}.") from error
    except Exception as error:
        # Pillow's parsers fail on broken files with OSError, SyntaxError, struct.error, IndexError,
        # KeyError, zlib.error, ...: there is no common type.
        raise UnreadableImage(f"{type(error).__name__}: {error}.".replace("..", ".")) from error


@memory_is_a_reason()
def decode_image(data: bytes | np.ndarray, channels: int = 3) -> Picture:
    """Decodes one picture of any format that Pillow reads, to Pillow's pixels.

    Transparency is composited on white, 16-bit values are scaled (65535 -> 255), CMYK and palettes
    become colour, the EXIF orientation is applied, an animation gives its first frame. Grey from
    colour is the luma of ITU-R 601.

    Args:
      data: the bytes of a file, or uint8 [H, W, 1 or 3], which only has its channels converted.
      channels: 1 or 3.

    Returns:
      uint8 [H, W, channels], 0..255; read-only when it shares memory with `data`.

    Raises:
      UnreadableImage: empty, truncated, unknown or damaged data, 32-bit pixels, more than
        `MAX_PIXELS` pixels, or more than the memory holds.
    """
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == channels:
        check_picture(data)
        return data
    return decode(data, channels).picture
