"""The bodies of Docker's API that an offer carries, as far as they are read here; the rest is dockerd's to judge."""

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    field_validator,
)

Printable = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Of one line: it may come to stand in a file of options."""
SysctlName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./:@-]+$")]


def _an_interface(text: str) -> str:
    ipaddress.ip_interface(text)
    return text


# the pattern keeps a scope out (fe80::1%...): whatever stands behind it, Python takes it
Interface = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"), AfterValidator(_an_interface)]
"""An address, with prefix length or without."""


class _Bindings(BaseModel):
    HostIp: str | None = None
    HostPort: str | None = None


class _Path(BaseModel):
    Path: str | None = None
    PathOnHost: str | None = None


class _HostConfig(BaseModel):
    NetworkMode: str | None = None
    PortBindings: dict[str, list[_Bindings] | None] | None = None
    Devices: list[_Path] | None = None
    BlkioDeviceReadBps: list[_Path] | None = None
    BlkioDeviceWriteBps: list[_Path] | None = None
    BlkioDeviceReadIOps: list[_Path] | None = None
    BlkioDeviceWriteIOps: list[_Path] | None = None
    NanoCpus: int | None = None
    CpusetCpus: str | None = None
    SecurityOpt: list[str] | None = None
    Sysctls: dict[SysctlName, Printable] | None = None
    CgroupParent: Printable | None = None


def _written(text: object) -> object:
    """Docker's API has addresses as text alone; Python's own classes would take numbers, and false for 0.0.0.0."""
    if text is not None and not isinstance(text, str):
        raise ValueError("an address is written as text")
    return text


class _Ipam(BaseModel):
    IPv4Address: Annotated[ipaddress.IPv4Address | Literal[""] | None, BeforeValidator(_written)] = None
    IPv6Address: Annotated[ipaddress.IPv6Address | Literal[""] | None, BeforeValidator(_written)] = None


class _End(BaseModel):
    IPAMConfig: _Ipam | None = None
    MacAddress: str | None = None
    GwPriority: int | None = None
    DriverOpts: dict[str, str] | None = None


class _Networking(BaseModel):
    EndpointsConfig: dict[str, _End] | None = None


class _Create(BaseModel):
    """As far as the body is read here, it has the shape that Docker's API gives it; the rest is dockerd's to judge."""

    HostConfig: _HostConfig | None = None
    NetworkingConfig: _Networking | None = None


class _Subnet(BaseModel):
    Subnet: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None

    @field_validator("Subnet", mode="before")
    @classmethod
    def _of_an_address(cls, text: object) -> object:
        """Docker takes 10.1.0.5/24 as well, for the subnet that it is in."""
        return ipaddress.ip_network(text, strict=False) if isinstance(text, str) else _written(text)


class _Addressing(BaseModel):
    Config: list[_Subnet] | None = None


class _NetworkCreate(BaseModel):
    IPAM: _Addressing | None = None


_CREATE, _NETWORK = TypeAdapter(_Create), TypeAdapter(_NetworkCreate)


def _shaped(body: dict[str, Any]) -> dict[str, Any]:
    _CREATE.validate_python(body)
    return body


def _network_shaped(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    _NETWORK.validate_python(body)
    return body


Create = Annotated[dict[str, Any], AfterValidator(_shaped)]
"""Body of POST /containers/create."""
NetworkCreate = Annotated[dict[str, JsonValue], AfterValidator(_network_shaped)]
"""Body of POST /networks/create."""
