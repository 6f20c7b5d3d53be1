"""Texts of others, such as ids and labels, made safe to show."""


def printable(found: str) -> str:
    """The text with control characters escaped, as they could move a cursor or hide a part."""
    return "".join(c if c.isprintable() else _escaped(c) for c in found)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
