"""A campaign of seeded accidents on the lab, judged by an observer that is outside of both agents.

plan.py       what happens in a run, from a seed and a number alone
ground.py     the two hosts that a campaign stands on, and how they are mended after each run
accidents.py  what is done to them, and what of it is left to mend
peer_relay.py the wire between the two agents, where bytes can be changed or cut off
workload.py   what runs in the containers, and the client that counts what was acknowledged (standard library)
loads.py      the containers of a campaign
journals.py   how far a migration is, read from the agents' journals: the events that accidents wait for
observer.py   tasks, locks, mounts and folders as the kernel has them
judge.py      the invariants of handover.md, held against what the observer saw
campaign.py   one run after the other; report.py writes down how they came out
"""
