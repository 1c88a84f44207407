"""Processes that decode, and their end."""

import multiprocessing
import os
import signal
import threading

import cv2

from input_pipeline.decode import end_if_stuck


def start_pool_process():
    """For processes of a pool: leaves interrupts to the parent, and ends with it, even if that was killed, or stuck."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    follow_parent()
    end_if_stuck()


def follow_parent():
    """Has this process, which multiprocessing started, end when its parent ends, even if that was killed."""

    # The kernel's parent-death signal follows the thread that started the worker, and grain starts workers
    # from threads that end.
    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
