"""The command line: it parses, calls a command, and turns errors into one line and an exit code.

Exit codes: 0 done or no evidence found, 1 backdoor found, 2 error or inconclusive, 3 nothing could be scanned, 4 misused command line,
130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from excise import processes
from excise.errors import ExciseError, UsageError, nearest, printable

__all__ = ["main"]

HELP = """excise finds backdoors in transformer text classifiers and cuts them out.

usage: excise COMMAND ...

  demo       backdoor a small classifier, repair it, show before and after
  scan       look for a backdoor in a classifier, with clean labelled texts
  repair     repair a suspect classifier with clean labelled texts
  evaluate   measure a classifier on clean and on triggered texts
  attack     plant a backdoor of your own, to test defenses (research use)
  run        run a recipe: attack, defenses, evaluation
  perturb    rank augmentations by the loss they cause in a suspect
  plot       draw losses, t-SNE and attention, before and after a repair
  attribute  show which layers and attention heads carry a known backdoor
  bench      measure a grid of attacks, defenses, data and seeds; resumes
  zoo        make and scan many models, to see how well the scanners do
  verify     check that a folder is as excise wrote it, and who signed it
  sign       sign a folder that excise wrote, with a key
  train-lm   make a small language model from clean texts, for onion and cwea
  list       the methods and recipes there are
  cite       the reference of a method
  env        versions, device and precision, for bug reports

excise COMMAND --help shows its options. excise --version prints the version."""


COMMANDS: dict[str, str | None] = {
    "demo": None,
    "scan": None,
    "repair": "defense",
    "evaluate": None,
    "attack": "attack",
    "run": None,
    "perturb": None,
    "plot": None,
    "attribute": None,
    "bench": None,
    "zoo": None,
    "verify": None,
    "sign": None,
    "train-lm": None,
}
"""Commands that compute, each with the kind of method whose settings become options too."""
SIMPLE: dict[str, Callable[[list[str]], None]] = {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _terminable(), processes.taking_part():
            code = _dispatch(arguments)
            if sys.stdout:  # a shell can close it
                sys.stdout.flush()
            return code
    except ExciseError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        kept = "run it again to go on" if arguments[:1] in (["bench"], ["zoo"]) else str(stop) or "nothing was kept"
        dataclasses.make_dataclass("Nothing", [])  # python -m ends by a signal if the last generated code was interrupted: this is not
        return _fail(f"interrupted; {kept}.", 130)
    except BrokenPipeError:  # of a list; commands that compute print through `Console`, which goes on
        from excise.console import discard_output

        discard_output()
        return 0
    except BaseException as error:
        if debug or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):  # what the tokenizers library stops with
            raise
        advice = "Memory ran out. Give shorter texts (--max-length), a smaller batch_size or a larger machine. " if _is_out_of_memory(error) else ""
        return _fail(f"{advice}{type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where)", 2)


def _is_out_of_memory(error: BaseException) -> bool:
    """Python, torch on a CPU and torch on a GPU each say it in their own way."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in ("allocate memory", "out of memory")))


def _dispatch(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if odd := next((argument for argument in arguments if any("\ud800" <= c <= "\udfff" for c in argument)), None):
        raise UsageError(f"{odd} is no UTF-8, so that no result could name it. Rename it.")
    if name in ("--help", "-h", "help"):
        print(HELP)
    elif name in ("--version", "-V"):
        from importlib.metadata import version

        print(f"excise {version('excise')}")
    elif name in SIMPLE:
        SIMPLE[name](rest)
    elif name in COMMANDS:
        return _compute(name, rest)
    else:
        raise UsageError(f"There is no command {name!r}.{nearest(name, [*COMMANDS, *SIMPLE])} See excise --help.")
    return 0


def _compute(name: str, arguments: list[str]) -> int:
    """Parse the options of a command, and of its method, and run it; the exit code."""
    command: Any = importlib.import_module(f"excise.commands.{name.replace('-', '_')}")
    method_type = _method_type(COMMANDS[name], arguments, default=getattr(command.Options, "method", ""))
    options, method = _parse(f"excise {name}", command.Options, method_type, arguments)
    paths = {f.name: value.expanduser() for f in dataclasses.fields(options) if isinstance(value := getattr(options, f.name), Path)}
    options = dataclasses.replace(options, **paths)
    _settle_libraries()
    from excise.console import Console

    common = getattr(options, "common", options)
    console = Console(quiet=common.quiet)
    with console.drawing(), _alone(name, options):
        return command.run(options, *([method] if method is not None else []), console) or 0


def _alone(name: str, options: Any) -> contextlib.AbstractContextManager[None]:
    """Two runs that write to one folder would spoil each other's work; those that only look, and the shards of a zoo, may share one."""
    from excise.disk import alone_on

    looks = any(getattr(options, attribute, False) for attribute in ("dry_run", "no_run")) or getattr(options, "action", "") == "table"
    if looks or getattr(options, "out", None) is None:
        return contextlib.nullcontext()
    return alone_on(options.out, part=f"lock-{options.shard.replace('/', '-of-')[:9]}" if name == "zoo" else "lock")


def _method_type(kind: str | None, arguments: list[str], *, default: str) -> Any:
    """The class of the method that is asked for, whose fields become options."""
    from excise import registry

    if kind is None:
        return None
    if kind == "attack":
        words = [a for a in arguments if not a.startswith("-")]
        named = next((a for a in words if a in registry.names("attack")), next(iter(words), None))  # options may come first
        if named is None:
            return None
    else:
        named = default
        for i, argument in enumerate(arguments):
            if argument == "--method" and i + 1 < len(arguments):
                named = arguments[i + 1]
            elif argument.startswith("--method="):
                named = argument.partition("=")[2]
    return registry.load(kind, named)  # type: ignore[arg-type]


def _parse(prog: str, options_type: Any, method_type: Any, arguments: list[str]) -> tuple[Any, Any]:
    import tyro

    from excise.commands._options import CONSTRUCTORS

    inline = tyro.conf.arg(name="")
    fields: list[Any] = [("options", Annotated[options_type, inline])]
    if method_type is not None:
        fields.append(("method", Annotated[method_type, inline], dataclasses.field(default_factory=method_type)))
    both = dataclasses.make_dataclass("Both", fields)
    known = [f"--{name}" for name in (*_option_names([options_type, method_type]), "help")]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            parsed, unknown = tyro.cli(
                both,
                prog=prog,
                description=options_type.__doc__,
                args=arguments,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=CONSTRUCTORS,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _refuse_unknown(prog, [a for a in arguments if a.startswith("--")], known)  # a misspelt option leaves the right one missing
        raise UsageError(_one_line(shown.getvalue()) + f" See {prog} --help.") from None
    _refuse_unknown(prog, sorted(unknown, key=lambda a: not a.startswith("-")), known)
    return parsed.options, getattr(parsed, "method", None)


def _refuse_unknown(prog: str, arguments: list[str], known: list[str]) -> None:
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option not in known:
            raise UsageError(f"{prog} has no option {argument!r}.{nearest(option, known)} See {prog} --help.")


def _option_names(types: list[Any], prefix: str = "") -> Iterator[str]:
    from typing import get_type_hints

    for cls in filter(None, types):
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            if dataclasses.is_dataclass(hint):
                inline = field.name in ("texts", "common", "stopping")
                yield from _option_names([hint], prefix if inline else f"{prefix}{field.name}.")
            else:
                yield prefix + field.name.replace("_", "-")


def _one_line(box: str) -> str:
    """The message inside the frame that tyro draws around an error, of lines or, where the terminal has only ASCII, of hyphens."""
    lines = [re.sub(r"^[│╭╰\s]+|[│╮╯\s]+$", "", line) for line in box.splitlines()]
    kept: list[str] = []
    for line in lines[1:]:
        if not set(line) <= set("─- "):
            kept.append(line)
        elif kept:
            break
    return " ".join(" ".join(kept).split()).rstrip(".") + "."


def _list(arguments: list[str]) -> None:
    from excise import registry

    _expect(arguments, most=0, usage="excise list")
    from excise.recipes import shipped_recipes

    for kind in registry.BASES:
        print(f"{kind}s")
        for name in registry.names(kind):
            print(f"  {name:<18} {registry.summary(kind, name)}")
    for heading, folder in (("recipes", "."), ("grids", "grids"), ("zoos", "zoos")):
        print(heading)
        for name, path in shipped_recipes(folder).items():
            print(f"  {name:<18} {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}")


def _cite(arguments: list[str]) -> None:
    from excise import registry
    from excise.references import bibtex

    _expect(arguments, most=1, least=1, usage="excise cite METHOD")
    name = arguments[0]
    kinds = [kind for kind in registry.BASES if name in registry.names(kind)]
    if not kinds:
        known = [n for kind in registry.BASES for n in registry.names(kind)]
        raise UsageError(f"There is no method {name!r}.{nearest(name, known)} See excise list.")
    paper = registry.load(kinds[0], name).paper  # type: ignore[arg-type]
    print(f"{bibtex(paper.key)}\n\n% {name}: {paper.method}" + (f"; the authors' code: {paper.code}" if paper.code else ""))


def _env(arguments: list[str]) -> None:
    _expect(arguments, most=0, usage="excise env")
    from excise.assets import cache_folder
    from excise.result import Environment
    from excise.victim import default_device, resolve_precision

    device = default_device(None)
    for key, value in Environment.of(str(device), resolve_precision("auto", device)):
        print(f"{key:<13} {value}")
    print(f"{'cache':<13} {cache_folder()}")


SIMPLE |= {"list": _list, "cite": _cite, "env": _env}


def _expect(arguments: list[str], *, most: int, usage: str, least: int = 0) -> None:
    if any(a in ("--help", "-h") for a in arguments):
        print(f"usage: {usage}")
        raise SystemExit(0)
    if not least <= len(arguments) <= most:
        raise UsageError(f"{' '.join(arguments) or 'Nothing'} was given; expected: {usage}.")


def _settle_libraries() -> None:
    """Quiet what other libraries draw; excise shows its own progress and errors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the hub's library is imported, below
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, and a terminal that is closed, end a command like Ctrl-C does: temporary files are removed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, stop) for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    which = f"process {index}: " if (index := processes.index()) else ""
    with contextlib.suppress(OSError):  # an error that nobody reads is one all the same
        print(f"excise: {which}{printable(line)}", file=sys.stderr, flush=True)
    return code
