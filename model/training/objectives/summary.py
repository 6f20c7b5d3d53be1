"""What a task's answers look like before it is trained: one line, and what is doubtful."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from peterrec.model.data.labels import is_number, number_text

SMALL_CLASS = 20
"""Users below which a class or tag is warned of. Of 20 users about two are in the test part, so
whether it was learned can hardly be measured."""

LISTED = 12
"""Answers that a summary lists, the most frequent first."""

BRIEF = 40
"""Characters of a label that a summary shows."""


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """One sentence on the answers of some users, and one for each doubt about them."""

    text: str
    doubts: tuple[str, ...] = ()


def listed(counts: Mapping[str, int], users: int, most: int = LISTED) -> str:
    """The most frequent answers with their users, and the rarest one if not all are listed."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{brief(text)} {n:,} ({n / users:.1%})" for text, n in ranked[:most])
    if len(ranked) <= most:
        return shown
    text, fewest = ranked[-1]
    return f"{shown} and {len(ranked) - most:,} more, down to {brief(text)} with {fewest:,}"


def doubts_of_small(counts: Counter[str], noun: str) -> list[str]:
    """A sentence if some answers have fewer users than ``SMALL_CLASS``."""
    small = {text: n for text, n in counts.items() if n < SMALL_CLASS}
    if not small:
        return []
    names = sorted(small, key=lambda text: (small[text], text))
    shown = ", ".join(f"{brief(text)} ({small[text]})" for text in names[:LISTED])
    more = f" and {len(small) - LISTED:,} more" if len(small) > LISTED else ""
    return [
        f"Fewer than {SMALL_CLASS} users have the {noun} {shown}{more}: too few to learn it well, "
        "and hardly any are in the test part. Merge such, or leave them out."
    ]


def doubts_of_alike(counts: Counter[str], noun: str) -> list[str]:
    """A sentence if some answers look like different ways to write one."""
    groups: dict[str, list[str]] = {}
    for text in sorted(counts):
        groups.setdefault(_plainest(text), []).append(text)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    shown = ", ".join(" and ".join(map(ascii, group)) for group in alike[:LISTED])
    more = f" and {counted(len(alike) - LISTED, 'group')} more" if len(alike) > LISTED else ""
    return [
        f"Different {noun} that look like one are {shown}{more}: they differ in case, accents' "
        "form, blanks, invisible characters or how a number is written, and are learned apart. "
        "Write those alike that mean the same."
    ]


def _plainest(text: str) -> str:
    """What is left of a text without case, Unicode's forms, blanks and invisible characters."""
    if is_number(text):
        return number_text(text)
    folded = unicodedata.normalize("NFKC", text.casefold())
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) != "Cf")


def brief(text: str) -> str:
    """A text in quotes, without its end if it is long."""
    return repr(text) if len(text) <= BRIEF else f"{text[:BRIEF]!r}…"


def counted(number: int, noun: str) -> str:
    """``1 user``, ``2,000 users``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
