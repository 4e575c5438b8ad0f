"""``python -m lipray``."""

from lipray.cli.main import main

main()
