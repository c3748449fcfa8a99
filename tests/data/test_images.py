import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mobilenet.data import decoding, images

LADDER = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)


def _png16(values: np.ndarray) -> bytes:
    """A 16-bit grey PNG by hand: the reader is not checked against its own writer."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_grey_stays_and_becomes_colour(encode):
    data = encode(LADDER)
    np.testing.assert_array_equal(images.decode_image(data, 1), LADDER[:, :, None])
    np.testing.assert_array_equal(
        images.decode_image(data, 3), np.repeat(LADDER[:, :, None], 3, axis=2)
    )


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_round_trip(encode, file_format):
    image = np.zeros((4, 5, 3), np.uint8)
    image[:2, :, 0], image[2:, :, 2] = 255, 255
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(
        images.decode_image(encode(image, file_format, **options), 3), image
    )


def test_grey_of_colour_is_the_luma(encode):
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    got = images.decode_image(encode(image), 1)
    np.testing.assert_array_equal(got[0, :, 0], [76, 150, 29])  # 255 * 0.299, 0.587, 0.114


def test_transparency_is_composited_on_white(encode):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255]]]
    np.testing.assert_array_equal(images.decode_image(encode(rgba), 3), expected)

    grey_alpha = Image.fromarray(np.array([[40, 40]], np.uint8)).convert("LA")
    grey_alpha.putalpha(Image.fromarray(np.array([[255, 0]], np.uint8)))
    np.testing.assert_array_equal(images.decode_image(encode(grey_alpha), 1)[0, :, 0], [40, 255])


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palette_with_transparency(encode, transparency):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([200, 100, 50, 0, 0, 0])
    data = encode(image, transparency=transparency)
    np.testing.assert_array_equal(images.decode_image(data, 3), [[[200, 100, 50], [255, 255, 255]]])


def test_one_bit_pictures(encode):
    data = encode(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"))
    np.testing.assert_array_equal(images.decode_image(data, 1)[0, :, 0], [0, 255])


def test_sixteen_bits_are_scaled_not_clipped(encode):
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    np.testing.assert_array_equal(images.decode_image(_png16(values), 1)[0, :, 0], expected)
    tiff = encode(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(images.decode_image(tiff, 1)[0, :, 0], expected)
    pgm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(images.decode_image(pgm, 1)[0, :, 0], expected)


def test_cmyk_jpeg_as_photoshop_writes_it(encode):
    # Pillow writes the Adobe marker and inverted values, as Photoshop does.
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta + yellow ink: red
    data = encode(cmyk, "JPEG", quality=100)
    assert b"Adobe" in data
    np.testing.assert_allclose(images.decode_image(data, 3)[8, 8], [255, 0, 0], atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encode, orientation):
    # What a camera stores so that undoing the orientation gives the ladder: EXIF 2.32, 4.6.4.
    stored = {
        1: LADDER,
        2: LADDER[:, ::-1],
        3: LADDER[::-1, ::-1],
        4: LADDER[::-1],
        5: LADDER.T,
        6: np.rot90(LADDER, 1),
        7: LADDER[::-1, ::-1].T,
        8: np.rot90(LADDER, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(np.ascontiguousarray(stored), exif=exif.tobytes())
    np.testing.assert_array_equal(images.decode_image(data, 1)[:, :, 0], LADDER)


def test_animation_gives_its_first_frame(encode):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encode(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(images.decode_image(data, 3)[0, 0], [255, 0, 0])


def _bomb() -> bytes:
    data = bytearray(_png16(np.zeros((1, 1), np.uint16)))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda encode: b"", "empty"),
        (lambda encode: b"<html>not found</html>", r"no known image format begins with b'<html>"),
        (lambda encode: encode(np.zeros((64, 64, 3), np.uint8), "JPEG")[:-200], "[Tt]runcated"),
        (lambda encode: encode(NOISE)[:2000], "[Tt]runcated"),
        (lambda encode: _bomb(), "pixels"),
        (lambda encode: encode(NOISE, "EPS"), "an EPS program"),
        (lambda encode: encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "no fixed"),
        (lambda encode: encode(Image.fromarray(np.ones((2, 2), np.int32)), "TIFF"), "no fixed"),
    ],
)
def test_unreadable_pictures(encode, make, message):
    for strict in (True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("error" if strict else "default")
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            with pytest.raises(images.UnreadableImage, match=message):
                images.decode_image(make(encode), 3)
        assert not caught


def test_warnings_of_pillow_do_not_stop_a_good_picture(encode):
    # A damaged EXIF block: Pillow warns, the pixels are fine.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0"
    data = encode(np.full((8, 8, 3), 90, np.uint8), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.decode_image(data, 3).shape == (8, 8, 3)


def test_decoding_does_not_warn_in_a_plain_process(encode, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_bomb())
    code = (
        "import sys; from mobilenet.data import images\n"
        "try: images.decode_image(open(sys.argv[1], 'rb').read(), 3)\n"
        "except images.UnreadableImage as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert "pixels" in done.stdout and done.stderr == ""


def test_bad_arguments(encode):
    with pytest.raises(ValueError, match=r"channels=4 was given; use 1 \(grey\) or 3"):
        images.decode_image(encode(LADDER), 4)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 1\] or \[H, W, 3\]"):
        images.decode_image(np.zeros((2, 2, 3), np.float32), 3)
    with pytest.raises(ValueError, match="a 5 x 5 crop of a 3 x 4 image was requested"):
        images.center_crop(LADDER[:, :, None], 5)
    with pytest.raises(ValueError, match=r"crop_fraction=1.5 was given; use a value in \(0, 1\]"):
        images.evaluation_view(LADDER[:, :, None], 2, 1.5)
    with pytest.raises(ValueError, match="crop scale"):
        images.random_box(4, 4, np.random.default_rng(0), scale=(0.5, 0.2))


def test_arrays_pass_and_convert():
    image = np.dstack([LADDER] * 3)
    np.testing.assert_array_equal(images.decode_image(image, 3), image)
    np.testing.assert_array_equal(images.decode_image(image, 1), LADDER[:, :, None])


def test_resize_averages_when_it_shrinks():
    image = np.zeros((8, 8, 1), np.uint8)
    image[:, ::2] = 200  # stripes of one pixel: sampling without antialiasing sees 0 or 200
    assert set(np.unique(images.resize(image, 2, 2)[:, :, 0])) <= set(range(80, 121))
    np.testing.assert_array_equal(images.resize(image, 8, 8), image)


def test_center_crop_and_evaluation_view():
    image = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8, 1)
    np.testing.assert_array_equal(images.center_crop(image, 2)[:, :, 0], [[19, 20], [27, 28]])
    # Shorter side 6 stays 6 (round(4 / 0.667) = 6), so the view is a plain crop.
    np.testing.assert_array_equal(
        images.evaluation_view(image, 4, 0.667), images.center_crop(image, 4)
    )
    assert images.evaluation_view(image, 224).shape == (224, 224, 1)


def test_random_box_statistics_and_fallback():
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = images.random_box(400, 300, rng)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / (400 * 300))
        ratios.append((right - left) / (bottom - top))
    assert 0.078 < min(areas) and max(areas) <= 1
    assert 0.74 < min(ratios) and max(ratios) < 1.36
    # Nothing fits a 100 x 1 strip: the centred box of an allowed ratio.
    assert images.random_box(100, 1, rng, scale=(0.9, 1.0)) == (49, 0, 50, 1)


def _photo(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 40.0
    waves = [np.sin(x + y * k) * np.cos(y - 0.3 * k * x) for k in (0.3, 0.7, 1.1)]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


@pytest.mark.parametrize(
    ("orientation", "shape"), [(1, (601, 807)), (6, (601, 807)), (6, (600, 808))]
)
def test_reduced_jpeg_decoding_agrees_with_the_full_one(encode, orientation, shape):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(_photo(*shape), "JPEG", quality=95, exif=exif.tobytes())
    full = images.decode_image(data, 3)
    assert full.shape[:2] == (shape[::-1] if orientation == 6 else shape)
    fast = images.load_eval_view(data, size=64)
    slow = images.evaluation_view(full, 64)
    assert np.abs(fast.astype(int) - slow).mean() < 1.0
    assert np.abs(fast.astype(int) - slow).max() < 12
    for seed in range(8):
        fast = images.load_train_view(data, size=64, rng=np.random.default_rng(seed))
        slow = images.random_resized_crop(full, 64, np.random.default_rng(seed))
        assert np.abs(fast.astype(int) - slow).mean() < 1.0, seed


def test_reduced_jpeg_decoding_is_used(encode, monkeypatch):
    data = encode(_photo(640, 640), "JPEG")
    sizes = []
    original = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, *a, **k: sizes.append(self.size) or original(self, *a, **k),
    )
    images.load_eval_view(data, size=64)
    images.load_eval_view(data, size=512)
    assert sizes == [(160, 160), (640, 640)]


def test_views_of_other_formats_are_exact(encode):
    photo = _photo(70, 90)
    data = encode(photo)
    np.testing.assert_array_equal(
        images.load_eval_view(data, size=32), images.evaluation_view(photo, 32)
    )
    np.testing.assert_array_equal(
        images.load_train_view(data, size=32, rng=np.random.default_rng(3)),
        images.random_resized_crop(photo, 32, np.random.default_rng(3)),
    )
    square = _photo(32, 32)
    np.testing.assert_array_equal(images.load_eval_view_or_same(encode(square), size=32), square)


def _pillow(data: bytes, channels: int = 3, scale: int = 1) -> np.ndarray:
    """What Pillow alone makes of a file."""
    with Image.open(io.BytesIO(data)) as image:
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array if array.ndim == 3 else array[:, :, None]


def _photograph(grey: bool = False) -> np.ndarray:
    """A scene with the noise of a sensor: every coefficient of its JPEG is in use."""
    noise = np.random.default_rng(1).normal(0, 12, (201, 307, 3))
    photo = (_photo(201, 307) + noise).clip(0, 255).astype(np.uint8)
    return photo[:, :, 0] if grey else photo


_JPEGS = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "rgb": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 4},
    "grey": {},
}


@pytest.mark.parametrize("kind", _JPEGS)
def test_plain_jpegs_have_pillows_pixels(encode, kind):
    data = encode(_photograph(kind == "grey"), "JPEG", quality=85, **_JPEGS[kind])
    for channels in (1, 3):
        np.testing.assert_array_equal(images.decode_image(data, channels), _pillow(data, channels))
        for scale in (2, 4, 8):
            reduced = decoding.decode(data, channels, lambda width, height, by=scale: by)
            assert (reduced.full_width, reduced.full_height, reduced.factor) == (307, 201, scale)
            np.testing.assert_array_equal(reduced.pixels, _pillow(data, channels, scale))
    with Image.open(io.BytesIO(data)) as opened:
        assert decoding._decode_plain_jpeg(data, opened, 3) is not None


def test_other_jpegs_are_left_to_pillow(encode):
    cmyk = encode(Image.fromarray(_photograph()).convert("CMYK"), "JPEG")
    for data, channels in ((cmyk, 3), (cmyk, 1), (encode(_photograph(), "JPEG"), 1)):
        with Image.open(io.BytesIO(data)) as opened:
            assert decoding._decode_plain_jpeg(data, opened, channels) is None
        np.testing.assert_array_equal(images.decode_image(data, channels), _pillow(data, channels))


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpegs_are_unreadable(encode, progressive):
    data = encode(_photograph(), "JPEG", quality=85, progressive=progressive)
    for kept in (0.3, 0.6, 0.9, 0.99):
        part = data[: int(len(data) * kept)]
        with pytest.raises(images.UnreadableImage, match="truncated"):
            images.decode_image(part)
        with pytest.raises(images.UnreadableImage, match="truncated"):
            images.load_train_view(part, size=16, rng=np.random.default_rng(0))


def test_damaged_jpegs_are_what_pillow_makes_of_them(encode, capfd):
    data = encode(_photograph(), "JPEG", quality=85)
    scan = data.index(b"\xff\xda") + 14
    # The libjpeg of OpenCV makes grey of this, without an error: a marker that no JPEG has.
    marker = data[: scan + 40] + b"\xff\xf9" + data[scan + 42 :]
    with pytest.raises(images.UnreadableImage, match="broken data stream"):
        images.decode_image(marker)
    for damaged in (
        data[: scan + 3000] + bytes(500) + data[scan + 3500 :],
        data[: scan + 3000] + data[scan + 3500 :],
        data + b"\0" * 100,
    ):
        np.testing.assert_array_equal(images.decode_image(damaged), _pillow(damaged))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((7, 3, 37, 33), 48),  # grows
        ((7, 3, 79, 63), 56),  # shrinks a little: interpolated
        ((11, 2, 121, 112), 24),  # shrinks much: averaged
        ((0, 5, 125, 20), 32),  # shrinks in width, grows in height
        ((9, 0, 25, 120), 32),  # the other way round
        ((20, 30, 52, 62), 32),  # neither
    ],
)
def test_training_resize_has_half_pixel_centres(box, size):
    y, x = np.mgrid[:128, :128]
    ramps = np.stack([2 * x, 2 * y, 255 - 2 * x], -1).astype(np.uint8)
    got = images._resize_box(ramps, box, size)

    def centres(first: int, end: int) -> np.ndarray:
        inside = first + (np.arange(size) + 0.5) * (end - first) / size - 0.5
        return inside.clip(first, end - 1)  # beyond the last centre its value is repeated

    across, down = np.meshgrid(centres(box[0], box[2]), centres(box[1], box[3]))
    expected = np.stack([2 * across, 2 * down, 255 - 2 * across], -1)
    np.testing.assert_allclose(got, expected, atol=1)  # OpenCV interpolates in fixed point


def test_training_resize_averages_when_it_shrinks():
    stripes = np.zeros((50, 900, 1), np.uint8)
    stripes[:, ::2] = 200
    for image, box in ((stripes, (0, 0, 900, 50)), (stripes.transpose(1, 0, 2), (0, 0, 50, 900))):
        got = images._resize_box(image, box, 100)  # one side shrinks to a ninth, one grows
        assert got.shape == (100, 100, 1)
        assert set(np.unique(got)) == {89, 111}  # four and five of nine pixels are 200


def test_reduced_training_crops_lie_where_the_full_ones_do(encode):
    x = np.arange(1600) * (255 / 1599)
    ramp = np.repeat(np.tile(x, (1200, 1))[:, :, None], 3, axis=2).round().astype(np.uint8)
    data = encode(ramp, "JPEG", quality=95)
    for seed in range(6):
        got = images.load_train_view(
            data, size=40, rng=np.random.default_rng(seed), scale=(0.05, 1.0)
        )
        box = images.random_box(1600, 1200, np.random.default_rng(seed), (0.05, 1.0))
        pixel = (box[2] - box[0]) / 40
        expected = (box[0] + (np.arange(40) + 0.5) * pixel - 0.5) * (255 / 1599)
        np.testing.assert_allclose(got[1:-1, 1:-1, 1].mean(0), expected[1:-1], atol=1)


def test_training_views_depend_on_the_generator_alone(encode):
    files = [encode(_photograph(), "JPEG", quality=q) for q in range(60, 92, 2)]

    def view(seed: int) -> np.ndarray:
        return images.load_train_view(files[seed], size=96, rng=np.random.default_rng(seed))

    alone = [view(seed) for seed in range(len(files))]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(view, range(len(files))), strict=True):
            np.testing.assert_array_equal(one, other)


def test_training_views_of_arrays_are_copies():
    image = np.zeros((8, 8, 3), np.uint8)
    rng = np.random.default_rng(0)
    view = images.load_train_view(image, size=8, rng=rng, scale=(1, 1), ratio=(1, 1))
    view[:] = 9
    assert not image.any()


def test_real_photographs(flowers_dir):
    differences = []
    flowers = sorted((flowers_dir / "test" / "daisy").iterdir())[:10]
    others: list[Path] = sorted((flowers_dir.parent / "imagenet_samples").rglob("*.*p*g"))
    for path in flowers + others:  # some of the others are grey or carry EXIF
        data = path.read_bytes()
        full = images.decode_image(data, 3)
        np.testing.assert_array_equal(full, _pillow(data), str(path))
        fast = images.load_eval_view(data, size=32).astype(int)
        differences.append(np.abs(fast - images.evaluation_view(full, 32)).mean())
    assert max(differences) < 2.0


def _exif_transposed(data: bytes, channels: int) -> np.ndarray:
    """Pillow's own idea of the upright image."""
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    return np.asarray(upright).reshape(upright.height, upright.width, channels)


_CARRIERS = {
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "PNG": {},
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95},
    "MPO": {"quality": 95},
    "AVIF": {"quality": 95},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("carrier", _CARRIERS)
def test_orientation_is_applied_once_in_every_format(encode, carrier, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind = carrier.split()[0]
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    for shape in ((24, 40, 3), (24, 40)):
        noise = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
        data = encode(noise, kind, exif=exif.tobytes(), **_CARRIERS[carrier])
        for channels in (1, 3):
            want = _exif_transposed(data, channels)
            np.testing.assert_array_equal(images.decode_image(data, channels), want)
            view = images.load_eval_view(data, size=16, channels=channels)
            np.testing.assert_array_equal(view, images.evaluation_view(want, 16))


@pytest.mark.parametrize("orientation", [0, 9, 200])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "JPEG"])
def test_an_orientation_that_is_none_changes_nothing(encode, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(NOISE[:20], kind, exif=exif.tobytes())
    full = images.decode_image(data)
    np.testing.assert_array_equal(full, _pillow(data))
    np.testing.assert_array_equal(
        images.load_train_view(data, size=16, rng=np.random.default_rng(0)),
        images.random_resized_crop(full, 16, np.random.default_rng(0)),
    )


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_orientation_of_every_pixel_mode_of_tiff(encode, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
    turned, plain = encode(image, "TIFF", exif=exif), encode(image, "TIFF")
    want = np.rot90(images.decode_image(plain, 1), -1)
    np.testing.assert_array_equal(images.decode_image(turned, 1), want)


@pytest.mark.parametrize("xmp", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "JPEG"])
def test_orientation_that_only_xmp_tells(encode, kind, xmp):
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf {xmp}/></x:xmpmeta>'.encode()
    options: dict = {"xmp": packet}
    if kind == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    if kind == "TIFF":
        options = {"tiffinfo": {700: packet}}
    data = encode(NOISE[:20], kind, **options)
    assert images.decode_image(data).shape == (48, 20, 3)
    np.testing.assert_array_equal(images.decode_image(data), _exif_transposed(data, 3))


_STRIPS = [(3, 400), (400, 3), (1, 4000), (4000, 1), (7, 20_011), (500, 30_000)]


@pytest.mark.parametrize("shape", _STRIPS)
@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
def test_the_centre_of_a_long_image_is_that_of_the_whole_strip(shape, crop_fraction):
    size = 8
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    got = images.evaluation_view(image, size, crop_fraction)
    width, height = images._evaluation_shape(shape[1], shape[0], size, crop_fraction)
    whole = images.center_crop(images.resize(image, height, width), size)
    # Positions within the whole strip are coarser than those from its centre: one grey level.
    assert np.abs(got.astype(int) - whole).max() <= 1


def test_a_small_part_of_an_image_is_cropped_before_it_is_resized():
    image = _photo(60, 80)
    got = images.evaluation_view(image, 8, 0.02)  # 400 x 533, of which 8 x 8 are kept
    whole = images.center_crop(images.resize(image, 400, 533), 8)
    assert np.abs(got.astype(int) - whole).max() <= 1


def test_ordinary_shapes_are_resized_whole():
    for shape in ((60, 60), (60, 90), (90, 60), (20, 400), (400, 20)):
        image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
        for size, crop_fraction in ((32, 0.875), (24, 1.0), (48, 0.5)):
            width, height = images._evaluation_shape(shape[1], shape[0], size, crop_fraction)
            whole = images.center_crop(images.resize(image, height, width), size)
            got = images.evaluation_view(image, size, crop_fraction)
            np.testing.assert_array_equal(got, whole)


_MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from mobilenet.data import images
data = sys.stdin.buffer.read()
for view in (
    lambda: images.load_eval_view(data, size=224, crop_fraction=0.875),
    lambda: images.load_eval_view_or_same(data, size=224, channels=1, crop_fraction=1.0),
    lambda: images.evaluation_view(images.decode_image(data), 224),
    lambda: images.load_train_view(data, size=224, rng=np.random.default_rng(0)),
    lambda: images.load_train_view(
        data, size=224, rng=np.random.default_rng(0), ratio=(0.001, 1000.0)
    ),
):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert view().shape[:2] == (224, 224)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("kind", "mode", "size"),
    [("PNG", "1", (4000, 1)), ("PNG", "L", (1, 60_000)), ("JPEG", "RGB", (65_000, 8))],
)
def test_views_of_long_images_take_little_memory(encode, kind, mode, size):
    data = encode(Image.new(mode, size), kind)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_SCRIPT], input=data, capture_output=True, check=True
    )
    kilobytes = [int(line) for line in done.stdout.split()]
    assert len(kilobytes) == 5 and max(kilobytes) < 50_000, kilobytes


def test_large_images_are_converted_in_tiles(encode, monkeypatch):
    rng = np.random.default_rng(3)
    rgba = Image.fromarray(rng.integers(0, 256, (37, 61, 4), np.uint8))
    palette = Image.fromarray(rng.integers(0, 256, (37, 61, 3), np.uint8)).quantize(32)
    wide = Image.fromarray(rng.integers(0, 65536, (37, 61), np.uint16))
    for image, options in ((rgba, {}), (palette, {"transparency": 3}), (wide, {})):
        data = encode(image, **options)
        whole = [images.decode_image(data, channels) for channels in (1, 3)]
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_TILE", 16)
            for channels, want in zip((1, 3), whole, strict=True):
                np.testing.assert_array_equal(images.decode_image(data, channels), want)


def test_an_image_that_memory_cannot_hold_is_unreadable(encode, monkeypatch):
    data = encode(NOISE)

    def none_left(*args, **kwargs):
        raise MemoryError

    def none_left_for_opencv(*args, **kwargs):
        error = cv2.error("Insufficient memory")
        error.code = cv2.Error.StsNoMem
        raise error

    rng = np.random.default_rng(0)
    for owner, name, call in (
        (Image.Image, "load", lambda: images.decode_image(data)),
        (Image.Image, "resize", lambda: images.load_eval_view(data, size=16)),
        (Image.Image, "resize", lambda: images.load_eval_view_or_same(data, size=16)),
        (cv2, "resize", lambda: images.load_train_view(data, size=16, rng=rng)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, none_left_for_opencv if owner is cv2 else none_left)
            with pytest.raises(images.UnreadableImage, match="more memory than there is"):
                call()
