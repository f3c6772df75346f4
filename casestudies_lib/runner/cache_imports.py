"""Imports the book's own modules from source, so that what runs is what the record says.

Python takes a compiled file for current when the source's size and its time stamp, in whole seconds, are unchanged: an
edit of the same length within a second would run the old code.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader


class _FromSource(SourceFileLoader):
    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class SourceFinder:
    """Finds modules in the repository and the package, and records what could come in their place."""

    def __init__(self, recorder) -> None:
        """Report to this recorder."""
        self._recorder = recorder

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """Return the spec of a module of ours, and None for any other, which the next finder looks for."""
        searched = _folders(path)
        ours = [folder for folder in searched if self._is_ours(folder)]
        if not ours:
            return None
        spec = PathFinder.find_spec(name, path, target)
        origin = os.path.abspath(spec.origin) if spec is not None and spec.has_location else None
        tail = name.rpartition(".")[2]
        if path is None:  # a file in a folder that is searched first may hide any module
            for folder in ours:
                self._recorder.attend(self._recorder.importable, folder)
        else:
            for folder in ours:
                self._recorder.attend(self._recorder.imported, os.path.join(folder, tail), origin)
        if origin is None or not self._is_ours(origin):
            return None
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _FromSource(name, spec.origin)
        return spec

    def _is_ours(self, path: str) -> bool:
        return self._recorder.places.is_ours(path) and not self._recorder.is_left_out(path)


def _folders(path) -> list[str]:
    return [os.path.abspath(folder or ".") for folder in (sys.path if path is None else path)]
