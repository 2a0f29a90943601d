"""Templates: styles as data (one folder a language), and what writes training text in them.

`render` turns chains into training text, `render_instructions` rows of general instructions.
"""

from data_prep.templates.instructions import render_instructions
from data_prep.templates.render import render

__all__ = ["render", "render_instructions"]
