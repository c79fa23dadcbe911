"""The tables of docs/media.md: each kind of file counted right, or refused with its reason."""

import re

import pytest

from florence_tagger.counting import count_document
from florence_tagger.errors import DocumentError
from florence_tagger.pipeline import Pipeline
from tests.conftest import ROOT, counted
from tests.pictures import PICTURES
from tests.variants import Variant
from tests.videos import VIDEOS

HEAD = "| format | variant | outcome |\n|---|---|---|\n"
VARIANTS = [*PICTURES, *VIDEOS]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variant(variant: Variant, pipeline: Pipeline) -> None:
    (outcome,) = counted(pipeline, variant.make())
    if isinstance(outcome, DocumentError):
        assert variant.counts is None, outcome
        assert variant.reason in str(outcome)
    else:
        assert count_document(outcome.frames) == variant.counts
        assert outcome.incomplete == variant.incomplete


def test_the_document_has_these_tables() -> None:
    text = (ROOT / "docs" / "media.md").read_text()
    for variants in (PICTURES, VIDEOS):
        assert HEAD + "\n".join(variant.row for variant in variants) + "\n" in text
    number = re.search(r"(\d+) kinds of pictures and (\d+) of videos", text)
    assert number is not None
    assert number.groups() == (str(len(PICTURES)), str(len(VIDEOS)))


def test_there_are_enough_and_none_twice() -> None:
    assert len({str(variant) for variant in VARIANTS}) == len(VARIANTS)
    assert len(PICTURES) >= 60
    assert len(VIDEOS) >= 25
