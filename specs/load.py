"""A spec by its name or file -> `Spec`, whole and checked, with absolute paths; and a `Spec` -> normalised YAML.

    source --find--> text --parse--> Spec --override--> Spec --resolve--> Spec

`sources.py` knows where files are, `parse.py` what a text says; here they come together. `dump_spec` never writes an
absolute path, so that a bundle says nothing of the machine it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specs.document import Document, dump_document, read_text
from specs.errors import SpecError, name_nearest
from specs.parsing.consistency import check_consistency
from specs.parsing.parse import parse_spec
from specs.schema import Dim, Spec
from specs.sources import ZOO, ZOO_PREFIX, find_spec, make_portable, name_tokenizer_asset, resolve_sources


def load_spec(source: str | Path, *, variant: str | None = None) -> Spec:
    """Load a shipped spec or a YAML file; `image_vit_base:tiny` and `my.yaml:tiny` pick a variant.

    Raises:
        SpecError, TargetError: the text is malformed, names something unknown, or contradicts itself.
        WeightsError, CalibrationError: a file that the spec names is missing or of another kind.
    """
    path, suffix = find_spec(str(source))
    if suffix and variant and suffix != variant:
        raise SpecError(f"two variants are asked for: '{suffix}' and '{variant}'", fix="give one of them")
    display = f"{ZOO_PREFIX}{path.name}" if path.parent == ZOO else str(path)
    return resolve_sources(
        parse_spec(read_text(path), source=display, variant=variant or suffix), path.resolve().parent
    )


def override_spec(
    spec: Spec,
    *,
    targets: tuple[str, ...] = (),
    weights: Path | None = None,
    calibration: Path | None = None,
    dims: Mapping[str, Dim] | None = None,
) -> Spec:
    """`spec` with the command line's choices in place of its own.

    Raises:
        SpecError, TargetError: a dim or a target that there is not, or dims that contradict each other.
        WeightsError, CalibrationError: a file that does not exist, or is of another kind.
    """
    update: dict[str, Any] = {}
    if targets:
        update["targets"] = targets
    if weights is not None:
        update["weights"] = spec.weights.model_copy(update={"source": str(weights.absolute())})
    if calibration is not None:
        update["calibration"] = spec.calibration.model_copy(update={"source": str(calibration.absolute())})
    for name in dims or {}:
        if name not in spec.dims:
            raise SpecError(
                f"the spec has no dim '{name}'", allowed=name_nearest(name, spec.dims), fix="name one of these in --dim"
            )
    update["dims"] = {**spec.dims, **(dims or {})}
    spec = check_consistency(Document("the command line", {}, {(): 0}), spec.model_copy(update=update))
    given = {"weights": weights, "calibration": calibration}
    return resolve_sources(spec, Path.cwd(), [key for key, path in given.items() if path is not None])


def dump_spec(spec: Spec) -> str:
    """Normalised YAML: every value written out, no variants, no absolute path. Loads back as an equal spec."""
    data = spec.model_dump(exclude_none=True)
    for key in ("weights", "calibration", "evaluation"):
        if key in data:
            data[key]["source"] = make_portable(data[key]["source"])
    if Path(spec.weights.source).is_absolute() and not spec.weights.source.endswith(".safetensors"):
        data["weights"]["source"] = f"./{data['weights']['source']}"  # a checkpoint's folder
    for name, part in data["tokenizers"].items():
        if Path(part["source"]).is_absolute():
            part["source"] = name_tokenizer_asset(name)
    return dump_document(data)
