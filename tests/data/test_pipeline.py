import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilenet import build
from mobilenet.config import get_config
from mobilenet.data import images, memory, order, pipeline
from mobilenet.data.batches import Prefetcher
from mobilenet.data.datasets import Dataset, DatasetError, FolderSource, open_dataset
from mobilenet.data.memory import Arrays, load_in_memory
from mobilenet.data.order import sample
from mobilenet.data.pipeline import eval_batches, train_batches

# ------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """uint8 images; `broken` indices are unreadable. At module level, for worker processes."""

    pixels: np.ndarray
    broken: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> tuple[np.ndarray | bytes, int]:
        return (b"broken" if index in self.broken else self.pixels[index]), index % 7

    def describe(self, index: int) -> str:
        return f"picture {index}"


def _pixels(count: int, size: int = 6) -> np.ndarray:
    """Image i has the value i everywhere, so that a batch shows which images it holds."""
    return np.repeat(np.arange(count, dtype=np.uint8), size * size * 3).reshape(
        count, size, size, 3
    )


def _arrays(count: int) -> Arrays:
    return Arrays(_pixels(count), (np.arange(count) % 7).astype(np.int32))


def _same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# ------------------------------------------------------------------------------------------ order


def test_sample_is_permutations_in_a_row():
    epoch, index = sample(np.arange(30), 10, seed=3)
    assert epoch.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    rows = index.reshape(3, 10)
    assert np.sort(rows, axis=1).tolist() == [list(range(10))] * 3
    assert len({tuple(row) for row in rows.tolist()}) == 3
    assert rows.tolist() != sample(np.arange(30), 10, seed=4)[1].reshape(3, 10).tolist()
    # In any order, of any shape, one or many.
    assert sample(27, 10, seed=3)[1] == index[27]
    backwards = sample(np.arange(30)[::-1].reshape(5, 6), 10, seed=3)[1]
    np.testing.assert_array_equal(backwards.ravel()[::-1], index)


def test_order_is_frozen():
    # Philox's stream is covered by NumPy's promise; these numbers must never change, or runs
    # resumed after an upgrade would see another order.
    assert sample(np.arange(8), 8, seed=0)[1].tolist() == FROZEN_ORDER
    assert order.example_rng(0, 1, 2).random() == FROZEN_NUMBER


FROZEN_ORDER = [0, 2, 1, 5, 4, 3, 6, 7]
FROZEN_NUMBER = 0.3537949815383278


def test_streams_of_examples_differ():
    draws = {order.example_rng(s, e, i).random() for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    assert len(draws) == 8


# --------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_follow_the_stream_over_epochs(streamed):
    data = ArraySource(_pixels(10)) if streamed else _arrays(10)
    batches = list(
        train_batches(
            data, global_batch_size=4, seed=5, num_steps=6, image_size=6, random_resized_crop=False
        )
    )
    epoch, index = sample(np.arange(24), 10, seed=5)
    for step, batch in enumerate(batches):
        at = slice(4 * step, 4 * step + 4)
        assert batch["index"].tolist() == index[at].tolist()
        assert batch["epoch"].tolist() == epoch[at].tolist()
        assert batch["label"].tolist() == (index[at] % 7).tolist()
        np.testing.assert_array_equal(batch["image"], _pixels(10)[index[at]])
        assert {k: v.dtype for k, v in batch.items()} == {
            "image": np.uint8,
            "label": np.int32,
            "index": np.int32,
            "epoch": np.int32,
        }


@pytest.mark.parametrize("streamed", [False, True])
def test_processes_divide_the_batch(streamed):
    data = ArraySource(_pixels(11)) if streamed else _arrays(11)
    settings: dict[str, Any] = {"global_batch_size": 6, "seed": 1, "num_steps": 5, "image_size": 6}
    whole = list(train_batches(data, **settings))
    parts = [
        list(train_batches(data, **settings, process_index=p, process_count=3)) for p in range(3)
    ]
    joined = [
        {k: np.concatenate([part[k] for part in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _same(joined, whole)


@pytest.mark.parametrize("streamed", [False, True])
def test_resumed_equals_uninterrupted(streamed):
    data = ArraySource(_pixels(10)) if streamed else _arrays(10)
    settings: dict[str, Any] = {"global_batch_size": 4, "seed": 2, "image_size": 5}
    whole = list(train_batches(data, **settings, num_steps=7))
    _same(list(train_batches(data, **settings, start_step=3, num_steps=4)), whole[3:])


def test_without_num_steps_it_does_not_end():
    for data in (_arrays(3), ArraySource(_pixels(3))):
        with train_batches(data, global_batch_size=2, seed=0, image_size=6) as batches:
            assert len([next(batches) for _ in range(20)]) == 20


def test_crops_depend_on_seed_epoch_and_index_alone():
    noise = np.random.default_rng(0).integers(0, 256, (10, 20, 20, 3), np.uint8)
    batches = list(
        train_batches(ArraySource(noise), global_batch_size=5, seed=9, num_steps=4, image_size=8)
    )
    seen = {}
    for batch in batches:
        for image, index, epoch in zip(batch["image"], batch["index"], batch["epoch"], strict=True):
            rng = order.example_rng(9, int(epoch), int(index))
            np.testing.assert_array_equal(image, images.random_resized_crop(noise[index], 8, rng))
            seen[int(epoch), int(index)] = image
    assert len(seen) == 20
    assert any(not np.array_equal(seen[0, i], seen[1, i]) for i in range(10))


# ------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 23])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_counts_every_example_once(streamed, batch_size, processes):
    if batch_size % processes:
        batch_size += 1
    data = ArraySource(_pixels(23)) if streamed else _arrays(23)
    seen, lengths = [], set()
    for process in range(processes):
        steps = list(
            eval_batches(
                data,
                global_batch_size=batch_size,
                process_index=process,
                process_count=processes,
                image_size=6,
            )
        )
        lengths.add(len(steps))
        for batch in steps:
            assert len(batch["mask"]) == batch_size // processes
            assert batch["mask"].dtype == np.float32 and batch["index"].dtype == np.int32
            assert set(batch["mask"].tolist()) <= {0.0, 1.0}
            real = batch["mask"] == 1
            seen += batch["index"][real].tolist()
            np.testing.assert_array_equal(batch["image"][real], _pixels(23)[batch["index"][real]])
            assert (batch["label"][real] == batch["index"][real] % 7).all()
            assert (batch["index"][~real] == -1).all() and (batch["image"][~real] == 0).all()
    assert sorted(seen) == list(range(23)) and len(lengths) == 1


# ------------------------------------------------------------------------------------- unreadable


def test_unreadable_examples_are_replaced_in_training():
    source = ArraySource(_pixels(6), broken=(2, 3, 5))
    loaded = load_in_memory(source, image_size=6, on_error="skip")
    settings: dict[str, Any] = {"global_batch_size": 6, "seed": 0, "num_steps": 2, "image_size": 6}
    streamed = train_batches(source, **settings, random_resized_crop=False, on_error="skip")
    in_memory = train_batches(loaded, **settings, on_error="skip")
    assert streamed.unreadable == {}
    steps = list(streamed)
    _same(steps, list(in_memory))
    for batch in steps:
        # 2 and 3 become 4, 5 becomes 0, with their own labels and pixels.
        assert sorted(batch["index"].tolist()) == [0, 0, 1, 4, 4, 4]
        assert (batch["label"] == batch["index"] % 7).all()
        assert (batch["image"][:, 0, 0, 0] == batch["index"]).all()
    reasons = {i: f"picture {i}: no known image format begins with b'broken'." for i in (2, 3, 5)}
    assert dict(sorted(streamed.unreadable.items())) == reasons == in_memory.unreadable


def test_unreadable_examples_are_masked_in_evaluation():
    source = ArraySource(_pixels(5), broken=(1,))
    loaded = load_in_memory(source, image_size=6, on_error="skip")
    for data in (source, loaded):
        batches = eval_batches(data, global_batch_size=4, image_size=6, on_error="skip")
        first, second = batches
        assert first["mask"].tolist() == [1, 0, 1, 1] and second["mask"].tolist() == [1, 0, 0, 0]
        assert first["index"].tolist() == [0, 1, 2, 3] and second["index"].tolist() == [
            4,
            -1,
            -1,
            -1,
        ]
        assert first["label"].tolist() == [0, 1, 2, 3]
        assert list(batches.unreadable) == [1]


def test_unreadable_examples_are_errors_by_default():
    source = ArraySource(_pixels(5), broken=(3,))
    message = (
        r"example 3 cannot be read, picture 3: no known .* Repair or remove it, or skip it "
        r'with on_error="skip"'
    )
    with pytest.raises(memory.UnreadableExample, match=message):
        load_in_memory(source, image_size=6)
    with pytest.raises(memory.UnreadableExample, match=message):
        list(eval_batches(source, global_batch_size=2, image_size=6))
    with pytest.raises(memory.UnreadableExample, match=message):
        list(train_batches(source, global_batch_size=5, seed=0, num_steps=1, image_size=6))
    skipped = load_in_memory(source, image_size=6, on_error="skip")
    with pytest.raises(memory.UnreadableExample, match=message):
        eval_batches(skipped, global_batch_size=2)


def test_nothing_readable_is_an_error_even_when_skipping():
    source = ArraySource(_pixels(3), broken=(0, 1, 2))
    loaded = load_in_memory(source, image_size=6, on_error="skip")
    for data in (source, loaded):
        with pytest.raises(memory.UnreadableExample, match="the first is picture 0"):
            list(
                train_batches(
                    data, global_batch_size=2, seed=0, num_steps=1, image_size=6, on_error="skip"
                )
            )


@dataclasses.dataclass(frozen=True)
class GreedySource(ArraySource):
    """Whose example 1 is a file that memory cannot hold. At module level, for worker processes."""

    def read(self, index: int) -> tuple[np.ndarray | bytes, int]:
        if index == 1:
            raise MemoryError
        return super().read(index)


def test_a_file_that_memory_cannot_hold_is_skipped_with_a_reason():
    source = GreedySource(_pixels(4))
    reason = {1: "picture 1: it needs more memory than there is."}
    settings: dict[str, Any] = {"global_batch_size": 4, "image_size": 6, "on_error": "skip"}
    evaluated = eval_batches(source, **settings)
    assert [batch["mask"].tolist() for batch in evaluated] == [[1, 0, 1, 1]]
    trained = train_batches(source, **settings, seed=0, num_steps=1)
    assert 1 not in next(trained)["index"]
    arrays = load_in_memory(source, image_size=6, on_error="skip")
    assert evaluated.unreadable == trained.unreadable == arrays.unreadable == reason
    mean, _ = memory.channel_statistics(source, image_size=6)
    np.testing.assert_allclose(mean * 255, [5 / 3] * 3)
    for read in (
        lambda: next(eval_batches(source, global_batch_size=4, image_size=6)),
        lambda: load_in_memory(source, image_size=6),
    ):
        with pytest.raises(memory.UnreadableExample, match="more memory than there is"):
            read()


_SMALL_MEMORY = """
import resource, sys
import numpy as np
from mobilenet.data import memory
from mobilenet.data.datasets import FolderSource
from mobilenet.data.pipeline import eval_batches, train_batches
source = FolderSource(sys.argv[1], ("large.png", "small.png"), (0, 1))
settings = {"global_batch_size": 2, "image_size": 8, "on_error": "skip", "num_threads": 1}
list(eval_batches(FolderSource(sys.argv[1], ("small.png",), (1,)), **settings))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, -1))
evaluated = eval_batches(source, **settings)
print([batch["mask"].tolist() for batch in evaluated], evaluated.unreadable[0])
trained = train_batches(source, seed=0, num_steps=1, **settings)
print(next(trained)["index"].tolist(), trained.unreadable[0])
arrays = memory.load_in_memory(source, image_size=8, on_error="skip", num_threads=1)
print(arrays.unreadable[0])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_an_image_too_large_for_the_memory_is_skipped_with_a_reason(tmp_path, encode):
    (tmp_path / "large.png").write_bytes(encode(Image.new("RGB", (8000, 8000))))
    (tmp_path / "small.png").write_bytes(encode(_pixels(1)[0]))
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_MEMORY, tmp_path], capture_output=True, text=True
    )
    reason = f"{tmp_path / 'large.png'}: it needs more memory than there is."
    assert done.stdout.splitlines() == [f"[[0.0, 1.0]] {reason}", f"[1, 1] {reason}", reason], (
        done.stderr
    )


def test_more_images_than_memory_holds():
    source = ArraySource(np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (2**31 - 1, 1, 1, 3)))
    with pytest.raises(DatasetError, match="need .* GB, more memory than there is; .*'never'"):
        load_in_memory(source, image_size=30_000)


def test_a_file_that_vanished(tmp_path, encode):
    (tmp_path / "a.png").write_bytes(encode(_pixels(1)[0]))
    source = FolderSource(str(tmp_path), ("a.png", "gone.png"), (0, 0))
    loaded = load_in_memory(source, image_size=6, on_error="skip")
    assert list(loaded.unreadable) == [1] and "No such file" in loaded.unreadable[1]
    batches = eval_batches(source, global_batch_size=2, image_size=6, on_error="skip")
    assert next(batches)["mask"].tolist() == [1, 0] and "gone.png" in batches.unreadable[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size=0 was given; use at least 1"),
        ({"process_count": 3}, "global_batch_size=4 does not divide over 3 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 of process_count=2 was given"),
        ({"start_step": -1}, "start_step=-1 was given; use 0 or more"),
        ({"seed": -1}, "seed=-1 was given; use 0 or more"),
        ({"on_error": "ignore"}, "on_error='ignore' was given; use 'raise' or 'skip'"),
        ({"image_size": 0}, "image_size=0 was given for streamed images"),
        ({"num_workers": -1}, "num_workers=-1 and num_threads=4 were given"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        train_batches(
            ArraySource(_pixels(4)),
            **{"global_batch_size": 4, "seed": 0, "image_size": 6, **settings},
        )


def test_training_without_examples():
    with pytest.raises(ValueError, match="training needs at least 1 example, 0 were given"):
        train_batches(_arrays(0), global_batch_size=1, seed=0)
    assert list(eval_batches(_arrays(0), global_batch_size=2)) == []


# -------------------------------------------------------------------------------- memory, numbers


def test_load_in_memory_keeps_or_views(digits_dir):
    source = open_dataset("digits", data_dir=digits_dir).splits["test"]
    same = load_in_memory(source, image_size=8, channels=1)
    assert same.image.shape == (360, 8, 8, 1) and same.label.dtype == np.int32
    for i in (0, 100, 359):
        data, label = source.read(i)
        np.testing.assert_array_equal(same.image[i], images.decode_image(data, 1))
        assert same.label[i] == label
    larger = load_in_memory(source, image_size=12, channels=3, num_threads=3)
    expected = images.evaluation_view(images.decode_image(source.read(300)[0], 3), 12)
    np.testing.assert_array_equal(larger.image[300], expected)


def test_fits_in_memory(digits_dir):
    dataset = open_dataset("digits", data_dir=digits_dir)
    assert memory.fits_in_memory(dataset)
    assert memory.fits_in_memory(dataset, limit_bytes=1797 * 64)
    assert not memory.fits_in_memory(dataset, limit_bytes=1797 * 64 - 1)
    assert not memory.fits_in_memory(dataset, image_size=1000, channels=3)
    assert not memory.fits_in_memory(Dataset("x", ("a",), None, dataset.splits))


def test_channel_statistics_literals():
    pixels = np.zeros((2, 1, 2, 3), np.uint8)
    pixels[..., 0] = [[[0, 255]], [[0, 255]]]
    pixels[..., 1] = 51
    mean, std = memory.channel_statistics(Arrays(pixels, np.zeros(2, np.int32)))
    np.testing.assert_allclose(mean, [0.5, 0.2, 0.0])
    np.testing.assert_allclose(std, [0.5, 0.0, 0.0], atol=1e-12)
    assert mean.dtype == std.dtype == np.float64
    from_source = memory.channel_statistics(ArraySource(pixels))
    np.testing.assert_array_equal(from_source, (mean, std))
    np.testing.assert_allclose(
        memory.channel_statistics(ArraySource(_pixels(10)), max_examples=2)[0] * 255, [2.5] * 3
    )
    broken = load_in_memory(ArraySource(_pixels(3), broken=(1,)), image_size=6, on_error="skip")
    np.testing.assert_allclose(memory.channel_statistics(broken)[0] * 255, [1.0] * 3)
    with pytest.raises(ValueError, match="need at least 1 readable image"):
        memory.channel_statistics(_arrays(0))


def _framed(count: int, size: int = 24) -> np.ndarray:
    """Noise within a white frame, of which a centre crop sees less."""
    pixels = np.full((count, size, size + 6, 3), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 120, (count, size - 4, size + 2, 3), np.uint8)
    pixels[:, 2:-2, 2:-2] = noise
    return pixels


@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_of_the_views_that_the_network_sees(crop_fraction, channels):
    source = ArraySource(_framed(300), broken=(7, 299))
    settings: dict[str, Any] = {"image_size": 10, "channels": channels}
    settings["crop_fraction"] = crop_fraction
    arrays = load_in_memory(source, on_error="skip", **settings)
    streamed = memory.channel_statistics(source, **settings)
    np.testing.assert_array_equal(streamed, memory.channel_statistics(arrays))
    views = [batch["image"][batch["mask"] > 0] for batch in
             eval_batches(source, global_batch_size=64, on_error="skip", **settings)]  # fmt: skip
    seen = np.concatenate(views) / 255
    np.testing.assert_allclose(streamed[0], seen.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(streamed[1], seen.std((0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize("crop_fraction", [1.0, 0.7])
def test_a_data_set_has_the_same_statistics_in_memory_and_streamed(
    picture_folder, encode, crop_fraction
):
    folder = picture_folder("framed", {"a": 5, "b": 5})
    for path, pixels in zip(sorted(folder.rglob("*.png")), _framed(10), strict=True):
        path.write_bytes(encode(pixels))
    found = []
    for in_memory in ("always", "never"):
        config = get_config()
        config.data.name, config.data.data_dir = "folder", str(folder)
        config.data.image_size, config.data.crop_fraction = 16, crop_fraction
        config.data.in_memory, config.data.normalization = in_memory, "dataset"
        data = build.build_data(config)
        found.append((data.mean, data.std))
    assert found[0] == found[1]


def test_statistics_count_every_example():
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (12_345, 1, 1, 3), np.uint8))
    arrays = load_in_memory(source, image_size=1)
    streamed = memory.channel_statistics(source, image_size=1)
    np.testing.assert_array_equal(streamed, memory.channel_statistics(arrays))
    np.testing.assert_allclose(streamed[0] * 255, source.pixels.mean((0, 1, 2)), rtol=1e-12)


def test_unreadable_examples_in_statistics():
    source = ArraySource(_pixels(9), broken=(4,))
    with pytest.raises(memory.UnreadableExample, match="example 4 cannot be read, picture 4"):
        memory.channel_statistics(source, image_size=6, on_error="raise")
    mean, _ = memory.channel_statistics(source, image_size=6, on_error="skip")
    np.testing.assert_allclose(mean * 255, [32 / 8] * 3)
    with pytest.raises(images.UnreadableImage, match="at least 1 readable.*picture 0: no known"):
        memory.channel_statistics(ArraySource(_pixels(2), broken=(0, 1)), on_error="skip")


def test_real_cifar10_statistics(cifar_dir):
    train = open_dataset("cifar10", data_dir=cifar_dir, train_examples=4000).splits["train"]
    mean, std = memory.channel_statistics(load_in_memory(train, image_size=32))
    np.testing.assert_allclose(mean, [0.491, 0.482, 0.447], atol=0.01)
    np.testing.assert_allclose(std, [0.247, 0.244, 0.262], atol=0.01)


# ---------------------------------------------------------------------------------------- workers


def test_worker_processes_give_the_same_batches(flowers_dir):
    splits = open_dataset("folder", data_dir=flowers_dir).splits
    settings: dict[str, Any] = {"global_batch_size": 6, "image_size": 32}
    with train_batches(
        splits["train"], **settings, seed=1, start_step=2, num_steps=5, num_workers=2
    ) as batches:
        processes = list(batches)
    _same(
        processes,
        list(train_batches(splits["train"], **settings, seed=1, start_step=2, num_steps=5)),
    )
    # Grain's arrays in shared memory complain when they outlive the workers.
    assert {type(array) for batch in processes for array in batch.values()} == {np.ndarray}


def test_worker_processes_report_unreadable_examples():
    source = ArraySource(_pixels(7), broken=(4,))
    with eval_batches(
        source, global_batch_size=4, image_size=6, on_error="skip", num_workers=1
    ) as batches:
        masks = [batch["mask"].tolist() for batch in batches]
    assert masks == [[1, 1, 1, 1], [0, 1, 1, 0]] and list(batches.unreadable) == [4]


SCRIPT = """
import sys
{setup}
from mobilenet.data.datasets import open_dataset
from mobilenet.data.pipeline import eval_batches, train_batches

def main():
    source = open_dataset("digits", data_dir=sys.argv[1]).splits["test"]
    with eval_batches(source, global_batch_size=100, image_size=8, channels=1, num_workers=1) as b:
        kept = list(b)
        print(sum(batch["mask"].sum() for batch in kept))
    left = train_batches(source, global_batch_size=8, seed=0, image_size=99, num_workers=1)
    next(left)  # and is left open, with batches in shared memory, for the end of the process

{call}
"""


@pytest.mark.parametrize(
    ("setup", "call"),
    [
        ("", "main()"),
        (
            "from absl import app",
            'if __name__ == "__main__":\n    app.run(lambda argv: main())',
        ),
    ],
    ids=["without a main guard", "absl"],
)
def test_worker_processes_from_a_script(digits_dir, tmp_path, setup, call):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(setup=setup, call=call))
    root = str(Path(pipeline.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", script, digits_dir],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    assert done.stdout == "360.0\n", done.stderr
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr


# --------------------------------------------------------------------------------------- prefetch


def test_prefetcher_keeps_order_and_measures_waiting():
    def slow():
        for i in range(3):
            time.sleep(0.05)
            yield i

    with Prefetcher(slow(), transform=lambda i: i * 10) as items:
        assert list(items) == [0, 10, 20]
        assert list(items) == []
    assert 0.1 < items.wait_seconds < 5


def test_prefetcher_raises_in_the_consumer():
    def failing():
        yield 1
        raise KeyError("lost")

    items = Prefetcher(failing())
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)
    items.close()


def test_prefetcher_is_bounded_and_closes():
    made = []
    closed = []

    class Endless:
        def __iter__(self):
            while True:
                made.append(1)
                yield 1

        def close(self):
            closed.append(1)

    before = threading.active_count()
    items = Prefetcher(Endless(), buffer_size=3)
    next(items)
    time.sleep(0.3)
    assert len(made) <= 6
    items.close()
    items.close()
    assert threading.active_count() == before and closed
    with pytest.raises(StopIteration):
        next(items)
    with pytest.raises(ValueError, match="buffer_size=0 was given; use at least 1"):
        Prefetcher([], buffer_size=0)
