"""Overload: ten times the service's peak load, from locust's users, against a model with an artificial delay.

`python -m benchmarks.load --seconds 60` first measures the service's peak with just enough clients to keep it busy,
then sends ten times as many requests from clients that pause between requests, and prints the outcomes.
"""

import base64
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import click

from florence_tagger.bench.processes import service
from florence_tagger.config import SAMPLES, load_settings

PICTURE = SAMPLES / "street.png"
START_SECONDS = 4  # for the start of the users, one by one; not counted
NUM_USERS = 200  # many more than the queue slots, so that waiting users do not lower the offered load


@dataclass(frozen=True)
class Load:
    """The outcomes of the requests of a run.

    Attributes:
        seconds: duration of the run.
        offered: number of requests that were sent.
        right: number of answers with the right count.
        refused: number of answers with 503 and Retry-After.
        other: number of all other answers, by outcome.
        per_second: right answers per second.
        answered_ms, refused_ms: median and 99th percentile of the latency, None if there are fewer than two answers.
    """

    seconds: float
    offered: int
    right: int
    refused: int
    other: dict[str, int]
    per_second: float
    answered_ms: tuple[float, float] | None
    refused_ms: tuple[float, float] | None


def body() -> str:
    """Return the body of a request with one small picture."""
    content = base64.b64encode(PICTURE.read_bytes()).decode()
    return json.dumps({"documents": [{"id": "street", "source": {"content": content}}]})


def run_users(url: str, num_users: int, pause: float, seconds: float) -> Load:
    """Run locust's users, and return their load.

    Args:
        url: of the service.
        num_users: number of concurrent users.
        pause: mean seconds between an answer and the user's next request.
        seconds: duration, without the users' start.
    """
    with tempfile.TemporaryDirectory() as directory:
        script, outcomes_file = Path(directory) / "users.py", Path(directory) / "outcomes.json"
        script.write_text(LOCUST_SCRIPT.format(pause=pause, outcomes_file=str(outcomes_file), body=body()))
        command = [sys.executable, "-m", "locust", "-f", str(script), "--headless", "--host", url, "--only-summary"]
        command += ["-u", str(num_users), "-r", f"{num_users / START_SECONDS:g}", "-t", f"{START_SECONDS + seconds:g}s"]
        command += ["--exit-code-on-error", "0"]
        command += ["--stop-timeout", "0", "--loglevel", "ERROR"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        outcomes = json.loads(outcomes_file.read_text())
    begin = min(sent_at for sent_at, _, _ in outcomes) + START_SECONDS
    return summary([(outcome, ms) for sent_at, outcome, ms in outcomes if sent_at >= begin], seconds)


# A user of locust keeps its connection alive, as a service that sends many pictures does. Its pauses have random
# lengths: otherwise users that start together would send all their requests at the same moments.
LOCUST_SCRIPT = """
import json
from locust import HttpUser, between, events, task
BODY = '''{body}'''
OUTCOMES = []

class Sender(HttpUser):
    wait_time = between({pause} / 2, {pause} * 3 / 2)

    @task
    def send(self):
        with self.client.post("/process", data=BODY, headers={{"Content-Type": "application/json"}},
                              catch_response=True, timeout=60) as response:
            response.success()
            outcome = str(response.status_code)
            if outcome == "200":
                data = response.json()["data"]
                outcome = "right" if data and data[0]["source"]["content"] == [{{"cat": 1}}] else "wrong"
            elif outcome == "503" and "Retry-After" in response.headers:
                outcome = "refused"
            OUTCOMES.append((response.request_meta["start_time"], outcome, response.request_meta["response_time"]))

@events.quitting.add_listener
def write_outcomes(environment, **_):
    with open({outcomes_file!r}, "w") as file:
        json.dump(OUTCOMES, file)
"""


def summary(outcomes: list[tuple[str, float]], seconds: float) -> Load:
    """Return the load of a run from its requests' outcomes and latencies in milliseconds."""
    counts = Counter(outcome for outcome, _ in outcomes)
    right, refused = counts.pop("right", 0), counts.pop("refused", 0)
    return Load(
        round(seconds, 1),
        len(outcomes),
        right,
        refused,
        dict(counts),
        round(right / seconds, 1),
        percentiles([ms for outcome, ms in outcomes if outcome == "right"]),
        percentiles([ms for outcome, ms in outcomes if outcome == "refused"]),
    )


def percentiles(values: list[float]) -> tuple[float, float] | None:
    """Return the median and the 99th percentile, None for fewer than two values."""
    if len(values) < 2:
        return None
    return round(median(values), 1), round(quantiles(values, n=100)[98], 1)


@contextmanager
def delayed_service(delay: float) -> Iterator[str]:
    """Run a service whose model takes `delay` seconds for a picture; yield its URL."""
    settings = load_settings({"result_cache": 0, "queue_size": 16, "decoder_processes": 1})
    with service(settings, ("benchmarks.injected", "--seconds", str(delay))) as serving:
        yield serving.client.url


def measure(delay: float, seconds: float, times: float) -> tuple[Load, Load]:
    """Return the load at the service's peak, and the load when `times` as many requests are sent."""
    with delayed_service(delay) as url:
        peak = run_users(url, 8, 0, seconds)
        overload = run_users(url, NUM_USERS, NUM_USERS / (times * peak.per_second), seconds)
    return peak, overload


@click.command()
@click.option("--delay", default=0.05, show_default=True, help="Seconds that the model takes for a picture.")
@click.option("--seconds", default=60.0, show_default=True, help="Of each of the two runs.")
@click.option("--times", default=11.2, show_default=True, help="How many times its most is asked of the service.")
def main(delay: float, seconds: float, times: float) -> None:
    """Measure both runs, print them and compare them."""
    peak, overload = measure(delay, seconds, times)
    click.echo(json.dumps({"peak": asdict(peak), "overload": asdict(overload)}, indent=2))
    share = overload.per_second / peak.per_second
    offered = overload.offered / overload.seconds / peak.per_second
    click.echo(f"{offered:.1f} times the peak was asked for; {share:.0%} of the peak was answered.")


if __name__ == "__main__":
    main()
