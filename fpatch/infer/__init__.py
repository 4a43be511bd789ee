"""Victims, and what is read from them."""


__all__ = [
]
