"""What becomes of containers when their host is to be empty or goes down; planned before any is touched.

`planner.py` decides, pure; `labels.py` has what a container's labels wish.
"""
