"""The ways to move a container that are measured, one a file, all of the shape that `base` describes."""
