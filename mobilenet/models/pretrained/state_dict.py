"""PyTorch state dicts as files, read and written without PyTorch.

`torch.save` writes a pickle that lists the tensors, and their bytes: in one zip archive since
PyTorch 1.6, one after the other before. A pickle can ask for a call of any function. The reader
here knows the few functions that a state dict needs and replaces them by inert stand-ins. It
refuses all others by name, so no code of a file runs.
"""

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mobilenet.models.pretrained.weights import PretrainedError, check_size

# torch/storage.py: the class of a storage gives the type of its numbers; little endian.
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
# torch/serialization.py, the format used before zip archives.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Keys under which training scripts store the state dict, next to an epoch or an optimiser. If there
# are several (an average of the weights, for example), the first key of this list is read.
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_DEPTH = 8  # levels of nested dictionaries that are searched
_WRAPPERS = ("module.", "_orig_mod.")
# Other globals that training scripts store next to a state dict; they become inert stand-ins.
_OTHER_GLOBALS = {
    *(("argparse", "Namespace"), ("collections", "Counter"), ("collections", "defaultdict")),
    *(("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "scalar")),
    *(("numpy._core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct")),
    *(("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode")),
    *(("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib", "PurePosixPath")),
    *(("torch", "device"), ("torch", "Size"), ("torch", "float32"), ("torch", "float16")),
    *(("torch", "bfloat16"), ("torch", "int64"), ("__builtin__", "set"), ("builtins", "set")),
    *(("__builtin__", "dict"), ("builtins", "dict")),
}

# Instructions of a pickle that store a value under a number.
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


class Found(NamedTuple):
    """Tensors of a file, name -> array, and notes for the user on how they were chosen."""

    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


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


def _inert() -> type:
    """A class whose objects replace values that are not tensors: they accept anything, do nothing.

    Each file gets a new class, because a pickle may set attributes of the objects it gets.
    """

    class Inert:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __setstate__(self, _: Any) -> None:
            pass

        def __setitem__(self, _: Any, __: Any) -> None:
            pass

        def append(self, _: Any) -> None:
            pass

    return Inert


class _Unpickler(pickle.Unpickler):
    """Reads a state dict's pickle; `storages` collects the storages that it mentions."""

    def __init__(self, file: io.BufferedIOBase, name: str) -> None:
        super().__init__(file)
        self._name = name
        self._inert = _inert()
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # New functions for each call, because a pickle may set attributes of the objects it gets.
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
        if (module_name, global_name) in _OTHER_GLOBALS:
            return self._inert
        if (module_name, global_name) not in known:
            raise PretrainedError(
                f"{self._name} asks for {module_name}.{global_name}, which is not part of a state "
                "dict; no code of the file was run. If you trust the file, load it with PyTorch "
                "and save only the weights: torch.save(model.state_dict(), PATH)."
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
    """The tensors of `find`: name -> array of the stored type."""
    return find(path).arrays


def find(path: Path) -> Found:
    """The tensors of a state dict that `torch.save` wrote, in both of its formats.

    The state dict may be inside other dictionaries. Prefixes that `DataParallel` and
    `torch.compile` put before every name are removed.

    Args:
      path: of the file.

    Returns:
      The tensors of the stored types, and a note if one of several state dicts was chosen.

    Raises:
      PretrainedError: the file is truncated, damaged or not a state dict, or its pickle asks for
        anything other than tensors.
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
    # A damaged pickle can raise any exception.
    except Exception as error:
        raise PretrainedError(
            f"{path.name} is damaged: {type(error).__name__}: {error}."
        ) from error


def _read_zip(data: bytes, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        check_size(name, sum(entry.file_size for entry in archive.infolist()), len(data))
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PretrainedError(
                f"{name} is a zip archive, but not one of torch.save: it has no data.pkl."
            )
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in archive.namelist():
            raise PretrainedError(
                f"{name} is a TorchScript program, not a state dict; load it with PyTorch and save "
                "only the weights: torch.save(model.state_dict(), PATH)."
            )
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise PretrainedError(f"{name} was written on a big-endian machine; save it again.")
        content, known = _load(io.BytesIO(archive.read(pickles[0])), name)
        storages = {
            storage.key: _numbers(archive.read(f"{root}data/{storage.key}"), storage, name)
            for storage in known.values()
        }
    return content, storages


def _load(file: io.BytesIO, name: str) -> tuple[Any, dict[str, _Storage]]:
    """The next pickle of a file, and the storages that it mentions.

    Its instructions are checked before it is loaded: a number of a few bytes can ask for a table,
    or for text, of gigabytes.
    """
    start, most = file.tell(), file.getbuffer().nbytes
    for instruction, argument, _ in pickletools.genops(file):
        places = int(argument or 0) if instruction.name in _PUTS else 0
        if places > most:
            raise pickle.UnpicklingError(f"its pickle remembers {places:,} values")
    file.seek(start)
    unpickler = _Unpickler(file, name)
    return unpickler.load(), unpickler.storages


def _read_stream(data: bytes, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    file = io.BytesIO(data)

    def load() -> tuple[Any, dict[str, _Storage]]:
        return _load(file, name)

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


def _arrays(content: Any, storages: Mapping[str, np.ndarray], name: str) -> Found:
    if not isinstance(content, dict):
        raise PretrainedError(f"{name} holds a {type(content).__name__}, not a state dict.")
    tensors, notes = _choose(content, name)
    arrays = {
        key: _view(value, storages) for key, value in tensors.items() if isinstance(value, _Tensor)
    }
    while prefix := next((p for p in _WRAPPERS if _all_begin(arrays, p)), ""):
        arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
    return Found(arrays, notes)


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _choose(content: Mapping[Any, Any], name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Chooses the dictionary of the network's tensors; returns it and a note on other candidates.

    An optimiser's state and an average of the weights are dictionaries of tensors too. So the
    largest dictionaries are candidates, and the one with a usual name is taken.
    """
    if not content:
        return {}, ()
    found = list(_dictionaries(content, (), set()))
    if not found:
        key, value = next(iter(content.items()))
        raise PretrainedError(
            f"{name} is not a state dict: {key!r} is a {type(value).__name__}, not a tensor."
        )
    most = max(count for _, _, count in found)
    largest = {place: tensors for place, tensors, count in found if count == most}
    if len(largest) == 1:
        return next(iter(largest.values())), ()
    shown = {place: " / ".join(place) or "the top" for place in largest}
    for usual in _USUAL:
        named = [place for place in largest if usual in place]
        if len(named) == 1:
            others = ", ".join(shown[place] for place in largest if place != named[0])
            note = (
                f"The weights under {shown[named[0]]} were read; the file has others under "
                f"{others}."
            )
            return largest[named[0]], (note,)
    raise PretrainedError(
        f"{name} has several state dicts of {most} tensors, under {', '.join(shown.values())}; "
        "save only the one that you mean: torch.save(model.state_dict(), PATH)."
    )


def _dictionaries(
    content: Mapping[Any, Any], place: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], int]]:
    """(keys, dictionary, number of tensors) of every dictionary that maps names to tensors."""
    seen.add(id(content))
    count = sum(isinstance(value, _Tensor) for value in content.values())
    if count and all(isinstance(key, str) for key in content):
        yield place, content, count
    if len(place) < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, dict) and id(value) not in seen:
                yield from _dictionaries(value, (*place, key), seen)


def _view(tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor's elements, after a check of its offset and strides, which come from the file."""
    size, stride = tuple(map(int, tensor.size)), tuple(map(int, tensor.stride))
    offset, flat = int(tensor.offset), storages[tensor.storage.key]
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("a tensor outside its storage")
    flat = flat[offset:]
    # A stride of 0 would make any number of elements from one.
    if math.prod(size) > len(flat):
        raise ValueError("a tensor outside its storage")
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
            # With the zip format's first date instead of today's, so that the bytes are the same.
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
