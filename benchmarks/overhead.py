"""The cost of HTTP, envelope and decoding for one small picture, with a model that takes no time."""

import http.client
import re
import time
from statistics import mean, median, quantiles

import click

from benchmarks.load import body, delayed_service

NUM_WARM_UP = 20  # requests that are not counted


@click.command()
@click.option("--requests", "num_requests", default=500, show_default=True, help="Sent one after the other.")
def main(num_requests: int) -> None:
    """Print the median and the 99th percentile, milliseconds."""
    with delayed_service(0) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        request = body().encode()
        times: list[float] = []
        for _ in range(NUM_WARM_UP + num_requests):
            started = time.perf_counter()
            connection.request("POST", "/process", request, {"Content-Type": "application/json"})
            connection.getresponse().read()
            times.append((time.perf_counter() - started) * 1e3)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
    times = times[NUM_WARM_UP:]
    samples = re.findall(r'stage_seconds_(sum|count){stage="decode_file"} (\S+)', metrics)
    decoding = {name: float(value) for name, value in samples}
    click.echo(f"{median(times):.1f} ms at the median, {quantiles(times, n=100)[98]:.1f} ms in 99 of 100")
    click.echo(f"{mean(times):.1f} ms on average")
    click.echo(f"of which decoding the file {decoding['sum'] / decoding['count'] * 1e3:.1f} ms on average")


if __name__ == "__main__":
    main()
