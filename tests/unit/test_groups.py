"""Multicast groups as /proc shows them, without those that the kernel joins by itself."""

from agent.network.groups import parse

IGMP = """\
Idx	Device    : Count Querier	Group    Users Timer	Reporter
1	lo        :     1      V3
				010000E0     1 0:00000000		0
10	eth0      :     2      V3
				FB0000E0     1 0:00000000		0
				010000E0     1 0:00000000		0
"""
IGMP6 = """\
1    lo              ff020000000000000000000000000001     1 0000000C 0
10   eth0            ff0200000000000000000001ff4d008c     1 00000004 0
10   eth0            ff020000000000000000000000000001     1 0000000C 0
10   eth0            ff010000000000000000000000000001     1 00000008 0
"""
MDNS6 = "10   eth0            ff0200000000000000000000000000fb     1 00000004 0\n"


def test_those_of_programs_are_named() -> None:
    assert parse(IGMP, IGMP6 + MDNS6) == ("224.0.0.251", "ff02::fb")


def test_those_of_the_kernel_are_not() -> None:
    assert parse(IGMP.replace("FB0000E0", "010000E0"), IGMP6) == ()
