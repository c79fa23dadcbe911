"""What HTTP, envelope and decoding cost one small picture, with a model that takes no time."""

import http.client
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import click

from benchmarks.load import body, served


@click.command()
@click.option("--requests", "number", default=500, show_default=True, help="Sent one after the other.")
def main(number: int) -> None:
    """Prints the median and the 99th percentile, milliseconds."""
    with tempfile.TemporaryDirectory() as folder, served(0, Path(folder)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        times: list[float] = []
        for _ in range(number + 20):
            started = time.perf_counter()
            connection.request("POST", "/process", body().encode(), {"Content-Type": "application/json"})
            connection.getresponse().read()
            times.append((time.perf_counter() - started) * 1e3)
    times = times[20:]
    click.echo(f"{median(times):.1f} ms at the median, {quantiles(times, n=100)[98]:.1f} ms in 99 of 100")


if __name__ == "__main__":
    main()
