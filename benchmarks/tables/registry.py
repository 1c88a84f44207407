"""The tables of all papers by name."""

from benchmarks.tables import havit, mevit, msca, stat, vtn
from benchmarks.tables.rows import Table
from configs.loading import FlagError

PAPERS = {
    "mevit": ("MEViT", mevit.TABLES),
    "havit": ("HaViT", havit.TABLES),
    "stat": ("STAT", stat.TABLES),
    "vtn": ("VTN", vtn.TABLES),
    "msca": ("MSCA", msca.TABLES),
}
TABLES = {table.name: table for _, tables in PAPERS.values() for table in tables}


def find(name: str) -> Table:
    """Returns a table by name.

    Raises:
        FlagError: there is no such table. The message lists those of the paper, or all.
    """
    if name in TABLES:
        return TABLES[name]
    paper = name.partition("/")[0]
    names = [table.name for table in PAPERS[paper][1]] if paper in PAPERS else list(TABLES)
    raise FlagError(f"{name!r} is not a table. Choose one of {', '.join(names)}.")
