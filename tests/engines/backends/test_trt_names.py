"""What this project asks of TensorRT's objects, against the names that TensorRT-RTX, of 11's generation, has.

TensorRT 11 cannot be had here. Its Python module has RTX's shape, so a name that RTX lacks is one that 11 dropped, and
has to be looked for before it is used.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted([*ROOT.glob("engines/runtime/executors/tensorrt*.py"), *ROOT.glob("engines/backends/*t*rt*.py")])
#: Name of a variable or attribute, without a leading underscore -> the class of what it holds in these files.
CLASSES = {
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "config": "IBuilderConfig",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
}


def list_uses(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(class, name) of every attribute that is read of such a variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if owner.lstrip("_") in CLASSES and node.attr.islower():
                yield CLASSES[owner.lstrip("_")], node.attr


def list_looked_for(tree: ast.AST) -> set[str]:
    """Names that the file asks for by `hasattr` or `getattr` first."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    asked = (call.args[1] for call in calls if call.func.id in ("hasattr", "getattr") and len(call.args) > 1)  # type: ignore[attr-defined]
    return {one.value for one in asked if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def find_dropped(source: str) -> list[str]:
    """Names of 8.6 and 10 that the bindings of 11's generation lack, used without a look."""
    import tensorrt_rtx as trt

    tree = ast.parse(source)
    looked_for = list_looked_for(tree)
    return sorted(
        {f"{owner}.{name}" for owner, name in list_uses(tree) if not hasattr(getattr(trt, owner), name)}
        - {f"{owner}.{name}" for owner in CLASSES.values() for name in looked_for}
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_name_is_used_that_11_dropped(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    # The branch for 8.6, taken where the module lacks what replaced it.
    known = {"ICudaEngine.create_execution_context_without_device_memory": "ExecutionContextAllocationStrategy"}
    found = [name for name in find_dropped(source) if known.get(name, "no such thing") not in source]
    assert not found


def test_a_dropped_name_is_found() -> None:
    assert find_dropped("size = self._engine.device_memory_size") == ["ICudaEngine.device_memory_size"]
    assert find_dropped("context.execute_v2([])") == []
    assert find_dropped("config.set_calibration_profile(p)") == ["IBuilderConfig.set_calibration_profile"]
