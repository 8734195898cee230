"""`python -m dst_grpc.rpc.device_process`: one of a supervisor's processes; see `supervisor.py`."""

from __future__ import annotations

import os
import signal
import sys
import threading

from dst_grpc.observability.logs import start_error
from dst_grpc.rpc.parts import StartupError
from dst_grpc.rpc.process import serve
from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.supervisor import say_ready

_STANDARD_INPUT = 0


def main() -> None:
    """Serve with the settings that the first line of standard input holds, until told to stop or until that ends."""
    # Unbuffered, so that the thread holds no lock of it at the interpreter's end.
    with os.fdopen(_STANDARD_INPUT, "rb", buffering=0, closefd=False) as told:
        settings = Settings.model_validate_json(told.readline())
    threading.Thread(target=_drain_without_supervisor, name="dst-supervisor", daemon=True).start()
    try:
        serve(settings, on_ready=say_ready)
    except StartupError as error:
        sys.exit(start_error(str(error), settings.log_format))


def _drain_without_supervisor() -> None:
    """Wait for the end of standard input, which the supervisor holds open as long as it lives; then drain."""
    while os.read(_STANDARD_INPUT, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
