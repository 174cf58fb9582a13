"""What to ask a search service for a class."""

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
            raise UserError(f"source.query={template}: may hold {{name}} and no other field") from None
        self._template, self._overrides = template, dict(overrides or {})

    def for_class(self, name: str) -> str:
        return self._overrides.get(name) or self._template.format(name=name)
