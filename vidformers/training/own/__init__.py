"""The fields of a run on own videos, derived once from the data and from measurements on this machine."""

from vidformers.training.own.derive import derive

__all__ = ["derive"]
