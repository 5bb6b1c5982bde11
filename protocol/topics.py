"""The topic tree. Everything lives below `transship/v1`.

    transship/v1/hosts/HOST/command             controller -> agent   QoS 1, response topic, correlation data
    transship/v1/hosts/HOST/status              agent -> all          retained; last will: offline
    transship/v1/hosts/HOST/containers/ID       agent -> all          retained; empty when the container is gone
    transship/v1/hosts/HOST/evacuation          agent -> all          retained; the one that goes on, or the last
    transship/v1/hosts/HOST/events              agent -> all
    transship/v1/migrations/ID/HOST/status      source -> all         retained
    transship/v1/migrations/ID/HOST/decision    source -> target      retained
    transship/v1/replies/CLIENT                 agent -> controller   (any response topic will do)

A host's name stands in every topic that it may write to, so a broker's access list can hold it to its own.
"""

ROOT = "transship/v1"


def command(host: str) -> str:
    return f"{ROOT}/hosts/{host}/command"


def host_status(host: str) -> str:
    return f"{ROOT}/hosts/{host}/status"


def container_status(host: str, container_id: str) -> str:
    return f"{ROOT}/hosts/{host}/containers/{container_id}"


def evacuation(host: str) -> str:
    return f"{ROOT}/hosts/{host}/evacuation"


def events(host: str) -> str:
    return f"{ROOT}/hosts/{host}/events"


def migration_status(migration: str, source: str) -> str:
    return f"{ROOT}/migrations/{migration}/{source}/status"


def decision(migration: str, source: str) -> str:
    return f"{ROOT}/migrations/{migration}/{source}/decision"


def replies(client: str) -> str:
    return f"{ROOT}/replies/{client}"


ALL_HOSTS = f"{ROOT}/hosts/+/status"
ALL_CONTAINERS = f"{ROOT}/hosts/+/containers/+"
ALL_EVACUATIONS = f"{ROOT}/hosts/+/evacuation"
ALL_EVENTS = f"{ROOT}/hosts/+/events"
ALL_MIGRATIONS = f"{ROOT}/migrations/+/+/status"
