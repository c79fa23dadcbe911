"""A real service whose model takes as long as it is told, or hangs: for measuring and testing everything around it.

`python -m benchmarks.injected --seconds 0.05 --hang FILE`: a frame takes 0.05 s, and while FILE exists, for ever.
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
    """Finds one cat in every frame.

    Attributes:
        seconds: that a frame takes.
        hang: while this file exists, a frame takes for ever.
    """

    seconds: float
    hang: Path
    capacity: int = 1
    exclusive: bool = True
    under_way: dict[Hashable, Frame] = field(default_factory=dict)

    def encode(self, frame: Frame, prompt: Prompt) -> Frame:
        while self.hang.exists():
            time.sleep(0.05)
        time.sleep(self.seconds)
        return frame

    def start(self, key: Hashable, encoded: Frame) -> None:
        self.under_way[key] = encoded

    def step(self) -> dict[Hashable, FrameResult | Exception]:
        ended, self.under_way = self.under_way, {}
        return {
            key: FrameResult((Detection("cat", (0.0, 0.0, float(frame.width), float(frame.height)), 0.9),))
            for key, frame in ended.items()
        }


class InjectedServer(Server):
    """The service, with that model."""

    def __init__(self, seconds: float, hang: Path) -> None:
        settings = load_settings()
        configure_logs(settings.log_format)
        self._model = InjectedModel(seconds, hang)
        super().__init__(settings, load_manifest(settings.model_dir))

    def load_model(self) -> InjectedModel:
        return self._model


@click.command()
@click.option("--seconds", type=float, default=0.0, help="That a frame takes.")
@click.option("--hang", type=click.Path(path_type=Path), default=Path("/nonexistent"), help="Hangs while this exists.")
def main(seconds: float, hang: Path) -> None:
    """Serves it until told to stop."""
    InjectedServer(seconds, hang).run()


if __name__ == "__main__":
    main()
