"""PyTorch files without PyTorch: what is read, and what is refused without running it."""

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet.models.pretrained import state_dict
from mobilenet.models.pretrained.weights import PretrainedError

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.num_batches_tracked": np.zeros((), np.int64),
    "b.bias": np.array([1.5, -2.25], np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray] = ARRAYS) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def contents(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_pickle(stream: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    return packed({**contents(state_dict.dumps(ARRAYS)), "archive/data.pkl": stream})


def test_what_is_written_is_read_back(path: Path):
    path.write_bytes(state_dict.dumps(ARRAYS))
    assert_equal(state_dict.read(path))
    assert state_dict.dumps(ARRAYS) == path.read_bytes()


def test_the_format_before_zip_archives_is_read(path: Path):
    files = contents(state_dict.dumps(ARRAYS))
    # torch/serialization.py, _legacy_save: magic, protocol, system, content, keys, storages.
    parts = [
        pickle.dumps(value, protocol=2)
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    parts += [files["archive/data.pkl"], pickle.dumps(["0", "1", "2"], protocol=2)]
    for number, array in enumerate(ARRAYS.values()):
        parts += [array.size.to_bytes(8, "little"), files[f"archive/data/{number}"]]
    path.write_bytes(b"".join(parts))
    assert_equal(state_dict.read(path))
    path.write_bytes(b"".join(parts)[:-3])
    with pytest.raises(PretrainedError, match="truncated: storage 2 has 5 bytes instead of 8"):
        state_dict.read(path)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_beside_an_epoch_is_found_and_its_prefix_taken_off(path: Path, key: str):
    inner = contents(state_dict.dumps({f"module.{name}": a for name, a in ARRAYS.items()}))
    content = inner["archive/data.pkl"][2:-1]  # without PROTO and STOP
    stream = (
        b"\x80\x02" + pickle.EMPTY_DICT + pickle.MARK
        + pickle.SHORT_BINUNICODE + bytes([5]) + b"epoch" + pickle.BININT1 + b"\x07"
        + pickle.SHORT_BINUNICODE + bytes([len(key)]) + key.encode() + content
        + pickle.SETITEMS + pickle.STOP
    )  # fmt: skip
    path.write_bytes(packed({**inner, "archive/data.pkl": stream}))
    assert_equal(state_dict.read(path))


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "posix.system"), (eval, "__builtin__.eval")]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_never_run(
    path: Path, tmp_path: Path, function: Callable[..., Any], name: str, zipped: bool
):
    touched = tmp_path / "touched"
    code = f"touch {touched}" if function is os.system else f"open({str(touched)!r}, 'w').close()"
    stream = pickle.dumps(collections.OrderedDict(a=Call(function, code)), protocol=2)
    path.write_bytes(with_pickle(stream) if zipped else stream)
    with pytest.raises(PretrainedError, match=f"asks for {name}, .* no code of the file was run"):
        state_dict.read(path)
    assert not touched.exists()
    pickle.loads(stream)  # the same bytes do run where nobody refuses
    assert touched.exists()


def test_globals_of_torch_that_are_no_storage_are_refused_too(path: Path):
    path.write_bytes(with_pickle(b"\x80\x02ctorch\nload\n."))
    with pytest.raises(PretrainedError, match=r"asks for torch\.load"):
        state_dict.read(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(1, 6, 1), (0, 7, 1), (0, 4, 2), (-1, 2, 1), (0, 2, -1)]
)
def test_tensors_outside_their_storage_are_refused(path: Path, offset: int, size: int, stride: int):
    files = contents(state_dict.dumps({"a": np.zeros(6, np.float32)}))
    stream = files["archive/data.pkl"]

    def integer(value: int) -> bytes:
        return pickle.BININT + value.to_bytes(4, "little", signed=True)

    old = integer(0) + b"(" + integer(6) + b"t(" + integer(1) + b"t"
    assert old in stream
    new = integer(offset) + b"(" + integer(size) + b"t(" + integer(stride) + b"t"
    path.write_bytes(packed({**files, "archive/data.pkl": stream.replace(old, new)}))
    with pytest.raises(PretrainedError, match="damaged: ValueError: a tensor outside its storage"):
        state_dict.read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a file of torch.save: neither a zip archive nor a pickle"),
        (b"<html>404</html>", "not a file of torch.save"),
        (state_dict.dumps(ARRAYS)[:300], "truncated: the directory at the end of its zip archive"),
        (packed({"a.txt": b""}), "a zip archive, but not one of torch.save: it has no data.pkl"),
        (packed({"a/data.pkl": b"", "a/constants.pkl": b""}), "TorchScript program"),
        (packed({"a/data.pkl": b"\x80\x02", "a/byteorder": b"big"}), "big-endian machine"),
        (with_pickle(b"\x80\x02]."), "holds a list, not a state dict"),
        (with_pickle(b"\x80\x02}(U\x01aK\x01u."), "'a' is a int, not a tensor"),
        (with_pickle(b"\x80\x02}("), "damaged: "),
        (pickle.dumps({"a": 1}), "a pickle, but not one of torch.save"),
        (
            packed({k: v[:5] if k.endswith("/0") else v
                    for k, v in contents(state_dict.dumps(ARRAYS)).items()}),
            "truncated: storage 0 has 5 bytes instead of 24",
        ),
    ],
)  # fmt: skip
def test_broken_files_say_what_is_wrong(path: Path, data: bytes, message: str):
    path.write_bytes(data)
    with pytest.raises(PretrainedError, match=message):
        state_dict.read(path)


def test_a_flipped_byte_is_noticed(path: Path):
    data = bytearray(state_dict.dumps(ARRAYS))
    place = bytes(data).index(ARRAYS["a.weight"].tobytes())
    data[place + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(PretrainedError, match="damaged: BadZipFile: Bad CRC-32"):
        state_dict.read(path)


def test_files_of_pytorch_itself_are_read_and_ours_are_read_by_it(path: Path):
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "transposed": base.T,
        "part": base[1:, 1:3],  # offset and strides within a shared storage
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "parameter": torch.nn.Parameter(base),
        "count": torch.tensor(3),
        "none": torch.zeros(0, 2),
    }
    for zipped in (True, False):
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        found = state_dict.read(path)
        assert list(found) == list(tensors)
        for name, tensor in tensors.items():
            wanted = tensor.detach().to(torch.float64).numpy()
            np.testing.assert_array_equal(found[name].astype(np.float64), wanted)
    path.write_bytes(state_dict.dumps(ARRAYS))
    loaded = torch.load(path, weights_only=True)
    assert_equal({name: tensor.numpy() for name, tensor in loaded.items()})


def test_sizes_are_checked_before_anything_is_made_of_them(path: Path):
    files = contents(state_dict.dumps(ARRAYS))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/9", bytes(100 << 20))  # 100 kB as stored
    path.write_bytes(file.getvalue())
    with pytest.raises(PretrainedError, match=r"declares 104,\d+,\d+ bytes of numbers and holds"):
        state_dict.read(path)
    # A table of what the pickle remembers, of 2**31 places.
    path.write_bytes(with_pickle(b"\x80\x02}r" + (1 << 31).to_bytes(4, "little") + b"."))
    with pytest.raises(PretrainedError, match="its pickle remembers 2,147,483,648 values"):
        state_dict.read(path)
    # Text of 2**40 bytes.
    path.write_bytes(with_pickle(b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b"a."))
    with pytest.raises(PretrainedError, match="damaged: ValueError: expected 1099511627776 bytes"):
        state_dict.read(path)


def test_a_tensor_is_no_larger_than_what_it_is_stored_in(path: Path):
    files = contents(state_dict.dumps({"a": np.zeros(6, np.float32)}))

    def integer(value: int) -> bytes:
        return pickle.BININT + value.to_bytes(4, "little", signed=True)

    old = integer(6) + b"t(" + integer(1) + b"t"
    # 10**9 times the first number.
    new = integer(10**9) + b"t(" + integer(0) + b"t"
    stream = files["archive/data.pkl"].replace(old, new)
    path.write_bytes(packed({**files, "archive/data.pkl": stream}))
    with pytest.raises(PretrainedError, match="damaged: ValueError: a tensor outside its storage"):
        state_dict.read(path)


def test_dictionaries_that_hold_themselves_come_to_an_end(path: Path):
    # d = {}; d["d"] = d, and a list under "e".
    path.write_bytes(with_pickle(b"\x80\x02}q\x00(X\x01\x00\x00\x00dh\x00X\x01\x00\x00\x00e]u."))
    with pytest.raises(PretrainedError, match="'d' is a dict, not a tensor"):
        state_dict.read(path)


def test_stand_ins_are_of_one_file(path: Path):
    # The pickle sets an attribute of the class that stands for Namespace.
    stream = b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb."
    path.write_bytes(with_pickle(stream))
    with pytest.raises(PretrainedError, match="damaged"):
        state_dict.read(path)
    assert not hasattr(state_dict._inert(), "a")
