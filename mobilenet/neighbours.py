"""Modules next to an experiment file, which the experiment may import like a script.

They are in `sys.modules` only while the experiment's code runs. So two experiments in one process
can have neighbours with the same name, and each gets its own.
"""

import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence


class Neighbours:
    """A context in which the modules of an experiment's folder can be imported.

    The standard library, and installed modules that were imported before, have priority over a
    neighbour of the same name. Contexts may be nested.

    Args:
      module: the experiment; it is in `sys.modules` too, because dataclasses look it up there.
    """

    def __init__(self, module: types.ModuleType) -> None:
        self._folder = os.path.dirname(os.path.abspath(module.__file__ or ""))
        self._own = {module.__name__: module}  # modules in sys.modules during the context
        self._found: dict[str, str] = {}  # requested neighbours -> file or package folder
        self._depth = 0
        self._before: set[str] = set()
        self._hidden: dict[str, types.ModuleType] = {}

    def include(self, file: str) -> bool:
        """Whether a file belongs to a neighbour whose import was tried."""
        file = os.path.realpath(file)
        return any(f"{file}{os.sep}".startswith(f"{p}{os.sep}") for p in self._found.values())

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """For `sys.meta_path`: a module or package of the folder."""
        del target
        found = self._find(name) if path is None else None
        if found is not None and found.origin is not None:
            package = found.submodule_search_locations is not None
            place = os.path.dirname(found.origin) if package else found.origin
            self._found[name] = os.path.realpath(place)
        return found

    def _find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        if name in sys.stdlib_module_names or name.startswith("__"):
            return None
        found = importlib.machinery.PathFinder.find_spec(name, [self._folder])
        # A folder that is not a package, such as one of data, must not hide an installed package.
        return found if found is not None and found.origin is not None else None

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        others = {_top(name) for name in sys.modules}
        others = {top for top in others if self._hides(top)}
        self._hidden = {
            name: module
            for name, module in sys.modules.items()
            if _top(name) in others or name in self._own
        }
        for name in self._hidden:
            del sys.modules[name]
        self._before = set(sys.modules)
        sys.modules.update(self._own)
        sys.meta_path.insert(0, self)
        sys.path.append(self._folder)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(self._folder)]
        sys.meta_path.remove(self)
        for name in set(sys.modules) - self._before:
            if name in self._own or _top(name) in self._found:
                self._own[name] = sys.modules.pop(name)
        sys.modules.update(self._hidden)

    def _hides(self, top: str) -> bool:
        """Whether a neighbour has priority over the module that now has its name."""
        found, module = self._find(top), sys.modules.get(top)
        origin = getattr(module, "__file__", None)
        if found is None or found.origin is None or origin is None or top == __package__:
            return False
        installed = {"site-packages", "dist-packages"} & set(origin.split(os.sep))
        return not installed and os.path.realpath(origin) != os.path.realpath(found.origin)


def _top(name: str) -> str:
    return name.partition(".")[0]
