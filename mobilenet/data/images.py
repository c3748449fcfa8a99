"""Pictures on the host: decode, resize and crop with NumPy, Pillow, simplejpeg and OpenCV.

Pictures are uint8 arrays [H, W, C], rows from the top, C = 1 (grey) or 3 (red, green, blue), sRGB
values 0..255. Nothing here knows of JAX, so that data workers start fast and hold no accelerator.

Pillow reads the header of every file and decodes all formats. Plain JPEGs are decoded by simplejpeg
to the same pixels, or by Pillow where simplejpeg finds any fault in them. Evaluation views, which
define measured accuracies, are resized by Pillow; random training crops by OpenCV, or by Pillow
from a JPEG that was decoded at a reduced scale.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Decoding and resizing bound the pictures per second and core: simplejpeg and cv2 are there because
# they do them sooner than Pillow (`mobilenet benchmark` with experiments/benchmarks/input.py).
import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "H W C"]
Box = tuple[int, int, int, int]

# Pillow's own limit (a quarter GiB of RGB); above it a file is taken for an attack or an accident.
MAX_PIXELS = 89_478_485

# Pillow warns about odd files, once per file. They are either decoded right or reported as
# unreadable, so the warning only floods a log. A filter set once is safe with decoding threads;
# `warnings.catch_warnings` around each call is not.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Whole pictures are dealt out to threads or processes; threads within a resize would compete.
cv2.setNumThreads(1)

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

# A JPEG may be decoded at 1/2, 1/4 or 1/8 only while the part that is used stays this many times
# larger than the result: Pillow's `thumbnail` takes the same 2.0 as close to a full decode.
_REDUCING_GAP = 2.0

# Training crops that shrink by more than this are averaged over areas, others interpolated. Plain
# interpolation uses every pixel up to 2.0 but begins to alias. On photographs it is as close to
# Pillow's antialiased filter as averaging is near 1.5 (mean difference 2.0 and 1.5 of 255 there,
# 2.9 and 1.3 at 1.75), at a fifth of the time.
_AVERAGE_ABOVE = 1.5


class UnreadableImage(ValueError):
    """A picture that cannot be decoded; the message says why."""


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} was given; use 1 (grey) or 3 (colour).")


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"image size {size} was given; use at least 1 pixel.")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF is common and says nothing about the pixels
        return 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Pixels of any Pillow mode as "L" or "RGB"; transparency is composited on white."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise UnreadableImage(
            f"pixels of Pillow mode {image.mode!r} have no fixed range; save it with 8 or 16 bits."
        )
    if image.mode.startswith("I"):
        # "I;16*" is 16-bit grey; "I" is how Pillow holds 16-bit PGM and, before 10.3, PNG.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _to_array(image: Image.Image) -> Picture:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def _check_picture(image: Picture) -> None:
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an array {image.dtype}{list(image.shape)} was given as a picture; "
            "use uint8 [H, W, 1] or [H, W, 3]."
        )
    if image.shape[0] < 1 or image.shape[1] < 1:
        raise UnreadableImage("the picture has no pixels.")


def _to_pil(image: Picture) -> Image.Image:
    _check_picture(image)
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


class _Decoded(NamedTuple):
    """An upright picture, decoded `factor` (1, 2, 4 or 8) times smaller than its full size.

    libjpeg rounds sizes up, so the last pixels of a reduced picture may lie partly outside the full
    one: positions are divided by the factor, never scaled by the sizes.
    """

    picture: Picture
    full_width: int
    full_height: int
    factor: int


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


def _decode_upright(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None,
) -> _Decoded:
    mode = "L" if channels == 1 else "RGB"
    if isinstance(data, np.ndarray):
        _check_picture(data)
        same = data.shape[2] == channels
        picture = data if same else _to_array(_to_mode(_to_pil(data), mode))
        return _Decoded(picture, data.shape[1], data.shape[0], 1)
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(
                f"it declares {image.width} x {image.height} pixels, above {MAX_PIXELS:,}."
            )
        orientation = _orientation(image)
        width, height = image.size
        full_width, full_height = (height, width) if orientation >= 5 else (width, height)
        factor = 1
        # A reduced JPEG may end in part of a pixel at the right and below; rotated, that part would
        # lie elsewhere, so those are reduced only when there is none.
        whole = orientation == 1 or (width % 8 == 0 and height % 8 == 0)
        if wanted_scale is not None and image.format == "JPEG" and whole:
            scale = wanted_scale(full_width, full_height)
            if scale >= 2:
                drafted = image.draft(image.mode, (int(width / scale), int(height / scale)))
                factor = round(width / drafted[1][2]) if drafted else 1
        picture = _decode_plain_jpeg(data, image, channels)
        if picture is None:
            image.load()
            picture = _to_array(_to_mode(image, mode))
        if orientation in _UPRIGHT:
            picture = _to_array(_to_pil(picture).transpose(_UPRIGHT[orientation]))
        return _Decoded(picture, full_width, full_height, factor)


def _decode(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None = None,
) -> _Decoded:
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
    except UnreadableImage:
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
      UnreadableImage: empty, truncated, unknown or damaged data, 32-bit pixels, or more than
        `MAX_PIXELS` pixels.
    """
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == channels:
        _check_picture(data)
        return data
    return _decode(data, channels).picture


def resize(image: Picture, height: int, width: int) -> Picture:
    """Bilinear resize with antialiasing (the filter widens when it shrinks), as Pillow does it."""
    _check_size(min(height, width))
    if image.shape[:2] == (height, width):
        return image
    return _to_array(_to_pil(image).resize((width, height), Image.Resampling.BILINEAR))


def center_crop(image: Picture, size: int) -> Picture:
    """The central [size, size] part; where it cannot be centred it lies half a pixel up and left.

    Raises:
      ValueError: the picture is smaller than size.
    """
    height, width = image.shape[:2]
    if size > min(height, width):
        raise ValueError(
            f"a {size} x {size} crop was asked of a {height} x {width} picture; resize it first."
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _evaluation_shape(width: int, height: int, size: int, crop_fraction: float) -> tuple[int, int]:
    """(width, height) after the shorter side became round(size / crop_fraction)."""
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction={crop_fraction} was given; use a value in (0, 1].")
    shorter = max(size, round(size / crop_fraction))
    if width <= height:
        return shorter, max(shorter, round(height * shorter / width))
    return max(shorter, round(width * shorter / height)), shorter


def evaluation_view(image: Picture, size: int, crop_fraction: float = 0.875) -> Picture:
    """The picture as it is evaluated: shorter side to round(size / crop_fraction), centre crop.

    Args:
      image: uint8 [H, W, C].
      size: side of the result in pixels.
      crop_fraction: part of the shorter side that is kept, in (0, 1]; 0.875 is 224 of 256.

    Returns:
      uint8 [size, size, C].
    """
    _check_size(size)
    width, height = _evaluation_shape(image.shape[1], image.shape[0], size, crop_fraction)
    return center_crop(resize(image, height, width), size)


def load_eval_view(
    data: bytes | np.ndarray, *, size: int, channels: int = 3, crop_fraction: float = 0.875
) -> Picture:
    """`evaluation_view` of the decoded data; large JPEGs are decoded at a reduced scale.

    Returns:
      uint8 [size, size, channels]; for anything but a large JPEG, exactly
      `evaluation_view(decode_image(data, channels), size, crop_fraction)`.

    Raises:
      UnreadableImage: as `decode_image`.
    """
    _check_size(size)
    scale = _eval_scale(size, crop_fraction)
    return _eval_view(_decode(data, channels, scale), size, crop_fraction)


def _eval_scale(size: int, crop_fraction: float) -> Callable[[int, int], float]:
    def scale(width: int, height: int) -> float:
        return width / (_evaluation_shape(width, height, size, crop_fraction)[0] * _REDUCING_GAP)

    return scale


def _eval_view(decoded: _Decoded, size: int, crop_fraction: float) -> Picture:
    picture, width, height, factor = decoded
    shape = _evaluation_shape(width, height, size, crop_fraction)
    if (picture.shape[1], picture.shape[0]) != shape:
        box = (0, 0, width / factor, height / factor)
        resized = _to_pil(picture).resize(shape, Image.Resampling.BILINEAR, box=box)
        picture = _to_array(resized)
    return center_crop(picture, size)


def load_eval_view_or_same(
    data: bytes | np.ndarray, *, size: int, channels: int = 3, crop_fraction: float = 0.875
) -> Picture:
    """`load_eval_view`, except that a picture of size x size already stays as it is."""
    _check_size(size)
    decoded = _decode(data, channels, _eval_scale(size, crop_fraction))
    if (decoded.full_width, decoded.full_height) == (size, size):
        return decoded.picture
    return _eval_view(decoded, size, crop_fraction)


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part of a picture (Szegedy et al., arXiv 1409.4842, section 6).

    Ten tries at an area uniform in `scale` (of the whole) and an aspect ratio (width / height)
    log-uniform in `ratio`; then the largest centred box whose ratio is allowed, as torchvision.

    Returns:
      (left, top, right, bottom) in whole pixels, inside the picture.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"crop scale {tuple(scale)} was given; use 0 < low <= high <= 1.")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"crop ratio {tuple(ratio)} was given; use 0 < low <= high.")
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # Only `random()` is drawn: it is the one conversion of NumPy's raw bits kept since 1.17.
        area = width * height * (scale[0] + rng.random() * (scale[1] - scale[0]))
        aspect = math.exp(low + rng.random() * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.random() * (width - w + 1))
            top = int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resize_box(image: Picture, box: Box, size: int) -> Picture:
    """The box (left, top, right, bottom) of a picture, resized to [size, size, C] by OpenCV.

    With half-pixel centres: the corners of the box become the corners of the result.
    """
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    width, height = right - left, bottom - top
    if max(width, height) > _AVERAGE_ABOVE * size:
        # Only the sides that shrink: where one grows, INTER_AREA does not average at all.
        smaller = min(width, size), min(height, size)
        part = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)
    return part.reshape(size, size, image.shape[2])  # OpenCV drops the axis of a single channel


def random_resized_crop(
    image: Picture,
    size: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Picture:
    """A `random_box` of the picture resized to uint8 [size, size, C] by OpenCV.

    Bilinear (INTER_LINEAR), after averaging over areas (INTER_AREA) where a side shrinks by more
    than 1.5: not quite the filter of `evaluation_view`, in a fifth of its time.
    """
    _check_size(size)
    _check_picture(image)
    box = random_box(image.shape[1], image.shape[0], rng, scale, ratio)
    return _resize_box(image, box, size)


def load_train_view(
    data: bytes | np.ndarray,
    *,
    size: int,
    rng: np.random.Generator,
    channels: int = 3,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Picture:
    """`random_resized_crop` of the decoded data; large JPEGs are decoded at a reduced scale.

    The same generator state gives the same box as `random_resized_crop`, since the box is drawn in
    pixels of the full, upright picture. What was reduced is resized by Pillow, as in
    `load_eval_view`.

    Returns:
      uint8 [size, size, channels].

    Raises:
      UnreadableImage: as `decode_image`.
    """
    _check_size(size)
    state = rng.bit_generator.state
    box: Box | None = None

    def wanted_scale(width: int, height: int) -> float:
        nonlocal box
        rng.bit_generator.state = state  # a second call, after a warning, draws the same box
        box = random_box(width, height, rng, scale, ratio)
        return min(box[2] - box[0], box[3] - box[1]) / (size * _REDUCING_GAP)

    picture, width, height, factor = _decode(data, channels, wanted_scale)
    if box is None:
        box = random_box(width, height, rng, scale, ratio)
    if factor == 1:
        return _resize_box(picture, box, size)
    # The corners of a reduced box lie between pixels, which only Pillow's resize knows.
    left, top, right, bottom = (side / factor for side in box)
    part = (left, top, right, bottom)
    return _to_array(_to_pil(picture).resize((size, size), Image.Resampling.BILINEAR, box=part))
