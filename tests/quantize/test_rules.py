"""Rules: the first match counts, unused ones and impossible values are refused, bits are data."""

import dataclasses
from typing import Any

import pytest

from mobilenet.quantize.rules import Rule, RuleError, Rules, kind, parse, resolve, with_bits

WEIGHTS = {
    "bits": 8, "symmetric": True, "per_channel": True, "estimator": "min_max", "ranges": "follow",
}  # fmt: skip
ACTIVATIONS = {"bits": 8, "symmetric": False, "estimator": "min_max", "ranges": "observe"}
SITES = (
    "input", "stem/conv/weights", "stem/output", "blocks_0_0/depthwise/conv/weights",
    "blocks_0_0/depthwise/output", "blocks_1_0/sum", "classifier/weights", "logits",
)  # fmt: skip


def rules(*rows: Any, weights: Any = None, activations: Any = None) -> Rules:
    return parse(WEIGHTS | (weights or {}), ACTIVATIONS | (activations or {}), rows)


def test_without_rows_a_site_has_the_default_of_its_kind():
    found = resolve(rules(weights={"bits": 4}, activations={"symmetric": True}), SITES)
    assert found["stem/conv/weights"] == Rule(4, True, True, "min_max", "follow")
    assert found["logits"] == Rule(8, True, False, "min_max", "observe")
    assert set(found) == set(SITES)
    assert [kind(site) for site in SITES[:3]] == ["activations", "weights", "activations"]


def test_the_first_match_counts():
    found = resolve(
        rules(
            ("blocks_0_0/.*weights", "bits=2"),
            (".*weights", "bits=6, ranges=fixed, estimator=mse"),
            (".*", "bits=0"),
        ),
        SITES,
    )
    assert found["blocks_0_0/depthwise/conv/weights"].bits == 2
    assert found["blocks_0_0/depthwise/conv/weights"].ranges == "follow"  # nothing of the second
    assert dataclasses.astuple(found["stem/conv/weights"]) == (6, True, True, "mse", "fixed")
    assert found["logits"].bits == 0


def test_a_pattern_must_match_the_whole_name():
    found = resolve(rules(("stem/conv/weights", "bits=3"), (".*output", "bits=4")), SITES)
    assert [found[site].bits for site in SITES] == [8, 3, 4, 8, 4, 8, 8, 8]
    with pytest.raises(RuleError, match="'stem' applies to no site"):
        resolve(rules(("stem", "bits=3")), SITES)


def test_what_text_becomes():
    row = ("stem/.*", " bits = 4 ,symmetric=True,per_channel=False, estimator=kl , ranges=lsq ")
    ((pattern, changes),) = rules(row).rows
    assert pattern == "stem/.*"
    assert dict(changes) == {
        "bits": 4, "symmetric": True, "per_channel": False, "estimator": "kl", "ranges": "lsq",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        # ruff: noqa: E501 (one refusal a line)
        ((("head/.*", "bits=4"),), "'head/.*' applies to no site: none matches, .* input, stem"),
        (((".*", "bits=8"), ("stem/.*", "bits=4")), "'stem/.*' applies to no site"),
        (("stem/.*", "bits=8"), "a rule is 'stem/.*'; it must be a pattern .* and the changes"),
        ((("stem/.*", 8),), r"a rule is \('stem/.*', 8\); it must be a pattern"),
        ((("stem/.*", "bits=8", "x"),), "it must be a pattern of site names and the changes"),
        ((("stem/(", "bits=8"),), r"'stem/\(' is not a regular expression"),
        (((".*", "bit=8"),), "says 'bit=8'; it must be one of bits, symmetric, per_channel"),
        (((".*", ""),), "says ''; it must be one of bits"),
        (((".*", "bits=8,"),), "says ''; it must be one of bits"),
        (((".*", "bits="),), "says 'bits='; it must be one of bits"),
        (((".*", "bits=8, bits=4"),), "each attribute may be given once"),
        (((".*", "bits=2.5"),), "says bits=2.5; it must be a whole number"),
        (((".*", "bits=-1"),), "says bits=-1; it must be a whole number"),
        (((".*", "symmetric=yes"),), "says symmetric=yes; it must be True or False"),
        (((".*weights", "bits=9"),), r"'.*weights' at stem/conv/weights: bits is 9; .* 2..8 for weights, or 0"),
        ((("logits", "bits=3"),), "'logits' at logits: bits is 3; it must be in 4..16 for activ"),
        (((".*", "estimator=median"),), "estimator is 'median'; allowed for activations are min_max"),
        (((".*weights", "estimator=kl, ranges=fixed"),), "estimator is 'kl'; allowed for weights are min_max, percentile, mse"),
        (((".*weights", "ranges=pact"),), "ranges is 'pact'; allowed for weights are follow, fixed, lsq"),
        ((("logits", "ranges=follow"),), "ranges is 'follow'; allowed for activations are observe"),
        ((("logits", "per_channel=True"),), "per_channel is for weights"),
        (((".*weights", "symmetric=False, ranges=lsq"),), "a symmetric grid; set symmetric=True, or ranges to 'follow' or 'fixed'"),
        ((("logits", "ranges=lsq"),), "which learns a symmetric grid; set symmetric=True, or ranges to 'lsq_plus'"),
        ((("logits", "ranges=pact"),), "ranges is 'pact', which learns a symmetric grid"),
        ((("logits", "symmetric=True, ranges=lsq_plus"),), "an affine grid; set symmetric=False, or ranges to 'lsq'"),
        (((".*weights", "estimator=mse"),), "estimator is 'mse', but ranges='follow' takes the extremes"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(rows: Any, message: str):
    with pytest.raises(RuleError, match=message):
        resolve(rules(*rows), SITES)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"weights": {"bits": 1}}, "quantize.weights: bits is 1; it must be in 2..8 for weights"),
        ({"weights": {"ranges": "observe"}}, "quantize.weights: ranges is 'observe'; allowed"),
        ({"activations": {"bits": 17}}, "quantize.activations: bits is 17; it must be in 4..16"),
        ({"activations": {"ranges": "lsq"}}, "quantize.activations: ranges is 'lsq'"),
        ({"weights": {"estimator": "percentile"}}, "set ranges to 'fixed' or 'lsq'"),
    ],
)
def test_defaults_are_checked_at_once(defaults: Any, message: str):
    with pytest.raises(RuleError, match=message):
        rules(**defaults)


def test_the_structure_leaves_out_bits_and_estimators():
    one = rules(
        ("stem/.*weights", "bits=4, per_channel=False"),
        (".*weights", "bits=5, ranges=fixed, estimator=mse"),
        ("logits", "estimator=kl"),
        ("input", "bits=16"),
        weights={"bits": 2},
    )
    two = rules(
        ("stem/.*weights", "per_channel=False, bits=8"),
        (".*weights", "ranges=fixed"),
        activations={"bits": 4, "estimator": "percentile"},
    )
    assert one.structure == two.structure != one
    assert hash(one.structure) == hash(two.structure)
    assert one.structure.rows == (
        ("stem/.*weights", (("per_channel", False),)),
        (".*weights", (("ranges", "fixed"),)),
    )
    assert one.structure.structure == one.structure


def test_the_structure_keeps_a_row_that_hides_others():
    """Without its bits the first row changes nothing, but its site must not follow the second."""
    structure = rules(("stem/.*", "bits=4"), (".*weights", "per_channel=False")).structure
    assert structure.find("stem/conv/weights").per_channel
    assert not structure.find("classifier/weights").per_channel
    other = rules((".*weights", "per_channel=False"), ("stem/.*", "bits=4")).structure
    assert other != structure and not other.find("stem/conv/weights").per_channel


def test_texts_are_read_back():
    written = rules(
        ("stem/.*weights", "bits=4, per_channel=False"),
        ("logits", "symmetric=True, ranges=pact, estimator=kl"),
    )
    assert rules(*written.texts) == written
    structure = rules(("stem/.*", "bits=4"), (".*weights", "per_channel=False")).structure
    assert rules(*structure.texts).structure == structure


def test_other_bits_for_some_sites_change_nothing_else():
    before = rules(
        ("stem/.*weights", "bits=6, per_channel=False"),
        (".*depthwise/conv/weights", "bits=4"),
        ("logits", "bits=0"),
        weights={"bits": 8},
    )
    bits = {"stem/conv/weights": 2, "blocks_0_0/depthwise/conv/weights": 2, "classifier/weights": 8}
    texts = with_bits(before, bits, SITES)
    after = rules(*texts, weights={"bits": 8})
    got, had = resolve(after, SITES), resolve(before, SITES)  # refuses rules without a site
    assert {site: got[site] for site in SITES} == {
        site: dataclasses.replace(had[site], bits=bits.get(site, had[site].bits)) for site in SITES
    }
    assert "classifier/weights" not in dict(texts)  # has its 8 bits by default
    assert with_bits(before, {}, SITES) == before.texts
