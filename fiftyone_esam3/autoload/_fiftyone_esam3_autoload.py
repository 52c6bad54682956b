"""Add EfficientSAM3 to FiftyOne's models and plugins in every process, without a call.

FiftyOne looks for models in the manifests that its configuration names, and for plugins in one
folder. It has no entry points. fiftyone_esam3_autoload.pth runs this file when Python starts. The
file only installs an import finder, which waits for three modules of FiftyOne and then removes
itself. Without FiftyOne, or with the environment variable FIFTYONE_ESAM3_AUTOLOAD=0, nothing
happens.
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
_SCRIPT = ("panel", "panel.js")  # in the package; "js_bundle" in fiftyone.yml


def _folder() -> str | None:
    """The folder of the package, or None."""
    from importlib.util import find_spec

    spec = find_spec("fiftyone_esam3")
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


def add_to_zoo(config: Any) -> None:
    """Append our manifest to those that ``fiftyone.config`` names.

    Nothing is done if the repository is registered as a remote source, because FiftyOne warns
    about every model that it finds twice.

    Args:
        config: ``fiftyone.config``.
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
    """Let ``fiftyone.plugins.core`` find our plugin beside those in the folder of plugins.

    Nothing is added if the user downloaded the plugin into that folder. The function that is
    replaced is private to FiftyOne; where it does not exist, the plugin has to be downloaded.

    Args:
        core: the module ``fiftyone.plugins.core``.
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

            # This folder holds nothing else, because FiftyOne deletes the whole folder of a plugin
            # when a user deletes the plugin or downloads another copy of it.
            place = os.path.join(os.path.dirname(__file__), _PLUGIN_FOLDER, "fiftyone.yml")
            if os.path.isfile(place):
                yield place

    files.without_efficientsam3 = ordinary  # type: ignore[attr-defined]
    core._iter_plugin_metadata_files = files


def serve_script(definitions: Any) -> None:
    """Let the App load the panel's script from the installed package.

    FiftyOne serves scripts of plugins from its folder of plugins only. The App's server gives
    every file of this machine at ``/media``.

    Args:
        definitions: the module ``fiftyone.plugins.definitions``.
    """
    plugin = getattr(definitions, "PluginDefinition", None)
    names = ("js_bundle_path", "js_bundle_server_path")
    ordinary: list[Any] = [getattr(plugin, name, None) for name in names]
    if not all(isinstance(one, property) for one in ordinary):
        return

    def is_installed(self: Any) -> bool:
        import os

        return os.path.basename(str(self.directory)) == _PLUGIN_FOLDER

    def path(self: Any) -> Any:
        import os

        folder = _folder() if is_installed(self) else None
        return ordinary[0].fget(self) if folder is None else os.path.join(folder, *_SCRIPT)

    def server_path(self: Any) -> Any:
        if not is_installed(self):
            return ordinary[1].fget(self)
        from urllib.parse import quote

        # The App appends a question mark and the hash of the file, which must not become a part
        # of the path of the file.
        return f"/media?filepath={quote(self.js_bundle_path)}&version=" if self.has_js else None

    for name, function in {names[0]: path, names[1]: server_path}.items():
        setattr(plugin, name, property(function))


def _is_ours(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return _PLUGIN_NAME in file.read()
    except (OSError, ValueError):
        return False


_WAITING = {
    "fiftyone.__public__": lambda module: add_to_zoo(module.config),
    "fiftyone.plugins.definitions": serve_script,
    "fiftyone.plugins.core": add_to_plugins,
}


class _Finder:
    """Find some modules as usual, and change them after they have run."""

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
        spec = find_spec(name)  # this finder no longer handles the name
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_add(module: ModuleType) -> None:
                run(module)
                add(module)

            spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


_finder = _Finder()
for _name, _add in _WAITING.items():
    if _name in sys.modules:  # this file was imported after FiftyOne
        del _finder.waiting[_name]
        _add(sys.modules[_name])
if _finder.waiting:
    sys.meta_path.insert(0, _finder)
