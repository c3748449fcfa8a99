import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mobilenet.data import transforms
from mobilenet.data.transforms import RANDAUGMENT_OPS, example_keys, make_augment

KEY = jax.random.key(7)


def _photo(height: int = 12, width: int = 10, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


# Compiled once per shape and setting: op by op, each of these takes seconds.
_mix = jax.jit(transforms.mix, static_argnums=(3, 4))
_erase = jax.jit(transforms.random_erasing, static_argnames="value")
_jitter = jax.jit(
    transforms.color_jitter, static_argnames=("brightness", "contrast", "saturation", "hue")
)


_KEYS = functools.cache(lambda: example_keys(KEY, jnp.zeros(200, jnp.int32), jnp.arange(200)))


def _batch(size: int = 8, channels: int = 3, side: int = 8) -> tuple[jax.Array, ...]:
    images = jnp.asarray(np.stack([_photo(side, side, channels, i) for i in range(size)]))
    return _KEYS()[:size], images, jnp.arange(size, dtype=jnp.int32) % 3


# -------------------------------------------------------------------------------- keys, numbers


def test_example_keys_are_folds_and_differ():
    keys = example_keys(KEY, jnp.array([0, 0, 1]), jnp.array([0, 1, 0]))
    expected = jax.random.fold_in(jax.random.fold_in(KEY, 1), 0)
    assert keys[2] == expected
    assert len(set(map(bytes, np.asarray(jax.random.key_data(keys))))) == 3


def test_normalize_literals():
    images = jnp.array([[[[0.0, 0.5, 1.0]]]])
    got = transforms.normalize(images, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    np.testing.assert_allclose(got, [[[[-1.0, 1.0, 0.5]]]], rtol=1e-6)
    mean, std = transforms.normalization("symmetric", 3)
    np.testing.assert_allclose(transforms.normalize(images, mean, std), [[[[-1, 0, 1]]]])
    preprocess = transforms.make_preprocess((0.5,), (0.5,))
    np.testing.assert_allclose(preprocess(jnp.array([[[[0], [255]]]], jnp.uint8)), [[[[-1], [1]]]])
    np.testing.assert_allclose(
        transforms.normalization("imagenet", 1), [[0.449], [0.226]], atol=1e-4
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transforms.normalization("zero", 3), "'zero' was given; use imagenet, symmetric"),
        (
            lambda: transforms.normalize(jnp.zeros((2, 2, 1)), (0.1, 0.2, 0.3), (1.0,)),
            "mean has 3 values for images of 1 channels; give 1 or 1",
        ),
        (
            lambda: transforms.normalize(jnp.zeros((2, 2, 1)), (0.1,), (0.0,)),
            "use positive values",
        ),
        (lambda: make_augment(mean=(0,), std=(1,), hue=0.6), "hue=0.6 was given; use at most 0.5"),
        (
            lambda: make_augment(mean=(0,), std=(1,), mixup_alpha=-1),
            r"mixup_alpha=-1 was given; use 0 \(off\) or more",
        ),
        (
            lambda: make_augment(mean=(0,), std=(1,), random_erasing=2),
            "random_erasing=2 was given; a probability is at most 1",
        ),
        (
            lambda: make_augment(mean=(0,), std=(1,), randaugment_magnitude=20),
            "randaugment_magnitude=20 was given; the scale is 0 to 10",
        ),
        (
            lambda: make_augment(mean=(0,), std=(1,), crop_scale=(0.5, 0.1)),
            r"crop_scale=\(0.5, 0.1\) was given; use 0 < low <= high <= 1",
        ),
        (
            lambda: make_augment(mean=(0,), std=(1,), mixup_alpha=1.0)(*_batch(3), 3),
            "a batch of 3 was given to mixup or cutmix, .* use an even batch size",
        ),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------- geometry


def test_random_crop_with_padding_is_a_shift():
    image = jnp.asarray(_photo(4, 4, 1) / 255.0 + 0.1, jnp.float32)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 4, j : j + 4].tobytes() for i in range(5) for j in range(5)}
    crop = jax.jit(transforms.random_crop_with_padding, static_argnums=2)
    seen = {np.asarray(crop(jax.random.key(i), image, 2)).tobytes() for i in range(150)}
    assert seen <= windows and len(seen) > 20


def test_horizontal_flip():
    image = jnp.arange(6.0).reshape(1, 3, 2)
    both = {
        np.asarray(transforms.horizontal_flip(jax.random.key(i), image)).tobytes()
        for i in range(20)
    }
    assert both == {np.asarray(image).tobytes(), np.asarray(image[:, ::-1]).tobytes()}


def test_random_resized_crop_resamples_the_box():
    # A ramp stays a ramp under bilinear resampling, so the crop's corner and size can be read off.
    y, x = np.mgrid[:32, :32] / 32.0
    image = jnp.asarray(np.stack([x, y, x * 0 + 0.5], -1), jnp.float32)
    crop = jax.jit(transforms.random_resized_crop, static_argnums=(2, 3))
    areas = []
    for i in range(60):
        got = np.asarray(crop(jax.random.key(i), image))
        assert got.shape == image.shape
        np.testing.assert_allclose(got[..., 2], 0.5, atol=1e-5)
        width = (got[16, 24, 0] - got[16, 8, 0]) * 2
        height = (got[24, 16, 1] - got[8, 16, 1]) * 2
        areas.append(width * height)
        assert 0.6 < width / height < 1.7  # ratio range, loosened by whole pixels
    assert 0.06 < min(areas) < 0.3 and 0.7 < max(areas) <= 1.01
    whole = crop(KEY, image, (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_allclose(whole, image, atol=1e-5)


def test_random_erasing():
    image = jnp.full((20, 20, 3), 0.5)
    erased = _erase(KEY, image, 1.0, value=(0.1, 0.2, 0.3))
    hit = np.asarray(erased[..., 0] != 0.5)
    rows, columns = np.flatnonzero(hit.any(1)), np.flatnonzero(hit.any(0))
    assert hit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one full rectangle
    assert hit.sum() == len(rows) * len(columns) and 0.015 < hit.mean() < 0.36
    np.testing.assert_allclose(erased[rows[0], columns[0]], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(_erase(KEY, image, 0.0, value=(0.1, 0.2, 0.3)), image)
    keys = jax.random.split(KEY, 400)
    happened = jax.vmap(lambda k: jnp.any(_erase(k, image, 0.25) != 0.5))(keys)
    assert 0.17 < happened.mean() < 0.33


# --------------------------------------------------------------------------------------- colour


def test_hue_agrees_with_colorsys():
    pixels = _photo(6, 6) / 255.0
    for turns in (0.0, 0.2, -0.4, 0.5):
        expected = np.empty_like(pixels)
        for at in np.ndindex(6, 6):
            h, s, v = colorsys.rgb_to_hsv(*pixels[at])
            expected[at] = colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)
        got = jax.jit(transforms._shift_hue)(jnp.asarray(pixels, jnp.float32), jnp.float32(turns))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    grey = jnp.full((2, 2, 3), 0.3)
    np.testing.assert_allclose(
        jax.jit(transforms._shift_hue)(grey, jnp.float32(0.3)), grey, atol=1e-6
    )


def test_color_jitter_parts():
    image = jnp.asarray(_photo() / 255.0, jnp.float32) * 0.2 + 0.3  # no factor clips it
    bright = _jitter(KEY, image, brightness=0.4)
    factor = float(bright[0, 0, 0] / image[0, 0, 0])
    assert 0.6 <= factor <= 1.4
    np.testing.assert_allclose(bright, image * factor, rtol=1e-5)
    contrast = _jitter(KEY, image, contrast=0.4)
    luma = image @ jnp.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(
        jnp.mean(contrast @ jnp.array([0.299, 0.587, 0.114])), jnp.mean(luma), atol=2e-3
    )
    saturated = _jitter(KEY, image, saturation=0.4)
    np.testing.assert_allclose(saturated @ jnp.array([0.299, 0.587, 0.114]), luma, atol=1e-2)
    np.testing.assert_array_equal(_jitter(KEY, image), image)
    grey = image[..., :1]
    np.testing.assert_array_equal(_jitter(KEY, grey, saturation=1.0, hue=0.5), grey)


# ----------------------------------------------------------------------------------- RandAugment

_apply = jax.jit(transforms.apply_randaugment_op)


def _op(name: str, image: np.ndarray, level: float) -> np.ndarray:
    got = _apply(
        jnp.asarray(image / 255.0, jnp.float32), RANDAUGMENT_OPS.index(name), jnp.float32(level)
    )
    return np.asarray(got) * 255.0


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "level", "reference", "tolerance"),
    [
        ("identity", 1.0, lambda p: p, 1e-3),
        ("brightness", 0.5, lambda p: ImageEnhance.Brightness(p).enhance(1.45), 1.0),
        ("contrast", -0.5, lambda p: ImageEnhance.Contrast(p).enhance(0.55), 1.5),
        ("color", 0.9, lambda p: ImageEnhance.Color(p).enhance(1.81), 1.5),
        ("sharpness", 0.9, lambda p: ImageEnhance.Sharpness(p).enhance(1.81), 1.5),
        ("posterize", 1.0, lambda p: ImageOps.posterize(p, 4), 1e-3),
        ("solarize", 0.4, lambda p: ImageOps.solarize(p, 153), 1e-3),
        ("autocontrast", 1.0, ImageOps.autocontrast, 1.0),
        ("equalize", 1.0, ImageOps.equalize, 1e-3),
    ],
)
def test_colour_operations_agree_with_pillow(channels, name, level, reference, tolerance):
    image = (_photo(21, 25, channels) // 2 + 40).astype(np.uint8)
    expected = np.asarray(reference(_pillow(image)), np.float32).reshape(image.shape)
    np.testing.assert_allclose(_op(name, image, level), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "level", "matrix"),
    [
        # Pillow's data: output (x, y) -> input (a x + b y + c, d x + e y + f), from pixel centres.
        ("translate_x", 1.0, lambda h, w: (1, 0, w * 150 / 331, 0, 1, 0)),
        ("translate_y", -1.0, lambda h, w: (1, 0, 0, 0, 1, -h * 150 / 331)),
        ("shear_x", 1.0, lambda h, w: (1, 0.3, -0.3 * h / 2, 0, 1, 0)),
        ("shear_y", -1.0, lambda h, w: (1, 0, 0, -0.3, 1, 0.3 * w / 2)),
    ],
)
def test_geometric_operations_agree_with_pillow(name, level, matrix):
    y, x = np.mgrid[:21, :25]
    image = np.dstack([x * 8, y * 9, 128 + 0 * x]).astype(np.uint8)
    expected = _pillow(image).transform(
        (25, 21), Image.Transform.AFFINE, matrix(21, 25), Image.Resampling.BILINEAR
    )
    difference = np.abs(_op(name, image, level) - np.asarray(expected, np.float32))
    # Where the source lies half outside, Pillow repeats the border and we fade to zero.
    assert np.mean(difference > 2.0) < 0.12


def test_rotation_turns_about_the_centre():
    image = np.zeros((21, 25, 1), np.uint8)
    image[10, 14:21] = 255
    got = _op("rotate", image, 1.0)[..., 0]
    # Pillow turns counter-clockwise; clockwise is positive here.
    expected = np.asarray(_pillow(image).rotate(-30, Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_allclose(got, expected, atol=2.0)


def test_every_operation_keeps_shape_range_and_zero_strength():
    for channels in (1, 3):
        image = _photo(21, 25, channels)
        for name in RANDAUGMENT_OPS:
            for level in (-1.0, 1.0):
                got = _op(name, image, level)
                assert got.shape == image.shape and np.isfinite(got).all(), name
                assert got.min() >= -1e-3 and got.max() <= 255.001, name
            if name not in ("autocontrast", "equalize"):
                bound = 255 if name == "solarize" else 1e-3
                assert np.abs(
                    _op(name, np.minimum(image, 250), 0.0) - np.minimum(image, 250)
                ).max() <= (bound), name


def test_rand_augment_uses_all_operations_and_layers():
    image = jnp.asarray(_photo(16, 16) / 255.0, jnp.float32)
    keys = jax.random.split(KEY, 64)
    one = jax.jit(jax.vmap(lambda k: transforms.rand_augment(k, image, 1, 9.0)))(keys)
    assert len({np.asarray(x).tobytes() for x in one}) > 15
    np.testing.assert_array_equal(transforms.rand_augment(KEY, image, 0, 9.0), image)


# ---------------------------------------------------------------------------------------- mixing


def test_mixup_mixes_neighbours():
    keys, _, _ = _batch(4)
    images = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 2, 2, 1))
    mixed, targets = jax.jit(transforms.mixup, static_argnums=3)(keys, images, jnp.eye(4), 1.0)
    lam = np.asarray(targets)[[0, 2], [0, 2]]
    expected = [
        [lam[0], 1 - lam[0], 0, 0],
        [1 - lam[0], lam[0], 0, 0],
        [0, 0, lam[1], 1 - lam[1]],
        [0, 0, 1 - lam[1], lam[1]],
    ]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], targets @ jnp.arange(4.0), rtol=1e-5)
    assert lam[0] != lam[1]


def test_cutmix_targets_follow_the_area():
    keys, _, _ = _batch(16)
    images = jnp.arange(16.0)[:, None, None, None] * jnp.ones((16, 9, 7, 1))
    mixed, targets = jax.jit(transforms.cutmix, static_argnums=3)(keys, images, jnp.eye(16), 1.0)
    for i in range(16):
        own = np.asarray(mixed[i, ..., 0] == i)
        assert np.all(own | np.asarray(mixed[i, ..., 0] == (i ^ 1)))
        np.testing.assert_allclose(targets[i, i], own.mean(), atol=1e-6)
        rows, columns = np.flatnonzero((~own).any(1)), np.flatnonzero((~own).any(0))
        assert (~own).sum() == len(rows) * len(columns)
    assert 0.1 < 1 - float(jnp.mean(jnp.diagonal(targets))) < 0.7


def test_mixup_or_cutmix_half_of_the_pairs_each():
    keys, _, _ = _batch(200)
    images = jnp.arange(200.0)[:, None, None, None] * jnp.ones((200, 8, 8, 1))
    mixed, _ = _mix(keys, images, jnp.eye(200), 10.0, 1.0)
    blended = [
        len(np.unique(mixed[i])) == 1 and float(mixed[i, 0, 0, 0]) % 1 > 1e-4 for i in range(200)
    ]
    assert 60 < sum(blended) < 130
    assert blended[::2] == blended[1::2]


def test_mixing_does_not_depend_on_how_the_batch_is_divided():
    augment = jax.jit(
        make_augment(
            mean=(0.4,), std=(0.2,), horizontal_flip=True, mixup_alpha=0.2, cutmix_alpha=1.0
        ),
        static_argnums=3,
    )
    keys, images, labels = _batch(8)
    whole = augment(keys, images, labels, 3)
    halves = [augment(keys[s], images[s], labels[s], 3) for s in (slice(0, 4), slice(4, 8))]
    for one, first, second in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(one, jnp.concatenate([first, second]))


def test_symmetric_beta_has_the_right_distribution():
    draw = jax.jit(jax.vmap(transforms._symmetric_beta, in_axes=(0, None)), static_argnums=1)
    for alpha in (0.2, 1.0, 5.0):
        values = np.asarray(draw(jax.random.uniform(KEY, (20_000,)), alpha), np.float64)
        assert 0 <= values.min() and values.max() <= 1
        np.testing.assert_allclose(values.mean(), 0.5, atol=0.01)
        np.testing.assert_allclose(values.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.03)


# ----------------------------------------------------------------------------------------- chain


def test_everything_off_only_normalises():
    augment = make_augment(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    keys, images, labels = _batch()
    got, targets = augment(keys, images, labels, 3)
    preprocess = transforms.make_preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    np.testing.assert_array_equal(got, preprocess(images))
    np.testing.assert_array_equal(targets, np.eye(3)[np.asarray(labels)])
    program = str(jax.make_jaxpr(augment, static_argnums=3)(keys, images, labels, 3))
    assert "random" not in program and "while" not in program and "gather" not in program


ALL = {
    "random_crop_padding": 2,
    "random_resized_crop": True,
    "horizontal_flip": True,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "randaugment_layers": 2,
    "random_erasing": 0.5,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
}


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_on(channels):
    mean, std = (0.5,) * channels, (0.25,) * channels
    augment = jax.jit(make_augment(mean=mean, std=std, **ALL), static_argnums=3)
    keys, images, labels = _batch(8, channels)
    got, targets = augment(keys, images, labels, 3)
    assert got.shape == images.shape and got.dtype == jnp.float32
    assert np.isfinite(got).all() and np.abs(got).max() <= 2.001
    np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)
    again, _ = augment(keys, images, labels, 3)
    np.testing.assert_array_equal(got, again)
    other, _ = augment(example_keys(KEY, jnp.ones(8, jnp.int32), jnp.arange(8)), images, labels, 3)
    assert not np.array_equal(got, other)


def test_one_setting_leaves_the_randomness_of_another():
    keys, images, labels = _batch()
    augments = [
        jax.jit(
            make_augment(mean=(0.0,), std=(1.0,), horizontal_flip=True, brightness=brightness),
            static_argnums=3,
        )
        for brightness in (0.0, 1e-9)
    ]
    flip, both = (augment(keys, images, labels, 3)[0] for augment in augments)
    np.testing.assert_allclose(flip, both, atol=1e-6)
    assert not np.array_equal(flip, images / 255.0)
