"""The log: one JSON object a line on standard error."""

import json
import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger("tuwen.service")


class JsonFormatter(logging.Formatter):
    """time, level, event, and the fields given as `extra={"fields": {...}}`.

    Of an exception the kind and the places in the code are written, not its message, which may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{at}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["where"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, ensure_ascii=False)


def note_event(event: str, **fields: Any) -> None:
    """One line of the log."""
    LOGGER.info(event, extra={"fields": fields})


def note_error(event: str, error: BaseException, **fields: Any) -> None:
    """One line of the log about something that went wrong."""
    LOGGER.error(event, extra={"fields": fields}, exc_info=error)


def start() -> None:
    """Sends this log, and uvicorn's own, to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in (("tuwen.service", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
