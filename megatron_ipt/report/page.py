"""Head and sections -> one HTML page; everything that comes from a run is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from megatron_ipt.report.figures import draw
from megatron_ipt.report.parts import Head, Section

HERE = Path(__file__).parent


def render(title: str, head: Head, sections: Sequence[Section], missing: Sequence[tuple[str, str]]) -> str:
    """The page.  Its content policy forbids every request and every script but our own."""
    script = (HERE / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("template.html").render(
        title=title,
        head=head,
        sections=sections,
        missing=missing,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),  # ours, not the run's
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        draw=lambda plot: Markup(draw(plot)),
    )
