"""Lists the content of a folder: images, other files, links, and run directories."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from mobilenet.data.sources import DatasetError

log = logging.getLogger(__name__)

# Endings of the files that Pillow decodes on its own. The list is fixed, so that a folder has the
# same examples with every version of Pillow. It has no EPS, which is a program that Ghostscript
# would run, and none that Pillow only recognises or writes (MPEG, PDF, HDF5, GRIB, BUFR, WMF).
EXTENSIONS = frozenset(
    "apng avif avifs blp bmp bw cur dcx dds dib fit fits flc fli ftc ftu gbr gif icb icns ico im "
    "j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo msp pbm pcd pcx pfm pgm png pnm ppm psd pxr qoi "
    "ras rgb rgba sgi tga tif tiff vda vst webp xbm xpm".split()
)
# Folders and files that operating systems and storage devices add to folders of images.
_SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden and system folders."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"folder {folder} cannot be read ({error.strerror}); repair or remove it."
        ) from error
    return [e for e in found if e.name not in _SYSTEM and not (_hidden(e.name) and _is_folder(e))]


# A directory entry needs no system call unless it is a link; its own methods then fail for a link
# that leads to itself.
def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image_name(name: str) -> bool:
    """Whether a file's name has the ending of an image format, and is not hidden."""
    return not _hidden(name) and _ending(name) in EXTENSIONS


def is_run(folder: str) -> bool:
    """Whether the folder is the directory of a run or a sweep, whose files may be plots."""
    points = os.path.join(folder, "points")
    if os.path.isdir(points):
        return any(os.path.isfile(os.path.join(e.path, "point.json")) for e in _entries(points))
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"model", "data", "train", "checkpoint"} <= set(config)


class Walk:
    """Lists the images of a data set, and records everything that is left out.

    Attributes:
      left_out: reason why files are not examples -> number of files.
      runs: directories of runs, which are skipped with all their files.
      unused: folders next to the parts that are not parts themselves.
      linked: whether an image is a symbolic link.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.runs: list[str] = []
        self.unused: list[str] = []
        self.linked = False
        self._owners: dict[str, str] = {}  # real path of a folder -> the class folder it belongs to

    def folders(self, folder: str) -> dict[str, str]:
        """Name -> path of the folders in a folder; images next to them are counted as left out."""
        found = {}
        for entry in _entries(folder):
            if not _is_folder(entry):
                if _ending(entry.name) in EXTENSIONS and not _hidden(entry.name):
                    self.left_out["outside of the class folders"] += 1
            elif is_run(entry.path):
                self.runs.append(entry.path)
            else:
                found[entry.name] = entry.path
        return found

    def classes(self, part: str, folders: Mapping[str, str]) -> dict[str, list[str]]:
        """Class name -> sorted image files, relative to `part`; `folders` are its class folders."""
        classes: dict[str, list[str]] = {}
        for folder, path in folders.items():
            before, runs = self.left_out.copy(), len(self.runs)
            images = self.images(path)
            if not images and len(self.runs) > runs:
                continue
            if not images:
                others = describe_counts(self.left_out - before)
                raise DatasetError(
                    f"class folder {path} holds no images{others}; add some (.jpg, .png or another "
                    "format that Pillow reads) or remove the folder."
                )
            name = _class_name(folder, path)
            if name in classes:
                raise DatasetError(
                    f"{part} has two class folders with the name {name!r}, written in different "
                    "Unicode forms; move the images into one of them."
                )
            classes[name] = [f"{folder}/{image}" for image in images]
        if not classes:
            raise DatasetError(
                f"{part} holds no class folders; put the images of each class into a folder of "
                "its own, such as DIR/train/cat/1.jpg or DIR/cat/1.jpg."
            )
        return classes

    def images(self, folder: str) -> list[str]:
        """The images below a folder as sorted relative paths; each linked folder is read once."""
        found: list[str] = []
        visited: set[str] = set()
        pending = [""]
        while pending:
            below = pending.pop()
            path = os.path.join(folder, below)
            real = os.path.realpath(path)
            if real in visited:
                continue
            visited.add(real)
            owner = self._owners.setdefault(real, folder)
            if owner != folder:
                raise DatasetError(
                    f"{folder} and {owner} both contain the images of {real}; each image must "
                    "belong to one class and one part, so remove one of the two."
                )
            for entry in _entries(path):
                if not _is_folder(entry):
                    self._add_file(entry, below, found)
                elif is_run(entry.path):
                    self.runs.append(entry.path)
                else:
                    pending.append(f"{below}{entry.name}/")
        return sorted(found)

    def _add_file(self, entry: os.DirEntry[str], below: str, found: list[str]) -> None:
        ending = _ending(entry.name)
        if _hidden(entry.name) or entry.name.lower() in _SYSTEM_FILES:
            # In "._1.jpg" macOS stores the attributes of 1.jpg.
            if ending in EXTENSIONS and not entry.name.startswith("._"):
                self.left_out["hidden"] += 1
        elif ending not in EXTENSIONS:
            self.left_out[f".{ending}" if ending else "without an ending"] += 1
        elif not _is_file(entry):
            self.left_out["not files, or links to nothing"] += 1
        else:
            self.linked = self.linked or entry.is_symlink()
            found.append(below + entry.name)

    def tell(self, root: str) -> None:
        """Logs what was left out, if anything."""
        if self.left_out:
            count = sum(self.left_out.values())
            log.warning("%s: files left out: %d%s.", root, count, describe_counts(self.left_out))
        if self.unused:
            log.warning("%s: %s: not a part of the data set.", root, few(self.unused))
        if self.runs:
            log.warning("%s: skipped the run directories %s.", root, few(self.runs))


def describe_counts(left_out: Mapping[str, int]) -> str:
    counts = [f"{count} {reason}" for reason, count in sorted(left_out.items())]
    return f" ({', '.join(counts)})" if counts else ""


def few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _class_name(folder: str, path: str) -> str:
    """The class that a folder's name gives; macOS and Linux encode one name in different forms."""
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"class folder {os.fsencode(path)!r} has a name that is not UTF-8; rename it."
        ) from None
    return unicodedata.normalize("NFC", folder)


def holds_folders(folder: str) -> bool:
    return any(_is_folder(entry) for entry in _entries(folder))


def holds_images(folder: str) -> bool:
    return any(_ending(entry.name) in EXTENSIONS for entry in _entries(folder))
