"""Augmentation and normalisation on the device, inside the compiled training step.

There is one plain function per transform, for ONE image: float32 [H, W, C], values in [0, 1], C = 1
or 3. It returns the same shape; random functions take a PRNG key first. `make_augment` applies them
to a batch. All randomness of an example comes from its own key (`example_keys`), so results do not
depend on how a batch is divided over devices. A transform that is switched off is not traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

Image = Float[Array, "H W C"]
Images = Float[Array, "B H W C"]
Keys = Key[Array, " B"]

# Mean and standard deviation per channel, of values in [0, 1].
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # torchvision's constants for its ImageNet weights, which most projects use.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # To [-1, 1], as Keras's and the original TensorFlow MobileNetV2 weights expect.
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

# ITU-R 601 luma; Pillow and torchvision compute grey in the same way.
_LUMA = (0.299, 0.587, 0.114)

# Each transform draws all its numbers in one `uniform` call: every call of the generator adds about
# half a second to XLA's compilation on CPU, more than the transform itself.

# Streams below an example's key. The numbers are fixed, so that switching one transform on does not
# change the randomness of the others.
_CROP, _FLIP, _JITTER, _RANDAUGMENT, _ERASE, _MIX = range(6)


def normalization(preset: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a preset for 1 or 3 channels; for grey, the average of the three channels.

    Raises:
      ValueError: the preset is unknown.
    """
    if preset not in NORMALIZATIONS:
        raise ValueError(
            f"normalization {preset!r} was given; use {', '.join(sorted(NORMALIZATIONS))}, or give "
            "mean and std as numbers."
        )
    mean, std = NORMALIZATIONS[preset]
    if channels == 1:
        return (sum(mean) / 3,), (sum(std) / 3,)
    return mean, std


def normalize(
    images: Float[Array, "*batch C"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*batch C"]:
    """(images - mean) / std per channel; mean and std of length C or 1, for values in [0, 1].

    Raises:
      ValueError: the length is different, or a std is not positive.
    """
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} has {len(values)} values for images of {channels} channels; "
                f"give {channels} or 1."
            )
    if min(std) <= 0:
        raise ValueError(f"std {tuple(std)} was given; use positive values.")
    # A multiplication, unlike a division, is fused into the surrounding arithmetic at no cost.
    scale = 1.0 / np.asarray(std, np.float64)
    offset = -np.asarray(mean, np.float64) * scale
    return images * jnp.asarray(scale, images.dtype) + jnp.asarray(offset, images.dtype)


def example_keys(
    seed_key: Key[Array, ""], epochs: Int[Array, " B"], indices: Int[Array, " B"]
) -> Keys:
    """One key per example: seed_key folded with the epoch, then with the example's index."""
    fold = jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(seed_key, e), i))
    return fold(epochs, indices)


# ---------------------------------------------------------------------------------------- geometry


def random_crop_with_padding(key: Key[Array, ""], image: Image, padding: int) -> Image:
    """A crop of the image's own size, after `padding` zero pixels are added on every side."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    corner = jax.random.uniform(key, (2,)) * (2 * padding + 1)
    top, left = jnp.floor(corner).astype(jnp.int32)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


_TRIES = 10
_BOX_NUMBERS = 2 * _TRIES + 2


def _random_box(
    uniforms: Float[Array, " n"],
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> tuple[Array, Array, Array, Array]:
    """(top, left, height, width) in pixels of the first of `_TRIES` boxes that fits.

    `uniforms` are `_BOX_NUMBERS` numbers in [0, 1). The area is uniform in `scale` of the whole,
    and the aspect ratio (width / height) log-uniform in `ratio`. If none fits, the result is the
    largest centred box.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * (scale[0] + uniforms[:_TRIES] * (scale[1] - scale[0]))
    log_ratio = low + uniforms[_TRIES : 2 * _TRIES] * (high - low)
    widths = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio)))
    heights = jnp.round(jnp.sqrt(area * jnp.exp(-log_ratio)))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = jnp.argmax(fits)
    # The fallback: the largest centred box with an allowed ratio (torchvision's rule).
    aspect = min(max(width / height, ratio[0]), ratio[1])
    fallback_w = min(width, max(1, round(height * aspect)))
    fallback_h = min(height, max(1, round(width / aspect)))
    found = jnp.any(fits)
    box_w = jnp.where(found, widths[first], fallback_w)
    box_h = jnp.where(found, heights[first], fallback_h)
    u_top, u_left = uniforms[2 * _TRIES], uniforms[2 * _TRIES + 1]
    top = jnp.where(found, jnp.floor(u_top * (height - box_h + 1)), (height - fallback_h) // 2)
    left = jnp.where(found, jnp.floor(u_left * (width - box_w + 1)), (width - fallback_w) // 2)
    return top, left, box_h, box_w


def random_resized_crop(
    key: Key[Array, ""],
    image: Image,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (0.75, 1.3333),
) -> Image:
    """A random part (arXiv 1409.4842, section 6), resized bilinearly to the image's own size.

    Args:
      scale: range of the part's area, as a fraction of the image's.
      ratio: range of the part's width / height.
    """
    height, width, _ = image.shape
    uniforms = jax.random.uniform(key, (_BOX_NUMBERS,))
    top, left, box_h, box_w = _random_box(uniforms, height, width, scale, ratio)
    factors = jnp.stack([height / box_h, width / box_w])
    translation = -jnp.stack([top, left]) * factors
    resized = jax.image.scale_and_translate(
        image, image.shape, (0, 1), factors, translation, method="linear", antialias=True
    )
    return jnp.clip(resized, 0.0, 1.0)


def horizontal_flip(key: Key[Array, ""], image: Image) -> Image:
    """Mirrors left and right with probability 1/2."""
    return jnp.where(jax.random.uniform(key) < 0.5, image[:, ::-1], image)


# ------------------------------------------------------------------------------------------ colour


def _grey(image: Image) -> Float[Array, "H W 1"]:
    if image.shape[-1] == 1:
        return image
    return jnp.sum(image * jnp.asarray(_LUMA, image.dtype), axis=-1, keepdims=True)


def _blend(image: Image, other: Array, factor: Array) -> Image:
    """other + factor * (image - other), clipped: 1 gives the image, above 1 a stronger effect."""
    return jnp.clip(other + factor * (image - other), 0.0, 1.0)


def _shift_hue(image: Image, turns: Array) -> Image:
    """Rotates the hue of HSV by `turns` (1 is the full circle); grey images do not change."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value, low = jnp.max(image, -1), jnp.min(image, -1)
    chroma = value - low
    safe = jnp.where(chroma == 0, 1.0, chroma)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sector = sector + 6.0 * turns
    # Each channel is value - chroma * clip(min(k, 4 - k), 0, 1), k = (n + sector) mod 6, n = 5,3,1.
    k = (jnp.asarray([5.0, 3.0, 1.0]) + sector[..., None]) % 6.0
    shifted = value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)
    return jnp.clip(shifted, 0.0, 1.0)


def color_jitter(
    key: Key[Array, ""],
    image: Image,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Image:
    """Random brightness, contrast, saturation and hue, in this order; 0 switches one off.

    Factors are uniform in [max(0, 1 - s), 1 + s], the hue shift in [-hue, hue] turns, as in
    torchvision's ColorJitter. That one also shuffles the order (a program four times as large).

    Args:
      brightness, contrast, saturation: strengths s >= 0.
      hue: in [0, 0.5]. Saturation and hue do not change grey images (C = 1).
    """
    uniforms = jax.random.uniform(key, (4,))

    def factor(position: int, strength: float) -> Array:
        low = max(0.0, 1.0 - strength)
        return low + uniforms[position] * (1.0 + strength - low)

    if brightness:
        image = _blend(image, jnp.zeros_like(image), factor(0, brightness))
    if contrast:
        image = _blend(image, jnp.mean(_grey(image)), factor(1, contrast))
    if saturation and image.shape[-1] == 3:
        image = _blend(image, _grey(image), factor(2, saturation))
    if hue and image.shape[-1] == 3:
        image = _shift_hue(image, hue * (2.0 * uniforms[3] - 1.0))
    return image


def _sharpness(image: Image, factor: Array) -> Image:
    """Blends with Pillow's SMOOTH filter, (1 1 1; 1 5 1; 1 1 1) / 13; the border is kept."""
    h, w, _ = image.shape
    if h < 3 or w < 3:
        return image
    total = sum(image[i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3))
    smooth = (total + 4.0 * image[1:-1, 1:-1]) / 13.0
    return _blend(image, image.at[1:-1, 1:-1].set(smooth), factor)


def _posterize(image: Image, bits: Array) -> Image:
    """Keeps the top `bits` bits of the 8-bit values."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(jnp.round(image * 255.0) / step) * step / 255.0


def _solarize(image: Image, threshold: Array) -> Image:
    return jnp.where(image >= threshold, 1.0 - image, image)


def _autocontrast(image: Image) -> Image:
    """Stretches each channel to [0, 1]; a channel with one value does not change."""
    low = jnp.min(image, (0, 1), keepdims=True)
    high = jnp.max(image, (0, 1), keepdims=True)
    span = high - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1.0), image)


def _equalize(image: Image) -> Image:
    """Flattens the histogram of each channel over 256 levels, with Pillow's rounding."""
    levels = jnp.round(image * 255.0).astype(jnp.int32)

    def channel(values: Array) -> Array:
        histogram = jnp.bincount(values.reshape(-1), length=256)
        last = jnp.max(values)
        step = (values.size - histogram[last]) // 255
        before = jnp.cumsum(histogram) - histogram
        table = jnp.clip((before + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[values], values)

    equalized = jax.vmap(channel, in_axes=2, out_axes=2)(levels)
    return equalized.astype(image.dtype) / 255.0


# ------------------------------------------------------------------------------------- RandAugment

RANDAUGMENT_OPS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


def _affine(image: Image, matrix: Float[Array, "2 3"]) -> Image:
    """Bilinear resampling; `matrix` maps output (x, y, 1), from the centre, to input (x, y).

    Pixels outside the image are zero.
    """
    height, width, _ = image.shape
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + (width - 1) / 2
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + (height - 1) / 2
    x0, y0 = jnp.floor(source_x), jnp.floor(source_y)
    fraction_x, fraction_y = source_x - x0, source_y - y0
    flat = image.reshape(height * width, -1)

    def corner(dx: int, dy: int, weight: Array) -> Array:
        cx, cy = (x0 + dx).astype(jnp.int32), (y0 + dy).astype(jnp.int32)
        inside = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height)
        index = jnp.clip(cy, 0, height - 1) * width + jnp.clip(cx, 0, width - 1)
        return flat[index] * (weight * inside)[..., None]

    return (
        corner(0, 0, (1 - fraction_x) * (1 - fraction_y))
        + corner(1, 0, fraction_x * (1 - fraction_y))
        + corner(0, 1, (1 - fraction_x) * fraction_y)
        + corner(1, 1, fraction_x * fraction_y)
    )


def apply_randaugment_op(image: Image, op: Array, level: Array) -> Image:
    """Applies one of `RANDAUGMENT_OPS`, given by its index.

    Ranges at full strength are those of torchvision's RandAugment (0.3 shear, 150/331 of the side,
    30 degrees, factors 1 +- 0.9, 4 bits, threshold 0); bilinear, zero outside.

    Args:
      image: float32 [H, W, C] in [0, 1].
      op: int32 scalar, index into `RANDAUGMENT_OPS`.
      level: float32 scalar in [-1, 1]; its sign is the direction, for operations that have one.
    """
    height, width, channels = image.shape
    size = jnp.abs(level)
    index = {name: i for i, name in enumerate(RANDAUGMENT_OPS)}

    def amount(name: str, full: float) -> Array:
        return jnp.where(op == index[name], level * full, 0.0)

    angle = amount("rotate", math.radians(30.0))
    shear_x, shear_y = amount("shear_x", 0.3), amount("shear_y", 0.3)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # At most one amount is not zero, so one matrix serves all operations.
    matrix = jnp.stack(
        [
            jnp.stack([cos, sin + shear_x, amount("translate_x", width * 150 / 331)]),
            jnp.stack([shear_y - sin, cos, amount("translate_y", height * 150 / 331)]),
        ]
    )
    geometric = (op >= index["shear_x"]) & (op <= index["rotate"])
    moved = jnp.where(geometric, _affine(image, matrix), image)

    factor = 1.0 + 0.9 * level
    blend_to = jnp.where(
        op == index["brightness"],
        0.0,
        jnp.where(op == index["contrast"], jnp.mean(_grey(image)), _grey(image)),
    )
    if channels == 1:
        # Saturation has no effect on a grey image.
        factor = jnp.where(op == index["color"], 1.0, factor)
    blended = _blend(image, blend_to, factor)
    is_blend = (op == index["brightness"]) | (op == index["color"]) | (op == index["contrast"])
    result = jnp.where(is_blend, blended, moved)
    for name, changed in (
        ("sharpness", _sharpness(image, factor)),
        ("posterize", _posterize(image, 8 - jnp.round(4.0 * size))),
        ("solarize", _solarize(image, 1.0 - size)),
        ("autocontrast", _autocontrast(image)),
        ("equalize", _equalize(image)),
    ):
        result = jnp.where(op == index[name], changed, result)
    return result


def rand_augment(
    key: Key[Array, ""], image: Image, layers: int = 2, magnitude: float = 9.0
) -> Image:
    """RandAugment (arXiv 1909.13719): `layers` random operations of the same strength.

    Args:
      layers: number of operations, each uniform over `RANDAUGMENT_OPS`.
      magnitude: 0..10, where 10 is full strength (timm's "m9" scale; torchvision's 0..30 over 3).
        Directions are random.
    """

    uniforms = jax.random.uniform(key, (layers, 2))

    def layer(i: Array, current: Image) -> Image:
        op = jnp.floor(uniforms[i, 0] * len(RANDAUGMENT_OPS)).astype(jnp.int32)
        sign = jnp.where(uniforms[i, 1] < 0.5, 1.0, -1.0)
        return apply_randaugment_op(current, op, sign * magnitude / 10.0)

    # A loop, so that more layers do not make the program larger.
    return jax.lax.fori_loop(0, layers, layer, image) if layers else image


def random_erasing(
    key: Key[Array, ""],
    image: Image,
    probability: float,
    scale: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
    value: float | Sequence[float] = 0.0,
) -> Image:
    """With the given probability, fills a random rectangle with `value` (arXiv 1708.04896).

    Args:
      scale: range of the rectangle's area, as a fraction of the image's.
      ratio: range of its width / height.
      value: a number, or one per channel.
    """
    height, width, _ = image.shape
    uniforms = jax.random.uniform(key, (_BOX_NUMBERS + 1,))
    top, left, box_h, box_w = _random_box(uniforms, height, width, scale, ratio)
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (rows >= top) & (rows < top + box_h) & (columns >= left) & (columns < left + box_w)
    erase = inside & (uniforms[-1] < probability)
    return jnp.where(erase, jnp.asarray(value, image.dtype), image)


# ------------------------------------------------------------------------------------------ mixing


def _pair_keys(keys: Keys) -> Keys:
    """[B // 2]: the key of the even element of each pair."""
    if keys.shape[0] % 2:
        raise ValueError(
            f"a batch of {keys.shape[0]} was given to mixup or cutmix, which mix neighbouring "
            "pairs; use an even batch size on each device."
        )
    return keys[::2]


def _partners(batch: Array) -> Array:
    """The batch with the two elements of each pair exchanged."""
    pairs = batch.reshape(batch.shape[0] // 2, 2, *batch.shape[1:])
    return pairs[:, ::-1].reshape(batch.shape)


def _symmetric_beta(uniform: Float[Array, ""], alpha: float) -> Float[Array, ""]:
    """The quantile function of Beta(alpha, alpha), interpolated between 4,097 points.

    `jax.random.beta` has two rejection loops that take seconds to compile; this has none.
    """
    from scipy.special import betaincinv

    grid = np.linspace(0.0, 1.0, 4097)
    quantiles = jnp.asarray(betaincinv(alpha, alpha, grid), jnp.float32)
    return jnp.interp(uniform, jnp.asarray(grid, jnp.float32), quantiles)


def mix(
    keys: Keys,
    images: Images,
    targets: Float[Array, "B K"],
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[Images, Float[Array, "B K"]]:
    """Mixup or CutMix; with both alphas above 0, one of the two per pair with probability 1/2.

    Example i is mixed with its neighbour i ^ 1. The random numbers of a pair come from the key of
    its even element, so any division of the batch into parts of even size gives the same result.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    _, height, width, _ = images.shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def weights(key: Key[Array, ""]) -> tuple[Array, Array]:
        """(weight of the own pixels [H, W], weight of the own target)."""
        choose, u_lam, u_cut_lam, u_y, u_x = jax.random.uniform(key, (5,))
        blend = cut = (jnp.ones((height, width)), jnp.ones(()))
        if mixup_alpha:
            lam = _symmetric_beta(u_lam, mixup_alpha)
            blend = (jnp.full((height, width), lam), lam)
        if cutmix_alpha:
            lam = _symmetric_beta(u_cut_lam, cutmix_alpha)
            # arXiv 1905.04899, algorithm A1: a box of area 1 - lam, cut off at the border.
            side = jnp.sqrt(1.0 - lam)
            half_h, half_w = jnp.floor(height * side) / 2, jnp.floor(width * side) / 2
            y, x = jnp.floor(u_y * height), jnp.floor(u_x * width)
            top, bottom = jnp.floor(y - half_h), jnp.floor(y + half_h)
            left, right = jnp.floor(x - half_w), jnp.floor(x + half_w)
            inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
            own = 1.0 - inside.astype(jnp.float32)
            cut = (own, jnp.mean(own))
        if not cutmix_alpha:
            return blend
        if not mixup_alpha:
            return cut
        use_cut = choose < 0.5
        return jnp.where(use_cut, cut[0], blend[0]), jnp.where(use_cut, cut[1], blend[1])

    pixel_weight, target_weight = jax.vmap(weights)(_pair_keys(keys))
    pixel_weight = jnp.repeat(pixel_weight, 2, axis=0)[..., None]
    target_weight = jnp.repeat(target_weight, 2, axis=0)[:, None]
    mixed = pixel_weight * images + (1.0 - pixel_weight) * _partners(images)
    return mixed, target_weight * targets + (1.0 - target_weight) * _partners(targets)


def mixup(
    keys: Keys, images: Images, targets: Float[Array, "B K"], alpha: float
) -> tuple[Images, Float[Array, "B K"]]:
    """Mixup (arXiv 1710.09412) of neighbours i and i ^ 1: weights lam, 1 - lam, lam ~ Beta(a, a).

    Raises:
      ValueError: an odd batch.
    """
    return mix(keys, images, targets, alpha, 0.0)


def cutmix(
    keys: Keys, images: Images, targets: Float[Array, "B K"], alpha: float
) -> tuple[Images, Float[Array, "B K"]]:
    """CutMix (arXiv 1905.04899): a box of i comes from i ^ 1; targets follow the box's true area.

    Raises:
      ValueError: an odd batch.
    """
    return mix(keys, images, targets, 0.0, alpha)


# ------------------------------------------------------------------------------------------- chain


def to_float(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 0..255 to float32 0..1."""
    return images.astype(jnp.float32) / 255.0


def make_preprocess(
    mean: Sequence[float], std: Sequence[float]
) -> Callable[[UInt8[Array, "*shape"]], Float[Array, "*shape"]]:
    """A function from uint8 images [..., H, W, C] to normalised float32, for evaluation."""
    return lambda images: normalize(to_float(images), mean, std)


def _check_settings(settings: dict[str, float], crop_scale: Sequence[float]) -> None:
    for name, value in settings.items():
        if value < 0:
            raise ValueError(f"{name}={value} was given; use 0 (off) or more.")
    if settings["hue"] > 0.5:
        raise ValueError(f"hue={settings['hue']} was given; use at most 0.5 turns.")
    if settings["random_erasing"] > 1:
        raise ValueError(
            f"random_erasing={settings['random_erasing']} was given; a probability is at most 1."
        )
    if settings["randaugment_magnitude"] > 10:
        raise ValueError(
            f"randaugment_magnitude={settings['randaugment_magnitude']} was given; the scale is "
            "0 to 10."
        )
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"crop_scale={tuple(crop_scale)} was given; use 0 < low <= high <= 1.")


def make_augment(
    *,
    mean: Sequence[float],
    std: Sequence[float],
    random_crop_padding: int = 0,
    random_resized_crop: bool = False,
    crop_scale: Sequence[float] = (0.08, 1.0),
    crop_ratio: Sequence[float] = (0.75, 1.3333),
    horizontal_flip: bool = False,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    randaugment_layers: int = 0,
    randaugment_magnitude: float = 9.0,
    random_erasing: float = 0.0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> Callable[..., tuple[Images, Float[Array, "B K"]]]:
    """The training transform of a batch; every setting is off by default.

    Order: crop with padding, resized crop, flip, colour jitter, RandAugment, erasing (to the mean),
    normalisation, mixup or CutMix.

    Args:
      mean, std: per channel (or one for all), of values in [0, 1].
      random_crop_padding: pixels.
      random_resized_crop: for images in memory; streamed images are already cropped.
      random_erasing: probability.
      mixup_alpha, cutmix_alpha: parameters of the Beta distributions; with both above 0 one of the
        two is drawn per pair.
      The others: see the function of the same name.

    Returns:
      `augment(keys, images, labels, num_classes)`: typed PRNG keys [B], uint8 [B, H, W, C], int32
      [B] and a static int to (normalised float32 [B, H, W, C], float32 targets [B, num_classes]).

    Raises:
      ValueError: a setting outside its range.
    """
    _check_settings(
        {
            "random_crop_padding": random_crop_padding,
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
            "randaugment_layers": randaugment_layers,
            "randaugment_magnitude": randaugment_magnitude,
            "random_erasing": random_erasing,
            "mixup_alpha": mixup_alpha,
            "cutmix_alpha": cutmix_alpha,
        },
        crop_scale,
    )
    if not 0 < crop_ratio[0] <= crop_ratio[1]:
        raise ValueError(f"crop_ratio={tuple(crop_ratio)} was given; use 0 < low <= high.")
    flip, resized_crop, erase = horizontal_flip, random_resized_crop, random_erasing
    functions = globals()  # in here, settings hide the functions of the same names
    per_example: list[tuple[int, Callable[[Array, Array], Array]]] = []
    if random_crop_padding:
        per_example.append(
            (_CROP, lambda k, x: random_crop_with_padding(k, x, random_crop_padding))
        )
    if resized_crop:
        crop = functions["random_resized_crop"]
        per_example.append((_CROP, lambda k, x: crop(k, x, crop_scale, crop_ratio)))
    if flip:
        per_example.append((_FLIP, functions["horizontal_flip"]))
    if brightness or contrast or saturation or hue:
        per_example.append(
            (_JITTER, lambda k, x: color_jitter(k, x, brightness, contrast, saturation, hue))
        )
    if randaugment_layers:
        per_example.append(
            (
                _RANDAUGMENT,
                lambda k, x: rand_augment(k, x, randaugment_layers, randaugment_magnitude),
            )
        )
    if erase:
        erasing = functions["random_erasing"]
        per_example.append((_ERASE, lambda k, x: erasing(k, x, erase, value=mean)))

    def one(key: Array, image: Array) -> Array:
        for stream, transform in per_example:
            image = transform(jax.random.fold_in(key, stream), image)
        return image

    def augment(
        keys: Keys, images: UInt8[Array, "B H W C"], labels: Int[Array, " B"], num_classes: int
    ) -> tuple[Images, Float[Array, "B K"]]:
        pixels = to_float(images)
        if per_example:
            pixels = jax.vmap(one)(keys, pixels)
        pixels = normalize(pixels, mean, std)
        targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
        if mixup_alpha or cutmix_alpha:
            mix_keys = jax.vmap(lambda k: jax.random.fold_in(k, _MIX))(keys)
            pixels, targets = mix(mix_keys, pixels, targets, mixup_alpha, cutmix_alpha)
        return pixels, targets

    return augment
