"""What every room stands on: errors, undo, the shell, configuration. Knows nothing of Docker, MQTT or peers."""
