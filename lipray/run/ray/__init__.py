"""Tasks over Ray: the connection, what flies, and what a worker does."""
