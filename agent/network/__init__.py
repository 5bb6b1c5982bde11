"""A container's network while it moves: locked on both sides, its addresses announced from the new place."""
