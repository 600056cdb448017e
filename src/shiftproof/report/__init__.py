"""Records and kept files to tables, figures and one offline HTML page; needs no model and no torch.

The names load on first use, so that importing the package costs nothing: matplotlib and jinja2 come
with the first figure or page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiftproof.report.comparisons import verdict
    from shiftproof.report.figures import path_figure, save_figure, shift_figure
    from shiftproof.report.page import render_report
    from shiftproof.report.tables import (
        Table,
        accuracy_table,
        class_table,
        group_table,
        path_table,
        seeds_table,
    )

__all__ = [
    "Table",
    "accuracy_table",
    "class_table",
    "group_table",
    "path_figure",
    "path_table",
    "render_report",
    "save_figure",
    "seeds_table",
    "shift_figure",
    "verdict",
]

_MODULES = {
    "comparisons": ("verdict",),
    "figures": ("path_figure", "save_figure", "shift_figure"),
    "page": ("render_report",),
    "tables": ("Table", "accuracy_table", "class_table", "group_table", "path_table", "seeds_table"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
