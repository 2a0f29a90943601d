"""Text in, indexed datasets and blends out: raw text -> documents -> pairs -> training text -> .bin/.idx -> blend."""
