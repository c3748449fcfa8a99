"""`mobilenet reproduce`: its table of claims and its blocks fit the terminal."""

import pytest

from mobilenet.cli import reproduce
from mobilenet.report import claims, reproduction

MEASURED = reproduction.Answer(
    claims.INCONCLUSIVE,
    "the interval covers zero",
    "between bottlenecks against between expansions: -0.88 points [-3.66, +1.89], 3 seeds; "
    "detectable at 80 % power: 3.65",
    "scale cifar, seeds 0 1 2, commit f43532e27ae3",
)
COMPUTED = reproduction.Answer(
    "confirmed", "17 of 17 values agree; as in the code", "17 of 17 blocks", "computed, commit abc"
)
ANSWERS = {
    claim.name: [COMPUTED if claim.check == "analytic" else reproduction.NOT_RUN]
    for claim in claims.CLAIMS
} | {"fig6b_expansion": [MEASURED, reproduction.NOT_RUN]}


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_a_row_for_each_answer_and_fits(width: int):
    lines = reproduce.overview(ANSWERS, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 1 + len(claims.CLAIMS) + 1 + 2
    row = next(line for line in lines if line.startswith("fig6b_expansion"))
    assert row.split("  ")[1:] and "cifar  inconclusive  -0.88 [-3.66, +1.89]" in row
    assert "-      confirmed     17 of 17 values" in "\n".join(lines)
    assert lines[-1].startswith("14 confirmed, 9 inconclusive") and lines[-2] == ""


def test_a_claim_in_full_fits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = "mobilenet reproduce --scale=cifar --workdir=runs/reproduce expansion_5_to_10"
    for claim in claims.CLAIMS:
        text = reproduce.block(claim, MEASURED, command.split())
        assert max(map(len, text.splitlines())) <= 80
        assert text.splitlines()[-1] == f"  {command}"  # whole, so that it can be pasted
