"""The story of a migration: source.py and target.py tell it, machine.py is the referee, journal.py the memory."""
