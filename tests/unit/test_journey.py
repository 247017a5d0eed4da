"""VINs are valid and stable; motion is the predecessor's."""

from __future__ import annotations

import math
import random

import pytest
from telemetry.vehicle.journey import MODELS, Journey, check_digit, make_model, make_vin, scaled


@pytest.mark.parametrize("vin", ["1M8GDM9AXKP042788", "11111111111111111"])
def test_check_digits_of_known_vins(vin: str) -> None:
    assert check_digit(vin) == vin[8]


def test_a_vin_is_a_function_of_seed_and_number() -> None:
    vins = [make_vin("seed", number) for number in range(1, 1001)]
    assert vins == [make_vin("seed", number) for number in range(1, 1001)]
    assert len(set(vins) | {make_vin("other", number) for number in range(1, 1001)}) == 2000
    for vin in vins:
        assert len(vin) == 17
        assert not set(vin) & set("IOQ")
        assert vin.isalnum()
        assert vin.upper() == vin
        assert check_digit(vin) == vin[8]


def test_models_are_the_eight() -> None:
    models = [make_model("seed", number) for number in range(200)]
    assert set(models) == set(MODELS)
    assert models == [make_model("seed", number) for number in range(200)]


def test_a_vehicle_scales_each_axis_by_a_factor_below_one() -> None:
    for _ in range(100):
        assert all(0 <= value < most for value, most in zip(scaled((2, 4, 100), random.Random(_)), (2, 4, 100), strict=True))


def test_position_is_velocity_times_time_and_speed_the_norm() -> None:
    journey = Journey((1.0, 2.0, 2.0), origin=(10.0, 0.0, 0.0)).start().advance(3).advance(1)
    assert journey.position == (14.0, 8.0, 8.0)
    assert journey.speed == 3.0


def test_velocity_may_be_a_function_of_the_time_since_the_trip_began() -> None:
    journey = Journey((lambda t: 2 * t, 0.0, 0.0)).start().advance(3)
    assert journey.position == (18.0, 0.0, 0.0)
    assert journey.speed == 6.0


def test_a_trip_that_would_leave_the_frame_begins_again() -> None:
    far = Journey((5000.0, 0.0, -5000.0)).start().advance(199_999)
    assert far.position == (999_995_000.0, 0.0, -999_995_000.0)
    assert far.advance(3) == Journey((5000.0, 0.0, -5000.0)).start()


def test_a_trip_is_started_stopped_and_reset() -> None:
    journey = Journey((1.0, 1.0, 1.0))
    assert journey.advance(5).position == (0.0, 0.0, 0.0)
    driving = journey.start().advance(5)
    standing = driving.stop().advance(5)
    assert standing.position == driving.position
    assert standing.speed == 0.0
    assert driving.speed == pytest.approx(math.sqrt(3))
    assert standing.start().advance(1).position == (6.0, 6.0, 6.0)
    assert driving.reset() == journey
