"""What a file is, by its first bytes: names may be wrong, and the first bytes are not.

The signatures are those of the formats' specifications.
"""

import json
from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 1 << 12
"""Bytes of a file that are looked at; all signatures are within the first 300."""

Packing = Literal["none", "gzip", "zstd"]
Container = Literal["text", "parquet"]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A form that is not read: what it is, and what to do."""

    what: str
    advice: str


UNPACK = "Unpack it, or pack it with gzip or zstd."
EXPORT = "Export its table as CSV or Parquet."
REWRITE = "Write the table as Parquet, for example with pandas: frame.to_parquet(FILE)."
UTF_8 = "Save it as UTF-8, for example: iconv -f {} -t UTF-8 FILE > NEW."

PACKED: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)

SIGNATURES: tuple[tuple[int, bytes, Foreign], ...] = (
    (0, b"\xfd7zXZ\x00", Foreign("an xz archive", UNPACK)),
    (4, b"1AY&SY", Foreign("a bzip2 archive", UNPACK)),
    (0, b"\x04\x22\x4d\x18", Foreign("an lz4 archive", UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("a 7-Zip archive", UNPACK)),
    (0, b"Rar!\x1a\x07", Foreign("a RAR archive", UNPACK)),
    (0, b"\x1f\x9d", Foreign("a compress archive", UNPACK)),
    (0, b"\xff\x06\x00\x00sNaPpY", Foreign("a file packed with snappy", UNPACK)),
    (257, b"ustar", Foreign("a tar archive", "Unpack it and give the folder.")),
    (0, b"PARE", Foreign("an encrypted Parquet file", "Write it without encryption.")),
    (0, b"ARROW1", Foreign("an Arrow (Feather) file", REWRITE)),
    (0, b"FEA1", Foreign("a Feather file", REWRITE)),
    (0, b"\xff\xff\xff\xff", Foreign("an Arrow stream", REWRITE)),
    (0, b"ORC", Foreign("an ORC file", REWRITE)),
    (0, b"Obj\x01", Foreign("an Avro file", REWRITE)),
    (0, b"SQLite format 3\x00", Foreign("an SQLite database", EXPORT)),
    (8, b"DUCK", Foreign("a DuckDB database", EXPORT)),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Foreign("an Excel workbook (.xls)", EXPORT)),
    (0, b"\x89HDF\r\n", Foreign("an HDF5 file", REWRITE)),
    (0, b"\x93NUMPY", Foreign("a numpy array", REWRITE)),
    (0, b"\x80\x02", Foreign("a pickle, which is not safe to read", REWRITE)),
    (0, b"\x80\x03", Foreign("a pickle, which is not safe to read", REWRITE)),
    (0, b"\x80\x04", Foreign("a pickle, which is not safe to read", REWRITE)),
    (0, b"\x80\x05", Foreign("a pickle, which is not safe to read", REWRITE)),
    (0, b"RDX", Foreign("an R data file", EXPORT)),
    (0, b"<stata_dta>", Foreign("a Stata file", EXPORT)),
    (0, b"$FL", Foreign("an SPSS file", EXPORT)),
    (0, b"%PDF", Foreign("a PDF document", EXPORT)),
    (0, b"\x89PNG", Foreign("a picture", "Check the path.")),
    (0, b"\xff\xd8\xff", Foreign("a picture", "Check the path.")),
    (0, b"\xff\xfe\x00\x00", Foreign("a text in UTF-32", UTF_8.format("UTF-32"))),
    (0, b"\x00\x00\xfe\xff", Foreign("a text in UTF-32", UTF_8.format("UTF-32"))),
    (0, b"\xff\xfe", Foreign("a text in UTF-16", UTF_8.format("UTF-16"))),
    (0, b"\xfe\xff", Foreign("a text in UTF-16", UTF_8.format("UTF-16"))),
    (
        0,
        b"version https://git-lfs.github.com/spec",
        Foreign("a pointer of Git LFS, not the file itself", "Fetch the file: git lfs pull."),
    ),
)
"""Places and bytes of the forms that are not read; longer signatures stand first."""

ALSO_WORDS = frozenset({b"ORC", b"PARE", b"FEA1", b"DUCK", b"ustar", b"RDX", b"$FL", b"ARROW1"})
"""Signatures that a header may have, too (``PARENT_ID``); binary files also have zero bytes."""

WORKBOOK_PARTS = (b"xl/", b"[Content_Types].xml")
OPEN_DOCUMENT = b"mimetypeapplication/vnd.oasis.opendocument"
UTF_8_MARK = b"\xef\xbb\xbf"


def packing_of(head: bytes) -> Packing:
    """How a file is packed, if in a way that is unpacked while reading."""
    return next((packing for magic, packing in PACKED if head.startswith(magic)), "none")


def container_of(head: bytes) -> Container | Foreign:
    """What (unpacked) bytes are: a text, a Parquet file, or a form that is not read."""
    is_binary = b"\0" in head
    if head.startswith(b"PAR1") and is_binary:
        return "parquet"
    for start, magic, foreign in SIGNATURES:
        if head.startswith(magic, start) and (is_binary or magic not in ALSO_WORDS):
            return foreign
    return _zipped(head) or _wide_text(head) or _markup(head) or "text"


def _zipped(head: bytes) -> Foreign | None:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    if any(part in head for part in WORKBOOK_PARTS):
        return Foreign("an Excel workbook (.xlsx)", EXPORT)
    if OPEN_DOCUMENT in head:
        return Foreign("an OpenDocument file", EXPORT)
    return Foreign("a zip archive", "Unpack it and give the file or folder in it.")


def _wide_text(head: bytes) -> Foreign | None:
    """UTF-16 and UTF-32 without a mark: most characters have bytes that are 0."""
    if b"\0" not in head:
        return None
    zeros = [head[place::4].count(0) / max(1, len(head[place::4])) for place in range(4)]
    if min(zeros[:3]) > 0.9 or min(zeros[1:]) > 0.9:
        order = "LE" if zeros[3] > zeros[0] else "BE"
        return Foreign("a text in UTF-32 without a mark", UTF_8.format(f"UTF-32{order}"))
    for name, empty, full in (("UTF-16LE", 1, 0), ("UTF-16BE", 0, 1)):
        if min(zeros[empty], zeros[empty + 2]) > 0.6 and max(zeros[full], zeros[full + 2]) < 0.3:
            return Foreign("a text in UTF-16 without a mark", UTF_8.format(name))
    return Foreign("a binary file, not a text", "Check the path and the export.")


def _markup(head: bytes) -> Foreign | None:
    text = head.removeprefix(UTF_8_MARK).lstrip()
    lower = text[:64].lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Foreign(
            "a web page", "The download may have failed; open it to see what the site says."
        )
    if lower.startswith(b"<?xml"):
        return Foreign("an XML document", EXPORT)
    if text.startswith((b"{", b"[")):
        return _json(text)
    return None


def _json(text: bytes) -> Foreign | None:
    line = text.split(b"\n", 1)[0]
    try:
        json.loads(line)
    except ValueError:  # a document over several lines, a document longer than the head, or CSV
        rest = text[1:].lstrip()
        is_long = text.startswith(b"{") and rest.startswith((b'"', b"}"))
        is_long |= text.startswith(b"[") and rest.startswith((b"{", b"["))
        return Foreign("a JSON document", REWRITE) if is_long else None
    what = "JSON lines" if text.startswith(b"{") else "a JSON document"
    return Foreign(what, REWRITE)
