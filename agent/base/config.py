"""The settings: /etc/transship/agent.toml, and TRANSSHIP_* in the environment over it. All deadlines are here."""

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from protocol.base import HostName

DEFAULT_FILE = Path("/etc/transship/agent.toml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Broker(_Section):
    """The MQTT broker."""

    host: str = "localhost"
    """Its name, as in its certificate, or its address."""
    port: int = 8883
    tls: bool = True
    """Without it everything, passwords too, can be read on the way."""
    ca: Path | None = Path("/etc/transship/pki/ca.crt")
    """The authority that has signed the broker's certificate."""
    username: str | None = None
    """For an agent, with the shipped access list: the host's name in the cluster."""
    password_file: Path | None = None
    """Holds the password; only its owner should be able to read it."""
    password: str | None = Field(default=None, repr=False)
    """Better in its file, or in the environment, from which the agent takes it out."""


class PeerLink(_Section):
    """The HTTPS link between agents."""

    listen: str = "0.0.0.0"  # noqa: S104 - every caller must show a certificate of an allowed peer
    """The address at which peers are listened for."""
    port: int = 7443
    address: str = ""
    """Name or address that peers reach this host at; empty: the host's name."""
    ca: Path = Path("/etc/transship/pki/ca.crt")
    """The authority of the cluster: whoever has no certificate of it is turned away."""
    certificate: Path = Path("/etc/transship/pki/host.crt")
    """This host's, with its name in the cluster; taken up anew when it has changed."""
    key: Path = Path("/etc/transship/pki/host.key")
    """Its private key."""
    allow: Annotated[tuple[HostName, ...], Field()] = ()
    """Common names that may be a source or target for this host; empty allows none."""
    expiry_warning_days: float = Field(default=30.0, ge=0)
    """From so long before a certificate ends on, its host says so in its log, its status and by an event."""


class Limits(_Section):
    """What the host gives to migrations."""

    migrations: int = 4
    """Moves from here at the same time, and as many to here."""
    bandwidth: int = Field(default=0, ge=0)
    """Bytes a second that all moves from here may send together while their containers run; 0: as fast as it goes."""
    memory_reserve_bytes: int = 256 << 20
    """Left free on the target beside the images and the container itself."""
    disk_reserve_bytes: int = 512 << 20
    """Left free there on the disk."""
    clock_skew_s: float = Field(default=5.0, gt=0)
    """By so much a source's clock may differ: programs see the time jump by it."""


class Deadlines(_Section):
    """Seconds. A deadline before the decision takes the move back; there is none after it."""

    connect: float = 5.0
    """For a connection to a peer."""
    offer: float = 30.0
    """For a peer's answer to what it is offered."""
    stage: float = 120.0
    """For the target to create the container and to start it, up to where its runtime waits; for what else has to be
    ready before the freeze."""
    execs: float = 60.0
    """For commands of `docker exec` to end, where a move is to wait for them."""
    freeze: float = 10.0
    """For the container to stand still."""
    dump: float = 300.0
    """From the freeze until all that is frozen has been sent."""
    prepare: float = 120.0
    """For the target to restore it, and to prove that."""
    go: float = 15.0
    """For one attempt at telling the target that it is decided; the next follows."""
    ask_again: float = 1.0
    """Pause between two questions for the decision, or two attempts at telling it."""
    docker: float = 60.0
    """For one request to dockerd."""


class Checkpoints(_Section):
    """Checkpoints that are kept on this host."""

    folder: Path = Path("/var/lib/transship/checkpoints")
    """Where they lie."""
    key_file: Path | None = None
    """Seals what is put into the folder, and opens it again; none: archives are readable to root."""
    insecure_registries: tuple[str, ...] = ()
    """Registries (HOST:PORT) that are spoken to without TLS."""
    keep_count: int = Field(default=0, ge=0)
    """Of each container, the newest; 0: all. What is pinned is never removed by itself."""
    keep_days: float = Field(default=0, ge=0)
    """Older ones are removed; 0: none for its age."""
    keep_bytes: int = Field(default=0, ge=0)
    """Of all containers together."""


class Shutdown(_Section):
    """What becomes of containers whose own label does not say it (docs/shutdown.md)."""

    default: Literal["hibernate", "evacuate", "ignore"] = "ignore"
    """When the host goes down. What `docker stop` does is up to the container's stop signal, too."""
    on_stale: Literal["cold", "down"] = "cold"
    """When a hibernated one can't be woken: start it anew, or not at all."""
    seconds: float = Field(default=300.0, gt=0)
    """For all of them, when systemd stops the agent with the host; logind gives its InhibitDelayMaxSec before."""


class Http(_Section):
    """What may be read without a certificate, and changes nothing. Off until a port is given."""

    listen: str = "127.0.0.1"
    """Whoever reaches this address can read it."""
    port: int = Field(default=0, ge=0, le=65535)
    """0: nothing is served."""
    metrics: bool = True
    """Figures for Prometheus at /metrics."""
    dashboard: bool = False
    """The page at /dashboard/."""
    broker_url: str = ""
    """Where a browser reaches the broker by WebSockets (wss://broker:9001); the dashboard suggests it."""


class Settings(BaseSettings):
    """Everything that can be configured; a field's name is its key in agent.toml."""

    model_config = SettingsConfigDict(
        env_prefix="TRANSSHIP_", env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )
    file: ClassVar[Path] = DEFAULT_FILE

    host: HostName = os.uname().nodename.split(".")[0].lower()
    """This host's name in the cluster: that in its certificate, and its user name at the broker."""
    docker: str = "unix:///run/docker.sock"
    """Where dockerd listens."""
    broker: Broker = Broker()
    peer: PeerLink = PeerLink()
    limits: Limits = Limits()
    deadlines: Deadlines = Deadlines()
    checkpoints: Checkpoints = Checkpoints()
    shutdown: Shutdown = Shutdown()
    http: Http = Http()
    state_dir: Path = Path("/var/lib/transship")
    """The journal, and what else has to outlive the agent."""
    runtime: str = "transship"
    """The name under which dockerd knows the runtime."""
    network_policy: Literal["create", "require"] = "create"
    """For a network of the container that is not here: made like that of the peer, or no move."""
    port_policy: Literal["refuse", "remap"] = "refuse"
    """For a published port that is taken here: no move, or another port of Docker's choice."""
    bind_copy: tuple[Path, ...] = ()
    """Folders below which the content of a bind mount may be written for a peer; others must be there."""
    log_json: bool | None = None
    """One JSON object a line; not said: where standard error is no terminal."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls.file))


def load(path: Path = DEFAULT_FILE) -> Settings:
    """Read the settings.

    Raises:
        pydantic.ValidationError: a key is unknown or a value is out of shape; names it.

    """
    located = type("Settings", (Settings,), {"file": path, "__module__": __name__})
    settings: Settings = located()
    return settings
