"""The stream: a POSIX (pax) tar that says what a tree is, whatever storage driver keeps it. Knows no file system.

Written and read by hand, not by `tarfile`: that one keeps every member, reads a header of any size
whole, and is too slow for many small files. GNU tar and `tarfile` can list and read what is written here.

    global header        TRANSSHIP.version=1, first of all: a stream without it is not one of ours
    path, linkpath       bytes as on disk, relative, without `.` or `..`; the root itself is `.`
    size uid gid         where the old fields are too small; mtime and atime always, with nanoseconds
    SCHILY.xattr.NAME    raw value; ACLs and capabilities too; `%` and `=` in NAME are %25 and %3D
    GNU.sparse.*         GNU's sparse format 1.0: the map comes first in the data, holes are not sent
    TRANSSHIP.op         remove   nothing is at this path any more: a whiteout, or gone since the last pass
                         patch    a sparse entry whose pieces go into the file that is there; its size
                                  must be TRANSSHIP.base (no base, no patch)
                         socket   the name of a UNIX socket (to others it looks like a fifo)
    TRANSSHIP.opaque=1   a directory that is emptied first: nothing of the image shows through
    TRANSSHIP.unmapped   u, g or ug: this id means nothing inside the container, it is a host's id
    two zero blocks      the end; without them the stream was cut off
"""

from agent.prework.tar.entry import BLOCK, CHUNK, Entry, Kind, Limits
from agent.prework.tar.read import TarReader
from agent.prework.tar.write import TarWriter

__all__ = ["BLOCK", "CHUNK", "Entry", "Kind", "Limits", "TarReader", "TarWriter"]
