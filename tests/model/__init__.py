"""Two agents, their journals, the link and the broker as a pure model; every state that any fault can lead to.

    rules.py        what decides: the product's own tables and functions; the ways in which code can slip
    state.py        what there is: a source, a target, what lies between them
    source.py       one step of the source; each names the function that it mirrors
    taking_back.py  one step of the source on its way back
    target.py       one step of the target
    search.py       breadth first through all of it; the shortest way to a state; which states have no way to a good end
    invariants.py   what must hold in every state, what a good end is, and what may be left to a person

The rules are run, not copied: `agent.migration.machine` decides here as it does in the product. The order of effects
around them is mirrored by hand, as it should be; where the product has it otherwise is in `rules.OPEN`, and each of
those is a search of its own that must find what it breaks. test_mirror.py fails when the order changes in the product.

Messages are lost, late, out of order, and come any number of times: what is in flight is a set, and a member of it may
arrive and stay. Agents crash and hosts reboot between any two steps, as often as they like. A wait may end at any
moment. So may a cancel come, a step fail, a container die, and a person say either word at either side.

What is left out. One migration at a time: two that share a container are not modelled. Streams carry no content: that
a part is missing or changed is a `prepare` that fails. `create`, the log, the layers, the passes and `stage` are one
request. A source that is stopped in good order is one that is cancelled and then crashes. No disk is lost, and a
journal write that fails has not happened, but for the decision's. Docker, CRIU and the kernel do what they say or fail.
What becomes of addresses, files and connections is for the tests on the lab.
"""
