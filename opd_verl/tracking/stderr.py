"""Brings our warnings into the run's log, whatever the libraries of this process do to the root logger."""

import logging
import os
import sys


def log_to_stderr() -> None:
    """Gives the logger `opd_verl` a handler of its own, in verl's format; VERL_LOGGING_LEVEL (WARNING) is its level."""
    logger = logging.getLogger("opd_verl")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "WARNING"))
    logger.propagate = False  # else a root handler of another library would print each line a second time
