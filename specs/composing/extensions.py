"""[torch] Encoders and fusion strategies of a user's own, registered from Python and named in YAML.

    @register_encoder(LidarComponent)      kind: sensor.lidar        COMPONENTS, ENCODERS
    @register_strategy("product")          strategy: product         STRATEGIES, STRATEGY_MODULES

Both write a line into the tables in which the shipped ones stand. The command line imports the file that
`--extension FILE.py` names, and no other: a spec can name a kind, it cannot make this tool run code.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import nn

from specs.components import COMPONENTS, EncoderComponent
from specs.components.costs import Cost
from specs.components.encoder import PARAMETER_COUNTERS
from specs.components.fusion.multimodal import STRATEGIES, MultimodalFusionComponent, Strategy, Stream, WeightsTensor
from specs.errors import SpecError
from specs.models.fusion.encoders import ENCODERS
from specs.models.fusion.multimodal import STRATEGY_MODULES

Module = TypeVar("Module", bound=type[nn.Module])
ListWeights = Callable[[MultimodalFusionComponent, Sequence[Stream]], tuple[WeightsTensor, ...]]

_FOLDER = "metagen_deploy_extensions"


def register_encoder(component: type[EncoderComponent]) -> Callable[[Module], Module]:
    """A decorator for the module of a component, whose `kind` is then known in YAML.

    The module is built from the component, without storage for its parameters (no value may be computed from them in
    `__init__`); `forward` takes `list_inputs` with a batch in front, and returns tokens
    [batch, output_tokens, feature_size] in the type of its parameters. Name submodules `raw` whose arithmetic on raw
    values has to stay in float32.

    Raises:
        SpecError: `kind` is not one literal text, or is another component's.
    """
    if not issubclass(component, EncoderComponent):
        raise SpecError(
            "this is no encoder's component",
            got=repr(component),
            allowed="a subclass of EncoderComponent",
            fix="derive it: class Yours(EncoderComponent)",
        )
    kinds = get_args(component.model_fields["kind"].annotation)
    if len(kinds) != 1:
        raise SpecError(
            f"{component.__name__} does not say which kind it is", fix='write `kind: Literal["sensor.yours"]` in it'
        )
    (kind,) = kinds
    known = COMPONENTS.get(kind)
    if known is not None and known.__qualname__ != component.__qualname__:
        raise SpecError(
            f"the kind '{kind}' is taken",
            got=component.__name__,
            allowed=f"{known.__name__} has it",
            fix="rename yours",
        )

    def register(module: Module) -> Module:
        COMPONENTS[kind], ENCODERS[kind] = component, module
        PARAMETER_COUNTERS[kind] = lambda config: _count_parameters(lambda: module(config))
        return module

    return register


def register_strategy(name: str, *, list_weights: ListWeights | None = None) -> Callable[[Module], Module]:
    """A decorator for a fusion strategy's module, whose name is then known in YAML.

    The module is built from (component, streams) and called with one `Seen` a modality; it returns a `Fused`. It must
    not let anything through that is not visible: `specs/models/fusion/multimodal.py` says how, its `pool_tokens` does.
    `component.options` holds what the YAML says under `options`.

    Args:
        list_weights: the extra outputs for `export_weights`, in the order in which `Fused.weights` has them.

    Raises:
        SpecError: the name is a shipped strategy's.
    """
    known = STRATEGIES.get(name)
    if known is not None and not known.is_own:
        raise SpecError(f"the strategy '{name}' is a shipped one", fix="give yours another name")

    def register(module: Module) -> Module:
        def measure(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> Cost:
            count = _count_parameters(lambda: module(config, streams))
            tokens = sum(stream.tokens for stream in streams)
            return Cost(count, max(count, 1) * tokens, 4 * tokens * config.hidden_size)  # each weight once a token

        STRATEGIES[name] = Strategy(measure=measure, list_weights=list_weights, is_own=True)
        STRATEGY_MODULES[name] = module
        return module

    return register


def _count_parameters(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


def load_extension(path: Path) -> None:
    """Run a user's file, so that what it registers is known. This is code: it can do anything that the user can.

    Raises:
        SpecError: there is no such file, it registers nothing, or it fails; with the line of the file.
    """
    if path.suffix != ".py" or not path.is_file():
        raise SpecError("there is no such extension", where=str(path), allowed="a .py file", fix="check the path")
    before = (dict(COMPONENTS), dict(STRATEGIES))
    found = importlib.util.spec_from_file_location(f"{_FOLDER}.{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # what pydantic looks annotations up in
    try:
        found.loader.exec_module(module)
    except SpecError as error:
        raise SpecError(error.problem, where=str(path), got=error.got, allowed=error.allowed, fix=error.fix) from None
    except Exception as error:  # whatever a user's code raises is told as theirs
        raise SpecError(
            "the extension could not be loaded",
            where=_find_line(path, error),
            got=f"{type(error).__name__}: {error}",
            fix="correct the file",
        ) from error
    if before == (COMPONENTS, STRATEGIES):
        raise SpecError(
            "the extension registers nothing",
            where=str(path),
            allowed="register_encoder, register_strategy of metagen_deploy.api",
            fix="see 'Modalities of your own' in docs/models.md",
        )


def _find_line(path: Path, error: BaseException) -> str:
    """`file:line` of the last frame in the user's own file, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)
