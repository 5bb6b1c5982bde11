"""Moves a container and waits for the end: migrate.py HOST CONTAINER TARGET. Needs aiomqtt 2.

The broker is in MQTT_HOST and MQTT_PORT; with TLS and a password also in MQTT_CA, MQTT_USERNAME and MQTT_PASSWORD.
"""

import asyncio
import json
import os
import sys
import uuid

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ROOT = "transship/v1"


def broker() -> aiomqtt.Client:
    ca = os.environ.get("MQTT_CA")
    return aiomqtt.Client(
        os.environ["MQTT_HOST"],
        int(os.environ["MQTT_PORT"]),
        username=os.environ.get("MQTT_USERNAME"),
        password=os.environ.get("MQTT_PASSWORD"),
        tls_params=aiomqtt.TLSParameters(ca_certs=ca) if ca else None,
        protocol=aiomqtt.ProtocolVersion.V5,
    )


async def migrate(host: str, container: str, target: str) -> bool:
    replies = f"{ROOT}/replies/{uuid.uuid4().hex}"
    command = {"version": 1, "kind": "migrate", "id": uuid.uuid4().hex, "container": container, "to": target}
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = replies
    properties.CorrelationData = command["id"].encode()
    properties.MessageExpiryInterval = 15
    async with broker() as client:
        await client.subscribe(replies, qos=1)
        await client.publish(f"{ROOT}/hosts/{host}/command", json.dumps(command), qos=1, properties=properties)
        async for message in client.messages:
            content = json.loads(message.payload)
            if message.topic.matches(f"{ROOT}/migrations/+/+/status"):
                print(f"{content['phase']}: {content['bytes_sent']} bytes")
            elif content["kind"] == "accepted":
                print(f"accepted as {content['migration']}")
                await client.subscribe(f"{ROOT}/migrations/{content['migration']}/{host}/status", qos=1)
            elif content["kind"] == "finished":
                print(f"moved; frozen for {content['report']['blackout_ms']:.0f} ms")
                return True
            else:
                print(f"{content['error']['message']} ({content['error']['consequence']})")
                return False
    return False


sys.exit(0 if asyncio.run(migrate(*sys.argv[1:])) else 1)
