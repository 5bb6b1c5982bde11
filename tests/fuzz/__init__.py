"""Whatever reads what others have written, fed with bytes that nobody would write: `scripts/fuzz`.

A reader may take them or refuse them; any other exception is a finding, and so is anything outside of its folder.
"""
