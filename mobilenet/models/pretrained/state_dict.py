"""PyTorch state dicts as files, read and written without PyTorch.

`torch.save` writes a pickle that says which tensors there are, and their bytes beside it: in a zip
archive since PyTorch 1.6, one after the other before. A pickle can ask for any function to be
called; the reader here knows the few that a state dict needs, as inert stand-ins, and refuses every
other by name, so that no code of a file runs.
"""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mobilenet.models.pretrained.weights import PretrainedError

# torch/storage.py: the class of a storage says the type of its numbers; little endian.
STORAGES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# torch/serialization.py, the format before zip archives.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Keys under which training scripts keep the state dict beside an epoch or an optimiser.
_NESTED = ("state_dict", "model")


class _Type(NamedTuple):
    dtype: np.dtype[Any]


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Reads a state dict's pickle; `storages` collects those it mentions."""

    def __init__(self, file: io.BufferedIOBase, name: str) -> None:
        super().__init__(file)
        self._name = name
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Functions of this call alone: a pickle may set attributes of what it is given.
        def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
            return _Tensor(storage, offset, size, stride)

        def rebuild_parameter(data: Any, *_: Any) -> Any:
            return data

        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        }
        if module_name == "torch" and global_name in STORAGES:
            return _Type(STORAGES[global_name])
        if (module_name, global_name) not in known:
            raise PretrainedError(
                f"{self._name} asks for {module_name}.{global_name}, which is not part of a state "
                "dict; nothing of it was run. If you trust the file, load it with PyTorch and save "
                "the weights alone: torch.save(model.state_dict(), PATH)."
            )
        return known[module_name, global_name]

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, storage_type, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(storage_type, _Type):
            raise pickle.UnpicklingError("an unknown kind of storage")
        # The format before zip archives has a sixth entry, for storages that are views of others.
        if pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a storage that is a view of another")
        storage = _Storage(str(key), storage_type.dtype, int(count))
        self.storages[storage.key] = storage
        return storage


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that `torch.save` wrote, in both of its formats.

    A state dict under "state_dict" or "model" is found, and the prefix "module." that
    `DataParallel` puts before every name is taken off.

    Args:
      path: of the file.

    Returns:
      name -> array of the stored type.

    Raises:
      PretrainedError: truncated, damaged, no state dict, or a pickle that asks for anything but
        tensors.
    """
    data = path.read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            content, storages = _read_zip(data, path.name)
        elif data[:2] == b"PK":
            raise PretrainedError(
                f"{path.name} is truncated: the directory at the end of its zip archive is missing."
            )
        elif data[:1] == b"\x80":
            content, storages = _read_stream(data, path.name)
        else:
            raise PretrainedError(
                f"{path.name} is not a file of torch.save: neither a zip archive nor a pickle."
            )
        return _arrays(content, storages, path.name)
    except PretrainedError:
        raise
    # A damaged pickle raises whatever its bytes happen to mean.
    except Exception as error:
        raise PretrainedError(
            f"{path.name} is damaged: {type(error).__name__}: {error}."
        ) from error


def _read_zip(data: bytes, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PretrainedError(
                f"{name} is a zip archive, but not one of torch.save: it has no data.pkl."
            )
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in archive.namelist():
            raise PretrainedError(
                f"{name} is a TorchScript program, not a state dict; load it with PyTorch and save "
                "the weights alone: torch.save(model.state_dict(), PATH)."
            )
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise PretrainedError(f"{name} was written on a big-endian machine; save it again.")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])), name)
        content = unpickler.load()
        storages = {
            storage.key: _numbers(archive.read(f"{root}data/{storage.key}"), storage, name)
            for storage in unpickler.storages.values()
        }
    return content, storages


def _read_stream(data: bytes, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    file = io.BytesIO(data)

    def load() -> tuple[Any, dict[str, _Storage]]:
        unpickler = _Unpickler(file, name)
        return unpickler.load(), unpickler.storages

    if load()[0] != _MAGIC or load()[0] != _PROTOCOL:
        raise PretrainedError(
            f"{name} is a pickle, but not one of torch.save; save the weights with "
            "torch.save(model.state_dict(), PATH)."
        )
    if not load()[0]["little_endian"]:
        raise PretrainedError(f"{name} was written on a big-endian machine; save it again.")
    content, known = load()
    storages = {}
    for key in load()[0]:
        storage = known[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.numel:
            raise PretrainedError(f"{name} is damaged: storage {key} has {count} numbers.")
        storages[key] = _numbers(file.read(count * storage.dtype.itemsize), storage, name)
    return content, storages


def _numbers(data: bytes, storage: _Storage, name: str) -> np.ndarray:
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise PretrainedError(
            f"{name} is truncated: storage {storage.key} has {len(data):,} bytes instead of "
            f"{storage.numel * storage.dtype.itemsize:,}."
        )
    return np.frombuffer(data, storage.dtype)


def _arrays(content: Any, storages: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise PretrainedError(f"{name} holds a {type(content).__name__}, not a state dict.")
    arrays = {}
    for key, value in content.items():
        if not isinstance(value, _Tensor):
            raise PretrainedError(
                f"{name} is not a state dict: {key!r} is a {type(value).__name__}, not a tensor."
            )
        arrays[str(key)] = _view(value, storages)
    if arrays and all(key.startswith("module.") for key in arrays):
        arrays = {key.removeprefix("module."): array for key, array in arrays.items()}
    return arrays


def _view(tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor's elements; its offset and strides are the file's, so they are checked first."""
    size, stride = tuple(map(int, tensor.size)), tuple(map(int, tensor.stride))
    offset, flat = int(tensor.offset), storages[tensor.storage.key]
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("a tensor outside its storage")
    flat = flat[offset:]
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(flat):
        raise ValueError("a tensor outside its storage")
    steps = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)


def dumps(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A state dict as `torch.save` writes it, for `torch.load(..., weights_only=True)`.

    Args:
      arrays: name -> float32 or int64 array, in the order of the state dict.

    Returns:
      The file's bytes: the same for the same arrays.
    """
    types = {dtype: name for name, dtype in STORAGES.items()}
    stream = [pickle.PROTO, b"\x02", _ORDERED_DICT, pickle.MARK]
    contents = {}
    for key, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        contents[f"data/{key}"] = array.tobytes()
        strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
        stream += [
            _text(name),
            _global("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,
            pickle.MARK,
            _text("storage"),
            _global("torch", types[array.dtype]),
            _text(str(key)),
            _text("cpu"),
            _int(array.size),
            pickle.TUPLE,
            pickle.BINPERSID,
            _int(0),
            *(pickle.MARK, *map(_int, array.shape), pickle.TUPLE),
            *(pickle.MARK, *map(_int, strides), pickle.TUPLE),
            pickle.NEWFALSE,  # requires_grad
            _ORDERED_DICT,  # backward hooks
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    stream += [pickle.SETITEMS, pickle.STOP]
    contents = {"data.pkl": b"".join(stream), "byteorder": b"little", **contents, "version": b"3\n"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            # With the zip format's first date rather than today's.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return file.getvalue()


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
