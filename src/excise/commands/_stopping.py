"""What becomes of a command that is stopped: its state stays beside its output, and --resume goes on with it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from excise import processes
from excise.commands._shared import plain
from excise.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from excise.console import Console

NO_NUMBER = ("out", "overwrite", "dry_run", "stopping", "common.quiet", "common.debug", "quiet", "debug")
"""Options that decide no number of a result."""


@contextlib.contextmanager
def resumable(options: Any, method: dict[str, Any], console: Console) -> Iterator[None]:
    """Keep the state of training beside the output until the block ends well, and go on from that of an earlier run if asked.

    Args:
        options: Of the command, with `out`, `overwrite` and `stopping`.
        method: The settings of its method or recipe, as plain data.
        console: Where the user is told.

    Raises:
        ConfigError: The earlier run was another, or there are several processes.
        OutputError: There is a state, and neither --resume nor --overwrite.
    """
    from excise.disk import alone_on, beside
    from excise.resume import going_on, run_of, same_machine

    folder, resume = beside(options.out, "state"), options.stopping.resume
    if processes.count() > 1:
        if resume:
            raise ConfigError("--resume was given, but several processes keep no state. Leave it out, or run one process.")
        yield
        return
    with alone_on(options.out):
        settings = {name: value for name, value in _flat(plain(options)) if not name.startswith(NO_NUMBER)}
        about = json.loads(json.dumps({**settings, **dict(_flat(method, "method")), **same_machine()}, default=str))
        _check(run_of(folder), about, options, console)
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            with going_on(folder, about, every=options.stopping.checkpoint_every):
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt("--resume goes on with it" if folder.exists() else "") from None


def _check(earlier: dict[str, Any] | None, about: dict[str, Any], options: Any, console: Console) -> None:
    """Whether this run may go on, or begin, where an earlier one left a state."""
    if options.stopping.resume and earlier is None:
        console.say("No earlier run left a state, so this one begins at the beginning.")
    elif options.stopping.resume and earlier != about:
        other = sorted(name for name in {*(earlier or ()), *about} if (earlier or {}).get(name) != about.get(name))
        raise ConfigError(f"--resume: the run that was stopped had another {', '.join(other)}. Give the same, or --overwrite without --resume.")
    elif earlier is not None and not (options.stopping.resume or options.overwrite):
        raise OutputError(f"A run that was to write {options.out} was stopped. Give --resume to go on with it, or --overwrite to begin anew.")


def _flat(plain: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, plain
