"""What a person types. A controller like any other: all but `agent`, `setup` and `pki` speaks MQTT only."""
