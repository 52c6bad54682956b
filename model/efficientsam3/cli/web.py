"""`efficientsam3 web`: the page that segments pictures in the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Thread
from typing import Annotated

import typer

from .common import UsageError, print_status, status_console
from .model_options import ModelOptions, with_model_options

PACKAGED = "efficientsam3-stickers"


@with_model_options(default=PACKAGED)
def web(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")
    ] = 0,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the site to this folder, for any web server, and serve nothing."),
    ] = None,
    options: ModelOptions,
) -> None:
    """Segment pictures on a page in the browser, which computes everything by itself.

    The model is exported to ONNX once. The page is served to this machine alone, until Ctrl-C.

    Example: efficientsam3 web --model efficientsam3-stickers
    """
    from ..web.browser_runtime import browser_runtime
    from ..web.server import SiteServer
    from ..web.site import site_files, write_site

    model = _exported(options)
    with status_console().status("getting ONNX Runtime for browsers"):
        runtime = browser_runtime()
    files = site_files(model, runtime)
    if out is not None:
        size = write_site(files, out)
        print_status(f"page, runtime and model, {size / 2**20:.0f} MiB -> {out}", "green")
        return
    with SiteServer(files, port) as server:
        print_status(f"{server.address} shows the page; Ctrl-C ends it", "green")
        if open_page:
            # A browser in the terminal returns when it ends, and needs the page before that.
            Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print_status("ended")


def _exported(options: ModelOptions) -> Path:
    """The folder of the model, which is exported to the cache unless it is an exported one."""
    from ..runtime.manifest import is_exported

    if options.device is not None:
        raise UsageError("--device does not go with web: the browser chooses")
    if is_exported(Path(options.model)):
        if options.dtype is not None:
            raise UsageError(f"--dtype does not go with {options.model}, which is exported already")
        return Path(options.model)
    from dataclasses import replace

    from ..export.cache import cached_export

    precision = "float32" if options.dtype is None else options.dtype.value
    model = replace(options, device="cpu", dtype=None).load()
    with status_console().status(f"exporting {model.name} to ONNX, which takes minutes once"):
        return cached_export(model, "onnx", precision)
