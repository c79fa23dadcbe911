"""A real service with a fake model of a given duration that can hang: for measuring and testing all other parts.

With `python -m benchmarks.injected --seconds 0.05 --hang FILE` a frame takes 0.05 s, or hangs while FILE exists.
The settings come from the FLORENCE_* variables.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import click

from florence_tagger.config import load_settings
from florence_tagger.florence.manifest import load_manifest
from florence_tagger.schemas import Detection, Frame, FrameResult, Prompt
from florence_tagger.web.logs import configure_logs
from florence_tagger.web.server import Server


@dataclass
class InjectedModel:
    """A model that returns one cat for every frame.

    Attributes:
        seconds: duration of a frame's prefill.
        hang: file; prefill does not return while it exists.
        capacity, exclusive: as in `scheduler.Model`.
        running: frames that are prefilled and not finished.
    """

    seconds: float
    hang: Path
    capacity: int = 1
    exclusive: bool = True
    running: dict[Hashable, Frame] = field(default_factory=dict)

    def prefill(self, frame: Frame, prompt: Prompt) -> Frame:
        """Wait, and return the frame."""
        while self.hang.exists():
            time.sleep(0.05)
        time.sleep(self.seconds)
        return frame

    def add(self, key: Hashable, prefilled: Frame) -> None:
        """Add a frame to the running ones."""
        self.running[key] = prefilled

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        """Finish all running frames with one detection each."""
        finished, self.running = self.running, {}
        return {
            key: FrameResult((Detection("cat", (0.0, 0.0, float(frame.width), float(frame.height)), 0.9),))
            for key, frame in finished.items()
        }


class InjectedServer(Server):
    """The service with an `InjectedModel`."""

    def __init__(self, seconds: float, hang: Path) -> None:
        settings = load_settings()
        configure_logs(settings.log_format)
        self._model = InjectedModel(seconds, hang)
        super().__init__(settings, load_manifest(settings.model_dir))

    def load_model(self) -> InjectedModel:
        """Return the fake model."""
        return self._model


@click.command()
@click.option("--seconds", type=float, default=0.0, help="That a frame takes.")
@click.option("--hang", type=click.Path(path_type=Path), default=Path("/nonexistent"), help="Hangs while this exists.")
def main(seconds: float, hang: Path) -> None:
    """Serve the fake model until a signal stops it."""
    InjectedServer(seconds, hang).run()


if __name__ == "__main__":
    main()
