"""What is wrong with a table is told by its field, its value, the rule, and what to do."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from jevons.base.errors import ConfigError
from jevons.config.convert import convert


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Wheel(msgspec.Struct, forbid_unknown_fields=True):
    inches: Annotated[float, Meta(gt=0)]
    colour: Colour = Colour.RED


class Car(msgspec.Struct, forbid_unknown_fields=True):
    wheels: Annotated[list[Wheel], Meta(min_length=1)]
    spare: Wheel | None = None
    named: dict[str, Wheel] = {}
    pair: tuple[Wheel, ...] = ()
    gear: Literal["low", "high"] | None = None
    plate: str = ""


WHEEL = {"inches": 17}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "car: lacks the field 'wheels'"),
        ({"wheels": [{}]}, "car: wheels[0]: lacks the field 'inches'"),
        ({"wheels": []}, "car: wheels: must be array of length >= 1, got []"),
        ({"wheels": [WHEEL, {"inches": -1}]}, "car: wheels[1].inches: must be float > 0.0, got -1"),
        ({"wheels": [{"inches": "big"}]}, "car: wheels[0].inches: must be float, got 'big'"),
        ({"wheels": [{"inches": None}]}, "car: wheels[0].inches: must be float, got null"),
        ({"wheels": [{**WHEEL, "colour": "red "}]}, "car: wheels[0].colour: must be one of red, blue, got 'red '"),
        ({"wheels": [WHEEL], "gear": "mid"}, "car: gear: must be one of high, low, got 'mid'"),
        ({"wheels": [WHEEL], "spare": {"inch": 3}}, "car: spare: has no field 'inch'; did you mean 'inches'?"),
        ({"wheels": [WHEEL], "spare": {"x": 3}}, "car: spare: has no field 'x'; it has inches, colour"),
        ({"wheels": [WHEEL], "pair": [WHEEL, {"x": 3}]}, "car: pair[1]: has no field 'x'; it has inches, colour"),
        ({"wheels": [WHEEL], "named": {"a": {"x": 3}}}, "car: named[...]: has no field 'x'; it has inches, colour"),
        ({"wheels": [WHEEL], "named": {"a": {"inches": "y"}}}, "car: named[...].inches: must be float, got str"),
        ({"wheels": [WHEEL], "plate": ["long"] * 99}, "car: plate: must be str, got ['long', 'long', 'long', "),
    ],
)
def test_an_error_says_what_and_where_and_what_would_be_right(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        convert(table, Car, "car")

    assert str(error.value).startswith(says)
    assert len(str(error.value)) < 120


def test_of_a_table_in_a_file_the_name_goes_before_the_field() -> None:
    with pytest.raises(ConfigError, match=r"^wheels\.front\.inches: must be float > 0\.0, got 0$"):
        convert({"inches": 0}, Wheel, "", "wheels.front")


def test_what_is_right_is_read() -> None:
    assert convert({"wheels": [WHEEL]}, Car, "car") == Car([Wheel(17.0)])
