"""Prepares data sets: writes the embedded digits, and downloads others with TFDS.

tensorflow_datasets is imported only when a data set is prepared, and TensorFlow is never imported.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import shutil
import tempfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.data import metadata
from mobilenet.data.sources import DatasetError


class DownloadError(RuntimeError):
    """A data set could not be downloaded; the message says what to do."""


def default_data_dir() -> Path:
    """The directory of TFDS data sets: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def cache_dir() -> Path:
    """The directory of the digits without a data_dir: $XDG_CACHE_HOME or ~/.cache, /mobilenet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is invalid and ignored.
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "mobilenet" / "tfds"


def parse_name(name: str) -> tuple[str, str, str]:
    """Splits "name[/config][:version]" into (name, config, version)."""
    match = re.fullmatch(r"(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise DatasetError(
            f"dataset name {name!r} was given; use 'digits', 'folder', or a TFDS name such as "
            "'cifar10', 'name/config' or 'name:1.0.0'."
        )
    return match[1], match[2] or "", match[3] or ""


def prepare_digits(data_dir: Path) -> Path:
    """Writes the digits below data_dir unless they exist; returns their version directory."""
    target = data_dir / "digits" / "1.0.0"
    if (target / "features.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".preparing-", dir=target.parent))
    except OSError as error:
        raise DatasetError(
            f"the embedded digits could not be written to {target} ({error}); "
            "name a writable folder with data.data_dir=DIR, or set XDG_CACHE_HOME."
        ) from error
    try:
        import tensorflow_datasets as tfds

        from mobilenet.data.digits import Digits

        builder = Digits(data_dir=os.fspath(temporary))
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints even for short work
                builder.download_and_prepare(
                    file_format="array_record",
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
        finally:
            tfds.enable_progress_bar()
        prepared = Path(builder.data_dir)
        prepared.chmod(0o755)
        try:
            # The rename makes the complete data set visible at once. If several processes do this,
            # the first one succeeds and the others use its copy.
            prepared.rename(target)
        except OSError:
            if not (target / "features.json").is_file():
                raise
    except OSError as error:
        raise DatasetError(
            f"the embedded digits could not be written to {target} ({error}); "
            "name a writable folder with data.data_dir=DIR, or set XDG_CACHE_HOME."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def prepare(name: str, data_dir: str | os.PathLike[str] = "") -> Path:
    """Downloads and prepares a TFDS data set as ArrayRecord; the only function that downloads.

    Args:
      name: a TFDS name, or "digits" (which needs no download).
      data_dir: where to write it; "" means `default_data_dir` (for digits `cache_dir`).

    Returns:
      The version directory; an existing ArrayRecord copy is not changed.

    Raises:
      DatasetError: the name is unknown, TFDS cannot write the data set without TensorFlow, the data
        set must be downloaded by hand, or data_dir cannot be written.
      DownloadError: the download failed.
    """
    data_dir = os.fspath(data_dir)
    if name == "folder":
        raise DatasetError("dataset 'folder' needs no preparation; open it with data.data_dir=DIR.")
    if name == "digits":
        return prepare_digits(Path(data_dir).expanduser() if data_dir else cache_dir())
    parse_name(name)
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    import tensorflow_datasets as tfds

    metadata.check_feature_classes_below(root / parse_name(name)[0])
    with _explained(name, root):
        builder = tfds.builder(name, data_dir=os.fspath(root), try_gcs=False)
        folder = Path(builder.data_dir)
        if (folder / "dataset_info.json").is_file():
            _check_format(name, folder)
            return folder
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    return folder


def stored_format(folder: Path) -> str:
    """The file format of the data set in a version directory.

    Raises:
      DatasetError: as `metadata.read`.
    """
    return metadata.read(folder).get("fileFormat") or "tfrecord"


def _check_format(name: str, folder: Path) -> None:
    if stored_format(folder) != "array_record":
        raise DatasetError(
            f"{folder} already holds {name!r} in another format; convert it with "
            f"`mobilenet prepare --from_tfrecord={folder} --data_dir=NEW_DIR`, or give "
            "another --data_dir."
        )


@contextlib.contextmanager
def _explained(name: str, root: Path) -> Iterator[None]:
    """Turns the errors of TFDS during a preparation into one sentence."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor, util

    # The errors of `requests` are also OSErrors, so these come first.
    network = (
        requests.RequestException,
        http.client.HTTPException,
        urllib.error.URLError,
        ConnectionError,
        TimeoutError,
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
        extractor.ExtractError,
    )
    try:
        yield
    except tfds.core.DatasetNotFoundError as error:
        raise DatasetError(
            f"TFDS has no dataset {name!r}; see https://www.tensorflow.org/datasets/catalog."
        ) from error
    except ImportError as error:
        reason = str(error).splitlines()[-1]  # TFDS puts a whole example before it
        raise DatasetError(
            f"preparing {name!r} needs a package that is not installed ({reason}); "
            "`pip install -e '.[prepare]'` in the checkout brings it."
        ) from error
    except network as error:
        raise DownloadError(
            f"dataset {name!r} could not be downloaded ({_reason(error)}). Try again, or prepare "
            "it on a machine that can reach its server and convert the copy with "
            f"`mobilenet prepare --from_tfrecord=COPY/{name.partition(':')[0]}/VERSION "
            f"--data_dir={root}`."
        ) from error
    except AssertionError as error:  # TFDS raises this if files must be downloaded by hand
        if "Manual directory" not in str(error):
            raise
        raise DatasetError(
            f"dataset {name!r} is not downloaded by TFDS ({_reason(error)}); follow "
            f"https://www.tensorflow.org/datasets/catalog/{name.partition(':')[0].split('/')[0]}, "
            "then prepare it again."
        ) from error
    except OSError as error:
        raise DatasetError(
            f"dataset {name!r} could not be written to {root} ({_reason(error)}); name a writable "
            "folder with --data_dir=DIR."
        ) from error


def _reason(error: BaseException) -> str:
    """The error's text on one line; for wrapped errors of a download, the innermost cause."""
    inner: Any = error.args[0] if error.args else error
    text = " ".join(str(getattr(inner, "reason", error)).split())
    return f"{text[:300]} ..." if len(text) > 300 else text or type(error).__name__
