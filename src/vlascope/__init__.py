"""vlascope captures the tokens of any layer of a vision or robot model, cuts them into concepts and shows them.

    import vlascope as vs

    model = vs.load("mini-vla")
    items = vs.items("demo:pick")
    run = vs.capture(model, items, sites=["vision.*", "language.*"], out="runs/first")
    cut = vs.cut(run, site="language.4", k=(5, 10, 25), seed=0)
    cut.grid().save("grid.png")
    vs.report(run).save("report.html")

Nothing heavy is imported before a verb is used. `vs.items` is both a verb, `vs.items("photos/")`, and the room
`vlascope.items` with the readers behind it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import Cut, capture, cut, items, load, open_run, report, wrap
    from .errors import VlascopeError
    from .models.layout import Grid

__all__ = [
    "Cut",
    "Grid",
    "VlascopeError",
    "__version__",
    "capture",
    "cut",
    "items",
    "load",
    "open_run",
    "report",
    "wrap",
]

_HOMES = {
    "Cut": ".api",
    "Grid": ".models.layout",
    "VlascopeError": ".errors",
    "capture": ".api",
    "cut": ".api",
    "load": ".api",
    "open_run": ".api",
    "report": ".api",
    "wrap": ".api",
}


def __getattr__(name: str) -> Any:
    if name == "items":
        # The room and the verb share a name: the room's module is callable (see vlascope/items/__init__.py).
        return importlib.import_module(".items", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
