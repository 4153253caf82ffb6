"""How a mutation answers: a success, or a refusal that its union expects. Anything else is raised as is."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast, get_args

import strawberry

from domain.base import DomainError
from schema.problems import problem_of

P = ParamSpec("P")
R = TypeVar("R")


def answers_refusals(resolver: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """The resolver, answering with the problem where it raises a refusal that its result union has a member for.

    What was read before is forgotten, so that the answer shows the state that the mutation left behind.
    """
    union, _ = get_args(resolver.__annotations__["return"])
    members = get_args(union)

    def problem(refusal: DomainError) -> R:
        shown = problem_of(refusal)
        if not isinstance(shown, members):
            raise refusal
        return cast(R, shown)

    @wraps(resolver)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        info = kwargs["info"]  # the library passes everything by name
        assert isinstance(info, strawberry.Info)
        try:
            if info.context.refusal is not None:
                return problem(info.context.refusal)
            return await resolver(*args, **kwargs)
        except DomainError as refusal:
            return problem(refusal)
        finally:
            info.context.loaders.forget()

    return answer
