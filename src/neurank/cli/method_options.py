"""The options of ``neurank rank`` that belong to a method: one for each field of its dataclass."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from neurank.cli.words import stop
from neurank.errors import MethodError
from neurank.rankers.method import Method
from neurank.rankers.registry import METHODS, method_class

AS_OFTEN_AS_IT_TAKES = 2**16
_IN_WORDS = {
    "stop": "When to stop before: stderr:0.001, top:5 (certain at 95 %) or seconds:60 (per layer)"
}
"""Help for options that are read in another form than the field has."""
_REPEATED = ("passes", "pairs")
"""Fields that say how often a sampled method repeats itself."""

Command = TypeVar("Command", bound=Callable[..., None])


def with_method_options(command: Command) -> Command:
    """Give a command that takes ``**options`` one option for each field of each method."""
    signature = inspect.signature(command)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*own, *_parameters()])  # type: ignore[attr-defined]
    return command


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """Make the method called `name` with those of `options` that are not None.

    Raises
    ------
    MethodError
        There is no such method, it has no such option, or the option's value is out of range.

    Examples
    --------
    >>> make_method("permutation", {"passes": 4, "p": None})
    PermutationShapley(passes=4, antithetic=False, strata=1, leaps=True, stop=None)

    With a rule to stop by and no number of repetitions there are as many as it takes:

    >>> make_method("permutation", {"stop": "stderr:0.01"}).passes
    65536
    """
    made = method_class(name)
    own = {field.name for field in fields(made)}
    given = {key: option for key, option in options.items() if option is not None}
    for key in given:
        if key not in own:
            raise MethodError(
                f"--{_dashed(key)} is not an option of --method {name}, but of "
                f"{', '.join(_methods_with(key))}; leave it out"
            )
    if "stop" in given:
        given["stop"] = stop(given["stop"])
        most = next(name for name in _REPEATED if name in own)
        given.setdefault(most, AS_OFTEN_AS_IT_TAKES * given.get("strata", 1))
    return made(**given)


def _parameters() -> list[inspect.Parameter]:
    found: dict[str, Field[Any]] = {}
    for made in METHODS.values():
        for field in fields(made):
            found.setdefault(field.name, field)
    return [_parameter(name, field) for name, field in found.items()]


def _parameter(name: str, field: Field[Any]) -> inspect.Parameter:
    owners = _methods_with(name)
    kind = get_type_hints(METHODS[owners[0]])[name]
    kind = kind if kind in {int, float, bool} else str  # a choice of words is a word
    default = "" if field.default is MISSING else f" [default: {field.default}]"
    option = typer.Option(
        f"--{_dashed(name)}" + (f"/--no-{_dashed(name)}" if kind is bool else ""),
        help=f"[{', '.join(owners)}] {_help(METHODS[owners[0]], name)}{default}".replace(
            "[", r"\["
        ),
        rich_help_panel="Options of the methods",
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _methods_with(option: str) -> list[str]:
    return [
        name for name, made in METHODS.items() if option in {field.name for field in fields(made)}
    ]


def _help(made: type[Method], option: str) -> str:
    return _IN_WORDS.get(option) or _described(made, option)


def _described(made: type[Method], option: str) -> str:
    """Return what the class's docstring says of a parameter, up to the first full stop."""
    text = inspect.getdoc(made) or ""
    found = re.search(rf"^{option} : (.+?)(?:[.;]|\n\S|\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _dashed(name: str) -> str:
    return name.replace("_", "-")
