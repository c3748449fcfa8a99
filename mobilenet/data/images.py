"""Pictures on the host: what training and evaluation see of them, with NumPy, Pillow and OpenCV.

Pictures are uint8 arrays [H, W, C], rows from the top, C = 1 (grey) or 3 (red, green, blue), sRGB
values 0..255. Nothing here knows of JAX, so that data workers start fast and hold no accelerator.
`mobilenet.data.decoding` reads the files.

Evaluation views, which define measured accuracies, are resized by Pillow; random training crops by
OpenCV, or by Pillow from a JPEG that was decoded at a reduced scale.
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
    Picture,
    check_picture,
    decode,
    memory_is_a_reason,
    to_array,
    to_pil,
)

# What users of views need of files too.
UnreadableImage = decoding.UnreadableImage
decode_image = decoding.decode_image
MAX_PIXELS = decoding.MAX_PIXELS

Box = tuple[int, int, int, int]

# Whole pictures are dealt out to threads or processes; threads within a resize would compete.
cv2.setNumThreads(1)

# A JPEG may be decoded at 1/2, 1/4 or 1/8 only while the part that is used stays this many times
# larger than the result: Pillow's `thumbnail` takes the same 2.0 as close to a full decode.
_REDUCING_GAP = 2.0

# Training crops that shrink by more than this are averaged over areas, others interpolated. Plain
# interpolation uses every pixel up to 2.0 but begins to alias. On photographs it is as close to
# Pillow's antialiased filter as averaging is near 1.5 (mean difference 2.0 and 1.5 of 255 there,
# 2.9 and 1.3 at 1.75), at a fifth of the time.
_AVERAGE_ABOVE = 1.5

# A picture that would be resized to more than this many times the pixels of its evaluation view
# (25 times as long as wide, at 224 of 256) has only the part resized that is kept.
_MOST_RESIZED = 32


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"image size {size} was given; use at least 1 pixel.")


def resize(image: Picture, height: int, width: int) -> Picture:
    """Bilinear resize with antialiasing (the filter widens when it shrinks), as Pillow does it."""
    _check_size(min(height, width))
    if image.shape[:2] == (height, width):
        return image
    return to_array(to_pil(image).resize((width, height), Image.Resampling.BILINEAR))


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
    decoded = Decoded(image, image.shape[1], image.shape[0])
    return _eval_view(decoded, size, crop_fraction)


@memory_is_a_reason()
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
    return _eval_view(decode(data, channels, scale), size, crop_fraction)


def _eval_scale(size: int, crop_fraction: float) -> Callable[[int, int], float]:
    def scale(width: int, height: int) -> float:
        return width / (_evaluation_shape(width, height, size, crop_fraction)[0] * _REDUCING_GAP)

    return scale


def _eval_view(decoded: Decoded, size: int, crop_fraction: float) -> Picture:
    picture, width, height, factor = decoded
    shape = _evaluation_shape(width, height, size, crop_fraction)
    if (picture.shape[1], picture.shape[0]) == shape:
        return center_crop(picture, size)
    if shape[0] * shape[1] > _MOST_RESIZED * size * size:
        return _resize_center(picture, (width / factor, height / factor), shape, size)
    box = (0, 0, width / factor, height / factor)
    resized = to_pil(picture).resize(shape, Image.Resampling.BILINEAR, box=box)
    return center_crop(to_array(resized), size)


def _resize_center(
    picture: Picture, extent: tuple[float, float], shape: tuple[int, int], size: int
) -> Picture:
    """The central [size, size] part of the picture resized to `shape`, without the rest of it.

    Args:
      picture: uint8 [H, W, C].
      extent: (width, height) of the part of it that is resized, in its pixels.
      shape: (width, height) of the whole result.
      size: of the part that is wanted.
    """
    slices, starts, ends = [], [], []
    for pixels, length, target in zip(picture.shape[1::-1], extent, shape, strict=True):
        scale = length / target
        start = (target - size) // 2 * scale
        end = start + size * scale
        # The pixels that the filter reaches. Positions are counted from the first of them: Pillow
        # holds them as float32, too coarse at the far end of a long picture.
        reach = math.ceil(max(scale, 1.0)) + 1
        first = max(0, math.floor(start) - reach)
        last = min(pixels, math.ceil(end) + reach)
        slices.append(slice(first, last))
        starts.append(start - first)
        ends.append(min(end - first, last - first))
    part = to_pil(np.ascontiguousarray(picture[slices[1], slices[0]]))
    box = (*starts, *ends)
    return to_array(part.resize((size, size), Image.Resampling.BILINEAR, box=box))


@memory_is_a_reason()
def load_eval_view_or_same(
    data: bytes | np.ndarray, *, size: int, channels: int = 3, crop_fraction: float = 0.875
) -> Picture:
    """`load_eval_view`, except that a picture of size x size already stays as it is."""
    _check_size(size)
    decoded = decode(data, channels, _eval_scale(size, crop_fraction))
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
    check_picture(image)
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

    picture, width, height, factor = decode(data, channels, wanted_scale)
    if box is None:
        box = random_box(width, height, rng, scale, ratio)
    if factor == 1:
        return _resize_box(picture, box, size)
    # The corners of a reduced box lie between pixels, which only Pillow's resize knows.
    left, top, right, bottom = (side / factor for side in box)
    part = (left, top, right, bottom)
    return to_array(to_pil(picture).resize((size, size), Image.Resampling.BILINEAR, box=part))
