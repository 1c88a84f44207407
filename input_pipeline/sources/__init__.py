"""Sources: one module for each kind of data set. All return the same entries, see `registry.Source`."""

from input_pipeline.sources import auto, csv, folders, frames, hmdb51, kinetics, lists, shards, something, tfds, ucf101
from input_pipeline.sources.listing import Entry, Listing
from input_pipeline.sources.registry import SOURCES, Source, register

__all__ = ["SOURCES", "Entry", "Listing", "Source", "register"]

register("auto", auto)
register("csv", csv)
register("lists", lists)
register("folders", folders)
register("frames", frames)
register("kinetics", kinetics)
register("something", something)
register("ucf101", ucf101)
register("hmdb51", hmdb51)
register("shards", shards)
register("tfds", tfds)
