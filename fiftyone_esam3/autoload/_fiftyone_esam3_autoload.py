"""Adds EfficientSAM3 to FiftyOne's model zoo, in every process, with nothing to call.

FiftyOne looks for models in the manifests that its configuration names, and has no entry points.
fiftyone_esam3_autoload.pth runs this file when Python starts, so it only leaves a finder that waits
for FiftyOne to load its configuration and then takes itself away. Without FiftyOne, or with the
environment variable FIFTYONE_ESAM3_AUTOLOAD=0, nothing happens.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is not imported: this runs at every start of Python
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_LOADS_CONFIG = "fiftyone.__public__"
_REMOTE_NAME = "efficientsam3-zoo"  # "name" in manifest.json: the folder of a registered source


class _Finder:
    """Lets FiftyOne's public module be found as ever, and adds to its configuration."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _LOADS_CONFIG:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_add(module: ModuleType) -> None:
                run(module)
                add_to_zoo(module.config)

            spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


def add_to_zoo(config: Any) -> None:
    """Appends our manifest to the ones that ``fiftyone.config`` names.

    Not if the repository is registered as a remote source: FiftyOne would then warn about every
    model that it meets twice.
    """
    import os
    from importlib.util import find_spec

    spec = find_spec("fiftyone_esam3")
    if spec is None or not spec.submodule_search_locations:
        return
    manifest = os.path.join(spec.submodule_search_locations[0], "zoo_manifest.json")
    registered = os.path.join(config.model_zoo_dir or "", _REMOTE_NAME, "manifest.json")
    paths = list(config.model_zoo_manifest_paths or [])
    if manifest not in paths and os.path.isfile(manifest) and not os.path.isfile(registered):
        config.model_zoo_manifest_paths = [*paths, manifest]


if _LOADS_CONFIG in sys.modules:  # imported by hand, in a process where FiftyOne is at work
    add_to_zoo(sys.modules[_LOADS_CONFIG].config)
else:
    sys.meta_path.insert(0, _Finder())
