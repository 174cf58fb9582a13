"""Objects of the classes that the configuration names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from objrec.config.errors import UserError


def instantiate(target: str, options: Mapping[str, Any], key: str, *positional: Any) -> Any:
    """Create an object of the class ``target``.

    Args:
        key: where the configuration names it, for the message.

    Raises:
        UserError: there is no such class, or it refuses the options.
    """
    try:
        return get_class(target)(*positional, **options)
    except Exception as error:
        cure = ""
        if isinstance(error, TypeError) and (named := re.search(r"unexpected keyword argument '(\w+)'", str(error))):
            cure = f". Leave that out with '~{key}.{named[1]}'"  # another class of the experiment may have had it
        raise UserError(f"{key}: {target} cannot be created: {error}{cure}") from error
