"""What outlives a process: files written whole or not at all, solved tasks by content, and rounds to go on from."""
