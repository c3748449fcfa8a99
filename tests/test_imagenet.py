"""Folders named by WordNet's ids find ImageNet's classes by ids, by order and by words."""

import pytest

from mobilenet import imagenet, transfer

FOLDERS = ("n01440764_tench", "n02012849_crane", "n03126707_crane")


def test_the_lists_are_those_of_the_1000_classes():
    ids, names = imagenet.wordnet_ids(), imagenet.names()
    assert (ids[0], ids[134], ids[-1]) == ("n01440764", "n02012849", "n15075141")
    assert names[0] == "tench, Tinca tinca" and names[517] == "crane (machine)"
    assert [imagenet.leading_id(name) for name in (*FOLDERS, "n0144", "tench")] == [
        "n01440764", "n02012849", "n03126707", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("known", "places"),
    [
        (imagenet.wordnet_ids(), [0, 134, 517]),
        (imagenet.names(), [0, 134, 517]),
        (("background", *imagenet.names()), [1, 135, 518]),
        # As `convert --labels` stores names that stand twice.
        (tuple(f"{name} ({i})" for i, name in enumerate(imagenet.names())), [0, 134, 517]),
        # Keras' names: the first word of each, with underscores.
        (tuple(n.split(",")[0].replace(" ", "_") for n in imagenet.names()), [0, 134, 517]),
    ],
    ids=["ids", "names", "background", "indexed", "keras"],
)
def test_wordnet_folders_find_their_classes(known: tuple[str, ...], places: list[int]):
    assert transfer.match_classes(FOLDERS, known) == places
    assert imagenet.is_usual_order(known)


def test_words_are_matched_where_they_are_certain():
    known = ("daisy", "goldfish, Carassius auratus", "crane", "Tench (7)")
    assert transfer.match_classes(("n01443537_goldfish", "n01440764"), known) == [1, 3]
    # "crane" alone is a bird or a machine.
    assert transfer.match_classes(("n03126707_crane",), known) == "n03126707_crane"
    assert not imagenet.is_usual_order(known)
    # Two of the known classes are one of ImageNet's: neither is certain.
    assert transfer.match_classes(("n01440764",), ("tench", "Tinca tinca")) == "n01440764"


def test_a_thousand_other_classes_are_not_imagenets():
    assert not imagenet.is_usual_order(tuple(map(str, range(1000))))
    assert not imagenet.is_usual_order(tuple(reversed(imagenet.names())))
    # Another order is no obstacle to words.
    assert transfer.match_classes(FOLDERS[:1], tuple(reversed(imagenet.names()))) == [999]
