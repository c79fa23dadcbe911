"""Kalman filter with constant velocity for the center of an object.

All noise is in seconds, because the frames of a video may be any time apart, and in shares of the object's longer side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEASUREMENT_NOISE = 0.1  # standard deviation of a box's center
INITIAL_VELOCITY_NOISE = 5.0  # standard deviation of the velocity after one observation, 1/s
PROCESS_NOISE = 0.4  # acceleration noise, 1/s^1.5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KalmanState:
    """State of the filter: center and velocity of an object, with equal variances along both axes.

    Attributes:
        center, velocity: float64 (2,), pixels and pixels/s.
        center_variance, velocity_variance: variances along one axis.
        covariance: of center and velocity.
    """

    center: Array
    velocity: Array
    center_variance: float
    covariance: float
    velocity_variance: float

    @classmethod
    def initial(cls, center: Array, size: float) -> "KalmanState":
        """Return the state after one observation of an object whose longer side is `size` pixels."""
        return cls(center, np.zeros(2), (MEASUREMENT_NOISE * size) ** 2, 0.0, (INITIAL_VELOCITY_NOISE * size) ** 2)

    def predict(self, seconds: float, size: float) -> "KalmanState":
        """Return the predicted state after some seconds."""
        noise = (PROCESS_NOISE * size) ** 2
        return KalmanState(
            self.center + seconds * self.velocity,
            self.velocity,
            self.center_variance
            + 2 * seconds * self.covariance
            + seconds**2 * self.velocity_variance
            + noise * seconds**3 / 3,
            self.covariance + seconds * self.velocity_variance + noise * seconds**2 / 2,
            self.velocity_variance + noise * seconds,
        )

    def update(self, center: Array, size: float) -> "KalmanState":
        """Return the state corrected by a measured center."""
        innovation_variance = self.center_variance + (MEASUREMENT_NOISE * size) ** 2
        center_gain, velocity_gain = self.center_variance / innovation_variance, self.covariance / innovation_variance
        innovation = center - self.center
        return KalmanState(
            self.center + center_gain * innovation,
            self.velocity + velocity_gain * innovation,
            (1 - center_gain) * self.center_variance,
            (1 - center_gain) * self.covariance,
            self.velocity_variance - velocity_gain * self.covariance,
        )
