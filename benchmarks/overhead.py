"""What HTTP, envelope and decoding cost one small picture, with a model that takes no time."""

import http.client
import re
import time
from statistics import mean, median, quantiles

import click

from benchmarks.load import body, served


@click.command()
@click.option("--requests", "number", default=500, show_default=True, help="Sent one after the other.")
def main(number: int) -> None:
    """Prints the median and the 99th percentile, milliseconds."""
    with served(0) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        sent = body().encode()
        times: list[float] = []
        for _ in range(number + 20):
            started = time.perf_counter()
            connection.request("POST", "/process", sent, {"Content-Type": "application/json"})
            connection.getresponse().read()
            times.append((time.perf_counter() - started) * 1e3)
        connection.request("GET", "/metrics")
        told = connection.getresponse().read().decode()
    times = times[20:]
    within = re.findall(r'stage_seconds_(sum|count){stage="decode_file"} (\S+)', told)
    decoding = {name: float(value) for name, value in within}
    click.echo(f"{median(times):.1f} ms at the median, {quantiles(times, n=100)[98]:.1f} ms in 99 of 100")
    click.echo(f"{mean(times):.1f} ms on average")
    click.echo(f"of which decoding the file {decoding['sum'] / decoding['count'] * 1e3:.1f} ms on average")


if __name__ == "__main__":
    main()
