"""Decodes image files to pixels on the host, with Pillow and simplejpeg.

Pillow reads the header of every file and decodes all formats. simplejpeg decodes plain JPEGs to the
same pixels; if it finds any fault in a file, Pillow decodes the file. `mobilenet.data.images`
describes the resulting arrays.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Decoding and resizing limit the images per second and core. simplejpeg and cv2 are used because
# they are faster than Pillow (`mobilenet benchmark` with experiments/benchmarks/input.py).
import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "H W C"]

# Pillow's own limit (a quarter GiB of RGB); a larger file is considered an attack or an accident.
MAX_PIXELS = 89_478_485

# Pillow warns once per unusual file. Such files are either decoded correctly or reported as
# unreadable, so the warning would only fill the log. A filter that is set once is safe with
# decoding threads; `warnings.catch_warnings` around each call is not.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# EXIF orientation -> the operation that turns the image upright (EXIF 2.32, tag 0x0112).
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

# Larger images are converted in tiles with this side.
_TILE = 2048


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message says why."""


@contextlib.contextmanager
def memory_is_a_reason() -> Iterator[None]:
    """Turns a lack of memory in the block into an `UnreadableImage`: the image is too large."""
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


def to_array(image: Image.Image) -> Pixels:
    """A Pillow image of mode "L" or "RGB" as uint8 [H, W, C]."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def check_pixels(image: Pixels) -> None:
    """Refuses arrays other than uint8 [H, W, 1 or 3] with at least one pixel."""
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an array {image.dtype}{list(image.shape)} was given as an image; "
            "use uint8 [H, W, 1] or [H, W, 3]."
        )
    if image.shape[0] < 1 or image.shape[1] < 1:
        raise UnreadableImage("the image has no pixels.")


def to_pil(image: Pixels) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a Pillow image."""
    check_pixels(image)
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


class Decoded(NamedTuple):
    """An upright image, decoded `factor` (1, 2, 4 or 8) times smaller than its full size.

    libjpeg rounds sizes up, so the last pixels of a reduced image may lie partly outside the full
    image. Positions must therefore be divided by the factor, not scaled by the ratio of the sizes.
    """

    pixels: Pixels
    full_width: int
    full_height: int
    factor: int = 1


def _pixels(image: Image.Image, mode: str) -> Pixels:
    """Pixels of a loaded image of any mode, as "L" or "RGB" with transparency on white.

    A large image is converted tile by tile, because a conversion holds up to 24 bytes per pixel.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise UnreadableImage(
            f"pixels of Pillow mode {image.mode!r} have no fixed range; save the image with 8 or "
            "16 bits."
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


def _decode_plain_jpeg(data: bytes, opened: Image.Image, channels: int) -> Pixels | None:
    """Pixels of a JPEG in the size of `opened`, or None if Pillow must decode it.

    Both libraries use libjpeg-turbo with the same settings, so the pixels are Pillow's. Pillow must
    decode CMYK, grey from colour (its luma differs), and every file about which libjpeg warns:
    simplejpeg is strict, and Pillow decides whether such a file is readable.
    """
    if opened.format != "JPEG" or (opened.mode, channels) not in (("RGB", 3), ("L", 3), ("L", 1)):
        return None
    width, height = opened.size
    mode = "GRAY" if channels == 1 else "RGB"
    try:
        # The smallest scale of at least this size; `opened` was reduced to the same scale.
        pixels = simplejpeg.decode_jpeg(data, mode, min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, channels) else None


def _reduce_jpeg(image: Image.Image, orientation: int, scale: float) -> int:
    """Reduces an opened JPEG at most `scale` times; returns how many times smaller it is."""
    width, height = image.size
    # A reduced JPEG may end in part of a pixel at the right and at the bottom. Rotation would move
    # that part, so rotated images are reduced only if there is no such part.
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
        check_pixels(data)
        same = data.shape[2] == channels
        pixels = data if same else to_array(_to_mode(to_pil(data), mode))
        return Decoded(pixels, data.shape[1], data.shape[0])
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(
                f"it declares {image.width} x {image.height} pixels, above {MAX_PIXELS:,}."
            )
        if image.format == "EPS":  # Pillow would start Ghostscript, if it is installed
            raise UnreadableImage("it is an EPS program, not pixels; save it as PNG.")
        (width, height), factor, orientation, pixels = image.size, 1, 1, None
        if image.format == "JPEG":
            orientation = _orientation(image)
            if 5 <= orientation <= 8:
                width, height = height, width
            if wanted_scale is not None:
                factor = _reduce_jpeg(image, orientation, wanted_scale(width, height))
            pixels = _decode_plain_jpeg(data, image, channels)
        if pixels is None:
            image.load()
            # Not earlier: Pillow rotates a TIFF while it loads it and removes the tag.
            orientation = _orientation(image)
            pixels = _pixels(image, mode)
        if orientation in _UPRIGHT:
            pixels = to_array(to_pil(pixels).transpose(_UPRIGHT[orientation]))
        if factor == 1:
            height, width = pixels.shape[:2]
        return Decoded(pixels, width, height, factor)


def decode(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None = None,
) -> Decoded:
    """Decodes an image upright, with the given number of channels.

    Args:
      data: an encoded image, or uint8 [H, W, 1 or 3].
      channels: 1 or 3.
      wanted_scale: (width, height) of the full image -> how many times smaller it may be decoded.

    Raises:
      UnreadableImage: the data is broken in any way.
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
            # Reached only if the caller turned warnings into errors (pytest does).
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _decode_upright(data, channels, wanted_scale)
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"it declares more than {MAX_PIXELS:,} pixels.") from error
    except Image.UnidentifiedImageError as error:
        start = bytes(data[:8])
        raise UnreadableImage(f"no known image format begins with {start!r}.") from error
    except Exception as error:
        # Pillow's parsers fail on broken files with OSError, SyntaxError, struct.error, IndexError,
        # KeyError, zlib.error, ...; these have no common type.
        raise UnreadableImage(f"{type(error).__name__}: {error}.".replace("..", ".")) from error


@memory_is_a_reason()
def decode_image(data: bytes | np.ndarray, channels: int = 3) -> Pixels:
    """Decodes one image of any format that Pillow reads, to Pillow's pixels.

    Transparency is composited on white, 16-bit values are scaled (65535 -> 255), CMYK and palettes
    become colour, the EXIF orientation is applied, and an animation gives its first frame. Grey
    from colour is the luma of ITU-R 601.

    Args:
      data: the bytes of a file, or uint8 [H, W, 1 or 3], of which only the channels are converted.
      channels: 1 or 3.

    Returns:
      uint8 [H, W, channels], 0..255; read-only when it shares memory with `data`.

    Raises:
      UnreadableImage: the data is empty, truncated, unknown or damaged, has 32-bit pixels or more
        than `MAX_PIXELS` pixels, or needs more memory than there is.
    """
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == channels:
        check_pixels(data)
        return data
    return decode(data, channels).pixels
