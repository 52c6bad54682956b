"""Adds EfficientSAM3 to FiftyOne's models and plugins, in every process, with nothing to call.

FiftyOne looks for models in the manifests that its configuration names and for plugins in one
folder, and has no entry points. fiftyone_esam3_autoload.pth runs this file when Python starts, so
it only leaves a finder that waits for two modules of FiftyOne and then takes itself away. Without
FiftyOne, or with the environment variable FIFTYONE_ESAM3_AUTOLOAD=0, nothing happens.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is not imported: this runs at every start of Python
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_REMOTE_NAME = "efficientsam3-zoo"  # "name" in manifest.json: the folder of a registered source
_PLUGIN_NAME = "@efficientsam3/curation"  # in fiftyone.yml
_PLUGIN_FOLDER = "_fiftyone_esam3_plugin"  # beside this file, when installed


def _folder() -> str | None:
    """Where the package is."""
    from importlib.util import find_spec

    spec = find_spec("fiftyone_esam3")
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


def add_to_zoo(config: Any) -> None:
    """Appends our manifest to the ones that ``fiftyone.config`` names.

    Not if the repository is registered as a remote source: FiftyOne would then warn about every
    model that it meets twice.
    """
    import os

    folder = _folder()
    if folder is None:
        return
    manifest = os.path.join(folder, "zoo_manifest.json")
    registered = os.path.join(config.model_zoo_dir or "", _REMOTE_NAME, "manifest.json")
    paths = list(config.model_zoo_manifest_paths or [])
    if manifest not in paths and os.path.isfile(manifest) and not os.path.isfile(registered):
        config.model_zoo_manifest_paths = [*paths, manifest]


def add_to_plugins(core: Any) -> None:
    """Lets ``fiftyone.plugins.core`` find ours beside those in the folder of plugins.

    Not if the user downloaded it: the copy that he sees in his folder is the one that counts. The
    function is FiftyOne's own business; where it is missing, the plugin has to be downloaded.
    """
    ordinary = getattr(core, "_iter_plugin_metadata_files", None)
    if ordinary is None or hasattr(ordinary, "without_efficientsam3"):
        return

    def files(root_dir: str | None = None, *args: Any, **kwargs: Any) -> Iterator[str]:
        downloaded = False
        for path in ordinary(root_dir, *args, **kwargs):
            downloaded = downloaded or (root_dir is None and _is_ours(path))
            yield path
        folder = _folder() if root_dir is None and not downloaded else None
        if folder is not None:
            import os

            # Of a folder that holds nothing else: FiftyOne deletes a plugin's whole folder when it
            # is told to delete the plugin, or to download another copy over it.
            place = os.path.join(os.path.dirname(__file__), _PLUGIN_FOLDER, "fiftyone.yml")
            if os.path.isfile(place):
                yield place

    files.without_efficientsam3 = ordinary  # type: ignore[attr-defined]
    core._iter_plugin_metadata_files = files


def _is_ours(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return _PLUGIN_NAME in file.read()
    except (OSError, ValueError):
        return False


_WAITING = {
    "fiftyone.__public__": lambda module: add_to_zoo(module.config),
    "fiftyone.plugins.core": add_to_plugins,
}


class _Finder:
    """Lets two modules be found as ever, and adds to what they hold once they have run."""

    def __init__(self) -> None:
        self.waiting = dict(_WAITING)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        add = self.waiting.pop(name, None)
        if add is None:
            return None
        from importlib.util import find_spec

        if not self.waiting:
            sys.meta_path.remove(self)
        spec = find_spec(name)  # this finder does not answer for the name any more
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_add(module: ModuleType) -> None:
                run(module)
                add(module)

            spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


_finder = _Finder()
for _name, _add in _WAITING.items():
    if _name in sys.modules:  # imported by hand, in a process where FiftyOne is at work
        del _finder.waiting[_name]
        _add(sys.modules[_name])
if _finder.waiting:
    sys.meta_path.insert(0, _finder)
