"""Processes that simulate. They import no Keras, run one thread each, and end with their parent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

log = logging.getLogger(__name__)

LOGGED_EVERY = 500  # stacks


def start(workers: int) -> ProcessPoolExecutor | None:
    """Start so many processes; None for 0."""
    if workers == 0:
        return None
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # read by the children; too late for this process
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent)


def collected(one: Callable[[Any], Any], seeds: Sequence[Any], workers: int) -> list[Any]:
    """Make something of each seed, in so many processes (0: this one), and log how far it is.

    Returns
    -------
    list
        In the order of the seeds, without what is None.
    """
    pool, made = start(workers), []
    try:
        results = map(one, seeds) if pool is None else pool.map(one, seeds, chunksize=16)
        for k, result in enumerate(results, start=1):
            made += [] if result is None else [result]
            if k % LOGGED_EVERY == 0:
                log.info("%d of %d stacks", k, len(seeds))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return made


def _end_with_parent() -> None:
    """End this process when its parent was killed: nobody else would tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
