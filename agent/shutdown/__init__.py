"""What becomes of containers when their host is to be empty or goes down; planned before any is touched.

    planner.py      who goes where, and why; pure. labels.py: what a container wishes. places.py: what a host can take
    survey.py       looks at containers and hosts, touches none
    evacuation.py   the story of one evacuation; row.py: one container of it
    evacuations.py  the host's one evacuation: its file, restarts of the agent, the cordon
    homecoming.py   who goes home by itself when its host takes containers again
    commands.py     what is asked over MQTT

Whoever empties a host by a policy of its own says which containers, until when, and gets what became of each:

    status = await evacuations.evacuate(Order(evacuation_id("shutdown of ..."), containers=ids, deadline=then))
"""
