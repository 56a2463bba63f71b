"""The verbs a user types. Each gathers its options, calls one function below and hands the result to `render`.

Exit status: 0 done, 1 a user's mistake or numbers outside tolerance, 2 wrong usage, 130 interrupted; a bug of ours
keeps its traceback. Answers go to stdout, progress and errors to stderr. Heavy imports stay inside the verbs, so that
`--help` takes milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from metagen_deploy import __version__
from metagen_deploy.terminal.interrupts import Interrupted, Interrupter, disarm
from metagen_deploy.terminal.options import ByteSize, FixedSizes, NamedDim, NamedFile, Place, Source, collect_named
from specs.errors import MetagenError
from specs.system.disk import word_os_error

if TYPE_CHECKING:
    from specs.schema import Dim, Precision

_PROGRAM = "metagen-deploy"
_COMPLETION = "_METAGEN_DEPLOY_COMPLETE"
_INTERRUPTED = 128  # and the signal's number: an exit status as shells have it

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4", "auto")
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
BASELINES = ("torch", "stock-onnx")

PATH = Place()


EXTENSION = click.option(
    "--extension",
    "extensions",
    type=PATH,
    multiple=True,
    metavar="FILE.py",
    help="Run this file of yours first: it registers kinds or strategies (repeatable).",
)


class _InOrder(click.Group):
    """Lists the verbs in the order of the path, as they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """From a checkpoint, a YAML spec or any ONNX file to a verified bundle, engines and answers.

    A SPEC is a shipped name (see `specs`), `name:variant`, or a YAML file of yours. A CHECKPOINT is a
    folder as the Hugging Face libraries save it.
    """


@cli.command()
def specs() -> None:
    """List the shipped specs."""
    from metagen_deploy.terminal import describe

    describe.print_zoo()


@cli.command()
@click.argument("spec", type=Source(), required=False, metavar="[SPEC|CHECKPOINT]")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a spec, for editors.")
@click.option(
    "--target", "targets", multiple=True, metavar="T", help="Judge the fit on T instead of the spec's targets."
)
@EXTENSION
def show(spec: str | None, schema: bool, targets: tuple[str, ...], extensions: tuple[Path, ...]) -> None:
    """Show a spec: parts, parameters, memory, fit on targets."""
    if extensions:
        from metagen_deploy.pipeline import load_extensions

        load_extensions(extensions)
    if schema:
        import json

        from specs.parsing.json_schema import make_json_schema

        click.echo(json.dumps(make_json_schema(), indent=2))
        return
    if spec is None:
        raise click.UsageError("Missing argument 'SPEC' (or option '--schema').")
    from metagen_deploy.sources import load_source
    from metagen_deploy.terminal import describe
    from specs.targets import estimate_fit, load_target

    loaded = load_source(spec)
    judged = tuple(load_target(name) for name in targets or loaded.targets)
    describe.print_spec(loaded, tuple((target, estimate_fit(loaded, target)) for target in judged))


@cli.command()
def targets() -> None:
    """List the targets, and what of each is proven."""
    from metagen_deploy.terminal import describe
    from specs.targets import list_targets

    describe.print_targets(list_targets())


@cli.command()
def doctor() -> None:
    """Say what this machine can do, and how to add the rest."""
    from metagen_deploy.doctor import examine_machine
    from metagen_deploy.terminal import describe

    describe.print_examination(examine_machine())


@cli.command()
@click.argument("source", type=Source(), metavar="SPEC|CHECKPOINT|MODEL.onnx")
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    metavar="BUNDLE",
    help="The folder to make; an older bundle there is replaced.",
)
@click.option("--target", "targets", multiple=True, metavar="T", help="A target (repeatable); the spec's when absent.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="For every component, instead of the spec's (repeatable).",
)
@click.option(
    "--dim",
    "dims",
    type=NamedDim(),
    multiple=True,
    callback=collect_named,
    metavar="NAME=MIN:OPT:MAX",
    help="The range of a dynamic dim (repeatable).",
)
@click.option("--weights", type=PATH, metavar="PATH", help="A .safetensors file or a checkpoint's folder to use.")
@click.option("--calibration", type=PATH, metavar="PATH", help="A .npz of samples instead of the spec's.")
@click.option(
    "--max-host-ram", type=ByteSize(), metavar="SIZE", help="Refuse before starting when more would be needed."
)
@EXTENSION
def export(
    source: str,
    output: Path,
    targets: tuple[str, ...],
    precisions: tuple[Precision, ...],
    dims: dict[str, Dim],
    weights: Path | None,
    calibration: Path | None,
    max_host_ram: int | None,
    extensions: tuple[Path, ...],
) -> None:
    """Make a verified bundle of a spec, checkpoint or ONNX file."""
    from engines.onnx_files.precision import measure_typed_graphs
    from metagen_deploy import pipeline
    from metagen_deploy.terminal import render
    from metagen_deploy.terminal.progress import show_progress

    pipeline.load_extensions(extensions)
    with show_progress() as progress:
        manifest, report = pipeline.export(
            source,
            output=output,
            targets=targets,
            precisions=precisions,
            dims=dims,
            weights=weights,
            calibration=calibration,
            max_host_ram_bytes=max_host_ram,
            progress=progress,
        )
    render.print_parity(report)
    render.print_manifest(output, manifest, measure_typed_graphs(output, manifest))


@cli.command()
@click.argument("source", metavar="BUNDLE|MODEL.onnx", type=PATH)
@click.option("--target", metavar="T", help="Only this target's graphs.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Only this compiler.")
@click.option(
    "--fixed",
    type=FixedSizes(),
    multiple=True,
    metavar="NAME=SIZE,...",
    help="A faster engine more for exactly these sizes (repeatable).",
)
@click.option("--timing-cache", type=PATH, metavar="FILE", help="Read and extend this cache of measured kernels.")
def build(
    source: Path,
    target: str | None,
    backend: str | None,
    fixed: tuple[dict[str, int], ...],
    timing_cache: Path | None,
) -> None:
    """Compile the engines of a bundle or an ONNX file."""
    from metagen_deploy import pipeline
    from metagen_deploy.terminal import render
    from metagen_deploy.terminal.progress import show_progress

    with show_progress() as progress:
        report = pipeline.build(
            source, target=target, backend=backend, fixed=fixed, timing_cache=timing_cache, progress=progress
        )
    render.print_build(report)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True, help="Only these (repeatable).")
def check(bundle: Path, backends: tuple[str, ...]) -> int:
    """Compare every stage with the golden data."""
    from metagen_deploy import pipeline
    from metagen_deploy.terminal import render
    from metagen_deploy.terminal.progress import show_progress

    with show_progress() as progress:
        report = pipeline.check(bundle, backends=backends or None, progress=progress)
    render.print_parity(report)
    return 0 if report.passed else 1


@cli.command()
@click.argument("bundle", type=PATH)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--input",
    "inputs",
    type=NamedFile(),
    multiple=True,
    callback=collect_named,
    metavar="NAME=FILE",
    help="A tensor, or a modality's file, by name (repeatable).",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="To go on from, to compare with pictures, or what to make (repeatable).",
)
@click.option("--chat", is_flag=True, help="Put prompts into the model's chat template.")
@click.option("--graph", metavar="NAME", help="Whose tensors these are, when the bundle has several graphs.")
@click.option(
    "-o", "--output", type=PATH, metavar="FILE", help="Write it too: .npz, .json, .txt, .png, .gif, .wav or .ply."
)
def run(
    bundle: Path,
    files: tuple[str, ...],
    inputs: dict[str, str],
    prompts: tuple[str, ...],
    chat: bool,
    graph: str | None,
    output: Path | None,
) -> None:
    """Answer prompts, pictures, sounds or tensors."""
    from metagen_deploy.answer import answer_request

    answer_request(bundle, files=files, inputs=inputs, prompts=prompts, chat=chat, graph=graph, output=output)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--against", type=click.Choice(BASELINES), help="Time this too, in turn, and print the ratio.")
def bench(bundle: Path, against: str | None) -> None:
    """Measure latency on this machine."""
    from metagen_deploy import pipeline
    from metagen_deploy.terminal import render
    from metagen_deploy.terminal.progress import show_progress

    with show_progress() as progress:
        reports = pipeline.bench(bundle, against=against, progress=progress)
    render.print_latency(reports)


@cli.command()
@click.argument("path", metavar="BUNDLE|ENGINE|MODEL.onnx", type=PATH)
def inspect(path: Path) -> None:
    """Show what a bundle, engine or ONNX file holds."""
    from metagen_deploy.terminal.inspection import print_inspection

    print_inspection(path)


def main() -> None:
    """The console script."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us (`>&-`)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.open(os.devnull, os.O_WRONLY), "w")))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows `?`, and the command goes on
    with Interrupter():
        status = run_command(sys.argv[1:])
    if status > _INTERRUPTED:
        _leave_at_once(status)
    sys.exit(status)


def _leave_at_once(status: int) -> NoReturn:
    """All is cleaned up; Python would now take every module apart, which lasts seconds where torch is among them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone, or closed it
            stream.flush()
    os._exit(status)


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit status; only a bug of ours raises."""
    try:
        status = _invoke(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        disarm()
        click.echo("\ninterrupted, nothing was left half-written", err=True)
        return _INTERRUPTED + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
    except MetagenError as error:
        _print_error(error)
        return 1
    except MemoryError as error:
        _print_error(
            MetagenError(
                "this does not fit into the memory of this machine",
                got=str(error) or None,
                fix="use a machine with more, or smaller sizes: --dim at export",
            )
        )
        return 1
    except BrokenPipeError:
        _discard_output()  # the reader (`| head`) has seen enough
        return 0
    except OSError as error:
        worded = word_os_error(error)
        if worded is None:
            raise
        _discard_output()
        _print_error(worded)
        return 1
    return status


def _invoke(arguments: list[str]) -> int:
    """Parse and call the verb. `cli.main()` would do it too, but it keeps interrupts and closed pipes to itself."""
    if _COMPLETION in os.environ:  # a shell asks for completions
        cli.main(args=arguments, prog_name=_PROGRAM)
    try:
        with cli.make_context(_PROGRAM, list(arguments)) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


def _discard_output() -> None:
    """Whatever is still buffered for a stdout that fails must not fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: MetagenError) -> None:
    click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
