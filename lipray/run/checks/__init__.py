"""What ``lipray doctor`` looks at; each check gives findings and leaves nothing behind."""
