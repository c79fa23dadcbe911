"""Overload: ten times what the service can do, from locust's users, against a model with an artificial delay.

`python -m benchmarks.load --seconds 60` first measures the most that the service does for as many clients as keep it
busy, then sends ten times that, each client waiting its time and never for a place, and tells what became of it.
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
START_SECONDS = 4  # in which the users are started, one by one; not counted
USERS = 200  # many more than the places that they ask for, so that those who wait do not slow the others down


@dataclass(frozen=True)
class Load:
    """What became of the requests of a run.

    Attributes:
        offered, right, refused, other: requests that were sent; answered with the right count; with 503; otherwise.
        per_second: right answers a second.
        answered_ms, refused_ms: at the median and in 99 of 100, None where there were none.
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
    """A request with one small picture."""
    content = base64.b64encode(PICTURE.read_bytes()).decode()
    return json.dumps({"documents": [{"id": "street", "source": {"content": content}}]})


def run_users(url: str, users: int, pause: float, seconds: float) -> Load:
    """So many clients for so many seconds, each a request every `pause` seconds at most; 0 is one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        script, told = Path(folder) / "users.py", Path(folder) / "told.json"
        script.write_text(USER.format(pause=pause, told=str(told), body=body()))
        command = [sys.executable, "-m", "locust", "-f", str(script), "--headless", "--host", url, "--only-summary"]
        command += ["-u", str(users), "-r", f"{users / START_SECONDS:g}", "-t", f"{START_SECONDS + seconds:g}s"]
        command += ["--exit-code-on-error", "0"]
        command += ["--stop-timeout", "0", "--loglevel", "ERROR"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        told_outcomes = json.loads(told.read_text())
    begin = min(at for at, _, _ in told_outcomes) + START_SECONDS
    return summary([(what, ms) for at, what, ms in told_outcomes if at >= begin], seconds)


# What a user of locust does. It keeps its connection, as a service does that sends many pictures. Its pauses are of
# random length: users that are started together and keep their pace send all at the same moment, again and again.
USER = """
import json
from locust import HttpUser, between, events, task
BODY = '''{body}'''
OUTCOMES = []

class Sender(HttpUser):
    wait_time = between({pause} / 2, {pause} * 3 / 2)

    @task
    def send(self):
        with self.client.post("/process", data=BODY, headers={{"Content-Type": "application/json"}},
                              catch_response=True, timeout=60) as answer:
            answer.success()
            what = str(answer.status_code)
            if what == "200":
                data = answer.json()["data"]
                what = "right" if data and data[0]["source"]["content"] == [{{"cat": 1}}] else "wrong"
            elif what == "503" and "Retry-After" in answer.headers:
                what = "refused"
            OUTCOMES.append((answer.request_meta["start_time"], what, answer.request_meta["response_time"]))

@events.quitting.add_listener
def tell(environment, **_):
    with open({told!r}, "w") as file:
        json.dump(OUTCOMES, file)
"""


def summary(outcomes: list[tuple[str, float]], seconds: float) -> Load:
    """The figures of a run."""
    counts = Counter(what for what, _ in outcomes)
    right, refused = counts.pop("right", 0), counts.pop("refused", 0)
    return Load(
        round(seconds, 1),
        len(outcomes),
        right,
        refused,
        dict(counts),
        round(right / seconds, 1),
        spread([ms for what, ms in outcomes if what == "right"]),
        spread([ms for what, ms in outcomes if what == "refused"]),
    )


def spread(values: list[float]) -> tuple[float, float] | None:
    """The median and what 99 of 100 stay below."""
    if len(values) < 2:
        return None
    return round(median(values), 1), round(quantiles(values, n=100)[98], 1)


@contextmanager
def served(delay: float) -> Iterator[str]:
    """A service whose model takes `delay` seconds for a picture; its URL."""
    settings = load_settings({"result_cache": 0, "queue_size": 16, "decoder_processes": 1})
    with service(settings, ("benchmarks.injected", "--seconds", str(delay))) as running:
        yield f"http://127.0.0.1:{running.port}"


def measure(delay: float, seconds: float, times: float) -> tuple[Load, Load]:
    """The most that the service does, and what it does when `times` as much is asked of it."""
    with served(delay) as url:
        peak = run_users(url, 8, 0, seconds)
        overload = run_users(url, USERS, USERS / (times * peak.per_second), seconds)
    return peak, overload


@click.command()
@click.option("--delay", default=0.05, show_default=True, help="Seconds that the model takes for a picture.")
@click.option("--seconds", default=60.0, show_default=True, help="Of each of the two runs.")
@click.option("--times", default=11.2, show_default=True, help="How many times its most is asked of the service.")
def main(delay: float, seconds: float, times: float) -> None:
    """Prints both runs and how they compare."""
    peak, overload = measure(delay, seconds, times)
    click.echo(json.dumps({"peak": asdict(peak), "overload": asdict(overload)}, indent=2))
    share = overload.per_second / peak.per_second
    asked = overload.offered / overload.seconds / peak.per_second
    click.echo(f"{asked:.1f} times the peak was asked for; {share:.0%} of the peak was answered.")


if __name__ == "__main__":
    main()
