"""Checkpoints as things of their own. To a container, taking one is a move that goes nowhere and is taken back.

take       the story of a checkpoint: hold, dump, read the files, let go or end, all into one archive
bring      the story of a restore: an archive in the place of a source, towards a target here or on another host
clone      the same container under another name, with addresses, ports and volumes of its own
places     where archives go to and come from: the host's folder, a pipe of a controller on this host
store      what is in the folder: list, remove, pin, retention
vault      those that are under way, for the dispatcher

A host is a target as for any move (migration/targets.py): a restore is proved and taken back in the same way. What is
not decided when the agent is restarted is taken back; the archive is there to try again.
"""
