"""Fill the page templates (templates/) with Jinja2. Everything from records is escaped; needs no torch."""

import base64
from functools import cache
from pathlib import Path

from mdistiller.errors import counted
from mdistiller.libraries import import_extra
from mdistiller.report.layout import plain

TEMPLATES = Path(__file__).parent / "templates"


def render(name: str, **values) -> str:
    """A template as text that can be encoded as UTF-8. Raises UserError if Jinja2 is missing."""
    page = _environment().get_template(name).render(**values)
    return page.encode("utf-8", "replace").decode()  # a JSON file may hold half a surrogate pair


@cache
def _environment():
    jinja2 = import_extra("jinja2", "an HTML page", "report")
    safe = import_extra("markupsafe", "an HTML page", "report").Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals["asset"] = lambda name: safe((TEMPLATES / name).read_text(encoding="utf-8"))
    environment.globals["counted"] = counted
    environment.globals["plotly"] = lambda: safe(plotly_js())
    environment.filters["plain"] = plain
    environment.filters["data_uri"] = lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return environment


@cache
def plotly_js() -> str:
    """The chart library, to be embedded in a page. Raises UserError if Plotly is missing."""
    return import_extra("plotly.offline", "the report page", "report").get_plotlyjs()
