"""Being asked to end, by whatever sends it, is Ctrl-C: what is open is cleaned up."""

from __future__ import annotations

import signal
import threading

ENDS = ("SIGTERM", "SIGHUP")  # kill; the terminal is gone. Windows has no SIGHUP


def ended_as_by_ctrl_c() -> None:
    """From here on these signals raise KeyboardInterrupt in the main thread; one that is ignored (nohup) stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
