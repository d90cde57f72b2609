"""npd6's expressions (`exprlist`) as the masks that they amount to.

npd6 computes each expression with the two halves of the target, PREFIX and HOST, as 64-bit numbers, and
the target is on the list where any result is not 0.  Here the same is computed for all addresses at once:
a number is 64 bits, each of them constant or one of the target's 128, and what a comparison comes to is a set
of addresses, as patterns value/mask that have no address in common.  What leaves that (the sum of two
variables) is no mask and is refused.  As in npd6, all operators but + and - bind alike, from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

_WORD: Final = 64
_ALL_ONES: Final = (1 << _WORD) - 1
_MAX_PATTERNS: Final = 256  # more rules than anybody wants to read
_MAX_DEPTH: Final = 40
_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9A-Fa-f]+|[0-9]+)|(?P<name>[A-Za-z$.][A-Za-z0-9$.]*)"
    r"|(?P<operator>&&|\|\||[!=<>]=|>>|<<|[-*/+()%^~,&|!=<>;]))"
)


class NoMaskError(Exception):
    """The expression does not amount to masks; the message says why."""


class Pattern(NamedTuple):
    """The addresses with ``address & mask == value``."""

    value: int
    mask: int


Addresses = tuple[Pattern, ...]
EVERY: Final[Addresses] = (Pattern(0, 0),)
NONE: Final[Addresses] = ()


class _Bit(NamedTuple):
    """A bit of the target, 0 the lowest of 128, as it is or inverted."""

    place: int
    inverted: bool = False


_Word = tuple[int | _Bit, ...]  # 64 bits, the lowest first
_Value = _Word | list[Addresses]  # a number, or [the addresses for which it is 1; else it is 0]


# -- sets of addresses -----------------------------------------------------------------------------------


def both(one: Pattern, other: Pattern) -> Pattern | None:
    """The addresses that match both patterns, None where there are none."""
    if (one.value ^ other.value) & one.mask & other.mask:
        return None
    return Pattern(one.value | other.value, one.mask | other.mask)


def _intersect(one: Addresses, other: Addresses) -> Addresses:
    found = (both(mine, theirs) for mine in one for theirs in other)
    return _bounded(pattern for pattern in found if pattern is not None)


def _subtract(these: Addresses, those: Addresses) -> Addresses:
    """The addresses of ``these`` that are not in ``those``."""
    left = these
    for away in those:
        left = _bounded(piece for pattern in left for piece in _without(pattern, away))
    return left


def _without(pattern: Pattern, away: Pattern) -> Iterable[Pattern]:
    if both(pattern, away) is None:
        yield pattern
        return
    value, mask = pattern
    for index in range(127, -1, -1):
        bit = 1 << index
        if away.mask & bit and not mask & bit:
            mask |= bit
            yield Pattern(value | (~away.value & bit), mask)
            value |= away.value & bit


def union(one: Addresses, other: Addresses) -> Addresses:
    """The addresses of either set, as patterns that have none in common."""
    return _bounded((*one, *_subtract(other, one)))


def _bounded(patterns: Iterable[Pattern]) -> Addresses:
    found: list[Pattern] = []
    for pattern in patterns:
        if len(found) >= _MAX_PATTERNS:
            raise NoMaskError(f"it takes more than {_MAX_PATTERNS} masks")
        found.append(pattern)
    return tuple(found)


def _where(bit: int | _Bit, wanted: int) -> Addresses:
    """The addresses for which a bit has a value."""
    if isinstance(bit, int):
        return EVERY if bit == wanted else NONE
    one = 1 << bit.place
    return (Pattern(one if wanted != bit.inverted else 0, one),)


# -- numbers ------------------------------------------------------------------------------------------------


def _constant(number: int) -> _Word:
    return tuple(number >> index & 1 for index in range(_WORD))


def _number(word: _Word) -> int | None:
    """The number that a word always is, None where it depends on the target."""
    if any(isinstance(bit, _Bit) for bit in word):
        return None
    return sum(bit << index for index, bit in enumerate(word) if isinstance(bit, int))


def _equal(word: _Word, number: int) -> Addresses:
    found = EVERY
    for index, bit in enumerate(word):
        found = _intersect(found, _where(bit, number >> index & 1))
    return found


def _below(word: _Word, number: int) -> Addresses:
    """Where a word is less than a number: equal in the high bits, then 0 where the number has 1."""
    found, so_far = NONE, EVERY
    for index in range(_WORD - 1, -1, -1):
        if number >> index & 1:
            found = (*found, *_intersect(so_far, _where(word[index], 0)))
        so_far = _intersect(so_far, _where(word[index], number >> index & 1))
    return _bounded(found)


def _true(value: _Value) -> Addresses:
    """Where a value is not 0."""
    if isinstance(value, list):
        return value[0]
    return _subtract(EVERY, _equal(value, 0))


_COMPUTE: Final[dict[str, Callable[[int, int], int]]] = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    ">>": lambda a, b: a >> b,
    "<<": lambda a, b: a << b,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    ">": lambda a, b: int(a > b),
    ">=": lambda a, b: int(a >= b),
    "&&": lambda a, b: int(bool(a) and bool(b)),
    "||": lambda a, b: int(bool(a) or bool(b)),
}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def _compute(operator: str, one: int, other: int) -> int:
    if operator in ("/", "%") and not other:
        raise NoMaskError("it divides by zero")
    if operator in ("<<", ">>") and other >= _WORD:
        raise NoMaskError("it shifts by more than there are bits")
    return _COMPUTE[operator](one, other) & _ALL_ONES


def _combine(operator: str, one: _Value, other: _Value) -> _Value:
    """What an operator makes of two values."""
    if operator == "&&":
        return [_intersect(_true(one), _true(other))]
    if operator == "||":
        return [union(_true(one), _true(other))]
    if isinstance(one, list) or isinstance(other, list):
        return _by_cases(operator, one, other)
    first, second = _number(one), _number(other)
    if first is not None and second is not None:
        return _constant(_compute(operator, first, second))
    if operator in _MIRRORED:
        if second is not None:
            return [_compare(operator, one, second)]
        if first is not None:
            return [_compare(_MIRRORED[operator], other, first)]
    elif second is not None:
        return _bits(operator, one, second)
    elif first is not None and operator in ("&", "|", "^"):
        return _bits(operator, other, first)
    raise NoMaskError(f"what {operator} makes of the target there is no mask")


def _by_cases(operator: str, one: _Value, other: _Value) -> _Value:
    """The same where one side is the outcome of a comparison, 0 or 1."""
    found = NONE
    for mine, a in _cases(one):
        for theirs, b in _cases(other):
            result = _compute(operator, a, b)
            if result not in (0, 1):
                raise NoMaskError(f"{operator} is used on the outcome of a comparison")
            if result:
                found = union(found, _intersect(mine, theirs))
    return [found]


def _cases(value: _Value) -> list[tuple[Addresses, int]]:
    if isinstance(value, list):
        return [(value[0], 1), (_subtract(EVERY, value[0]), 0)]
    number = _number(value)
    if number is None:
        raise NoMaskError("it compares the target with the outcome of a comparison")
    return [(EVERY, number)]


def _compare(operator: str, word: _Word, number: int) -> Addresses:
    if operator in ("==", "!="):
        found = _equal(word, number)
    elif operator in ("<", ">="):
        found = _below(word, number)
    else:
        found = _below(word, number + 1) if number < _ALL_ONES else EVERY
    return _subtract(EVERY, found) if operator in ("!=", ">", ">=") else found


def _bits(operator: str, word: _Word, number: int) -> _Word:
    """What leaves bits as they are, inverts or moves them."""
    if operator in ("*", "/", "%") and number and not number & (number - 1):
        power = number.bit_length() - 1
        if operator == "%":
            operator, number = "&", number - 1
        else:
            operator, number = ("<<" if operator == "*" else ">>"), power
    if operator in ("<<", ">>"):
        if number >= _WORD:
            raise NoMaskError("it shifts by more than there are bits")
        zeros = (0,) * number
        return (*zeros, *word[: _WORD - number]) if operator == "<<" else (*word[number:], *zeros)
    if operator in ("+", "-") and not number:
        return word
    if operator not in ("&", "|", "^"):
        raise NoMaskError(f"what {operator} makes of the target there is no mask")
    made: list[int | _Bit] = []
    for index, bit in enumerate(word):
        given = number >> index & 1
        if operator == "&":
            made.append(bit if given else 0)
        elif operator == "|":
            made.append(1 if given else bit)
        elif isinstance(bit, int):
            made.append(bit ^ given)
        else:
            made.append(_Bit(bit.place, bit.inverted != bool(given)))
    return tuple(made)


# -- the language ---------------------------------------------------------------------------------------


class Expressions:
    """Reads expression after expression; what one assigns, the next ones see, as in npd6."""

    def __init__(self) -> None:
        self._names: dict[str, _Value] = {
            "HOST": tuple(_Bit(index) for index in range(_WORD)),
            "PREFIX": tuple(_Bit(index + _WORD) for index in range(_WORD)),
        }
        self._tokens: list[str] = []
        self._depth = 0

    def addresses(self, text: str) -> Addresses:
        """The addresses that an expression matches.  Raises NoMaskError."""
        self._tokens = list(reversed(_tokens(text)))
        value: _Value = _constant(0)
        while self._tokens:
            if self._tokens[-1] == ";":
                self._tokens.pop()
                continue
            value = self._sum()
            if self._tokens and self._tokens[-1] != ";":
                raise NoMaskError(f"{self._tokens[-1]} cannot stand where it stands")
        found = _true(value)
        return found if _subtract(EVERY, found) else EVERY

    def _next(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def _take(self, wanted: str = "") -> str:
        token = self._next()
        if not token or (wanted and token != wanted):
            raise NoMaskError(f"{wanted or 'something'} is missing")
        return self._tokens.pop()

    def _sum(self) -> _Value:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NoMaskError("it is nested too deeply")
        value = self._term()
        while self._next() in ("+", "-"):
            operator = self._take()
            value = _combine(operator, value, self._term())
        self._depth -= 1
        return value

    def _term(self) -> _Value:
        value = self._primary()
        while self._next() in _COMPUTE and self._next() not in ("+", "-"):
            operator = self._take()
            value = _combine(operator, value, self._primary())
        return value

    def _primary(self) -> _Value:
        word = self._take()
        if word[0].isdigit():
            return _constant(_read_number(word))
        if word == "(":
            value = self._sum()
            self._take(")")
            return value
        if word in ("-", "+", "~", "!"):
            return self._signed(word)
        if word.lower() in ("abs", "mask"):
            return self._function(word)
        if not (word[0].isalpha() or word[0] in "$."):
            raise NoMaskError(f"{word} cannot stand where it stands")
        if self._next() == "=":
            self._take()
            self._names[word] = self._sum()
        if word not in self._names:
            raise NoMaskError(f"{word} is unknown: npd6 takes it for 0 (it knows PREFIX and HOST)")
        return self._names[word]

    def _signed(self, sign: str) -> _Value:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NoMaskError("it is nested too deeply")
        value = self._primary()
        self._depth -= 1
        if sign == "!":
            return [_subtract(EVERY, _true(value))]
        if sign == "+":
            return value
        if sign == "~" and isinstance(value, tuple):
            return _bits("^", value, _ALL_ONES)
        return _combine("-", _constant(0), value)

    def _function(self, name: str) -> _Value:
        """``mask(a, b)``, the bits from a to b, and ``abs(a)``; of constants."""
        numbers = []
        self._take("(")
        while True:
            value = self._sum()
            number = _number(value) if isinstance(value, tuple) else None
            if number is None:
                raise NoMaskError(f"{name}() of the target is no mask")
            numbers.append(number)
            if self._next() != ",":
                break
            self._take()
        self._take(")")
        if name.lower() == "abs" and len(numbers) == 1:
            return _constant(min(numbers[0], -numbers[0] & _ALL_ONES))
        if name.lower() == "mask" and len(numbers) == 2:
            low, high = sorted(min(number, _WORD - 1) for number in numbers)
            return _constant((1 << high + 1) - (1 << low))
        raise NoMaskError(f"{name}() has the wrong number of arguments")


def _read_number(text: str) -> int:
    """As C reads it: 0x is hexadecimal, a 0 in front octal."""
    digits = text.lower()
    try:
        number = int(digits, 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10)
    except ValueError:
        raise NoMaskError(f"{text} is no number") from None
    return min(number, _ALL_ONES)


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise NoMaskError(f"{text[at]!a} is nothing that npd6 knows")
        found.append(token.group().strip())
        at = token.end()
    return found
