"""The trader's switch: how an operator stops it, and lets it go on.

Two places hold the newest command, a Redis key and a file; either is obeyed. The file works without
Redis: `echo HALT > DATA/journal/control`. The trader journals each command once, so that it
outlives both places; of the key's commands the newest is in force, and RESUME ends it.

Who writes the key puts a time behind the word (`HALT 1700000000000 itb`): the key may come back
with an older content (a stale replica, a backup), and that was obeyed before. A bare word that
another command has followed since could be either. It is obeyed where it makes things safer; a bare
RESUME is not, and the trader says so.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

CONTROL_KEY = "control:trader"
CONTROL_FILE = "control"
_LONGEST = 200


class Word(StrEnum):
    """HALT: nothing is sent. REDUCE_ONLY: only exits and protection. FLATTEN: everything is sold at
    market, then nothing is bought. RESUME: trade."""

    HALT = "HALT"
    REDUCE_ONLY = "REDUCE_ONLY"
    FLATTEN = "FLATTEN"
    RESUME = "RESUME"


@dataclass(frozen=True, slots=True)
class Command:
    """text: the whole of it."""

    word: Word
    text: str

    @property
    def is_bare(self) -> bool:
        """Whether it has no number (a time) that tells it from another one of the same word."""
        return not any(map(str.isdigit, self.text))


def command_of(text: str | bytes | None) -> Command | None:
    """The command that a place holds, None where there is none. What cannot be read is HALT."""
    if text is None:
        return None
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return Command(Word.HALT, "HALT (a command that is no text)")
    words = text[:_LONGEST].split()
    if not words:
        return Command(Word.HALT, "HALT (an empty command)")
    try:
        return Command(Word(words[0].upper().replace("-", "_")), " ".join(words))
    except ValueError:
        return Command(Word.HALT, f"HALT (unknown command {words[0][:40]!r})")


def read_file(folder: Path) -> Command | None:
    """The command of the file, None where there is no file. What cannot be read is HALT."""
    path = folder / CONTROL_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST)
            written_ms = int(path.stat().st_mtime_ns // 1_000_000)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Command(Word.HALT, f"HALT ({path} cannot be read: {error.strerror})")
    found = command_of(text)
    # The same word written again is another command.
    return None if found is None else Command(found.word, f"{found.text} (file, {written_ms})")


def reason_of(text: str) -> str:
    """The reason of the journal's line about a command that the key held."""
    return f"operator: {text}"


def text_of(word: Word, at_ms: int, who: str) -> str:
    """A command as it is written into the key."""
    return f"{word} {at_ms} {who}"
