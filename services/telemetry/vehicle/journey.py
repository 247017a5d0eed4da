"""A vehicle: its VIN, its model, and how it moves. No I/O; randomness comes as an argument or from seed and number.

Motion is the predecessor's: along each axis a velocity in m/s, scaled once per vehicle by a factor in [0, 1), or a function of
the time since the trip began; x(t) = v(t) * t + x0. Speed is the norm of the three velocities. A trip is started, stopped, reset.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from telemetry.record import MAX_POSITION

MODELS = ("Maverick", "Escape", "F-150", "Explorer", "Mustang", "Bronco", "Edge", "Expedition")

# ISO 3779: no I, O, Q; FMVSS 115: what a character counts in the check digit, and the weight of each place.
_CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"
_COUNTS = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 7, 9, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_COUNTS |= {str(digit): digit for digit in range(10)}
_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)

Vector = tuple[float, float, float]
Velocity = float | Callable[[float], float]
"""m/s along one axis: a constant, or a function of the seconds since the trip began."""


def random_for(seed: str, number: int, purpose: str) -> random.Random:
    """Randomness that is the same for the same fleet, vehicle and purpose."""
    digest = hashlib.sha256(f"{seed}\0{number}\0{purpose}".encode()).digest()
    return random.Random(int.from_bytes(digest[:16]))


def check_digit(vin: str) -> str:
    """The ninth character that makes the other sixteen of a VIN valid."""
    remainder = sum(_COUNTS[character] * weight for character, weight in zip(vin, _WEIGHTS, strict=True)) % 11
    return "X" if remainder == 10 else str(remainder)


def make_vin(seed: str, number: int) -> str:
    """The VIN of vehicle `number` of a fleet."""
    rng = random_for(seed, number, "vin")
    vin = "".join(rng.choice(_CHARACTERS) for _ in range(17))
    return vin[:8] + check_digit(vin) + vin[9:]


def make_model(seed: str, number: int) -> str:
    """The model of vehicle `number`, one of MODELS."""
    return random_for(seed, number, "model").choice(MODELS)


def scaled(velocity: Vector, rng: random.Random) -> Vector:
    """A vehicle's own velocity: the fleet's, each axis times a factor in [0, 1)."""
    x, y, z = velocity
    return x * rng.random(), y * rng.random(), z * rng.random()


@dataclass(frozen=True)
class Journey:
    """The state of a trip. origin and position in m, elapsed in s since the trip began."""

    velocity: tuple[Velocity, Velocity, Velocity]
    origin: Vector = (0.0, 0.0, 0.0)
    elapsed: float = 0.0
    moving: bool = False

    def _now(self) -> Vector:
        x, y, z = (each(self.elapsed) if callable(each) else each for each in self.velocity)
        return x, y, z

    @property
    def position(self) -> Vector:
        """Metres from the frame's origin."""
        (vx, vy, vz), (x, y, z), t = self._now(), self.origin, self.elapsed
        return vx * t + x, vy * t + y, vz * t + z

    @property
    def speed(self) -> float:
        """m/s; 0 while the vehicle stands."""
        return math.hypot(*self._now()) if self.moving else 0.0

    def advance(self, seconds: float) -> Journey:
        """The state after some seconds; a vehicle that stands stays where it is.

        A trip that would leave the frame (MAX_POSITION) begins again: a record from out there is invalid, and so would be all
        that follow it.
        """
        if not self.moving:
            return self
        moved = replace(self, elapsed=self.elapsed + seconds)
        return moved if all(abs(each) <= MAX_POSITION for each in moved.position) else self.reset().start()

    def start(self) -> Journey:
        """Begin a trip, or go on with one that was stopped."""
        return replace(self, moving=True)

    def stop(self) -> Journey:
        """Stand."""
        return replace(self, moving=False)

    def reset(self) -> Journey:
        """Back to the origin, standing, as before the trip."""
        return replace(self, elapsed=0.0, moving=False)
