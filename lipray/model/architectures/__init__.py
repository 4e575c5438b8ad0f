"""Built-in architectures, listed without importing torch; their modules are built on demand."""

from lipray.model.architectures.registry import ARCHITECTURES, Architecture

__all__ = ["ARCHITECTURES", "Architecture"]
