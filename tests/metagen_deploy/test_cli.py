"""The command line: its words are frozen, its exit statuses and errors are what a user and a script rely on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import transformers

from metagen_deploy import __version__, cli
from metagen_deploy.terminal.options import ByteSize, NamedDim
from specs.errors import MetagenError

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# verb -> its arguments and options, as a user types them. A change here changes the interface: say so in CHANGELOG.md.
FROZEN = {
    "specs": (),
    "show": ("[SPEC|CHECKPOINT]", "--schema", "--target...", "--extension..."),
    "targets": (),
    "doctor": (),
    "export": (
        "SPEC|CHECKPOINT|MODEL.onnx",
        "-o/--output!",
        "--target...",
        "--precision...=fp32|fp16|bf16|int8|fp8|int4|auto",
        "--dim...",
        "--weights",
        "--calibration",
        "--max-host-ram",
        "--extension...",
    ),
    "build": (
        "BUNDLE|MODEL.onnx",
        "--target",
        "--backend=onnxruntime|tensorrt|tensorrt-rtx",
        "--fixed...",
        "--timing-cache",
    ),
    "check": ("BUNDLE", "--backend...=onnxruntime|tensorrt|tensorrt-rtx"),
    "run": ("BUNDLE", "[FILE]...", "--input...", "--prompt...", "--chat", "--graph", "-o/--output"),
    "bench": ("BUNDLE", "--against=torch|stock-onnx"),
    "inspect": ("BUNDLE|ENGINE|MODEL.onnx",),
}


def spell(parameter: click.Parameter) -> str:
    """`--name`, then `...` when repeatable, `!` when required, `=a|b` for a choice."""
    if isinstance(parameter, click.Argument):
        name = parameter.metavar or (parameter.name or "").upper()
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    text = "/".join(parameter.opts) + ("..." if parameter.multiple else "") + ("!" if parameter.required else "")
    return text + (f"={'|'.join(parameter.type.choices)}" if isinstance(parameter.type, click.Choice) else "")


def test_the_command_line_is_frozen() -> None:
    commands = cli.cli.commands
    assert {verb: tuple(spell(p) for p in command.params) for verb, command in commands.items()} == FROZEN


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--help"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.partition("Commands:\n")[2].splitlines()] == list(FROZEN)
    assert "..." not in listed.partition("Commands:\n")[2], "a verb's description was cut"


@pytest.mark.parametrize("verb", FROZEN)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: metagen-deploy {verb}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"metagen-deploy {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot"], "No such command 'exprot'"),
        (["show"], "Missing argument 'SPEC' (or option '--schema')."),
        (["export", "image_vit_digits"], "Missing option '-o' / '--output'."),
        (["export", "image_vit_digits", "-o", "x", "--precision", "fp12"], "'fp12' is not one of"),
        (["export", "image_vit_digits", "-o", "x", "--max-host-ram", "much"], "'much' is not a size; write 8G"),
        (["export", "image_vit_digits", "-o", "x", "--max-host-ram", "9" * 400], "is not a size; write 8G"),
        (["export", "m.onnx", "-o", "x", "--dim", "batch=4:2:1"], "'batch=4:2:1' is not NAME=MIN:OPT:MAX"),
        (["build", "x", "--fixed", "batch=1,batch=2"], "is not NAME=SIZE,..., each name once"),
        (["build", "x", "--fixed", "batch=0"], "is not NAME=SIZE,..., each name once"),
        (["build", "x", "--backend", "openvino"], "'openvino' is not one of"),
        (["run", "x", "--input", "a=1.npy", "--input", "a=2.npy"], "'a' is given twice"),
        (["run", "x", "--input", "image"], "'image' is not NAME=FILE, e.g. image=digit.png"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("8G", 8 << 30), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("77", 77)]
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert ByteSize().convert(text, None, None) == size_bytes


@pytest.mark.parametrize(("text", "bounds"), [("batch=1:8:32", (1, 8, 32)), ("batch=77", (77, 77, 77))])
def test_dims(text: str, bounds: tuple[int, int, int]) -> None:
    name, dim = NamedDim().convert(text, None, None)
    assert (name, dim.min, dim.opt, dim.max) == ("batch", *bounds)


def raise_in_doctor(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def examine_machine() -> None:
        raise error

    monkeypatch.setattr("metagen_deploy.doctor.examine_machine", examine_machine)


def test_a_users_mistake_is_a_message_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_doctor(monkeypatch, MetagenError("nothing fits", where="spec.yaml:3", got="12", fix="use 16"))
    assert cli.run_command(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "error: nothing fits\n  where:   spec.yaml:3\n  got:     12\n  fix:     use 16\n"
    )


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "error: the disk is full; nothing was left half-written\n  where:   there\n"),
        (errno.EACCES, "error: access was denied; nothing was left half-written\n  where:   there\n"),
        (errno.EROFS, "error: access was denied; nothing was left half-written\n  where:   there\n"),
    ],
)
def test_a_machines_limit_is_a_message_and_1(
    number: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_doctor(monkeypatch, OSError(number, os.strerror(number), "there"))
    assert cli.run_command(["doctor"]) == 1
    assert capsys.readouterr().err.startswith(message)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raise_in_doctor(monkeypatch, KeyboardInterrupt())
    assert cli.run_command(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted, nothing was left half-written"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_doctor(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.run_command(["doctor"])


def test_a_closed_pipe_is_quiet(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m metagen_deploy show --schema | head -c 1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_schema_is_json(metagen: Run) -> None:
    schema = json.loads(metagen("show", "--schema").stdout)
    assert {"name", "modality", "components", "targets"} <= set(schema["properties"])


def test_specs_and_targets_are_listed(metagen: Run) -> None:
    specs = metagen("specs")
    assert specs.returncode == 0, specs.stderr
    for name in ("image_vit_base", "image_vit_digits", "multimodal_clip", "text_llm_tiny"):
        assert name in specs.stdout
    targets = metagen("targets")
    assert targets.returncode == 0, targets.stderr
    for name in ("cpu", "h200", "rtx-4090", "jetson-orin-nano-8gb", "jetson-thor-t5000"):
        assert name in targets.stdout


@pytest.mark.parametrize("source", ["image_vit_digits", "multimodal_clip:tiny"])
def test_show_judges_each_target(source: str, metagen: Run) -> None:
    done = metagen("show", source, "--target", "cpu", "--target", "jetson-orin-nano-8gb")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert "jetson-orin-nano-8gb" in done.stdout


def test_an_unknown_spec_names_the_nearest(metagen: Run) -> None:
    done = metagen("show", "image_vit_digit")
    assert done.returncode == 1
    assert "did you mean 'image_vit_digits'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_what_can_be_done_here(metagen: Run) -> None:
    done = metagen("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("export", "onnxruntime", "tensorrt-rtx", "tensorrt"):
        assert word in done.stdout


def test_an_export_that_would_take_too_much_memory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "image_vit_base", "-o", str(tmp_path / "x.bundle"), "--max-host-ram", "1G"]
    assert cli.run_command(arguments) == 1
    assert capsys.readouterr().err == (
        "error: this export would take more host memory than allowed\n"
        "  where:   image_vit_base\n"
        "  got:     about 1.39 GB, for 0.35 GB of fp32 weights\n"
        "  allowed: 1.07 GB (--max-host-ram)\n"
        "  fix:     raise --max-host-ram, or export on a machine with more memory\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_s_memory_is_estimated_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    arguments = ["export", str(tmp_path / "bert"), "-o", str(tmp_path / "x.bundle"), "--max-host-ram", "1M"]
    assert cli.run_command(arguments) == 1
    assert "would take more host memory than allowed" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["show", "check", "build", "run", "bench", "inspect", "export"])
def test_names_that_are_not_utf_8_are_refused_in_words(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Python spells such bytes as halves of surrogate pairs; the runtimes would look for another file, or raise."""
    name = os.fsdecode(b"d\xefgits.bundle")
    assert cli.run_command([verb, name, *(["-o", "x"] if verb == "export" else [])]) == 1
    assert capsys.readouterr().err == (
        "error: the name of this path is not UTF-8, in which the runtimes look for it\n"
        "  where:   'd\\udcefgits.bundle'\n"
        "  got:     file names are utf-8 here\n"
        "  fix:     rename it, or the folder that it is in\n"
    )


def test_a_locale_that_is_not_utf_8_is_told_how(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "d\u00efgits.bundle").mkdir()
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "metagen_deploy", "check", "d\u00efgits.bundle"],
        env={**environment, **locale}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("file names are ascii here\n  fix:     set PYTHONUTF8=1\n")


def test_commands_that_are_proposed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "my model.onnx"
    model.touch()
    assert cli.run_command(["show", str(model)]) == 1
    assert capsys.readouterr().err.endswith(f"fix:     metagen-deploy inspect '{model}'\n")
