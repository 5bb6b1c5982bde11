"""Two agents, their journals, the link and the broker as a pure model; every state that any fault can lead to.

    rules.py       what decides: the product's own tables and functions; and the ways in which code can slip
    state.py       what there is: a source, a target, what lies between them
    source.py      one step of the source; each names the function that it mirrors
    target.py      one step of the target, likewise
    search.py      breadth first through all of it; the shortest way to a state; which states have a way to a good end
    invariants.py  what must hold in every state, and what a good end is

The rules are run, not copied: `agent.migration.machine` decides here as it does in the product. The order of effects
around them is mirrored by hand; test_mirror.py fails when that order changes in the product.

What is left out. One migration at a time: two that share a container are not modelled. Streams carry no content: that
a part is missing or changed is a `prepare` that fails. `create`, the log, the layers and `stage` are one request. Time
is only that any wait may end at any moment. A journal keeps what it has: no disk is lost. What a decision does to
addresses, files and connections is for the tests on the lab.
"""
