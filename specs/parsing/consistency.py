"""What must hold between the parts of a spec whose types are already right; every error has its line."""

from __future__ import annotations

from pathlib import Path

from specs.components import MultimodalFusionComponent, PictureComponent, Wav2Vec2Component
from specs.document import Document
from specs.errors import CalibrationError, MetagenError, SpecError, WeightsError, name_nearest
from specs.families import FAMILIES
from specs.graphs import find_family, name_roles
from specs.schema import IMPLEMENTED_PRECISIONS, Spec
from specs.targets import load_target

_MODALITY_READERS = {
    "image": ("vision.", "diffusion.", "avatar.", "blocks.image"),
    "text": ("text.", "blocks.text"),
    "audio": ("audio.", "avatar."),
    "video": ("video.", "vision."),
    "sensor": ("sensor.",),
}
#: Objectives that say how a model was trained and leave its graphs as they are: taken with advice, for any family.
_OF_TRAINING = ("masked", "diffusion")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_consistency(document: Document, spec: Spec) -> Spec:
    """What must hold between the parts; gives `dims` their defaults."""
    try:
        family = find_family(spec.components)
    except SpecError as error:
        raise _relocate(error, document.locate(("components",))) from None
    checks = (_check_modality, _check_objective, _check_precision, _check_targets, _check_labels, _check_sources)
    for check in checks:
        check(document, spec)
    if spec.architecture not in family.architectures:
        raise SpecError(
            f"architecture '{spec.architecture}' does not describe {family.title} of these components",
            where=document.locate(("architecture",)),
            allowed=", ".join(family.architectures),
            fix="set it to one of these, or remove the key",
        )
    known = family.list_dims(spec.components)
    for name in spec.dims:
        if name not in known:
            raise SpecError(
                f"{family.title} has no dimension '{name}'",
                where=document.locate(("dims", name)),
                allowed=name_nearest(name, known),
                fix="rename it to one of these, or remove it",
            )
    dims = {**known, **spec.dims}
    if {"cache", "tokens"} <= set(dims) and dims["cache"].max < dims["tokens"].max:
        raise SpecError(
            f"dims.cache.max {dims['cache'].max} is smaller than dims.tokens.max {dims['tokens'].max}",
            where=document.locate(("dims", "cache" if "cache" in spec.dims else "tokens", "max")),
            allowed="a cache that holds at least the longest prompt",
            fix="raise dims.cache.max, or lower dims.tokens.max",
        )
    try:
        family.check(spec, name_roles(spec))
    except SpecError as error:
        path = tuple((error.where or "").split("."))
        raise _relocate(error, document.locate(path)) from None
    return spec.model_copy(update={"dims": dims})


def _relocate(error: MetagenError, where: str) -> MetagenError:
    return type(error)(error.problem, where=where, got=error.got, allowed=error.allowed, fix=error.fix)


def _check_modality(document: Document, spec: Spec) -> None:
    for side in ("inputs", "outputs"):
        names: tuple[str, ...] = getattr(spec.modality, side)
        for index, name in enumerate(names):
            if name in names[:index]:
                raise SpecError(
                    f"modality.{side} names '{name}' twice",
                    where=document.locate(("modality", side, index)),
                    fix="keep one of the two",
                )


def _check_objective(document: Document, spec: Spec) -> None:
    kinds = [component.kind for component in spec.components.values()]
    family = find_family(spec.components)
    able = [one for one in FAMILIES if spec.objective in one.objectives]
    if able and family not in able and spec.objective not in _OF_TRAINING:
        raise SpecError(
            f"objective '{spec.objective}' does not describe {family.title} of these components",
            where=document.locate(("objective",)),
            got=", ".join(kinds),
            allowed=", ".join(family.objectives),
            fix="change the objective, or the components",
        )
    for modality in spec.modality.inputs:
        prefixes = _MODALITY_READERS.get(modality)
        if prefixes and not any(kind.startswith(prefixes) for kind in kinds):
            raise SpecError(
                f"modality.inputs names '{modality}', and no component reads it",
                where=document.locate(("modality", "inputs")),
                got=", ".join(kinds),
                allowed="a component whose kind begins with " + " or ".join(f"'{prefix}'" for prefix in prefixes),
                fix="change the modality, or add the component",
            )


def _check_precision(document: Document, spec: Spec) -> None:
    for name, precision in spec.precision.items():
        if precision not in IMPLEMENTED_PRECISIONS:
            raise SpecError(
                f"precision '{precision}' is reserved, and not implemented yet",
                where=document.locate(("precision", name)),
                allowed=", ".join(IMPLEMENTED_PRECISIONS),
                fix=f"set precision.{name} to one of these",
            )


def _check_targets(document: Document, spec: Spec) -> None:
    seen: dict[tuple[str, str], str] = {}
    for index, name in enumerate(spec.targets):
        where = document.locate(("targets", index))
        try:
            target = load_target(name)
        except MetagenError as error:
            raise _relocate(error, where) from None
        key = (target.title, target.platform)
        if key in seen:
            raise SpecError(
                f"target '{name}' is listed twice",
                where=where,
                got=f"'{seen[key]}' is the same machine and platform" if seen[key] != name else None,
                fix="keep one of the two",
            )
        seen[key] = name


def _check_labels(document: Document, spec: Spec) -> None:
    able = (PictureComponent, MultimodalFusionComponent)
    classes = [c.num_classes for c in spec.components.values() if isinstance(c, able)]
    count = next((n for n in classes if n), None)
    spelled = next((c.vocab_size for c in spec.components.values() if isinstance(c, Wav2Vec2Component)), None)
    for key, given in (("labels", bool(spec.labels) and not spelled), ("evaluation", spec.evaluation is not None)):
        if given and count is None:
            raise SpecError(
                f"'{key}' needs a component with num_classes",
                where=document.locate((key,)),
                got=", ".join(c.kind for c in spec.components.values()),
                fix=f"remove '{key}'",
            )
    count = count or spelled
    if spec.labels and len(spec.labels) != count:
        raise SpecError(
            f"there are {len(spec.labels)} labels for {count} classes",
            where=document.locate(("labels",)),
            allowed="one label for each class, in the order of the logits, or no 'labels' at all",
            fix="correct the list, or num_classes",
        )


def _check_sources(document: Document, spec: Spec) -> None:
    """File names by their ending alone: whether they exist is for `load_spec`."""
    source = spec.weights.source
    where = document.locate(("weights", "source"))
    if source.endswith(_PICKLES):
        raise WeightsError(
            f"weights in {Path(source).suffix} files are pickles, which can run code, and are not read",
            where=where,
            allowed=".safetensors",
            fix="convert once: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
        )
    if source != "random" and not source.endswith(".safetensors") and "/" not in source:
        raise WeightsError(
            f"weights.source is neither 'random' nor a .safetensors file: '{source}'",
            where=where,
            allowed="random, the path of a .safetensors file, or a checkpoint's folder with a slash (./NAME)",
            fix="correct weights.source",
        )
    evaluation = spec.evaluation.source if spec.evaluation else None
    for key, path, words in (
        ("calibration", spec.calibration.source, ("random",)),
        ("evaluation", evaluation, ()),
    ):
        if path is not None and path not in words and not path.endswith(".npz"):
            raise CalibrationError(
                f"{key}.source is not a .npz file: '{path}'",
                where=document.locate((key, "source")),
                allowed=", ".join([*words, "the path of a .npz file"]),
                fix="write one: numpy.savez_compressed(FILE, NAME_OF_THE_INPUT=array)",
            )
