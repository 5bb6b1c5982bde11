"""The agent: moves running Docker containers between hosts.

    cli | daemon            what a person types; the composition root
      dispatcher            commands and Docker events in, work out
        migration           the story: source.py and target.py
          strategy          how memory gets across
            checkpoint  prework  network      CRIU; files; lock, identity, announce
              doors         one outside thing each: Docker, MQTT, the peer link
                base        undo, shell, errors, configuration, journal record
    runtime                 the OCI runtime that dockerd calls; apart, standard library only

Imports go strictly down (tests/unit/test_house.py). ARCHITECTURE.md has the pictures.
"""

__version__ = "0.1.0"
