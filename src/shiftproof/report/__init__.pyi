"""Tables, figures and the offline HTML report, made from records and saved predictions without a model or PyTorch."""

from .accuracy import accuracy_table, class_table, group_table
from .figures import path_figure, save_figure, shift_figure
from .page import render_report
from .paths import path_table
from .seeds import seeds_table
from .tables import Table
from .verdicts import verdict

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
