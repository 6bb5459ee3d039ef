"""Looking into a run from outside: one function of the package, wrapped for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def after_call(module: ModuleType, name: str, then: Callable[[Any], None]) -> Iterator[None]:
    """Inside, `then` sees each result of the module's function."""
    function = getattr(module, name)

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        then(result)
        return result

    setattr(module, name, wrapper)
    try:
        yield
    finally:
        setattr(module, name, function)
