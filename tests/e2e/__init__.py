"""End-to-end tests. Several workers of pytest-xdist have labs of their own, side by side."""

import os

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Before anything of the lab is imported: it reads the prefix once.
    os.environ["TRANSSHIP_LAB_PREFIX"] = os.environ.get("TRANSSHIP_LAB_PREFIX", "tsl") + worker.removeprefix("gw")
