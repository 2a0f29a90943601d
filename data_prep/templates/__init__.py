"""Templates: styles as data (one folder a language), and `render`, which writes training text in them."""

from data_prep.templates.render import render

__all__ = ["render"]
