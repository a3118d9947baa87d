"""The PLY container: a header and tables of numbers, binary of either byte order or ASCII.

Nothing is believed before the size of the file confirms it, so a lying header costs neither time nor memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

_HEADER_LIMIT = 1 << 16
_LINE_LIMIT = 1 << 18
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}


@dataclass(frozen=True)
class Table:
    """One element of a PLY: `types` maps its properties to numpy types in file order; None where it holds lists."""

    name: str
    count: int
    types: dict[str, str] | None

    @property
    def row_bytes(self) -> int:
        return sum(np.dtype(kind).itemsize for kind in self.types.values())


@dataclass(frozen=True)
class Header:
    """What a PLY promises: its tables in file order, `byte_order` '<', '>' or '' for ASCII, the byte of the data.

    `comments` are its comment lines, with single blanks.
    """

    path: Path
    byte_order: str
    tables: tuple[Table, ...]
    offset: int
    comments: tuple[str, ...] = ()

    def table(self, name: str) -> Table | None:
        """The first table of that name."""
        return next((table for table in self.tables if table.name == name), None)


def read_header(path: str | Path) -> Header:
    """Read the header of a PLY. Raises ValueError in one line when it is none or holds nonsense, OSError."""
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(_HEADER_LIMIT)
    end = re.search(rb"^end_header\r?\n", head, re.MULTILINE)
    if not head.startswith((b"ply\n", b"ply\r\n")) or not end:
        raise ValueError(f"{path} is not a PLY file (no 'ply' ... 'end_header' in its first {_HEADER_LIMIT} bytes)")
    lines = [line.split() for line in head[: end.start()].decode("ascii", "replace").splitlines()]
    comments = tuple(" ".join(line[1:]) for line in lines if line[:1] == ["comment"])
    lines = [line for line in lines if line and line[0] not in ("ply", "comment", "obj_info")]
    order = _BYTE_ORDERS.get(lines[0][1]) if lines and len(lines[0]) > 1 and lines[0][0] == "format" else None
    if order is None:
        raise ValueError(f"{path}: its header does not begin with 'format' and {', '.join(_BYTE_ORDERS)}")
    starts = [i for i, line in enumerate(lines) if line[0] == "element"]
    if not starts or starts[0] != 1:
        raise ValueError(f"{path}: its header has no 'element' after the format")
    tables = (_table(path, lines[i:j]) for i, j in zip(starts, [*starts[1:], len(lines)]))
    return Header(path, order, tuple(tables), end.end(), comments)


def read_table(header: Header, table: Table) -> dict[str, np.ndarray]:
    """The columns of one table, by name; in ASCII files all are float64.

    Raises ValueError when the table or one before it holds lists, or when the file is shorter than the header says.
    """
    before = header.tables[: header.tables.index(table)]
    if table.types is None or (header.byte_order and any(other.types is None for other in before)):
        raise ValueError(f"{header.path}: lists in or before its element '{table.name}' are not read")
    have = header.path.stat().st_size - header.offset
    if header.byte_order:
        start = sum(other.count * other.row_bytes for other in before)
        need = start + table.count * table.row_bytes
    else:
        # A number takes a digit and a blank; the last blank may be missing.
        start = sum(other.count for other in before)
        need = 2 * (start + table.count * len(table.types)) - 1
    if have < need:
        promised = f"{table.count} rows of '{table.name}', which need {need} bytes"
        raise ValueError(f"{header.path}: the header promises {promised}; the file holds {max(have, 0)}")
    if header.byte_order:
        types = np.dtype([(name, header.byte_order + kind) for name, kind in table.types.items()])
        rows = np.fromfile(header.path, types, table.count, offset=header.offset + start)
        return {name: rows[name] for name in table.types}
    rows = _read_text(header, table, start)
    return dict(zip(table.types, rows.T))


def _read_text(header: Header, table: Table, skip: int) -> np.ndarray:
    """The numbers [count, properties] of an ASCII table, `skip` lines behind the header."""
    if not table.count:
        return np.zeros((0, len(table.types)))
    with open(header.path, "rb") as file:
        file.seek(header.offset)
        try:
            lines = islice(_lines(file), skip, skip + table.count)
            rows = np.loadtxt(lines, ndmin=2, comments=None, encoding="latin1")
        except ValueError as error:
            raise ValueError(f"{header.path}: its ASCII numbers cannot be read: {str(error)[:100]}") from error
    if rows.shape != (table.count, len(table.types)):
        promised = f"{table.count} rows of {len(table.types)} numbers"
        raise ValueError(f"{header.path}: the header promises {promised}, the file holds {rows.shape[0]} of such")
    return rows


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file. Raises ValueError at one that no row of numbers is as long as: it would fill the memory."""
    while line := file.readline(_LINE_LIMIT):
        if len(line) == _LINE_LIMIT:
            raise ValueError(f"a line has more than {_LINE_LIMIT} characters")
        yield line


def _table(path: Path, lines: list[list[str]]) -> Table:
    """The table that an 'element' line and the lines behind it describe."""
    count = lines[0][2] if len(lines[0]) == 3 else ""
    if not count.isdecimal() or len(count) > 15:
        raise ValueError(f"{path}: cannot read the header line '{' '.join(lines[0])[:60]}'; want 'element NAME COUNT'")
    types, lists = {}, False
    for line in lines[1:]:
        if len(line) == 5 and line[:2] == ["property", "list"]:
            lists = True
        elif len(line) != 3 or line[0] != "property" or line[1] not in _TYPES:
            raise ValueError(f"{path}: cannot read the header line '{' '.join(line)[:60]}'")
        elif line[2] in types:
            raise ValueError(f"{path}: the property '{line[2][:60]}' appears twice in its header")
        else:
            types[line[2]] = _TYPES[line[1]]
    return Table(lines[0][1], int(count), None if lists or not types else types)
