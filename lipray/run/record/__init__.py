"""What a run writes down: its folder, its log, and the records in its files."""
