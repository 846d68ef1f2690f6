"""Processes that do not outlive the one that started them."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """From now on this process ends when the one that started it through `multiprocessing` has ended, however that
    went and whatever this one does then: waits on a queue, or for a device that does not answer."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
