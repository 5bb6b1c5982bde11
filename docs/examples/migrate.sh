#!/bin/sh
# Moves a container and waits for the end: migrate.sh HOST CONTAINER TARGET. Needs mosquitto_pub and mosquitto_sub.
# The broker is in MQTT_HOST and MQTT_PORT; with TLS and a password also in MQTT_CA, MQTT_USERNAME and MQTT_PASSWORD.
set -eu
host=$1 container=$2 target=$3
id=move-$(od -An -N8 -tx1 /dev/urandom | tr -d ' ')
replies=transship/v1/replies/$id

set -- -V 5 -h "$MQTT_HOST" -p "$MQTT_PORT" -q 1
[ -z "${MQTT_CA:-}" ] || set -- "$@" --cafile "$MQTT_CA"
# (What is on a command line others can see; -P can stand in ~/.config/mosquitto_sub and mosquitto_pub instead.)
[ -z "${MQTT_USERNAME:-}" ] || set -- "$@" -u "$MQTT_USERNAME" -P "$MQTT_PASSWORD"

# A session that the broker keeps for ten minutes: answers wait there, also between two calls of mosquitto_sub.
listen() { mosquitto_sub "$@" -i "$id" -c -x 600 -t "$replies"; }
listen "$@" -E

mosquitto_pub "$@" \
    -D publish response-topic "$replies" -D publish correlation-data "$id" -D publish message-expiry-interval 15 \
    -t "transship/v1/hosts/$host/command" \
    -m "{\"version\": 1, \"kind\": \"migrate\", \"id\": \"$id\", \"container\": \"$container\", \"to\": \"$target\"}"

# The first answer says that it was begun, or why not; the next one how it ended.
answer=$(listen "$@" -C 1 -W 30)
case $answer in *'"kind":"accepted"'*)
    echo "$answer"
    answer=$(listen "$@" -C 1 -W 600)
    ;;
esac
echo "$answer"
case $answer in *'"kind":"finished"'*) exit 0 ;; *) exit 1 ;; esac
