"""CRIU through runc: freezing, dumping, what to call and what came of it. Runs in the source and in the target."""
