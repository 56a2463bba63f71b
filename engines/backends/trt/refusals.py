"""TensorRT's words -> the ONNX nodes they mean, the likely cause and the next step.

    "4: [optimizer.cpp::computeCosts::3871] Error Code 4: Internal Error (Could not find any implementation for node
     {ForeignNode[a...b]} due to insufficient workspace. ...)"
    => where  12 nodes fused into one, a (Gather) to b (Cast); modules layers.0, layers.1
       fix    its kernels need more scratch memory than they may take: free memory on the GPU, ...

The words of 8.6.0 were provoked on an H200, those of TensorRT-RTX 1.7 here; `tests/engines/data/tensorrt` keeps them.
Where a row does not know the cause it says how to find it.

Not here: what each compiler's process said and how it ended (`compiler`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engines.onnx_files.records import Node, OnnxFile

_FUSED = re.compile(r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}")
_UNNAMED = re.compile(r" \+ .*$|\(Unnamed Layer.*$")  # what TensorRT adds to the name of a layer
_WRAPPED = re.compile(r"^(?:\d+: )?(?:\[\S+?::\d+\]|\w+::\w+:) Error Code \d+: [\w ]+? ?\((.*)\)\s*$", re.DOTALL)
_SOURCE = re.compile(r"\.?\s+In \w+ at /_src/\S+:\d+$")
_NUMBERED = re.compile(r"^\d+: ")
_LIMIT = re.compile(r"violated: (\d+) >= (\d+)")
_PROFILE_INPUTS = (
    re.compile(r"(?:^|[ (])([\w./:-]+): (?:tensor volume|dynamic input|number of dimensions|for dimension number)"),
    re.compile(r"input tensors? ([\w./:-]+?),? (?:has|please)"),
)
_MAX_MODULES = 4


@dataclass(frozen=True, kw_only=True)
class _Remedy:
    """A row: what the compiler says, why it says so ("" where the words do), and what to do."""

    signs: tuple[str, ...]
    cause: str
    step: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.step}" if self.cause else self.step


#: The first row with a sign that occurs wins.
_REMEDIES = (
    _Remedy(
        signs=("due to insufficient workspace",),
        cause="its kernels need more scratch memory than they may take",
        step="free memory on the GPU, lower the largest dims (--dim), or build on a GPU with more memory",
    ),
    _Remedy(
        signs=("missing in the shape_remap table",),
        cause="8.6 lost a size that this part computes with, as it does in some graphs of several ranges",
        step="build it with one size a dim (--dim NAME=N:N:N)",
    ),
    _Remedy(
        signs=("Could not find any implementation for node",),
        cause="no kernel of this version does this part in this precision and these ranges",
        step="build it with one size a dim (--dim NAME=N:N:N), then in fp32; the one that builds says what is at fault",
    ),
    _Remedy(
        signs=("Device memory is insufficient to use tactic", "OutOfMemory"),
        cause="the largest sizes do not fit into memory",
        step="lower the largest dims (--dim), or free memory",
    ),
    _Remedy(
        signs=("tensor volume exceeds",),
        cause="no tensor may have 2^31 elements or more, and this one does at its largest size",
        step="lower the largest dims: --dim NAME=MIN:OPT:MAX",
    ),
    _Remedy(
        signs=("Plugin not found", "find plugin"),
        cause="",
        step="give the op a function body of standard ops (metagen-deploy export does), or rewrite it",
    ),
    _Remedy(
        signs=("must have same input types",),
        cause="",
        step="insert a Cast: with strong typing an operator's inputs have one type",
    ),
    _Remedy(signs=("zero point",), cause="", step="quantise symmetrically: zero point 0, int8"),
    _Remedy(signs=("Failed to open file",), cause="", step="copy the external data beside the ONNX file"),
    _Remedy(signs=("must be conformable", "but must match"), cause="", step="check the shapes of the node's inputs"),
    _Remedy(signs=("reshape changes volume",), cause="", step="check the shape that the Reshape is given"),
    _Remedy(
        signs=("Failed to convert ONNX da",),
        cause="an input has a type that TensorRT has not (strings, complex numbers)",
        step="move that part out of the graph, or run it with --backend onnxruntime",
    ),
    _Remedy(
        signs=("Failed to parse ONNX model", "Failed to parse the ONNX model"),
        cause="the file is damaged or is no ONNX file",
        step="copy it again, or export it again",
    ),
    _Remedy(
        signs=("no optimization profile has been defined",),
        cause="a dim is dynamic and has no range",
        step="give it one: --dim NAME=MIN:OPT:MAX",
    ),
    _Remedy(
        signs=("is missing dimensions in profile",),
        cause="a dim of this input is dynamic and has no range",
        step="give it one: --dim NAME=MIN:OPT:MAX",
    ),
    _Remedy(signs=("MIN<=OPT<=MAX",), cause="", step="order each range: --dim NAME=MIN:OPT:MAX, smallest first"),
    _Remedy(
        signs=("not self-consistent", "invalid shape profile"),
        cause="inputs that share a dim were given different sizes for it",
        step="give the dim one range for all of them",
    ),
    _Remedy(
        signs=("does not match network definition",),
        cause="a range was given for an axis that is fixed",
        step="export it again with that axis dynamic, or leave its range away",
    ),
    _Remedy(
        signs=("number of dimensions is", "dimensions but profile"),
        cause="the ranges are for an input of another rank",
        step="read the inputs: metagen-deploy inspect MODEL.onnx",
    ),
    _Remedy(
        signs=("static sequence length",),
        cause="",
        step="give the cache one fixed size: the same min, opt and max for its dim",
    ),
    _Remedy(
        signs=("Segmentation fault",),
        cause="the compiler's own parser died",
        step="export the model for this target with metagen-deploy, which rewrites what parsers are known to die of",
    ),
    _Remedy(
        signs=("memory",),
        cause="",
        step="free memory, lower the largest dims (--dim), or build on a bigger machine",
    ),
)

#: Remarks of a build that succeeded, and how they are worded; "" for those that say nothing.
_REMARKS = (
    ("Myelin error from unknown graph", ""),
    (
        "timing cache will not be used",
        "it did not take its own timing cache back: this build takes as long as a first one",
    ),
    ("generated with INT64 weights", ""),
    ("If this is not the desired behavior", ""),
    ("Check verbose logs", ""),
    ("issues when converting weights between types", ""),
)


def find_remedy(words: str) -> str:
    """ "cause: step" of the first row that knows these words, "" when none does."""
    return next((str(row) for row in _REMEDIES if any(sign in words for sign in row.signs)), "")


def find_limit(words: str) -> str | None:
    """What would have been allowed, where the words say so."""
    found = _LIMIT.search(words)
    return f"below {found[2]}" if found else None


def clean_words(texts: Sequence[str]) -> list[str]:
    """Without numbers, source files and repetitions: TensorRT says most things twice."""
    plain = []
    for text in texts:
        inner = _WRAPPED.match(text.strip())
        plain.append(_SOURCE.sub("", _NUMBERED.sub("", inner[1] if inner else text.strip())))
    return list(dict.fromkeys(plain))


def word_remarks(texts: Sequence[str]) -> list[str]:
    """What is worth a note of a build that succeeded, each once."""
    kept = []
    for text in clean_words(texts):
        wording = next((said for sign, said in _REMARKS if sign in text), text)
        if wording:
            kept.append(wording)
    return list(dict.fromkeys(kept))


def locate(words: str, graph: OnnxFile) -> str:
    """The nodes or the input that the words speak of, "" when they name none."""
    if fused := _FUSED.search(words):
        return _describe_fused(fused[1], fused[2], graph)
    names = {tensor.name for tensor in graph.graph.inputs}
    found = next((name for pattern in _PROFILE_INPUTS for name in pattern.findall(words) if name in names), None)
    return f"input '{found}'" if found else ""


def _describe_fused(first: str, last: str, graph: OnnxFile) -> str:
    nodes = graph.graph.nodes
    start, end = _find_index(first, nodes), _find_index(last, nodes)
    if start is None or end is None:
        return f"the nodes fused between {_strip(first)} and {_strip(last)}"
    low, high = min(start, end), max(start, end)
    inside = nodes[low : high + 1]
    ends = f"{_name(nodes[low])} to {_name(nodes[high])}"
    modules = list(dict.fromkeys(_shorten_module(node.module_path) for node in inside if node.module_path))
    more = f" and {len(modules) - _MAX_MODULES} more" if len(modules) > _MAX_MODULES else ""
    where = f"; modules {', '.join(modules[:_MAX_MODULES])}{more}" if modules else ""
    return f"{len(inside)} nodes fused into one, {ends}{where}"


def _find_index(layer: str, nodes: Sequence[Node]) -> int | None:
    """The node of that name, or the first that reads or gives a tensor of that name."""
    name = _strip(layer)
    for matches in (lambda node: node.name == name, lambda node: name in (*node.inputs, *node.outputs)):
        for index, node in enumerate(nodes):
            if matches(node):
                return index
    return None


def _strip(layer: str) -> str:
    return _UNNAMED.sub("", layer).strip()


def _name(node: Node) -> str:
    return f"{node.name or (node.outputs[0] if node.outputs else '?')} ({node.op_type})"


def _shorten_module(path: str) -> str:
    """`encoder.layers.3.attention.qkv` -> `encoder.layers.3`: up to the first number, which counts the layers."""
    parts = path.split(".")
    numbered = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return path if numbered is None else ".".join(parts[: numbered + 1])
