"""The folder of a sweep: its journal, its copies, where they are stored."""
