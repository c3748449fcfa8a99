"""Prepares images on the host for training and evaluation, with NumPy, Pillow and OpenCV.

Images are uint8 arrays [H, W, C], with the top row first, C = 1 (grey) or 3 (red, green, blue), and
sRGB values 0..255. This module does not import JAX, so data workers start fast and do not occupy an
accelerator. `mobilenet.data.decoding` reads the files.

Pillow resizes the views for evaluation, because they define the measured accuracies. OpenCV resizes
random training crops; if a JPEG was decoded at a reduced scale, Pillow resizes its crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from mobilenet.data import decoding
from mobilenet.data.decoding import (
    Decoded,
    Pixels,
    check_pixels,
    decode,
    memory_is_a_reason,
    to_array,
    to_pil,
)

# Users of views also need these names.
UnreadableImage = decoding.UnreadableImage
decode_image = decoding.decode_image
MAX_PIXELS = decoding.MAX_PIXELS

Box = tuple[int, int, int, int]

# Threads or processes work on whole images; threads within a resize would compete with them.
cv2.setNumThreads(1)

# A JPEG is decoded at 1/2, 1/4 or 1/8 only if the part that is used stays this many times larger
# than the result. Pillow's `thumbnail` uses the same 2.0, with results close to a full decode.
_REDUCING_GAP = 2.0

# Training crops that shrink by more than this are averaged over areas; others are interpolated.
# Plain interpolation uses every pixel up to 2.0 but begins to alias. On photographs interpolation
# and averaging are equally close to Pillow's antialiased filter near 1.5 (mean differences there:
# 2.0 and 1.5 of 255; at 1.75: 2.9 and 1.3), at a fifth of the time.
_AVERAGE_ABOVE = 1.5

# If the resized image would have more than this many times the pixels of its evaluation view (this
# is 25 times as long as wide, at 224 of 256), only the part that is kept is resized.
_MOST_RESIZED = 32


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"image size {size} was given; use at least 1 pixel.")


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Bilinear resize with antialiasing (the filter is wider when it shrinks), as in Pillow."""
    _check_size(min(height, width))
    if image.shape[:2] == (height, width):
        return image
    return to_array(to_pil(image).resize((width, height), Image.Resampling.BILINEAR))


def center_crop(image: Pixels, size: int) -> Pixels:
    """The central [size, size] part; if it cannot be centred, it lies half a pixel up and left.

    Raises:
      ValueError: the image is smaller than size.
    """
    height, width = image.shape[:2]
    if size > min(height, width):
        raise ValueError(
            f"a {size} x {size} crop of a {height} x {width} image was requested; resize it first."
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _evaluation_shape(width: int, height: int, size: int, crop_fraction: float) -> tuple[int, int]:
    """(width, height) after the shorter side is resized to round(size / crop_fraction)."""
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction={crop_fraction} was given; use a value in (0, 1].")
    shorter = max(size, round(size / crop_fraction))
    if width <= height:
        return shorter, max(shorter, round(height * shorter / width))
    return max(shorter, round(width * shorter / height)), shorter


def evaluation_view(image: Pixels, size: int, crop_fraction: float = 0.875) -> Pixels:
    """The view for evaluation: shorter side to round(size / crop_fraction), then centre crop.

    Args:
      image: uint8 [H, W, C].
      size: side of the result in pixels.
      crop_fraction: fraction of the shorter side that is kept, in (0, 1]; 0.875 is 224 of 256.

    Returns:
      uint8 [size, size, C].
    """
    _check_size(size)
    decoded = Decoded(image, image.shape[1], image.shape[0])
    return _eval_view(decoded, size, crop_fraction)


@memory_is_a_reason()
def load_eval_view(
    data: bytes | np.ndarray, *, size: int, channels: int = 3, crop_fraction: float = 0.875
) -> Pixels:
    """`evaluation_view` of the decoded data; large JPEGs are decoded at a reduced scale.

    Returns:
      uint8 [size, size, channels]; for anything but a large JPEG, exactly
      `evaluation_view(decode_image(data, channels), size, crop_fraction)`.

    Raises:
      UnreadableImage: as `decode_image`.
    """
    _check_size(size)
    scale = _eval_scale(size, crop_fraction)
    return _eval_view(decode(data, channels, scale), size, crop_fraction)


def _eval_scale(size: int, crop_fraction: float) -> Callable[[int, int], float]:
    def scale(width: int, height: int) -> float:
        return width / (_evaluation_shape(width, height, size, crop_fraction)[0] * _REDUCING_GAP)

    return scale


def _eval_view(decoded: Decoded, size: int, crop_fraction: float) -> Pixels:
    image, width, height, factor = decoded
    shape = _evaluation_shape(width, height, size, crop_fraction)
    if (image.shape[1], image.shape[0]) == shape:
        return center_crop(image, size)
    if shape[0] * shape[1] > _MOST_RESIZED * size * size:
        return _resize_center(image, (width / factor, height / factor), shape, size)
    box = (0, 0, width / factor, height / factor)
    resized = to_pil(image).resize(shape, Image.Resampling.BILINEAR, box=box)
    return center_crop(to_array(resized), size)


def _resize_center(
    image: Pixels, extent: tuple[float, float], shape: tuple[int, int], size: int
) -> Pixels:
    """The central [size, size] part of the image resized to `shape`; only this part is computed.

    Args:
      image: uint8 [H, W, C].
      extent: (width, height) of the part of the image that is resized, in its pixels.
      shape: (width, height) of the whole result.
      size: of the part that is returned.
    """
    slices, starts, ends = [], [], []
    for pixels, length, target in zip(image.shape[1::-1], extent, shape, strict=True):
        scale = length / target
        start = (target - size) // 2 * scale
        end = start + size * scale
        # The pixels that the filter reads. Positions are counted from the first of these pixels:
        # Pillow stores positions as float32, which is too coarse at the far end of a long image.
        reach = math.ceil(max(scale, 1.0)) + 1
        first = max(0, math.floor(start) - reach)
        last = min(pixels, math.ceil(end) + reach)
        slices.append(slice(first, last))
        starts.append(start - first)
        ends.append(min(end - first, last - first))
    part = to_pil(np.ascontiguousarray(image[slices[1], slices[0]]))
    box = (*starts, *ends)
    return to_array(part.resize((size, size), Image.Resampling.BILINEAR, box=box))


@memory_is_a_reason()
def load_eval_view_or_same(
    data: bytes | np.ndarray, *, size: int, channels: int = 3, crop_fraction: float = 0.875
) -> Pixels:
    """`load_eval_view`, but an image that is already size x size stays unchanged."""
    _check_size(size)
    decoded = decode(data, channels, _eval_scale(size, crop_fraction))
    if (decoded.full_width, decoded.full_height) == (size, size):
        return decoded.pixels
    return _eval_view(decoded, size, crop_fraction)


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part of an image (Szegedy et al., arXiv 1409.4842, section 6).

    Ten attempts with an area uniform in `scale` (of the whole) and an aspect ratio (width / height)
    log-uniform in `ratio`; then the largest centred box with an allowed ratio, as in torchvision.

    Returns:
      (left, top, right, bottom) in whole pixels, inside the image.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"crop scale {tuple(scale)} was given; use 0 < low <= high <= 1.")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"crop ratio {tuple(ratio)} was given; use 0 < low <= high.")
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # Only `random()` is used: its conversion of raw bits has not changed since NumPy 1.17.
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


def _resize_box(image: Pixels, box: Box, size: int) -> Pixels:
    """The box (left, top, right, bottom) of an image, resized to [size, size, C] by OpenCV.

    Pixel centres are at half-integers: the corners of the box become the corners of the result.
    """
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    width, height = right - left, bottom - top
    if max(width, height) > _AVERAGE_ABOVE * size:
        # Only the sides that shrink: if a side grows, INTER_AREA does not average at all.
        smaller = min(width, size), min(height, size)
        part = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)
    return part.reshape(size, size, image.shape[2])  # OpenCV drops the axis of a single channel


def random_resized_crop(
    image: Pixels,
    size: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Pixels:
    """A `random_box` of the image, resized to uint8 [size, size, C] by OpenCV.

    Bilinear (INTER_LINEAR), after averaging over areas (INTER_AREA) if a side shrinks by more than
    1.5. The filter differs slightly from that of `evaluation_view` and takes a fifth of its time.
    """
    _check_size(size)
    check_pixels(image)
    box = random_box(image.shape[1], image.shape[0], rng, scale, ratio)
    return _resize_box(image, box, size)


@memory_is_a_reason()
def load_train_view(
    data: bytes | np.ndarray,
    *,
    size: int,
    rng: np.random.Generator,
    channels: int = 3,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Pixels:
    """`random_resized_crop` of the decoded data; large JPEGs are decoded at a reduced scale.

    The same generator state gives the same box as `random_resized_crop`, because the box is drawn
    in pixels of the full, upright image. Pillow resizes images that were decoded at a reduced
    scale, as in `load_eval_view`.

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

    image, width, height, factor = decode(data, channels, wanted_scale)
    if box is None:
        box = random_box(width, height, rng, scale, ratio)
    if factor == 1:
        return _resize_box(image, box, size)
    # The corners of a reduced box lie between pixels, which only Pillow's resize supports.
    left, top, right, bottom = (side / factor for side in box)
    part = (left, top, right, bottom)
    return to_array(to_pil(image).resize((size, size), Image.Resampling.BILINEAR, box=part))
