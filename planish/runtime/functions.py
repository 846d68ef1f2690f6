"""The entry functions of a loaded artifact, whatever runs them."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from planish.errors import InputError, nearest
from planish.runtime.profile import CallProfile


class _Called(Protocol):
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile: ...


Function = TypeVar("Function", bound=_Called)


class Functions(Generic[Function]):
    """Entry functions by name. Calling them calls `main`, or the only one."""

    functions: Mapping[str, Function]

    @property
    def main(self) -> Function:
        """The function that calling the executable calls."""
        if len(self.functions) == 1:
            return next(iter(self.functions.values()))
        return self.function("main")

    def function(self, name: str) -> Function:
        """An entry function by name; raises InputError on an unknown one."""
        if name not in self.functions:
            raise InputError(f"the artifact has no function '{name}'{nearest(name, self.functions)}")
        return self.functions[name]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the call of the main function."""
        return self.main(*args, **kwargs)

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile:
        """See `profile` of the main function."""
        return self.main.profile(*args, repeat=repeat, **kwargs)
