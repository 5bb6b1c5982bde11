"""Whose a file is on the other host.

With `userns-remap` the ids on disk are those of a subordinate range, another one on each host. The
stream has the ids that the container sees; each end translates. Ids also hide in ACLs and, as the owner
of a user namespace, in file capabilities.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

ACL_NAMES = ("system.posix_acl_access", "system.posix_acl_default")
CAPABILITY = "security.capability"
_ACL_HEAD = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_CAP_REVISION = 0xFF000000
_CAP_V2, _CAP_V3 = 0x02000000, 0x03000000
_CAP_V2_BYTES, _CAP_V3_BYTES = 20, 24


@dataclass(frozen=True, slots=True)
class IdRange:
    """As a line of /proc/PID/uid_map has it."""

    container: int
    host: int
    length: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """The ids of one container on one host; without ranges both sides are the same."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    def uid_to_container(self, uid: int) -> int | None:
        return _shift(self.uids, uid, lambda r: (r.host, r.container))

    def gid_to_container(self, gid: int) -> int | None:
        return _shift(self.gids, gid, lambda r: (r.host, r.container))

    def uid_to_host(self, uid: int) -> int | None:
        return _shift(self.uids, uid, lambda r: (r.container, r.host))

    def gid_to_host(self, gid: int) -> int | None:
        return _shift(self.gids, gid, lambda r: (r.container, r.host))


def subordinate(uid_start: int, gid_start: int, length: int = 65536) -> IdMap:
    """The map that dockerd makes of one line of /etc/subuid and /etc/subgid."""
    return IdMap((IdRange(0, uid_start, length),), (IdRange(0, gid_start, length),))


def _shift(ranges: tuple[IdRange, ...], number: int, ends: Callable[[IdRange], tuple[int, int]]) -> int | None:
    if not ranges:
        return number
    for each in ranges:
        start, other = ends(each)
        if start <= number < start + each.length:
            return other + number - start
    return None


def xattr_to_container(name: str, value: bytes, ids: IdMap) -> bytes:
    """The value as the container would read it; ids without a counterpart stay as they are."""
    if name in ACL_NAMES:
        return _acl(value, ids.uid_to_container, ids.gid_to_container)
    if name == CAPABILITY and len(value) == _CAP_V3_BYTES:
        owner = int.from_bytes(value[20:], "little")
        inside = ids.uid_to_container(owner)
        if inside == 0:
            return _capability(value, _CAP_V2)
        return value if inside is None else value[:20] + struct.pack("<I", inside)
    return value


def xattr_to_host(name: str, value: bytes, ids: IdMap) -> bytes:
    if name in ACL_NAMES:
        return _acl(value, ids.uid_to_host, ids.gid_to_host)
    if name == CAPABILITY and ids.uids:
        if len(value) == _CAP_V2_BYTES:
            owner: int | None = 0
        elif len(value) == _CAP_V3_BYTES:
            owner = int.from_bytes(value[20:], "little")
        else:
            return value
        outside = ids.uid_to_host(owner or 0)
        return value if outside is None else _capability(value, _CAP_V3) + struct.pack("<I", outside)
    return value


def _capability(value: bytes, revision: int) -> bytes:
    """The 20 bytes that versions 2 and 3 share, under another version number."""
    magic = int.from_bytes(value[:4], "little")
    return struct.pack("<I", (magic & ~_CAP_REVISION) | revision) + value[4:20]


def _acl(value: bytes, uid: Callable[[int], int | None], gid: Callable[[int], int | None]) -> bytes:
    if len(value) < _ACL_HEAD.size or (len(value) - _ACL_HEAD.size) % _ACL_ENTRY.size:
        return value
    parts = [value[: _ACL_HEAD.size]]
    for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :]):
        shifted = uid(number) if tag == _ACL_USER else gid(number) if tag == _ACL_GROUP else number
        parts.append(_ACL_ENTRY.pack(tag, permissions, number if shifted is None else shifted))
    return b"".join(parts)
