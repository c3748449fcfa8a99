"""Speed and memory of compared networks: from benchmark rows to the fields of a row."""

from collections.abc import Iterable, Mapping
from typing import Any

from mobilenet.report.comparison_views import finished
from mobilenet.report.results import ResultError

Row = Mapping[str, str]
NAME = "comparison"  # of the file that holds the speeds of a sweep

# Of evaluation, uint8 images to logits, as `mobilenet benchmark` measures it: one image, and
# `batch_size` images, to which memory belongs.
FIELDS = (
    *("latency_ms", "latency_ms_low", "latency_ms_high", "batch_size"),
    *("images_per_second", "images_per_second_low", "images_per_second_high"),
    *("peak_mb", "temp_mb", "rounds", "speed_device", "speed_processor", "speed_versions"),
    *("speed_environment", "speed_commit"),
)


def speed(single: Mapping[str, Any], many: Mapping[str, Any]) -> dict[str, str]:
    """The speed fields of a row, from two rows of `mobilenet benchmark`.

    Args:
      single: of evaluation of one image.
      many: of evaluation of a batch, at the same commit and on the same device.
    """
    size = int(many["batch_size"])
    found = {
        "latency_ms": f"{1e3 * float(single['seconds']):.4g}",
        "latency_ms_low": f"{1e3 * float(single['seconds_low']):.4g}",
        "latency_ms_high": f"{1e3 * float(single['seconds_high']):.4g}",
        "images_per_second": f"{size / float(many['seconds']):.4g}",
        "images_per_second_low": f"{size / float(many['seconds_high']):.4g}",
        "images_per_second_high": f"{size / float(many['seconds_low']):.4g}",
    }
    taken = {field: str(many[field]) for field in ("batch_size", "peak_mb", "temp_mb", "rounds")}
    where = ("device", "processor", "versions", "environment", "commit")
    return {**found, **taken, **{f"speed_{field}": str(many[field]) for field in where}}


def unmeasured(rows: Iterable[Row], batch_size: int, device: str, processor: str) -> list[Row]:
    """The finished networks whose speed has not been measured.

    Args:
      rows: of a `Comparison`.
      batch_size: images in a step to measure with.
      device, processor: to measure on.

    Raises:
      ResultError: other networks were measured otherwise, so that speeds could not be compared.
    """
    asked = {"batch_size": str(batch_size), "speed_device": device, "speed_processor": processor}
    for row in finished(rows):
        other = [
            f"{field.removeprefix('speed_')} {row[field]}, not {value}"
            for field, value in asked.items()
            if row["latency_ms"] and row[field] != value
        ]
        if other:
            raise ResultError(
                f"{NAME}.csv has {row['network']} measured with {'; '.join(other)}. Measure "
                f"the others with the same, take {NAME}.csv away to measure all of them "
                "again, or give --measure=false to compare without."
            )
    return [row for row in finished(rows) if not row["latency_ms"]]
