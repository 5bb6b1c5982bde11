"""The contract between controllers, agents and peers; needs pydantic alone.

Who may say what to whom, and when:

- A controller publishes a command (`commands`) to a host and gets replies on its response topic.
- An agent publishes its host, its containers and its migrations as retained messages, and events (`status`).
- A source publishes its one decision on a migration, retained; the target reads it when the peer link is silent.
- Two agents speak over the peer link (`peer`): probe, offer, parts, stage, prepare, go, pages, arrived, forget,
  discard; and `native`, for a checkpoint of Docker's own.

Topics are in `topics`, error codes in `errors`. Whatever can't be understood is answered with an error that says
what is wrong with it, never with silence.
"""

from protocol.base import PROTOCOL_VERSION

__all__ = ["PROTOCOL_VERSION"]
