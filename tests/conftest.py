"""What a worker of pytest-xdist has to know before anything is imported."""

import os

import hypothesis

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Labs of its own, beside those of the other workers; the lab reads the prefix once.
    os.environ["TRANSSHIP_LAB_PREFIX"] = os.environ.get("TRANSSHIP_LAB_PREFIX", "tsl") + worker.removeprefix("gw")
    # It is given the size of a terminal that it does not have.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)

# No test is timed: a machine that has other things to do is no fault of what is tested.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
