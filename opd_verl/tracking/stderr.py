"""Brings our warnings into the run's log, even if a library changes the root logger."""

import logging
import os
import sys


def log_to_stderr() -> None:
    """Gives the logger `opd_verl` its own handler, in verl's format; level: VERL_LOGGING_LEVEL, else WARNING."""
    logger = logging.getLogger("opd_verl")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "WARNING"))
    logger.propagate = False  # else a root handler of another library would print each line a second time
