"""What to ask a search service for a class, and where."""

from __future__ import annotations

from collections.abc import Mapping

from objrec.config.errors import UserError


class Queries:
    """The query of each class: a template with ``{name}``, and other words for some classes.

    Raises:
        UserError: the template has other fields than ``{name}``.
    """

    def __init__(self, template: str, overrides: Mapping[str, str] | None) -> None:
        try:
            template.format(name="cat")
        except (KeyError, IndexError, ValueError):
            raise UserError(f"source.query={template}: {{name}} is the only field allowed") from None
        self._template, self._overrides = template, dict(overrides or {})

    def for_class(self, name: str) -> str:
        return self._overrides.get(name) or self._template.format(name=name)


def base_of(endpoint: str, path: str) -> str:
    """Return the base URL of a service: ``endpoint`` without a query, a final slash, and any beginning of ``path``.

    So the full address of its API, as its documentation shows it, is as good as its host.

    Args:
        path: of the calls below the base, such as ``/v1/images/``.

    Raises:
        UserError: it is no http or https address.
    """
    base = endpoint.strip().partition("?")[0].partition("#")[0].rstrip("/")
    if not base.lower().startswith(("http://", "https://")):
        raise UserError(f"source.endpoint={endpoint}: should be an http or https URL, as in https://example.org")
    parts = path.strip("/").split("/")
    for count in range(len(parts), 0, -1):
        tail = "/" + "/".join(parts[:count])
        if base.lower().endswith(tail):
            return base[: -len(tail)].rstrip("/")
    return base
