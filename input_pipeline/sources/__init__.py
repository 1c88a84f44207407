"""Data sets as people hold them: one file each, and all give the same entries.

A source is a module with
  read(path, *, root, split) -> Listing: the list at `path` (`root` included), whose videos lie below `root`; `split`
    is the number of the official split where the data set has several.
  classes(root, train) -> names by label as the data set's authors order them, or None where only data.classes or the
    numbers themselves tell; `train` is the path of the training list, `root` included.
  TRAIN, VAL: the lists under the names that the authors gave them, tried in this order, relative to `root`; '{split}'
    stands for the number.
Both functions raise DataError at the first mistake, with file and line.
"""

from input_pipeline.sources import csv, folders, frames, hmdb51, kinetics, lists, shards, something, tfds, ucf101
from input_pipeline.sources.listing import Entry, Listing

SOURCES = {
    "csv": csv,
    "lists": lists,
    "folders": folders,
    "frames": frames,
    "kinetics": kinetics,
    "something": something,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "shards": shards,
    "tfds": tfds,
}

__all__ = ["SOURCES", "Entry", "Listing"]
