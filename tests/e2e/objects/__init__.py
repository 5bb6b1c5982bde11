"""A program that holds one of every kernel object, and checks each after a move. Run as `python3 -m objects`.

Standard library only: it is copied into a container. Each object is a generator: what stands before its `yield` makes
the object, what stands after it looks whether it is still the same, as often as the file /check changes.
"""
