"""The table of words is whole."""

import pytest

from notifier.words import LANGUAGES, PHRASES, names_in, say


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_has_the_same_names_in_every_language(phrase: str) -> None:
    first, *others = names_in(phrase)
    assert all(names == first for names in others)
    values = dict.fromkeys(first, "7")
    assert all(say(phrase, language, **values).strip() for language in LANGUAGES)


def test_a_language_that_is_none_of_ours_is_english() -> None:
    assert say("profit", "fr") == "Profit"
