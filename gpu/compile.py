"""Compiles all graphs with Intel's driver for real chips, without a GPU: `make gpu-compile`.

Each model is compiled for each chip in a separate process with a time limit. The result is cached below `build/`, so
that an interrupted run can be resumed; a change of the code, the model or the driver invalidates it.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import click

from deploy.debian import ROOT
from florence_tagger.errors import TaggerError
from florence_tagger.florence.manifest import MANIFEST
from florence_tagger.settings_table import replace_section
from gpu.compilation import Result, read_result
from gpu.emulation import SetupError
from gpu.models import GEOMETRIES, PRECISIONS, VARIANTS, Variant, hash_of, make_folder, sources
from gpu.report import BEGIN, END, findings, tables
from gpu.simulation import BUILD, CHIPS, SIMULATION, Chip, Driver, set_up_driver


def compile_for(driver: Driver, chip: Chip, variant: Variant, seconds: float) -> Result:
    """Return the result of a model on a chip: a cached one, or that of a new process of at most `seconds`."""
    if (cached := read_cached(driver, chip, variant)) is not None:
        return cached
    outcome = {"fingerprint": fingerprint(driver, chip, variant.folder), **run(driver, chip, variant.folder, seconds)}
    if not outcome["failure"]:
        write_cached(cached_path(chip, variant), outcome)
    return read_result(chip.name, variant.name, outcome["lines"], outcome["failure"])


def read_cached(driver: Driver, chip: Chip, variant: Variant) -> Result | None:
    """Return the cached result of a model on a chip, or None if it is missing or outdated."""
    path = cached_path(chip, variant)
    if not path.is_file() or not (variant.folder / MANIFEST).is_file():
        return None
    outcome = json.loads(path.read_text())
    if outcome["fingerprint"] != fingerprint(driver, chip, variant.folder):
        return None
    return read_result(chip.name, variant.name, outcome["lines"], outcome["failure"])


def cached_path(chip: Chip, variant: Variant) -> Path:
    """Return the path of the cached result of a model on a chip."""
    return BUILD / "results" / f"{chip.name}-{variant.geometry}-{variant.precision}.json"


def write_cached(path: Path, outcome: dict[str, Any]) -> None:
    """Write an outcome to a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcome, indent=1) + "\n")
    part.replace(path)


def fingerprint(driver: Driver, chip: Chip, folder: Path) -> str:
    """Return a hash of all inputs of a compilation: code, model, driver, chip and OpenVINO's version."""
    code = hash_of([*sources("florence_tagger/florence", "gpu/kernels.py", "gpu/loading.py"), folder / MANIFEST])
    inputs = (code, sorted(driver.versions.items()), chip, SIMULATION, version("openvino"))
    return hashlib.sha256(repr(inputs).encode()).hexdigest()


def run(driver: Driver, chip: Chip, folder: Path, seconds: float) -> dict[str, Any]:
    """Run the process that loads a model folder on a chip; return its lines and the reason of its failure, if any."""
    command, environment = driver.command("-m", "gpu.loading", str(folder)), driver.environment(chip)
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, errors = process.communicate(timeout=seconds)
        failure = f"ended with {process.returncode}: {last_line(errors)}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        failure = f"hangs: nothing in {seconds:.0f} s"
    except BaseException:
        process.kill()
        process.wait()
        raise
    # Only complete lines: the process may have been killed while writing.
    return {"lines": [line for line in printed.splitlines(keepends=True) if line.endswith("}\n")], "failure": failure}


def last_line(text: str) -> str:
    """Return the last nonempty line of a text."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing said")


def compile_all(chips: Sequence[Chip], variants: Sequence[Variant], seconds: float) -> Iterator[Result]:
    """Set up the driver and the model folders, and yield the results; report each on stderr."""
    driver, started = set_up_driver(), time.monotonic()

    def report(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.0f} s  {text}", err=True)

    report(f"driver {driver.version}")
    for number, (variant, chip) in enumerate(product(variants, chips), 1):
        make_folder(variant, report)
        result = compile_for(driver, chip, variant, seconds)
        report(f"{number} of {len(variants) * len(chips)}: {variant.name} for {chip.name}: {summary(result)}")
        yield result


def with_cached(results: Sequence[Result], chips: Sequence[Chip], variants: Sequence[Variant]) -> list[Result]:
    """Return the results of all given chips and models, from `results` or from the cache; leave out missing ones."""
    driver, new = set_up_driver(), {(result.model, result.chip): result for result in results}
    combined = (
        new.get((variant.name, chip.name)) or read_cached(driver, chip, variant)
        for variant, chip in product(variants, chips)
    )
    return [result for result in combined if result is not None]


def summary(result: Result) -> str:
    """Return a one-line summary of a result."""
    return "; ".join(findings(result)) or "all is as it should be"


def made_with(driver: Driver) -> str:
    """Return a sentence with the versions of OpenVINO, the driver and its compiler."""
    compiler = driver.versions["libigc2"]
    return f"OpenVINO {version('openvino')}, Intel's driver {driver.version} with the compiler (IGC) {compiler}."


@click.command()
@click.option(
    "--chip", "chips", multiple=True, type=click.Choice([chip.name for chip in CHIPS]), help="All, unless told."
)
@click.option("--geometry", "geometries", multiple=True, type=click.Choice(GEOMETRIES), help="All, unless told.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)), help="All, unless told.")
@click.option("--seconds", default=1200.0, show_default=True, help="Most for a model on a chip.")
@click.option("--kept", is_flag=True, help="Compile nothing: what was compiled before, and has not changed since.")
@click.option("--update", type=click.Path(path_type=Path, exists=True), help="Page whose tables are made anew.")
def main(
    chips: tuple[str, ...],
    geometries: tuple[str, ...],
    precisions: tuple[str, ...],
    seconds: float,
    kept: bool,
    update: Path | None,
) -> None:
    """Compile all graphs with Intel's driver, which simulates the chips, and print the results as tables.

    --update writes the tables of all chips and models that were compiled, now or before, and names those that were not.
    The exit code is 1 if a graph does not compile, has operations that the plugin does not support, or moves large
    tensors in a step of the decoder.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that child processes are ended, too
    selected_chips = [chip for chip in CHIPS if not chips or chip.name in chips]
    variants = [variant for variant in VARIANTS if variant.geometry in (geometries or GEOMETRIES)]
    variants = [variant for variant in variants if variant.precision in (precisions or PRECISIONS)]
    try:
        results = [] if kept else list(compile_all(selected_chips, variants, seconds))
        if update:
            selected_chips, variants = list(CHIPS), list(VARIANTS)
        results = with_cached(results, selected_chips, variants)
        text = tables(results, selected_chips, variants, made_with(set_up_driver()))
        if update:
            update.write_text(replace_section(update.read_text(), BEGIN, END, text))
        else:
            click.echo(text, nl=False)
    except (SetupError, TaggerError, subprocess.CalledProcessError) as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    sys.exit(any(findings(result) for result in results))


if __name__ == "__main__":
    main()
