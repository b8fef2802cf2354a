"""Inspects folders in a process of its own and says what that took and touched: python watch.py FOLDER..."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from excise.errors import CheckpointError
from excise.front_door import inspect

MEMORY = 2 * 2**30
"""What the inspection is told is free."""
opened: list[str] = []
forbidden: list[str] = []


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and not isinstance(arguments[0], int):  # a number is a file that was opened by name before
        opened.append(os.path.realpath(os.fsdecode(arguments[0])))  # type: ignore[arg-type]  # a link is where it leads
    elif event.startswith(
        ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.fork", "ctypes.", "import", "pty.", "exec", "compile")
    ):
        forbidden.append(event)


def peak() -> int:
    """The most memory that this program has had, in bytes. `getrusage` would count what its parent had when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def look(folder: str) -> dict[str, object]:
    opened.clear()
    forbidden.clear()
    begun = time.perf_counter(), time.process_time()
    try:
        inspect(Path(folder), folder, free=MEMORY)
        message = None
    except CheckpointError as error:
        message = str(error)
    took, computed = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return {"message": message, "seconds": took, "computed": computed, "opened": list(opened), "forbidden": list(forbidden), "peak": peak()}


if __name__ == "__main__":
    good, *rest = sys.argv[1:]
    look(good)  # imports what is imported late
    sys.addaudithook(hook)
    found = {folder: look(folder) for folder in (good, *rest)}
    loaded = sorted({"torch", "transformers", "tokenizers", "safetensors", "numpy"} & set(sys.modules))
    print(json.dumps({"found": found, "peak": peak(), "loaded": loaded}))
