r"""Writes a run as a file for LiteRT (.tflite), ONNX Runtime (.onnx) or StableHLO.

    mobilenet export --workdir=runs/c10 --to=litert --verify
    mobilenet export --workdir=runs/c10_w8a8 --to=onnx --out=c10.onnx --verify --split=test
    mobilenet export --workdir=runs/c10 --to=onnx --verify \
        --config.data.data_dir=DIR                        # where its images are now

A quantised run becomes an integer file, with the codes and scales that were trained. Labels and
preprocessing are inside the file and in FILE.json next to it. --verify runs the file on images of a
split and prints accuracy, agreement with the run, differences of logits and probabilities, bytes
and latency; FILE.rows.json keeps them. An integer .tflite is also compared with the integer
executor, operation by operation. There is a warning if a float file differs by more than the order
of its sums explains (0.1 % of the largest logit), or if the probabilities of an integer file differ
by more than 5 % on average over images or 25 % in one.
"""

import os
from pathlib import Path
from typing import Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import rundir, terminal
from mobilenet.cli import common, following

FORMATS = ("litert", "onnx", "stablehlo")


REQUIRED = ("workdir", "to")
OVERRIDES = common.CARRIED_OUT
PLACEHOLDERS = {"to": "|".join(FORMATS)}


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    common.define_checkpoint(values)
    flags.DEFINE_string("to", "", "the format", flag_values=values)
    flags.DEFINE_string(
        "out",
        "",
        "the file, or a directory for model.tflite, .onnx or .stablehlo; without it, the run "
        "directory",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "integer_io",
        False,
        "int8 inputs and outputs, for .tflite of a quantised run",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "verify", False, "run the file and compare it with the run", flag_values=values
    )
    flags.DEFINE_string(
        "split", "test", "split whose images --verify classifies", flag_values=values
    )
    flags.DEFINE_integer(
        "examples", 1000, "at most this many images for --verify; 0 is all", flag_values=values
    )


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb; 1 if a verified integer file is not the network that was studied."""
    common.refuse_arguments(rest)
    workdir = Path(common.require(values, "workdir", "runs/digits"))
    to = common.require(values, "to", "litert")
    if to not in FORMATS:
        raise common.UsageError(f"--to is {to!r}; allowed are {', '.join(FORMATS)}.")
    common.require_at_least(values, examples=0)
    config = common.run_config(workdir, overrides, verb="export")
    _refuse_without_effect(values, to, config)

    from mobilenet import deployment, runtime
    from mobilenet.export.operations import ExportError

    path = _target(common.flag(values, "out"), workdir, deployment.ENDINGS[to])
    runtime.prepare_compiler()
    try:
        run = deployment.Deployment(workdir, common.flag(values, "checkpoint"), config)
        run.write(to, path, integer_io=common.flag(values, "integer_io"))
        print(f"{path}: {path.stat().st_size:,} bytes, metadata in {path.name}.json")
        if not common.flag(values, "verify"):
            again = {"checkpoint": values["checkpoint"], "out": values["out"]}
            given = {name: found.value for name, found in again.items() if found.present}
            io = {"integer_io": True} if common.flag(values, "integer_io") else {}
            command = following.command(
                "export", workdir=workdir, to=to, **given, **io, verify=True
            )
            print(following.lines(command))
            return 0
        split, examples = common.flag(values, "split"), common.flag(values, "examples")
        rows = run.check(to, path, split, examples)
    except ExportError as error:
        raise common.UsageError(str(error)) from error
    rundir.write_json(path.with_name(f"{path.name}.rows.json"), rows)
    print(table(rows))
    return int(not faithful(rows))


def _refuse_without_effect(values: flags.FlagValues, to: str, config: config_lib.Config) -> None:
    """Refuses flags that would do nothing for this run, format, or without --verify."""
    quantized = config_lib.is_quantized(config)
    if common.flag(values, "integer_io") and not (quantized and to == "litert"):
        given = f"--to={to}" if quantized else "a float run"
        raise common.UsageError(
            f"--integer_io needs a quantised run and --to=litert; {given} was given. `mobilenet "
            "quantize` makes a quantised run."
        )
    for name in ("split", "examples"):
        if values[name].present and not common.flag(values, "verify"):
            raise common.UsageError(f"--{name} goes with --verify; add it, or drop --{name}.")


def _target(out: str, workdir: Path, ending: str) -> Path:
    """The file to write: what --out names, or model.* in the directory that it names."""
    path = Path(out or workdir)
    if os.path.isdir(path) or out.endswith("/"):
        return path / f"model{ending}"
    if path.suffix not in ("", ending):
        raise common.UsageError(
            f"--out={out} ends in {path.suffix}, and the file is {ending[1:]}; end it in {ending}."
        )
    return path


def faithful(rows: list[dict[str, Any]]) -> bool:
    """Whether no operation computes in float or is more than a code from the executor."""
    return all(
        not row.get("float_operations")
        and all(part["largest"] <= 1 for part in row.get("executor", {}).values())
        for row in rows
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = [
        f"{'runtime':<18} {'bytes':>11}  {'top-1 %':>7}  {'JAX %':>6}  {'agreement %':>11}  "
        f"{'latency ms':>10}"
    ]
    for row in rows:
        lines.append(
            f"{row['runtime']:<18} {row['bytes']:>11,}  {100 * row['top1']:>7.2f}  "
            f"{100 * row['top1_jax']:>6.2f}  {100 * row['agreement']:>11.2f}  "
            f"{row['latency_ms_median']:>10.3f}"
        )
    for row in rows:
        lines += _differences(row)
    first = rows[0]
    lines.append(
        f"{terminal.counted(first['examples'], 'image')} of {first['split']}; latency: "
        f"{first['latency_note']}: {first['processor']}"
    )
    if "operations" in first:
        lines.append(", ".join(f"{n} {kind}" for kind, n in first["operations"].items()))
    for kind, part in first.get("executor", {}).items():
        lines.append(
            f"{kind}: {100 * part['equal']:.3f} % of {part['values']:,} codes are the integer "
            f"executor's, the largest difference is {part['largest']}"
        )
    if first.get("float_operations"):
        lines.append(f"computed in float: {', '.join(first['float_operations'])}")
    return "\n".join(lines)


def _differences(row: dict[str, Any]) -> list[str]:
    """What a row's file answers otherwise than the run, why, and a warning."""
    logits, chances = row["logits"], row["probabilities"]
    unit = f" (in codes of {row['logit_step']:.3g})" if row.get("logit_step") else ""
    scale = row.get("logit_step") or 1.0
    lines = [
        f"{row['runtime']}, the class of an image that differs most: logits{unit} by "
        f"{logits['mean'] / scale:.2g} on average, {logits['p99'] / scale:.2g} at 99 %, "
        f"{logits['largest'] / scale:.2g} at most; probabilities by {100 * chances['mean']:.2g} %, "
        f"{100 * chances['p99']:.2g} %, {100 * chances['largest']:.2g} %; cause: {row['cause']}"
    ]
    if row["warning"]:
        lines.append(f"WARNING: {row['runtime']}: {row['warning']}.")
    return lines
