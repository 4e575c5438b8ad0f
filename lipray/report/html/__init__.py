"""Reports as self-contained pages: facts in, one HTML file out. jinja2 is imported here only."""
