"""The character between the fields of a text table: how people write it, and what names say."""

from peterrec.model.errors import DelimiterInvalid

NAMED = {
    r"\t": "\t",
    "tab": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
}
"""Texts that stand for a delimiter. A shell makes it hard to write a tab as itself."""

USUAL = (",", "\t", ";", "|")
"""Delimiters that are tried when a header does not have the columns that are asked for."""

BY_SUFFIX = {".tsv": "\t", ".tab": "\t", ".psv": "|"}
"""Delimiters that a file's suffix says; all other text files have commas."""

REFUSED = '"\n\r\0'
"""Characters that mean something else in a text table."""


def parse_delimiter(text: str) -> str:
    """The one character that ``text`` stands for; DelimiterInvalid for everything else."""
    named = NAMED.get(text.lower())
    if named is not None:
        return named
    if len(text) != 1 or text in REFUSED or text.isalnum():
        raise DelimiterInvalid(
            f"the delimiter {text!r} is not one character that can stand between fields.",
            hint=f"Write the character itself, or one of {', '.join(NAMED)}.{_advice(text)}",
        )
    return text


def describe_delimiter(delimiter: str) -> str:
    """A delimiter as people write it: ``tab`` for a tab, other characters in quotes."""
    return {"\t": "tab", " ": "space"}.get(delimiter, repr(delimiter))


def _advice(text: str) -> str:
    if text == "t":
        return r" A shell turns \t without quotes into t."
    if text == "::":
        return " Replace :: in the file by a tab first; MovieLens is read by `peterrec convert`."
    return ""
