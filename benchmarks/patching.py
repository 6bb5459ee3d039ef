"""Looking into a run from outside: one function of the package, wrapped for a while."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def after_call(module: ModuleType, name: str, then: Callable[[Any, float], None]) -> Iterator[None]:
    """Inside, `then` sees each result of the module's function, and when (`time.time`) the call began."""
    function = getattr(module, name)

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        began = time.time()
        result = function(*arguments, **keywords)
        then(result, began)
        return result

    setattr(module, name, wrapper)
    try:
        yield
    finally:
        setattr(module, name, function)
