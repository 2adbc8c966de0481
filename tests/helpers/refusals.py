"""What a refusal is held to: its kind, what it names, and what it says to do."""

import contextlib

import pytest

from lare2_rt import UsageError


@contextlib.contextmanager
def refused(remedy, *, about="", kind=UsageError):
    """The block raises an error whose remedy holds ``remedy`` and whose problem names ``about``."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert remedy in caught.value.remedy
    assert about in caught.value.problem
