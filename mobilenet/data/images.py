"""Pictures on the host: decode, resize and crop with NumPy and Pillow.

Pictures are uint8 arrays [H, W, C], rows from the top, C = 1 (grey) or 3 (red, green, blue), sRGB
values 0..255. Nothing here knows of JAX, so that data workers start fast and hold no accelerator.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "H W C"]
Box = tuple[float, float, float, float]

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

# A JPEG may be decoded at 1/2, 1/4 or 1/8 only while the part that is used stays this many times
# larger than the result: Pillow's `thumbnail` takes the same 2.0 as close to a full decode.
_REDUCING_GAP = 2.0


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


def _to_pil(image: Picture) -> Image.Image:
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an array {image.dtype}{list(image.shape)} was given as a picture; "
            "use uint8 [H, W, 1] or [H, W, 3]."
        )
    if image.shape[0] < 1 or image.shape[1] < 1:
        raise UnreadableImage("the picture has no pixels.")
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _open_upright(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None,
) -> tuple[Image.Image, tuple[int, int]]:
    if isinstance(data, np.ndarray):
        image = _to_pil(data)
        return _to_mode(image, "L" if channels == 1 else "RGB"), (image.width, image.height)
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(
                f"it declares {image.width} x {image.height} pixels, above {MAX_PIXELS:,}."
            )
        orientation = _orientation(image)
        width, height = image.size
        upright = (height, width) if orientation >= 5 else (width, height)
        # A reduced JPEG may end in part of a pixel at the right and below; rotated, that part would
        # lie elsewhere, so those are reduced only when there is none.
        whole = orientation == 1 or (width % 8 == 0 and height % 8 == 0)
        if wanted_scale is not None and image.format == "JPEG" and whole:
            scale = wanted_scale(*upright)
            if scale >= 2:
                image.draft(image.mode, (int(width / scale), int(height / scale)))
        image.load()
        result = _to_mode(image, "L" if channels == 1 else "RGB")
        if orientation in _UPRIGHT:
            result = result.transpose(_UPRIGHT[orientation])
        return result, upright


def _open(
    data: bytes | np.ndarray,
    channels: int,
    wanted_scale: Callable[[int, int], float] | None = None,
) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes, upright, in mode L or RGB.

    Args:
      data: an encoded picture, or uint8 [H, W, 1 or 3].
      channels: 1 or 3.
      wanted_scale: (width, height) of the full picture -> how many times smaller it may be decoded.

    Returns:
      The picture, perhaps reduced, and the (width, height) of the full picture.

    Raises:
      UnreadableImage: whatever way the data is broken.
    """
    _check_channels(channels)
    if isinstance(data, bytes) and not data:
        raise UnreadableImage("the file is empty (0 bytes).")
    try:
        try:
            return _open_upright(data, channels, wanted_scale)
        except Warning as warning:
            if isinstance(warning, Image.DecompressionBombWarning):
                raise
            # Only where the caller turned warnings into errors (pytest does).
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _open_upright(data, channels, wanted_scale)
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
    """Decodes one picture of any format that Pillow reads.

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
        _to_pil(data)
        return data
    return _to_array(_open(data, channels)[0])


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
    image, full = _open(data, channels, lambda w, h: _eval_scale(w, h, size, crop_fraction))
    return _eval_view(image, full, size, crop_fraction)


def _eval_scale(width: int, height: int, size: int, crop_fraction: float) -> float:
    return width / (_evaluation_shape(width, height, size, crop_fraction)[0] * _REDUCING_GAP)


def _reduced_box(image: Image.Image, full: tuple[int, int], box: Box) -> Box:
    """A box in pixels of the full picture, in pixels of the perhaps reduced one.

    libjpeg reduces by exactly 2, 4 or 8 and rounds sizes up, so the last pixel may lie half outside
    the full picture; scaling by the sizes instead would shift everything a little.
    """
    if image.size == full:
        return box
    factor = 2 ** round(math.log2(full[0] / image.width))
    left, top, right, bottom = (side / factor for side in box)
    return left, top, min(right, image.width), min(bottom, image.height)


def _eval_view(
    image: Image.Image, full: tuple[int, int], size: int, crop_fraction: float
) -> Picture:
    shape = _evaluation_shape(*full, size, crop_fraction)
    if image.size != shape:
        box = _reduced_box(image, full, (0, 0, *full))
        image = image.resize(shape, Image.Resampling.BILINEAR, box=box)
    return center_crop(_to_array(image), size)


def load_eval_view_or_same(
    data: bytes | np.ndarray, *, size: int, channels: int = 3, crop_fraction: float = 0.875
) -> Picture:
    """`load_eval_view`, except that a picture of size x size already stays as it is."""
    _check_size(size)
    image, full = _open(data, channels, lambda w, h: _eval_scale(w, h, size, crop_fraction))
    if full == (size, size):
        return _to_array(image)
    return _eval_view(image, full, size, crop_fraction)


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
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


def random_resized_crop(
    image: Picture,
    size: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Picture:
    """A `random_box` of the picture resized to uint8 [size, size, C]."""
    _check_size(size)
    box = random_box(image.shape[1], image.shape[0], rng, scale, ratio)
    resized = _to_pil(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return _to_array(resized)


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
    pixels of the full, upright picture.

    Returns:
      uint8 [size, size, channels].

    Raises:
      UnreadableImage: as `decode_image`.
    """
    _check_size(size)
    state = rng.bit_generator.state
    box: tuple[int, int, int, int] | None = None

    def wanted_scale(width: int, height: int) -> float:
        nonlocal box
        rng.bit_generator.state = state  # a second call, after a warning, draws the same box
        box = random_box(width, height, rng, scale, ratio)
        return min(box[2] - box[0], box[3] - box[1]) / (size * _REDUCING_GAP)

    image, (width, height) = _open(data, channels, wanted_scale)
    if box is None:
        box = random_box(width, height, rng, scale, ratio)
    box_used = _reduced_box(image, (width, height), box)
    return _to_array(image.resize((size, size), Image.Resampling.BILINEAR, box=box_used))
